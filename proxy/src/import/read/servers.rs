//! `server`: where it listens, for which hosts, with which certificate.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::extras::inherited;
use super::{Reader, Variable};
use crate::import::ledger::Scope;
use crate::import::nginx::{Action, Redirect, Server, Settings};
use crate::import::syntax::Directive;
use crate::import::table::{self, Class};

/// What a `listen` asks for.
struct Listen {
    address: SocketAddr,
    tls: bool,
}

/// Where to listen, as uh-proxy writes it.
fn listen(directive: &Directive) -> Option<Listen> {
    let text = directive.arg(0);
    let address = if let Ok(port) = text.parse::<u16>() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
    } else if let Ok(address) = text.parse::<SocketAddr>() {
        address
    } else if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        SocketAddr::new(address, 80)
    } else {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, "80"));
        let address = match host {
            "*" => Ipv4Addr::UNSPECIFIED,
            "localhost" => Ipv4Addr::LOCALHOST,
            _ => return None,
        };
        SocketAddr::new(IpAddr::V4(address), port.parse().ok()?)
    };
    Some(Listen {
        address,
        tls: directive.args.iter().any(|arg| matches!(arg.as_str(), "ssl" | "quic" | "http3")),
    })
}

/// A host as `hosts` lists it.
fn hosts(name: &str) -> Option<Vec<String>> {
    let name = name.to_ascii_lowercase();
    let plain = |name: &str| {
        let labels = name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        });
        labels && name.len() <= 240
    };
    match name.strip_prefix('.') {
        Some(rest) if plain(rest) => Some(vec![rest.to_owned(), format!("*.{rest}")]),
        _ if plain(name.strip_prefix("*.").unwrap_or(&name)) => Some(vec![name]),
        _ => None,
    }
}

impl Reader {
    pub(super) fn server(&mut self, directive: &Directive, outer: &Settings) {
        let scope = Scope::Server(self.servers.len());
        self.variables = variables(directive);
        self.ledger.carried(directive, scope);
        let mut server = Server {
            scope,
            id: directive.id,
            hosts: Vec::new(),
            plain: Vec::new(),
            tls: Vec::new(),
            action: Action::None,
            action_id: None,
            host_redirects: Vec::new(),
            settings: inherited(outer, directive.inner()),
            locations: Vec::new(),
            is_default: false,
        };
        let mut any_host = true;
        let (mut certificate, mut key) = (None, None);
        for inner in directive.inner() {
            match inner.name.as_str() {
                "location" => {}
                "listen" => self.listen(inner, &mut server),
                "server_name" => any_host = self.server_name(inner, &mut server),
                "ssl_certificate" => certificate = Some(self.file(inner, scope)),
                "ssl_certificate_key" => key = Some(self.file(inner, scope)),
                "return" => self.server_return(inner, &mut server),
                "rewrite" => self.server_rewrite(inner, &mut server),
                "if" => self.server_if(inner, &mut server),
                "set" => {}
                _ => self.setting(inner, &mut server.settings, scope),
            }
        }
        if any_host {
            server.hosts.clear();
        }
        if server.plain.is_empty() && server.tls.is_empty() {
            server.plain.push("0.0.0.0:80".to_owned());
        }
        self.listeners(&server);
        let of_http = self.certificate.clone();
        let pair = certificate.or(of_http.0).zip(key.or(of_http.1)).filter(|_| !server.tls.is_empty());
        if let Some(pair) = pair
            && !self.keys.certificates.contains(&pair)
        {
            self.keys.certificates.push(pair);
        }
        for location in directive.inner().iter().filter(|inner| inner.name == "location") {
            self.location(location, &server.settings.clone(), &mut server);
        }
        self.serve_rest(directive, &mut server);
        let class = |used| if used { Class::Carried } else { Class::Look };
        for variable in std::mem::take(&mut self.variables).into_values() {
            let why = if variable.used { String::new() } else { table::words("set", Class::Look) };
            for id in variable.ids {
                self.ledger.set(id, class(variable.used), scope, why.as_str());
            }
        }
        self.servers.push(server);
    }

    fn listeners(&mut self, server: &Server) {
        for (from, to) in [(&server.plain, &mut self.keys.listen), (&server.tls, &mut self.keys.listen_tls)] {
            for address in from {
                if !to.contains(address) {
                    to.push(address.clone());
                }
            }
        }
    }

    fn listen(&mut self, directive: &Directive, server: &mut Server) {
        let Some(listen) = listen(directive) else {
            return self.ledger.by_table(directive, Class::Changes, server.scope);
        };
        let has = |word: &str| directive.args.iter().any(|arg| arg == word);
        let list = if listen.tls { &mut server.tls } else { &mut server.plain };
        let address = listen.address.to_string();
        if !list.contains(&address) {
            list.push(address);
        }
        server.is_default |= has("default_server") || has("default");
        if has("proxy_protocol") {
            self.keys.proxy_protocol.push((directive.id, server.scope));
        }
        self.ledger.carried(directive, server.scope);
    }

