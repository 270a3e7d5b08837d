//! Which services there are: one for each app, host and path.

use super::redirects::Redirects;
use super::{Backends, Rule, Service, Site, Spot, denied, is_under};
use crate::import::ledger::Ledger;
use crate::import::nginx::{Action, Location, Pattern, Proxy, Reply, Server, Upstream};
use crate::import::read::{ACME, Nginx, is_acme};
use crate::import::table::{self, Class};

/// What happens to the path on its way to the app.
#[derive(Debug, Clone, PartialEq)]
enum Mapped {
    Same,
    /// The location's prefix is removed.
    Strip,
    /// Another path replaces it.
    Replace(String),
}

/// Makes the services of all servers. Servers with HTTPS come first: of two servers for a host, they are the real ones.
pub(super) fn services(nginx: &mut Nginx, redirects: &Redirects, site: &mut Site) {
    let Nginx { servers, upstreams, ledger, .. } = nginx;
    let mut order: Vec<&Server> = servers.iter().collect();
    order.sort_by_key(|server| server.tls.is_empty());
    for server in order {
        Builder { server, upstreams, ledger, redirects, site }.build();
    }
}

/// The paths of a pattern that matches from the start.
fn paths(pattern: &Pattern) -> Vec<String> {
    match pattern {
        Pattern::Prefix { path, .. } | Pattern::Exact(path) => vec![path.clone()],
        Pattern::Prefixes(paths) | Pattern::ExactList(paths) => paths.clone(),
        Pattern::Suffixes { below, .. } => below.clone(),
        Pattern::Unknown | Pattern::Named(_) => Vec::new(),
    }
}

fn mapped(location: &Location, proxy: &Proxy) -> Mapped {
    let path = paths(&location.pattern).into_iter().next().unwrap_or_default();
    let is_prefix = matches!(location.pattern, Pattern::Prefix { .. });
    if let Some(prefix) = &location.strips {
        let own = prefix.trim_end_matches('/') == path.trim_end_matches('/');
        return if own { Mapped::Strip } else { Mapped::Replace(String::new()) };
    }
    match &proxy.uri {
        None => Mapped::Same,
        Some(uri) if *uri == path => Mapped::Same,
        Some(uri) if uri == "/" && is_prefix => Mapped::Strip,
        Some(uri) => Mapped::Replace(uri.clone()),
    }
}

pub(super) struct Builder<'a> {
    pub(super) server: &'a Server,
    pub(super) upstreams: &'a [Upstream],
    pub(super) ledger: &'a mut Ledger,
    pub(super) redirects: &'a Redirects,
    pub(super) site: &'a mut Site,
}

