//! `preview`, of a service: where a standby can be looked at through uh-proxy.

use uh_settings::Section;

use super::service;

/// What applies to previews of a service's standbys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreviewSettings {
    /// Hosts that are for previews alone: nobody gets an answer there without a token.
    pub hosts: Vec<String>,
    /// Tokens of another generation aren't valid.
    pub generation: u32,
}

impl PreviewSettings {
    /// Whether this host, in its [canonical form](uh_switching::route::canonical), is for previews alone.
    #[must_use]
    pub fn is_for(&self, host: &str) -> bool {
        self.hosts.iter().any(|one| service::is_for(one, host))
    }
}

/// Of a service, which serves these other hosts.
pub(super) fn preview(section: &mut Section, others: &[String]) -> PreviewSettings {
    let hosts = service::hosts(section, "hosts");
    // Also by a wildcard: nobody would get an answer on that host without a token.
    let taken = |host: &String| others.iter().find(|other| *other == host || service::is_for(host, other));
    if let Some(other) = hosts.iter().find_map(taken) {
        section.mistake(
            "hosts",
            format!("the service already handles {other}: use hosts that are for previews alone"),
        );
    }
    if !hosts.is_empty() && others.is_empty() {
        let reason = "set the hosts of the service, too: without them it handles every host, and none is for previews alone";
        section.mistake("hosts", reason);
    }
    PreviewSettings { hosts, generation: section.integer("generation", 1, (1, u32::MAX)) }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError, parse};

    fn configured(service: &str) -> Result<Config, ConfigError> {
        parse(&format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n{service}\n\
             [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n"
        ))
    }

    #[test]
    fn hosts_for_previews_are_served_and_are_no_others() {
        let of = |service: &str| configured(service).unwrap().services.remove(0);
        let service = of(
            "hosts = [\"a.test\"]\nredirect_hosts = [\"www.a.test\"]\npreview = { hosts = [\"Green.a.test\", \"*.p.test\"] }",
        );
        assert_eq!(service.hosts, ["a.test", "green.a.test", "*.p.test", "www.a.test"]);
        assert_eq!(service.served_hosts(), ["a.test", "green.a.test", "*.p.test"]);
        for (host, is) in [("green.a.test", true), ("x.p.test", true), ("p.test", false), ("a.test", false)] {
            assert_eq!(service.preview.is_for(host), is, "{host}");
        }
        let any = of("preview = { generation = 7 }");
        assert_eq!((any.hosts.len(), any.preview.generation), (0, 7));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (service, key) in [
            ("hosts = [\"a.test\"]\npreview = { hosts = [\"a.test\"] }", "preview.hosts"),
            (
                "hosts = [\"a.test\"]\nredirect_hosts = [\"b.test\"]\npreview = { hosts = [\"b.test\"] }",
                "preview.hosts",
            ),
            ("hosts = [\"a.p.test\"]\npreview = { hosts = [\"*.p.test\"] }", "preview.hosts"),
            (
                "hosts = [\"p.test\"]\nredirect_hosts = [\"www.p.test\"]\npreview = { hosts = [\"*.p.test\"] }",
                "preview.hosts",
            ),
            ("preview = { hosts = [\"a.test\", \"a.test\"] }", "preview.hosts"),
            ("preview = { hosts = [\"a test\"] }", "preview.hosts[0]"),
            ("preview = { hosts = [\"a.test\"] }", "preview.hosts"),
            ("preview = { generation = 0 }", "preview.generation"),
            ("preview = { host = \"a.test\" }", "preview.host"),
        ] {
            let Err(ConfigError::Mistakes(found)) = configured(service) else { panic!("{service} passed") };
            let key = format!("services.app.{key}");
            assert!(found.0.iter().any(|mistake| mistake.key == key), "{service}: {found:?}");
        }
    }
}
