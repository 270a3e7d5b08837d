//! Which backends an upstream becomes: blue, and green if there is a second one.

use std::time::Duration;

use crate::config::Sticky;
use crate::import::nginx::{Endpoint, Target, Upstream};

/// The most endpoints of a backend.
const MAX_ENDPOINTS: usize = crate::config::MAX_ENDPOINTS;

/// The longest `timeouts.idle`.
const MAX_IDLE: Duration = Duration::from_secs(24 * 60 * 60);

/// `[services.NAME.backends]`
#[derive(Debug, Clone, PartialEq)]
pub(in crate::import) struct Backends {
    /// Their names with their endpoints; the active one first.
    pub(in crate::import) list: Vec<(&'static str, Vec<String>)>,
    /// The directives of the upstreams.
    pub(in crate::import) upstreams: Vec<usize>,
    /// How long connections to them are kept.
    pub(in crate::import) idle: Option<Duration>,
    /// What binds a client to an endpoint.
    pub(in crate::import) sticky: Option<Sticky>,
    /// Both get requests from nginx, but only one from uh-proxy.
    pub(in crate::import) both_active: bool,
}

fn colour(text: &str) -> Option<&'static str> {
    let text = text.to_ascii_lowercase();
    ["blue", "green"].into_iter().find(|colour| text.contains(colour))
}

fn other(colour: &str) -> &'static str {
    if colour == "blue" { "green" } else { "blue" }
}

fn addresses<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for endpoint in endpoints.take(MAX_ENDPOINTS) {
        if !list.contains(&endpoint.address) {
            list.push(endpoint.address.clone());
        }
    }
    list
}

impl Backends {
    /// For a target. `None`: it has no server.
    pub(super) fn of(target: &Target, upstreams: &[Upstream]) -> Option<Self> {
        let name = match target {
            Target::Address(address) => {
                let name = colour(address).unwrap_or("blue");
                return Some(Self {
                    list: vec![(name, vec![address.clone()])],
                    upstreams: Vec::new(),
                    idle: None,
                    sticky: None,
                    both_active: false,
                });
            }
            Target::Upstream(name) => name,
        };
        let named = |name: &str| upstreams.iter().find(|upstream| upstream.name == name);
        let upstream = named(name).filter(|upstream| !upstream.endpoints.is_empty())?;
        let idle = upstream.idle.as_ref().map(|idle| idle.value.min(MAX_IDLE));
        let sticky = upstream.sticky.clone();
        if let Some(own) = colour(name) {
            let sibling = name.to_ascii_lowercase().replace(own, other(own));
            let sibling = upstreams.iter().find(|upstream| upstream.name.to_ascii_lowercase() == sibling);
            let mut list = vec![(own, addresses(upstream.endpoints.iter()))];
            let mut ids = vec![upstream.id];
            if let Some(sibling) = sibling.filter(|sibling| !sibling.endpoints.is_empty()) {
                list.push((other(own), addresses(sibling.endpoints.iter())));
                ids.push(sibling.id);
            }
            return Some(Self { list, upstreams: ids, idle, sticky, both_active: false });
        }
        let upstreams = vec![upstream.id];
        Some(Self { upstreams, idle, sticky, ..Self::of_endpoints(&upstream.endpoints) })
    }

    fn of_endpoints(endpoints: &[Endpoint]) -> Self {
        let is = |wanted: &'static str| move |endpoint: &&Endpoint| colour(&endpoint.address) == Some(wanted);
        let live = |endpoint: &&Endpoint| !endpoint.is_standby;
        let (blue, green) = (endpoints.iter().filter(is("blue")), endpoints.iter().filter(is("green")));
        let with =
            |list, both_active| Self { list, upstreams: Vec::new(), idle: None, sticky: None, both_active };
        if blue.clone().count() > 0 && green.clone().count() > 0 {
            let serves = |mut list: std::iter::Peekable<_>| list.any(|endpoint| live(&endpoint));
            let (blue_serves, green_serves) =
                (serves(blue.clone().peekable()), serves(green.clone().peekable()));
            let mut list = vec![("blue", addresses(blue)), ("green", addresses(green))];
            if green_serves && !blue_serves {
                list.reverse();
            }
            return with(list, blue_serves && green_serves);
        }
        let standby = addresses(endpoints.iter().filter(|endpoint| endpoint.is_standby));
        let serving = addresses(endpoints.iter().filter(live));
        if serving.is_empty() || standby.is_empty() {
            return with(vec![("blue", addresses(endpoints.iter()))], false);
        }
        let first = serving.iter().find_map(|address| colour(address)).unwrap_or("blue");
        with(vec![(first, serving), (other(first), standby)], false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(name: &str, endpoints: &[(&str, bool)]) -> Upstream {
        let endpoint = |(address, is_standby): &(&str, bool)| Endpoint {
            address: (*address).to_owned(),
            is_standby: *is_standby,
        };
        Upstream {
            id: 0,
            name: name.to_owned(),
            endpoints: endpoints.iter().map(endpoint).collect(),
            idle: None,
            sticky: None,
        }
    }

    fn list(name: &str, upstreams: &[Upstream]) -> Vec<(&'static str, String)> {
        let found = Backends::of(&Target::Upstream(name.to_owned()), upstreams).unwrap();
        found.list.into_iter().map(|(name, endpoints)| (name, endpoints.join(" "))).collect()
    }

    #[test]
    fn two_colours_become_two_backends_with_the_active_one_first() {
        let pair = [upstream("app_blue", &[("a:1", false)]), upstream("app_green", &[("b:1", false)])];
        assert_eq!(list("app_green", &pair), [("green", "b:1".to_owned()), ("blue", "a:1".to_owned())]);
        for (endpoints, expected) in [
            (vec![("blue:1", false), ("green:1", true)], vec![("blue", "blue:1"), ("green", "green:1")]),
            (vec![("blue:1", true), ("green:1", false)], vec![("green", "green:1"), ("blue", "blue:1")]),
            (vec![("a:1", false), ("b:1", true)], vec![("blue", "a:1"), ("green", "b:1")]),
            (vec![("app-green:1", false), ("x:1", true)], vec![("green", "app-green:1"), ("blue", "x:1")]),
            (vec![("a:1", false), ("b:1", false), ("a:1", false)], vec![("blue", "a:1 b:1")]),
            (vec![("a:1", true)], vec![("blue", "a:1")]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(name, list)| (name, list.to_owned())).collect();
            assert_eq!(list("app", &[upstream("app", &endpoints)]), expected, "{endpoints:?}");
        }
    }
}
