//! Directives → what they mean: [`Nginx`], with an entry in the ledger for each.

mod extras;
mod gzip;
mod keys;
mod locations;
mod served;
mod servers;
mod settings;
mod upstreams;

use std::collections::BTreeMap;

pub(super) use keys::{Hsts, Keys};
pub(super) use locations::{ACME, is_acme};

use super::files::Source;
use super::ledger::{Ledger, Scope};
use super::nginx::{Rate, Server, Settings, Upstream};
use super::syntax::Directive;
use super::table::Class;

/// A configuration of nginx as far as it is understood.
#[derive(Debug)]
pub(super) struct Nginx {
    pub(super) keys: Keys,
    pub(super) upstreams: Vec<Upstream>,
    pub(super) servers: Vec<Server>,
    pub(super) ledger: Ledger,
}

/// Reads all directives.
pub(super) fn read(source: &Source) -> Nginx {
    let mut reader = Reader {
        ledger: Ledger::new(source.count),
        keys: Keys::default(),
        upstreams: Vec::new(),
        servers: Vec::new(),
        locations: 0,
        formats: BTreeMap::new(),
        zones: BTreeMap::new(),
        certificate: (None, None),
        is_guarded: false,
        variables: BTreeMap::new(),
    };
    reader.main(&source.root.directives);
    Nginx { keys: reader.keys, upstreams: reader.upstreams, servers: reader.servers, ledger: reader.ledger }
}

/// A variable that is set to a text.
struct Variable {
    /// `None`: to different ones.
    text: Option<String>,
    ids: Vec<usize>,
    /// Whether a `proxy_pass` uses it.
    used: bool,
}

struct Reader {
    ledger: Ledger,
    keys: Keys,
    upstreams: Vec<Upstream>,
    servers: Vec<Server>,
    /// How many there are so far, in all servers.
    locations: usize,
    /// Whether each log format has the request time.
    formats: BTreeMap<String, bool>,
    /// The zones of `limit_req`.
    zones: BTreeMap<String, Rate>,
    /// The certificate and the key of servers without their own.
    certificate: (Option<String>, Option<String>),
    /// Whether files of the server that is read must not be served.
    is_guarded: bool,
    /// Of the server that is read.
    variables: BTreeMap<String, Variable>,
}

impl Reader {
    /// The file itself. It may be what is included in `http`.
    fn main(&mut self, directives: &[Directive]) {
        let mut http = Vec::new();
        for directive in directives {
            match directive.name.as_str() {
                "http" => {
                    self.ledger.carried(directive, Scope::Main);
                    http.extend(directive.inner());
                }
                "worker_processes" => self.threads(directive),
                "events" => {
                    self.ledger.rest(directive, Scope::Main);
                    directive.inner().iter().for_each(|inner| self.ledger.rest(inner, Scope::Main));
                }
                _ => http.push(directive),
            }
        }
        self.http(&http);
    }

    fn http(&mut self, directives: &[&Directive]) {
        let named = |name: &'static str| directives.iter().filter(move |d| d.name == name);
        named("upstream").for_each(|upstream| self.upstream(upstream));
        named("log_format").for_each(|format| self.log_format(format));
        named("limit_req_zone").for_each(|zone| self.limit_req_zone(zone));
        let mut settings = Settings::default();
        for directive in directives {
            match directive.name.as_str() {
                "upstream" | "log_format" | "limit_req_zone" | "server" => {}
                "map" => self.map(directive),
                "ssl_certificate" => self.certificate.0 = Some(self.file(directive, Scope::Main)),
                "ssl_certificate_key" => self.certificate.1 = Some(self.file(directive, Scope::Main)),
                _ => self.setting(directive, &mut settings, Scope::Main),
            }
        }
        let guards_all = directives.iter().any(|other| other.name != "server" && served::is_guarded(other));
        for server in named("server") {
            self.is_guarded = guards_all || served::is_guarded(server);
            self.server(server, &settings);
        }
        directives.iter().for_each(|directive| self.unused(directive, Scope::Main));
    }

    fn map(&mut self, map: &Directive) {
        let class = if map.arg(0) == "$http_upgrade" { Class::NotNeeded } else { Class::Look };
        self.ledger.by_table(map, class, Scope::Main);
        self.ledger.inside(map, class, Scope::Main);
    }
}
