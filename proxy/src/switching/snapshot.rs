//! The routing snapshot: everything a request needs to find its backend, immutable.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use tokio::sync::Notify;
use uh_protocol::BackendName;
use uh_protocol::status::ConnectionCounts;

use super::backend::Backend;
use super::lease::{Activation, LanePayload, LedgerOwner};
use crate::config;
use crate::observe::meters::BackendMeters;

/// What an activation is about.
#[derive(Debug)]
pub struct ActivationInfo {
    /// The service it belongs to, with the settings in force when it began.
    pub service: Arc<config::Service>,
    /// The backend that is active.
    pub backend: Arc<Backend>,
    /// Where exchanges on it are counted.
    pub meters: Arc<BackendMeters>,
    /// Wakes those who wait for the drain.
    pub drained: Notify,
}

impl LedgerOwner for ActivationInfo {
    fn drained(&self) {
        self.drained.notify_waiters();
    }
}

/// One service as it is routed now.
#[derive(Debug)]
pub struct ServiceState<P: LanePayload> {
    /// Its configuration.
    pub config: Arc<config::Service>,
    /// Its backends, in the order of the configuration.
    pub backends: Vec<Arc<Backend>>,
    /// What gets new requests.
    pub active: Arc<Activation<ActivationInfo, P>>,
    /// The active backend before this one.
    pub previous: Option<BackendName>,
    /// When the active backend last changed.
    pub last_switch: Option<Timestamp>,
}

impl<P: LanePayload> ServiceState<P> {
    /// The active backend.
    #[must_use]
    pub fn active_backend(&self) -> &Arc<Backend> {
        &self.active.ledger().owner().backend
    }

    /// Whether this backend is the active one.
    #[must_use]
    pub fn is_active(&self, name: &BackendName) -> bool {
        self.active_backend().name == *name
    }

    /// Connections to a backend, by whether they carry an exchange. Only the active one keeps idle ones.
    #[must_use]
    pub fn connections(&self, name: &BackendName, meters: &BackendMeters) -> ConnectionCounts {
        let kept = || self.active.lanes().map(|lane| lane.payload().idle() as u64).sum();
        let idle = if self.is_active(name) { kept() } else { 0 };
        let open = meters.connections.load(Ordering::Relaxed);
        ConnectionCounts { active: open.saturating_sub(idle), idle }
    }

    /// A backend by its name.
    #[must_use]
    pub fn backend(&self, name: &BackendName) -> Option<&Arc<Backend>> {
        self.backends.iter().find(|backend| backend.name == *name)
    }
}

impl<P: LanePayload> Clone for ServiceState<P> {
    fn clone(&self) -> Self {
        Self {
            config: Arc::clone(&self.config),
            backends: self.backends.clone(),
            active: Arc::clone(&self.active),
            previous: self.previous.clone(),
            last_switch: self.last_switch,
        }
    }
}

/// All routing, immutable.
#[derive(Debug)]
pub struct Snapshot<P: LanePayload> {
    /// Grows by one at every change.
    pub generation: u64,
    /// In the order of the configuration.
    pub services: Vec<ServiceState<P>>,
    /// What to try, in this order.
    routes: Vec<Route>,
}

#[derive(Debug)]
struct Route {
    host: HostMatch,
    prefix: Box<[u8]>,
    service: usize,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HostMatch {
    /// This host, in lower case.
    Exact(Box<[u8]>),
    /// One more label before this suffix, which starts with a dot.
    Wildcard(Box<[u8]>),
    /// Any host.
    Any,
}

impl HostMatch {
    fn new(pattern: &str) -> Self {
        match pattern.strip_prefix('*') {
            Some(suffix) => Self::Wildcard(suffix.as_bytes().into()),
            None => Self::Exact(pattern.as_bytes().into()),
        }
    }

    fn matches(&self, host: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => host.eq_ignore_ascii_case(wanted),
            Self::Wildcard(suffix) => host.len().checked_sub(suffix.len()).is_some_and(|label| {
                label > 0 && !host[..label].contains(&b'.') && host[label..].eq_ignore_ascii_case(suffix)
            }),
            Self::Any => true,
        }
    }
}

impl<P: LanePayload> Snapshot<P> {
    /// Puts the services in the order in which routing tries them: exact hosts, then wildcards, then services for any
    /// host; within each, the longest path prefix first.
    pub fn new(generation: u64, services: Vec<ServiceState<P>>) -> Self {
        let mut routes = Vec::new();
        for (index, service) in services.iter().enumerate() {
            let prefix: Box<[u8]> = service.config.path_prefix.trim_end_matches('/').as_bytes().into();
            let hosts = &service.config.hosts;
            let patterns: Vec<HostMatch> = hosts.iter().map(|host| HostMatch::new(host)).collect();
            let patterns = if patterns.is_empty() { vec![HostMatch::Any] } else { patterns };
            routes.extend(patterns.into_iter().map(|host| Route {
                host,
                prefix: prefix.clone(),
                service: index,
            }));
        }
        routes.sort_by(|a, b| {
            let rank = |host: &HostMatch| match host {
                HostMatch::Exact(_) => 0,
                HostMatch::Wildcard(_) => 1,
                HostMatch::Any => 2,
            };
            (rank(&a.host), b.prefix.len()).cmp(&(rank(&b.host), a.prefix.len()))
        });
        Self { generation, services, routes }
    }

    /// The service for a request, by its `Host` (a port is ignored, case too) and the path of its target.
    pub fn route(&self, host: &[u8], path: &[u8]) -> Option<&ServiceState<P>> {
        let host = without_port(host);
        let route =
            self.routes.iter().find(|route| has_prefix(path, &route.prefix) && route.host.matches(host))?;
        self.services.get(route.service)
    }

    /// A service by its name.
    pub fn service(&self, name: &str) -> Option<&ServiceState<P>> {
        self.services.iter().find(|service| service.config.name.as_str() == name)
    }
}

/// `/app` holds `/app`, `/app/x` and `/app?q`, not `/apple`.
fn has_prefix(path: &[u8], prefix: &[u8]) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'/' | b'?')) || prefix.is_empty())
}

fn without_port(host: &[u8]) -> &[u8] {
    let end = match host.iter().rposition(|&b| b == b':') {
        // `[::1]:80` has a port, `[::1]` has none.
        Some(colon) if host[colon..].contains(&b']') => host.len(),
        Some(colon) => colon,
        None => host.len(),
    };
    host[..end].strip_suffix(b".").unwrap_or(&host[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_on_segment_boundaries() {
        for (path, prefix, expected) in [
            ("/app/show", "/app", true),
            ("/app", "/app", true),
            ("/app?x", "/app", true),
            ("/appointment", "/app", false),
            ("/", "", true),
            ("*", "", true),
        ] {
            assert_eq!(has_prefix(path.as_bytes(), prefix.as_bytes()), expected, "{path} {prefix}");
        }
    }

    #[test]
    fn a_host_loses_its_port_and_its_last_dot() {
        for (host, expected) in [
            ("a.b:80", "a.b"),
            ("a.b.", "a.b"),
            ("a.b.:80", "a.b"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(without_port(host.as_bytes()), expected.as_bytes());
        }
    }

    #[test]
    fn a_wildcard_matches_one_label() {
        let wildcard = HostMatch::new("*.example.com");
        assert!(wildcard.matches(b"A.example.COM"));
        for other in ["example.com", ".example.com", "a.b.example.com", "aexample.com"] {
            assert!(!wildcard.matches(other.as_bytes()), "{other}");
        }
    }
}
