//! `location`: which requests it is for, and what happens to them.

use hyper::header::HeaderValue;
use uh_http1::field::is_host;

use super::Reader;
use super::extras::inherited;
use crate::import::ledger::Scope;
use crate::import::nginx::{Action, Location, Pattern, Redirect, Reply, Server, Settings};
use crate::import::syntax::Directive;
use crate::import::table::Class;
use crate::import::values::{self, Paths};

/// The longest body of a fixed answer.
const MAX_BODY: usize = 64 << 10;

/// `return` comes before everything else in a location.
const RETURNED: &str = "a return in its location answers all requests";

/// Where certificate authorities look for proofs.
pub(in crate::import) const ACME: &str = "/.well-known/acme-challenge";

/// Where a redirect leads, if it keeps the path.
pub(super) fn redirect(target: &str) -> Option<Redirect> {
    let Some(start) =
        ["$request_uri", "$uri$is_args$args", "$uri"].iter().find_map(|end| target.strip_suffix(end))
    else {
        return (target.contains("://") || target.starts_with('/')).then_some(Redirect::Other);
    };
    let (scheme, host) = start.split_once("://")?;
    let https = match scheme {
        "https" => true,
        "http" | "$scheme" => false,
        _ => return None,
    };
    match host {
        "$host" | "$http_host" | "$server_name" if https => Some(Redirect::Https),
        "$host" | "$http_host" | "$server_name" => Some(Redirect::Other),
        host if host.contains(['$', '/', ':']) => Some(Redirect::Other),
        host => Some(Redirect::Host { host: host.to_ascii_lowercase(), https }),
    }
}

/// Which requests a location is for.
pub(super) fn pattern(location: &Directive) -> Pattern {
    let (modifier, text) = match location.args.as_slice() {
        [modifier, text] => (modifier.as_str(), text.as_str()),
        [text] => {
            let glued = ["~*", "^~", "~", "="].into_iter().find(|modifier| text.starts_with(modifier));
            glued.map_or(("", text.as_str()), |modifier| (modifier, &text[modifier.len()..]))
        }
        _ => return Pattern::Unknown,
    };
    let odd = |b: u8| b <= b' ' || matches!(b, b'?' | b'#' | 0x7f);
    let is_path = |text: &str| {
        text.starts_with('/')
            && !text.bytes().any(odd)
            && !text.split('/').any(|segment| matches!(segment, "." | ".."))
    };
    match modifier {
        "" if text.starts_with('@') => Pattern::Named(text.to_owned()),
        "" | "^~" if is_path(text) => Pattern::Prefix { path: text.to_owned(), first: modifier == "^~" },
        "=" if is_path(text) => Pattern::Exact(text.to_owned()),
        "~" | "~*" => match values::regex(text) {
            Some(Paths::Prefixes(paths)) if paths.iter().all(|path| is_path(path)) => {
                Pattern::Prefixes(paths)
            }
            Some(Paths::Exact(paths)) if paths.iter().all(|path| is_path(path)) => Pattern::ExactList(paths),
            Some(Paths::Suffixes(below, suffixes))
                if below.iter().chain(&suffixes).all(|part| !part.bytes().any(odd)) =>
            {
                Pattern::Suffixes { below, suffixes }
            }
            _ => Pattern::Unknown,
        },
        _ => Pattern::Unknown,
    }
}

/// Whether it is where certificate authorities look for proofs.
pub(in crate::import) fn is_acme(pattern: &Pattern) -> bool {
    match pattern {
        Pattern::Prefix { path, .. } | Pattern::Exact(path) => path.starts_with(ACME),
        _ => false,
    }
}

/// The prefix that `rewrite ^/api/(.*)$ /$1 break;` removes.
fn stripped(rewrite: &Directive) -> Option<String> {
    let rest = rewrite.arg(0).strip_prefix('^')?;
    let rest = rest.strip_suffix('$').unwrap_or(rest);
    let (prefix, to) = match rest {
        rest if rest.ends_with("(/.*)") => (rest.strip_suffix("(/.*)")?, "$1"),
        rest if rest.ends_with("/?(.*)") => (rest.strip_suffix("/?(.*)")?, "/$1"),
        rest => (rest.strip_suffix("/(.*)")?, "/$1"),
    };
    let plain = prefix.starts_with('/') && !prefix.contains(['(', '[', '*', '+', '?', '|', '$', '\\', '{']);
    (plain && rewrite.arg(1) == to && matches!(rewrite.arg(2), "break" | "last" | ""))
        .then(|| prefix.to_owned())
}

