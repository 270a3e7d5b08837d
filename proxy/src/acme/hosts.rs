//! Which certificates there are to be: one for each set of hosts.

use crate::config::{Acme, Service, can_be_certified};

/// The most hosts of one certificate. Let's Encrypt and others accept no more.
const MOST_HOSTS: usize = 100;

/// The longest part of a host in a file name, which may take 255 bytes.
const MOST_NAME_BYTES: usize = 200;

/// The hosts of one certificate, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostSet(Vec<String>);

impl HostSet {
    /// From hosts in lower case, in the order of the configuration; `None` without any.
    #[must_use]
    pub(crate) fn new(hosts: Vec<String>) -> Option<Self> {
        (!hosts.is_empty()).then_some(Self(hosts))
    }

    /// Identifies it in logs, status and metrics: its first host.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    /// All of its hosts.
    #[must_use]
    pub(crate) fn hosts(&self) -> &[String] {
        &self.0
    }

    /// Identifies it in the state directory. The order of the hosts doesn't matter.
    #[must_use]
    pub(crate) fn key(&self) -> String {
        let mut hosts = self.0.clone();
        hosts.sort_unstable();
        let first: String =
            hosts.first().into_iter().flat_map(|host| host.chars()).take(MOST_NAME_BYTES).collect();
        format!("{first}-{:08x}", crc32fast::hash(hosts.join(",").as_bytes()))
    }

    /// Whether both have the same hosts.
    #[must_use]
    pub(crate) fn is_same(&self, hosts: &[String]) -> bool {
        hosts.len() == self.0.len() && hosts.iter().all(|host| self.0.contains(host))
    }
}

/// The sets of a configuration. Without a list of its own, each service gets a certificate for its hosts; those that a
/// certificate from a file covers already are left out.
pub(crate) fn sets(acme: &Acme, services: &[Service], is_covered: impl Fn(&str) -> bool) -> Vec<HostSet> {
    let wanted: Vec<Vec<String>> = match &acme.certificates {
        Some(listed) => listed.clone(),
        None => {
            let of = |service: &Service| {
                let usable = service.hosts.iter().filter(|host| can_be_certified(host) && !is_covered(host));
                usable.cloned().collect()
            };
            services.iter().map(of).collect()
        }
    };
    let mut sets: Vec<HostSet> = Vec::new();
    for (index, hosts) in wanted.iter().enumerate() {
        // Services that share hosts, each with a path of its own, share a certificate.
        let contains = |other: &Vec<String>| hosts.iter().all(|host| other.contains(host));
        let is_within = |(at, other): (usize, &Vec<String>)| {
            at != index && contains(other) && (other.len() > hosts.len() || at < index)
        };
        if !wanted.iter().enumerate().any(is_within) {
            sets.extend(hosts.chunks(MOST_HOSTS).filter_map(|hosts| HostSet::new(hosts.to_vec())));
        }
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(acme: &str, services: &[(&str, &str)]) -> crate::config::Config {
        let services: String = services
            .iter()
            .map(|(name, lines)| {
                format!("[services.{name}]\nactive = \"blue\"\n{lines}\n[services.{name}.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n")
            })
            .collect();
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nlisten_tls = [\"127.0.0.1:0\"]\n[server.acme]\n{acme}\n{services}"
        );
        crate::config::parse(&text).unwrap()
    }

    fn of(config: &crate::config::Config, covered: &[&str]) -> Vec<Vec<String>> {
        let acme = config.server.acme.as_ref().unwrap();
        let sets = sets(acme, &config.services, |host| covered.contains(&host));
        sets.into_iter().map(|set| set.0).collect()
    }

    #[test]
    fn each_service_gets_one_certificate_for_the_hosts_that_can_have_one() {
        let config = config(
            "",
            &[
                (
                    "app",
                    "hosts = [\"example.com\", \"*.example.com\"]\nredirect_hosts = [\"www.example.com\"]",
                ),
                ("api", "hosts = [\"example.com\"]\npath_prefix = \"/api\""),
                ("shop", "hosts = [\"shop.example\", \"[2001:db8::1]\"]"),
                ("twin", "hosts = [\"shop.example\"]\npath_prefix = \"/twin\""),
                ("rest", ""),
            ],
        );
        assert_eq!(of(&config, &[]), [vec!["example.com", "www.example.com"], vec!["shop.example"]]);
        assert_eq!(of(&config, &["shop.example", "www.example.com"]), [vec!["example.com"]]);
    }

    #[test]
    fn a_list_overrides_the_services() {
        let config = config(
            "certificates = [{ hosts = [\"a.test\", \"b.test\"] }, { hosts = [\"c.test\"] }]",
            &[("app", "")],
        );
        assert_eq!(of(&config, &["a.test"]), [vec!["a.test", "b.test"], vec!["c.test"]]);
    }

    #[test]
    fn a_set_is_known_by_its_hosts_in_any_order_and_its_key_is_a_file_name() {
        let set = |hosts: &[&str]| HostSet::new(hosts.iter().map(ToString::to_string).collect()).unwrap();
        assert_eq!(set(&["b.test", "a.test"]).key(), set(&["a.test", "b.test"]).key());
        assert_ne!(set(&["a.test"]).key(), set(&["a.test", "b.test"]).key());
        let long = format!("{}.test", ["x".repeat(60).as_str(); 4].join("."));
        assert!(set(&[&long]).key().len() < 240 && !set(&[&long]).key().contains('/'));
    }
}
