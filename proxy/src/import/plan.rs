//! nginx's servers and locations → uh-proxy's services and path rules. Pure.
//!
//! A service has one app, some hosts and one path prefix. Locations of the same app below it become path rules, so that
//! they switch together; a location of another app becomes a service of its own.

mod backends;
mod defaults;
mod files;
mod names;
mod redirects;
mod rules;
mod services;

use std::collections::BTreeMap;

use super::ledger::Scope;
use super::nginx::{Files, Location, Rate, Reply, Set, Settings, Target};
use super::read::Nginx;
use super::table::Class;
pub(super) use backends::Backends;

/// What the configuration becomes.
#[derive(Debug, Default)]
pub(super) struct Site {
    pub(super) services: Vec<Service>,
    /// `server.tls.redirect`
    pub(super) redirect: bool,
    /// Where each part of nginx's configuration went.
    pub(super) spots: BTreeMap<Scope, Spot>,
    /// What to know, without a directive that says it.
    pub(super) hints: Vec<String>,
}

/// A place in uh-proxy's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    Service(usize),
    Rule(usize, usize),
}

/// `[services.NAME]`
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) hosts: Vec<String>,
    pub(super) redirect_hosts: Vec<String>,
    pub(super) redirect_https: Option<bool>,
    pub(super) prefix: String,
    pub(super) strip: bool,
    pub(super) target: Target,
    pub(super) backends: Backends,
    pub(super) settings: Settings,
    pub(super) health: Option<String>,
    pub(super) rules: Vec<Rule>,
    pub(super) hints: Vec<String>,
}

/// `[[services.NAME.paths]]`
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) paths: Vec<String>,
    pub(super) exact: bool,
    pub(super) suffixes: Vec<String>,
    pub(super) settings: Settings,
    pub(super) reply: Option<Reply>,
    /// `replace_prefix`
    pub(super) replace: Option<String>,
    pub(super) files: Option<Files>,
}

impl Rule {
    /// For all below a path, with the settings of a location.
    fn new(path: String, location: &Location) -> Self {
        Self {
            paths: vec![path],
            exact: false,
            suffixes: Vec::new(),
            settings: location.settings.clone(),
            reply: denied(&location.settings),
            replace: None,
            files: None,
        }
    }
}

/// What is answered where nobody may ask.
fn denied(settings: &Settings) -> Option<Reply> {
    let answer = Reply::Answer { status: 403, body: String::new(), content_type: None };
    settings.extras.denies_all().then_some(answer)
}

/// Whether a path is below a prefix, in whole segments.
fn is_under(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Decides which service each location goes to.
pub(super) fn plan(nginx: &mut Nginx) -> Site {
    let mut site = Site::default();
    let redirects = redirects::Redirects::of(nginx);
    services::services(nginx, &redirects, &mut site);
    redirects.apply(nginx, &mut site);
    site.services.iter_mut().for_each(rules::push_down);
    names::name(&mut site.services);
    keys(nginx, &mut site);
    same_apps(&mut site.services);
    shared_zones(nginx, &site);
    unused_upstreams(nginx, &site);
    site
}

/// What keys of `[server]` need of each other.
fn keys(nginx: &mut Nginx, site: &mut Site) {
    let Nginx { keys, ledger, .. } = nginx;
    if keys.listen_tls.is_empty() {
        let why = "no server in this file has HTTPS; send it where TLS ends";
        keys.hsts_ids.iter().for_each(|(id, scope)| ledger.set(*id, Class::Changes, *scope, why));
    } else if keys.certificates.is_empty() {
        let file = |name: &str| format!("/etc/uh-proxy/tls/{name}.pem");
        keys.certificates.push((file("fullchain"), file("privkey")));
        site.hints.push("No ssl_certificate was found: correct server.tls.certificates.".to_owned());
    }
    if keys.trusted.is_empty() {
        let why =
            "list the load balancers in `server.proxy_protocol_from`: set_real_ip_from doesn't name them";
        keys.proxy_protocol.iter().for_each(|(id, scope)| ledger.set(*id, Class::Changes, *scope, why));
    }
}

/// Services of one app don't move together.
fn same_apps(services: &mut [Service]) {
    for at in 1..services.len() {
        let (before, rest) = services.split_at_mut(at);
        let Some(service) = rest.first_mut() else { continue };
        if let Some(other) = before.iter().find(|other| other.target == service.target) {
            let hint =
                format!("The same app as services.{}, with a switch of its own: switch both.", other.name);
            service.hints.push(hint);
        }
    }
}

/// Limits that count together in nginx, but not here.
fn shared_zones(nginx: &mut Nginx, site: &Site) {
    let mut limits: Vec<&Set<Rate>> = Vec::new();
    for service in &site.services {
        let own = &service.settings.rate;
        let other = |rule: &&Rule| rule.reply.is_none() && rule.settings.rate != *own;
        limits.extend(own);
        limits.extend(service.rules.iter().filter(other).filter_map(|rule| rule.settings.rate.as_ref()));
    }
    let count = |zone: usize| limits.iter().filter(|other| other.value.zone == zone).count();
    for limit in limits.iter().filter(|limit| count(limit.value.zone) > 1) {
        let why = "requests count for each service and path rule by itself; in nginx, all with this zone count together";
        nginx.ledger.set(limit.id, Class::Look, Scope::Main, why);
    }
}

fn unused_upstreams(nginx: &mut Nginx, site: &Site) {
    let used = |id: usize| site.services.iter().any(|service| service.backends.upstreams.contains(&id));
    for upstream in nginx.upstreams.iter().filter(|upstream| !used(upstream.id)) {
        nginx.ledger.set(upstream.id, Class::Look, Scope::Main, "no location that was carried over uses it");
    }
}
