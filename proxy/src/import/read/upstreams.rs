//! `upstream` and `proxy_pass`: where requests go.

use std::rc::Rc;

use uh_protocol::Address;

use super::Reader;
use crate::config::Sticky;
use crate::import::ledger::Scope;
use crate::import::nginx::{Endpoint, Proxy, Set, Target, Upstream};
use crate::import::syntax::{self, Directive};
use crate::import::table::Class;
use crate::import::values::time;

/// What `proxy_pass` may end with without having a path of its own.
const SAME_PATH: [&str; 3] = ["$request_uri", "$uri$is_args$args", "$uri"];

/// Longer than any address with its path.
const MAX_ADDRESS: usize = 4096;

/// An address as uh-proxy writes it.
fn address(text: &str) -> Option<String> {
    let port_missing = match text.rsplit_once(']') {
        Some((_, after)) => after.is_empty(),
        None => !text.contains(':'),
    };
    let text =
        if text.starts_with("unix:") || !port_missing { text.to_owned() } else { format!("{text}:80") };
    text.parse::<Address>().ok().map(|_| text)
}

fn endpoint(server: &Directive) -> Option<Endpoint> {
    let is_standby = server.args.iter().skip(1).any(|arg| matches!(arg.as_str(), "backup" | "down"));
    address(server.arg(0)).map(|address| Endpoint { address, is_standby })
}

/// A commented-out `server`.
fn standby(comment: &str) -> Option<Endpoint> {
    let text = comment.split_inclusive(';').next()?;
    let block = syntax::parse(&Rc::from(""), text).ok()?;
    let server = block.directives.first().filter(|directive| directive.name == "server")?;
    endpoint(server).map(|endpoint| Endpoint { is_standby: true, ..endpoint })
}

/// What binds a client to a server.
fn sticky(directive: &Directive) -> Option<Sticky> {
    match (directive.name.as_str(), directive.arg(0)) {
        ("ip_hash", _) | ("hash", "$remote_addr" | "$binary_remote_addr") => Some(Sticky::Address),
        ("sticky", "cookie") => Sticky::by_cookie(directive.arg(1)),
        _ => None,
    }
}

impl Reader {
    pub(super) fn upstream(&mut self, upstream: &Directive) {
        let mut found = Upstream {
            name: upstream.arg(0).to_owned(),
            id: upstream.id,
            endpoints: Vec::new(),
            idle: None,
            sticky: None,
        };
        for directive in upstream.inner() {
            match directive.name.as_str() {
                "server" => self.endpoint(directive, &mut found),
                "keepalive_timeout" => match time(directive.arg(0)) {
                    Some(value) => {
                        found.idle = Some(Set { value, id: directive.id });
                        self.ledger.carried(directive, Scope::Main);
                    }
                    None => self.ledger.look(directive, Scope::Main, "not a time"),
                },
                "keepalive_requests" => {
                    self.ledger.set(
                        directive.id,
                        Class::NotNeeded,
                        Scope::Main,
                        "connections to the app are kept until they are idle",
                    );
                }
                "ip_hash" | "hash" | "sticky" => match sticky(directive) {
                    Some(sticky) => {
                        found.sticky = Some(sticky);
                        self.ledger.carried(directive, Scope::Main);
                    }
                    None => self.ledger.by_table(directive, Class::Changes, Scope::Main),
                },
                _ => self.ledger.rest(directive, Scope::Main),
            }
        }
        let comments = upstream.block.iter().flat_map(|block| &block.comments);
        let standbys = comments.filter_map(|(_, text)| standby(text));
        let known: Vec<String> = found.endpoints.iter().map(|endpoint| endpoint.address.clone()).collect();
        found.endpoints.extend(standbys.filter(|standby| !known.contains(&standby.address)));
        if found.endpoints.is_empty() {
            self.ledger.changes(upstream, Scope::Main, "it has no server that uh-proxy can connect to");
        } else {
            self.ledger.carried(upstream, Scope::Main);
        }
        self.upstreams.push(found);
    }

    fn endpoint(&mut self, server: &Directive, upstream: &mut Upstream) {
        let Some(endpoint) = endpoint(server) else {
            let why = "not an address: use host:port, [IPv6]:port or unix:/path";
            return self.ledger.changes(server, Scope::Main, why);
        };
        upstream.endpoints.push(endpoint);
        let weighted = |arg: &String| arg.strip_prefix("weight=").is_some_and(|weight| weight != "1");
        let limited = |arg: &String| arg.starts_with("max_conns=") || arg.starts_with("service=");
        if server.args.iter().any(weighted) {
            self.ledger.by_table(server, Class::Changes, Scope::Main);
        } else if server.args.iter().any(limited) {
            self.ledger.changes(server, Scope::Main, "without max_conns and service");
        } else {
            self.ledger.carried(server, Scope::Main);
        }
    }

    /// Where a `proxy_pass` leads; or why it can't be read.
    pub(super) fn proxy(&mut self, pass: &Directive, scope: Scope) -> Option<Proxy> {
        let mut text = pass.arg(0).to_owned();
        for (name, variable) in self.variables.iter_mut().rev() {
            // Variables that contain each other would grow without end.
            if text.len() > MAX_ADDRESS {
                break;
            }
            for written in [format!("${{{name}}}"), format!("${name}")] {
                if let Some(value) = variable.text.as_ref().filter(|_| text.contains(&written)) {
                    text = text.replace(&written, value);
                    variable.used = true;
                }
            }
        }
        if let Some(rest) = SAME_PATH.iter().find_map(|end| text.strip_suffix(end)) {
            text.truncate(rest.trim_end_matches('/').len());
        }
        let tls = text.starts_with("https://");
        let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
            self.ledger.changes(pass, scope, "expected http:// and an address or an upstream");
            return None;
        };
        let (authority, uri) = split(rest);
        let target = if self.upstreams.iter().any(|upstream| upstream.name == authority) {
            Some(Target::Upstream(authority.to_owned()))
        } else {
            let with_port = if tls && !authority.contains(':') {
                format!("{authority}:443")
            } else {
                authority.to_owned()
            };
            address(&with_port).map(Target::Address)
        };
        let Some(target) = target.filter(|_| !text.contains('$')) else {
            self.ledger.changes(
                pass,
                scope,
                "the address must be fixed: uh-proxy knows no variables; name it",
            );
            return None;
        };
        if tls {
            self.ledger.by_table(pass, Class::Changes, scope);
        } else {
            self.ledger.carried(pass, scope);
        }
        Some(Proxy { target, uri: uri.map(str::to_owned), id: pass.id })
    }
}

/// The address and the path.
fn split(rest: &str) -> (&str, Option<&str>) {
    if let Some(socket) = rest.strip_prefix("unix:") {
        return match socket.split_once(':') {
            Some((path, uri)) => (&rest[.."unix:".len() + path.len()], Some(uri)),
            None => (rest, None),
        };
    }
    match rest.find('/') {
        Some(at) => (&rest[..at], Some(&rest[at..])),
        None => (rest, None),
    }
}