    /// Returns whether it stands for any host.
    fn server_name(&mut self, directive: &Directive, server: &mut Server) -> bool {
        let mut any = directive.args.is_empty();
        let mut unknown = false;
        for name in &directive.args {
            if matches!(name.as_str(), "_" | "" | "*" | "$hostname") {
                any |= directive.args.len() == 1;
                continue;
            }
            match hosts(name) {
                Some(hosts) => {
                    for host in hosts {
                        if !server.hosts.contains(&host) {
                            server.hosts.push(host);
                        }
                    }
                }
                None => unknown = true,
            }
        }
        if unknown {
            self.ledger.by_table(directive, Class::Changes, server.scope);
        } else {
            self.ledger.carried(directive, server.scope);
        }
        any || server.hosts.is_empty()
    }

    /// A certificate or its key.
    pub(super) fn file(&mut self, directive: &Directive, scope: Scope) -> String {
        let path = directive.arg(0);
        if path.starts_with('/') {
            self.ledger.carried(directive, scope);
        } else if path.starts_with("data:") || path.starts_with("engine:") || path.contains('$') {
            self.ledger.changes(directive, scope, "certificates and keys are PEM files");
        } else {
            self.ledger.look(
                directive,
                scope,
                "relative to nginx's directory; write the whole path into `server.tls.certificates`",
            );
        }
        path.to_owned()
    }

    fn server_return(&mut self, directive: &Directive, server: &mut Server) {
        if server.action_id.is_some() {
            let why = "an earlier redirect or return answers all requests";
            return self.ledger.set(directive.id, Class::NotNeeded, server.scope, why);
        }
        server.action = self.answer(directive, server.scope);
        server.action_id = Some(directive.id);
    }

    /// `rewrite ^ https://$host$request_uri? permanent;`
    fn server_rewrite(&mut self, directive: &Directive, server: &mut Server) {
        let flag = directive.arg(2);
        let every =
            matches!(directive.arg(0), "^" | "^/(.*)$" | "^(.*)$" | "^/(.*)" | "^(.*)" | ".*" | "(.*)");
        let target = directive
            .arg(1)
            .trim_end_matches('?')
            .replace("/$1", "$request_uri")
            .replace("$1", "$request_uri");
        match super::locations::redirect(&target) {
            Some(redirect) if every && matches!(flag, "permanent" | "redirect") => {
                self.ledger.carried(directive, server.scope);
                server.action = Action::Redirect(redirect);
                server.action_id = Some(directive.id);
            }
            _ => self.ledger.by_table(directive, Class::Look, server.scope),
        }
    }

    /// `if ($host = www.example.com) { return 301 …; }`, and `if ($scheme = http)`.
    fn server_if(&mut self, directive: &Directive, server: &mut Server) {
        let scope = server.scope;
        let condition = directive.args.join(" ");
        let condition = condition.trim_start_matches('(').trim_end_matches(')').trim();
        let inner: Vec<&Directive> = directive.inner().iter().collect();
        let redirect = match inner.as_slice() {
            [answer] if answer.name == "return" => {
                super::locations::redirect(answer.arg(answer.args.len().saturating_sub(1)))
            }
            [answer] if answer.name == "rewrite" && answer.arg(0).starts_with('^') => {
                super::locations::redirect(
                    &answer
                        .arg(1)
                        .trim_end_matches('?')
                        .replace("/$1", "$request_uri")
                        .replace("$1", "$request_uri"),
                )
            }
            _ => None,
        };
        let plain = matches!(
            condition,
            "$scheme = http"
                | "$scheme != https"
                | "$scheme = \"http\""
                | "$server_port = 80"
                | "$https = "
                | "$ssl_protocol = "
        );
        let host = ["$host = ", "$http_host = "]
            .iter()
            .find_map(|start| condition.strip_prefix(start))
            .and_then(hosts);
        let done = match (redirect, host, plain) {
            (Some(Redirect::Https), _, true) => {
                server.host_redirects.push((String::new(), Redirect::Https));
                true
            }
            (Some(redirect), Some(hosts), _) if redirect != Redirect::Other => {
                server.host_redirects.extend(hosts.into_iter().map(|host| (host, redirect.clone())));
                true
            }
            _ => false,
        };
        let class = if done { Class::Carried } else { Class::Look };
        self.ledger.by_table(directive, class, scope);
        self.ledger.inside(directive, class, scope);
    }
}

/// The variables that a server sets, in its locations too.
fn variables(server: &Directive) -> BTreeMap<String, Variable> {
    let mut found: BTreeMap<String, Variable> = BTreeMap::new();
    let mut directives: Vec<&Directive> = server.inner().iter().collect();
    while let Some(directive) = directives.pop() {
        directives.extend(directive.inner());
        if directive.name != "set" {
            continue;
        }
        let name = directive.arg(0).trim_start_matches('$').to_owned();
        if name.is_empty() {
            continue;
        }
        let text = directive.arg(1).to_owned();
        match found.get_mut(&name) {
            Some(variable) => {
                variable.ids.push(directive.id);
                variable.text = variable.text.take().filter(|old| *old == text);
            }
            None => {
                found.insert(name, Variable { text: Some(text), ids: vec![directive.id], used: false });
            }
        }
    }
    found
}
