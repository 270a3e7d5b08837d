//! Redirects to HTTPS and to another host.

use super::{Service, Site};
use crate::import::ledger::{Ledger, Scope};
use crate::import::nginx::{Action, Redirect, Server};
use crate::import::read::Nginx;
use crate::import::table::Class;

/// A host whose requests are redirected to another one.
struct Move {
    from: String,
    to: String,
    id: usize,
    scope: Scope,
}

/// All redirects of a configuration.
#[derive(Default)]
pub(super) struct Redirects {
    /// Hosts whose plain HTTP is redirected, with an empty one for any.
    https: Vec<String>,
    moves: Vec<Move>,
    /// The directives that redirect to HTTPS.
    ids: Vec<(usize, Scope)>,
}

/// What redirects all requests of a server, and the directive that says so.
fn whole(server: &Server) -> Option<(&Redirect, usize)> {
    if let Action::Redirect(redirect) = &server.action {
        return Some((redirect, server.action_id?));
    }
    server.locations.iter().filter(|location| location.pattern.is_root()).find_map(|location| match &location
        .action
    {
        Action::Redirect(redirect) => Some((redirect, location.id)),
        _ => None,
    })
}

impl Redirects {
    pub(super) fn of(nginx: &Nginx) -> Self {
        let mut redirects = Self::default();
        for server in &nginx.servers {
            if let Some((redirect, id)) = whole(server) {
                let any = [String::new()];
                let hosts = if server.hosts.is_empty() { any.as_slice() } else { &server.hosts };
                for host in hosts {
                    redirects.add(server, host, redirect, id);
                }
            }
            for (host, redirect) in &server.host_redirects {
                let any = [host.clone()];
                let hosts =
                    if host.is_empty() && !server.hosts.is_empty() { &server.hosts } else { any.as_slice() };
                hosts.iter().for_each(|host| redirects.add(server, host, redirect, server.id));
            }
        }
        redirects
    }

    fn add(&mut self, server: &Server, host: &str, redirect: &Redirect, id: usize) {
        match redirect {
            Redirect::Https => self.https(host, id, server.scope),
            Redirect::Host { host: to, https } if to == host => {
                if *https {
                    self.https(host, id, server.scope);
                }
            }
            Redirect::Host { host: to, https } => {
                if *https && !server.plain.is_empty() {
                    self.https(host, id, server.scope);
                }
                self.moves.push(Move { from: host.to_owned(), to: to.clone(), id, scope: server.scope });
            }
            Redirect::Other => {}
        }
    }

    fn https(&mut self, host: &str, id: usize, scope: Scope) {
        if !self.https.iter().any(|known| known == host) {
            self.https.push(host.to_owned());
        }
        self.ids.push((id, scope));
    }

    /// Whether plain HTTP to all of these hosts is redirected.
    pub(super) fn cover(&self, hosts: &[String]) -> bool {
        self.https.iter().any(String::is_empty)
            || (!hosts.is_empty() && hosts.iter().all(|host| self.https.contains(host)))
    }

    /// Whether there are any to HTTPS.
    pub(super) fn any(&self) -> bool {
        !self.https.is_empty()
    }

    /// Puts them into the services.
    pub(super) fn apply(self, nginx: &mut Nginx, site: &mut Site) {
        if self.any() && nginx.keys.listen_tls.is_empty() {
            for (id, scope) in &self.ids {
                nginx.ledger.set(
                    *id,
                    Class::Changes,
                    *scope,
                    "no server in this file has HTTPS; add `server.listen_tls` and `server.tls.redirect`",
                );
            }
        } else {
            site.redirect = self.any();
        }
        for one in self.moves {
            one.apply(&mut nginx.ledger, &mut site.services);
        }
    }
}

impl Move {
    fn apply(self, ledger: &mut Ledger, services: &mut [Service]) {
        let taken =
            services.iter().any(|service| service.hosts.contains(&self.from) && service.prefix == "/");
        let serves = |service: &&mut Service| service.prefix == "/" && service.hosts.contains(&self.to);
        let free = |service: &Service| service.redirect_hosts.is_empty() || service.hosts[0] == self.to;
        match services.iter_mut().find(serves) {
            _ if self.from.is_empty() => {
                ledger.set(
                    self.id,
                    Class::Changes,
                    self.scope,
                    format!("list the hosts to redirect in `redirect_hosts` of the service for {}", self.to),
                );
            }
            Some(service) if free(service) && !taken && !self.to.starts_with('*') => {
                service.hosts.sort_by_key(|host| *host != self.to);
                if !service.redirect_hosts.contains(&self.from) {
                    service.redirect_hosts.push(self.from);
                }
            }
            Some(_) => ledger.set(
                self.id,
                Class::Changes,
                self.scope,
                "a service redirects to one host, and doesn't serve the redirected ones",
            ),
            None => ledger.set(
                self.id,
                Class::Changes,
                self.scope,
                format!("no server that was carried over serves {}", self.to),
            ),
        }
    }
}