impl Reader {
    /// Reads a location, and those within it.
    pub(super) fn location(&mut self, directive: &Directive, outer: &Settings, server: &mut Server) {
        let scope = Scope::Location(self.locations);
        self.locations += 1;
        let mut location = Location {
            scope,
            id: directive.id,
            pattern: pattern(directive),
            settings: inherited(outer, directive.inner()),
            action: Action::None,
            inner: directive
                .inner()
                .iter()
                .filter(|inner| inner.name != "location")
                .map(|inner| inner.id)
                .collect(),
            strips: None,
        };
        self.ledger.carried(directive, scope);
        if location.pattern == Pattern::Unknown {
            self.ledger.by_table(directive, Class::Changes, scope);
        }
        let (mut content_type, mut returned) = (None, false);
        for inner in directive.inner() {
            match inner.name.as_str() {
                "location" => {}
                "proxy_pass" => {
                    if let Some(proxy) = self.proxy(inner, scope) {
                        if returned {
                            self.ledger.look(inner, scope, RETURNED);
                        } else {
                            location.action = Action::Proxy(proxy);
                        }
                    }
                }
                "return" if returned => self.ledger.set(inner.id, Class::NotNeeded, scope, RETURNED),
                "return" => {
                    let action = self.answer(inner, scope);
                    if action == Action::None {
                        continue;
                    }
                    if let Action::Proxy(proxy) = &location.action {
                        self.ledger.set(proxy.id, Class::Look, scope, RETURNED);
                    }
                    (location.action, returned) = (action, true);
                }
                "default_type" => {
                    content_type = Some(inner.arg(0).to_owned());
                    self.ledger.rest(inner, scope);
                }
                "rewrite" => match stripped(inner) {
                    Some(prefix) => {
                        location.strips = Some(prefix);
                        self.ledger.carried(inner, scope);
                    }
                    None => self.ledger.by_table(inner, Class::Look, scope),
                },
                "if" => {
                    self.ledger.by_table(inner, Class::Look, scope);
                    self.ledger.inside(inner, Class::Look, scope);
                }
                "set" => {}
                "root" | "alias" | "try_files" | "allow" | "auth_basic" if is_acme(&location.pattern) => {
                    self.ledger.look(inner, scope, format!("as location in {}", directive.place));
                }
                "limit_except" => self.ledger.rest(inner, scope),
                _ => self.setting(inner, &mut location.settings, scope),
            }
        }
        match &mut location.action {
            Action::Reply(Reply::Answer { content_type: slot, body, .. }, _) if !body.is_empty() => {
                *slot = content_type.filter(|kind| !kind.is_empty() && HeaderValue::try_from(kind).is_ok());
            }
            action @ Action::Refuse => {
                // Only a server may refuse hosts; a location answers.
                if let Some(answer) = directive.inner().iter().find(|inner| inner.name == "return") {
                    *action = self.answered(answer, answer.arg(0), "", scope);
                }
            }
            _ => {}
        }
        if let Some(internal) = directive.inner().iter().find(|inner| inner.name == "internal") {
            if let Action::Proxy(proxy) = &location.action {
                self.ledger.set(proxy.id, Class::Look, scope, "its location is internal, so clients get 404");
            }
            let reply = Reply::Answer { status: 404, body: String::new(), content_type: None };
            location.action = Action::Reply(reply, internal.id);
        }
        self.serve(directive, &mut location);
        let settings = location.settings.clone();
        server.locations.push(location);
        for inner in directive.inner().iter().filter(|inner| inner.name == "location") {
            self.location(inner, &settings, server);
        }
    }

    /// `return`
    pub(super) fn answer(&mut self, directive: &Directive, scope: Scope) -> Action {
        let (code, text) = match directive.args.as_slice() {
            [url] if url.contains("://") => ("302", url.as_str()),
            [code] => (code.as_str(), ""),
            [code, text] => (code.as_str(), text.as_str()),
            _ => ("", ""),
        };
        match (code, text) {
            ("301" | "302" | "303" | "307" | "308", target) => {
                let redirect = redirect(target).unwrap_or(Redirect::Other);
                if redirect == Redirect::Other {
                    return self.redirected(directive, code, target, scope);
                } else if matches!(code, "301" | "308") {
                    self.ledger.carried(directive, scope);
                } else {
                    self.ledger.look(directive, scope, "carried over as a permanent redirect (308)");
                }
                Action::Redirect(redirect)
            }
            ("444" | "403" | "404" | "421", "") => Action::Refuse,
            _ => self.answered(directive, code, text, scope),
        }
    }

    /// A redirect to another path.
    fn redirected(&mut self, directive: &Directive, code: &str, target: &str, scope: Scope) -> Action {
        // Where the query is kept, uh-proxy needs no variable.
        let query = ["$is_args$args", "$is_args$query_string", "?$args", "?$query_string"];
        let kept =
            query.iter().find_map(|end| target.strip_suffix(end)).filter(|to| !to.contains(['?', '#']));
        let (target, query) = kept.map_or((target, false), |to| (to, true));
        let plain =
            target.bytes().all(|b| (b'!'..0x7f).contains(&b) && !matches!(b, b'\\' | b'"' | b'<' | b'>'));
        let path = target.starts_with('/') && !target.starts_with("//");
        let host = target.strip_prefix("https://").and_then(|rest| rest.split(['/', '?', '#']).next());
        let leads = path || host.is_some_and(|host| is_host(host.as_bytes()));
        if !plain || !leads || target.contains('$') {
            let why = "a redirect leads to a path or to https, without variables; answer it in the app";
            self.ledger.changes(directive, scope, why);
            return Action::Redirect(Redirect::Other);
        }
        self.ledger.carried(directive, scope);
        // nginx doesn't append the query.
        let to = if query || target.contains(['?', '#']) { target.to_owned() } else { format!("{target}?") };
        Action::Reply(Reply::Redirect { status: code.parse().unwrap_or(308), to }, directive.id)
    }

    /// A fixed answer.
    fn answered(&mut self, directive: &Directive, code: &str, text: &str, scope: Scope) -> Action {
        let status = code
            .parse::<u16>()
            .ok()
            .filter(|status| (200..300).contains(status) || (400..600).contains(status));
        let body = !matches!(status, Some(204 | 205)) || text.is_empty();
        match status.filter(|_| body && !text.contains('$') && text.len() <= MAX_BODY && code != "444") {
            Some(status) => {
                self.ledger.carried(directive, scope);
                Action::Reply(
                    Reply::Answer { status, body: text.to_owned(), content_type: None },
                    directive.id,
                )
            }
            None if code == "444" => {
                let why =
                    "connections aren't closed without an answer; write `return 404;`, and import again";
                self.ledger.changes(directive, scope, why);
                Action::None
            }
            None => {
                self.ledger.by_table(directive, Class::Changes, scope);
                Action::None
            }
        }
    }
}