impl Builder<'_> {
    fn build(&mut self) {
        let server = self.server;
        let rank = |location: &&Location| match &location.pattern {
            Pattern::Prefix { path, .. } => (0, path.len()),
            Pattern::Prefixes(_) => (1, 0),
            Pattern::Exact(_) | Pattern::ExactList(_) => (2, 0),
            _ => (3, 0),
        };
        let is_proxied = |location: &&Location| matches!(location.action, Action::Proxy(_));
        let mut locations: Vec<&Location> = server.locations.iter().collect();
        // Rules for answers need the services of the others, and suffixes apply below the prefixes of all of them.
        let is_suffix = |location: &&Location| matches!(location.pattern, Pattern::Suffixes { .. });
        let has_app =
            |location: &&Location| is_proxied(location) || matches!(location.action, Action::Files(_));
        let order = |location: &&Location| (is_suffix(location), !has_app(location), rank(location));
        locations.sort_by_key(order);
        for location in locations {
            match &location.action {
                _ if server.action != Action::None && has_app(&location) => {
                    self.drop(location, Class::Look, "all requests of its server are answered before");
                }
                Action::Proxy(proxy) => self.proxied(location, proxy),
                Action::Files(files) => self.files(location, files),
                Action::Redirect(_) if location.pattern.is_root() => {}
                Action::Reply(reply, _) if server.action == Action::None => {
                    // nginx answers before it looks at addresses.
                    let mut open = location.clone();
                    open.settings.extras.denies = None;
                    self.reply(&open, reply);
                }
                _ => match denied(&location.settings) {
                    Some(reply) if server.action == Action::None => self.reply(location, &reply),
                    _ => self.other(location),
                },
            }
        }
        if matches!(server.action, Action::Reply(..))
            && let Some(id) = server.action_id
        {
            let why =
                "answers are path rules of a service, and every service has an app; answer it in the app";
            self.ledger.set(id, Class::Changes, server.scope, why);
        }
        if server.action == Action::Refuse
            && let Some(id) = server.action_id
        {
            self.ledger.set(id, Class::NotNeeded, server.scope, "hosts that no service names get 404");
        }
        if let Some(first) = self.site.services.iter().position(|service| service.hosts == server.hosts) {
            self.site.spots.entry(server.scope).or_insert(Spot::Service(first));
        }
    }

    /// A location that nothing is made of.
    pub(super) fn drop(&mut self, location: &Location, class: Class, why: &str) {
        self.ledger.set(location.id, class, location.scope, why);
        for id in &location.inner {
            self.ledger.set(*id, class, location.scope, "as its location");
        }
    }

    fn other(&mut self, location: &Location) {
        match &location.pattern {
            Pattern::Unknown => {
                let why = table::words("location", Class::Changes);
                self.drop(location, Class::Changes, &why);
            }
            pattern if is_acme(pattern) => {
                let why =
                    "[server.acme] gets certificates without certbot; to keep it, see docs/tls.md, certbot";
                self.drop(location, Class::Look, why);
            }
            _ => self.drop(location, Class::Look, "requests for it go to the service for its path"),
        }
    }

    fn proxied(&mut self, location: &Location, proxy: &Proxy) {
        match &location.pattern {
            Pattern::Unknown => self.other(location),
            Pattern::Named(name) if self.is_fallback(name) => {}
            Pattern::Named(_) => {
                self.drop(location, Class::Look, "no location that was carried over leads to it");
            }
            Pattern::Suffixes { below, suffixes } => self.suffixes(location, proxy, below, suffixes),
            pattern => {
                let exact = matches!(pattern, Pattern::Exact(_) | Pattern::ExactList(_));
                for path in paths(pattern) {
                    self.path(location, proxy, &path, exact);
                }
            }
        }
    }

    /// An answer or a redirect, in the service for the path.
    pub(super) fn reply(&mut self, location: &Location, reply: &Reply) {
        let exact = matches!(location.pattern, Pattern::Exact(_) | Pattern::ExactList(_));
        if let Pattern::Suffixes { below, suffixes } = &location.pattern {
            return self.suffix_reply(location, reply, below, suffixes);
        }
        let paths = paths(&location.pattern);
        if paths.is_empty() {
            return self.other(location);
        }
        for path in paths {
            let Some(at) = self.covering(&path) else {
                self.drop(location, Class::Changes, "no service has this path");
                continue;
            };
            let rule = Rule { exact, reply: Some(reply.clone()), ..Rule::new(path, location) };
            self.rule(at, location, rule);
        }
    }

    /// The service of this server that a path belongs to.
    pub(super) fn covering(&self, path: &str) -> Option<usize> {
        let services = self.site.services.iter().enumerate();
        let fits = services
            .filter(|(_, service)| service.hosts == self.server.hosts && is_under(path, &service.prefix));
        fits.max_by_key(|(_, service)| service.prefix.trim_end_matches('/').len()).map(|(at, _)| at)
    }

    fn path(&mut self, location: &Location, proxy: &Proxy, path: &str, exact: bool) {
        let map = mapped(location, proxy);
        if map == Mapped::Strip && !path.ends_with('/') {
            let why = "nginx passes //x on for a path below this location; uh-proxy passes /x on";
            self.ledger.set(proxy.id, Class::Look, location.scope, why);
        }
        if let Mapped::Replace(uri) = &map
            && !exact
            && path.ends_with('/') != uri.ends_with('/')
        {
            let why = "nginx joins the paths without a slash, or with two; uh-proxy with one";
            self.ledger.set(proxy.id, Class::Look, location.scope, why);
        }
        if let Some(at) = self.covering(path).filter(|at| self.site.services[*at].target == proxy.target) {
            let service = &self.site.services[at];
            let rest = path.strip_prefix(service.prefix.trim_end_matches('/'));
            let replace = match &map {
                Mapped::Same if !service.strip => Some(None),
                Mapped::Replace(uri) if service.strip && rest == Some(uri) => Some(None),
                Mapped::Strip if !service.strip => Some(Some("/".to_owned())),
                Mapped::Replace(uri) if !service.strip && is_path(uri) => Some(Some(uri.clone())),
                _ => None,
            };
            if let Some(replace) = replace {
                return self.rule(
                    at,
                    location,
                    Rule { exact, replace, ..Rule::new(path.to_owned(), location) },
                );
            }
        }
        if exact {
            let why = "a service of its own, which also has the paths below this one";
            self.ledger.set(location.id, Class::Look, location.scope, why);
        }
        let made = self.service(location, proxy, path, map == Mapped::Strip);
        if let Mapped::Replace(uri) = &map {
            match made.filter(|_| is_path(uri)) {
                Some(at) => {
                    let rule =
                        Rule { exact, replace: Some(uri.clone()), ..Rule::new(path.to_owned(), location) };
                    self.rule(at, location, rule);
                    self.site.spots.insert(location.scope, Spot::Service(at));
                }
                None => {
                    let why = format!(
                        "the app gets the path unchanged, not {uri}; change the path in the app, or here"
                    );
                    self.ledger.set(proxy.id, Class::Changes, location.scope, why);
                }
            }
        }
    }

    /// Makes a service. Returns its number, if it is a new one.
    pub(super) fn service(
        &mut self,
        location: &Location,
        proxy: &Proxy,
        path: &str,
        strip: bool,
    ) -> Option<usize> {
        let prefix = match path.trim_end_matches('/') {
            "" => "/".to_owned(),
            path => path.to_owned(),
        };
        let strip = strip && prefix != "/";
        let hosts = &self.server.hosts;
        let shares = |service: &Service| {
            let host = if hosts.is_empty() {
                service.hosts.is_empty()
            } else {
                hosts.iter().any(|host| service.hosts.contains(host))
            };
            host && service.prefix == prefix
        };
        if let Some(at) = self.site.services.iter().position(shares) {
            let service = &self.site.services[at];
            if service.target == proxy.target && service.strip == strip {
                self.site.spots.insert(location.scope, Spot::Service(at));
            } else {
                let why = "another server has this host and path, and a service can't be chosen by port";
                self.drop(location, Class::Changes, why);
            }
            return None;
        }
        let Some(backends) = Backends::of(&proxy.target, self.upstreams) else {
            self.drop(location, Class::Changes, "its upstream has no server");
            return None;
        };
        let mut hints = Vec::new();
        if backends.both_active {
            hints.push("nginx sends requests to both backends, uh-proxy only to the active one.".to_owned());
        }
        if !location.settings.keeps_host {
            hints.push(
                "nginx sends its upstream's name as Host; the app now gets the client's Host.".to_owned(),
            );
        }
        let plain_only = self.server.tls.is_empty();
        let redirected =
            self.redirects.any() && plain_only && (is_under(path, ACME) || !self.redirects.cover(hosts));
        let at = self.site.services.len();
        self.site.spots.insert(location.scope, Spot::Service(at));
        self.site.services.push(Service {
            name: String::new(),
            hosts: hosts.clone(),
            redirect_hosts: Vec::new(),
            redirect_https: redirected.then_some(false),
            prefix,
            strip,
            target: proxy.target.clone(),
            backends,
            settings: location.settings.clone(),
            health: None,
            rules: Vec::new(),
            hints,
        });
        Some(at)
    }
}

/// Whether a path can be a prefix.
fn is_path(uri: &str) -> bool {
    let odd = |b: u8| b <= b' ' || matches!(b, b'?' | b'#' | 0x7f);
    uri.starts_with('/') && !uri.bytes().any(odd) && !uri.split('/').any(|part| matches!(part, "." | ".."))
}
