//! The routing snapshot: everything a request needs to find its backend, immutable.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;
use uh_protocol::BackendName;
use uh_protocol::status::ConnectionCounts;

use super::backend::Backend;
use super::lease::{Activation, LanePayload, LedgerOwner};
use super::route::Routes;
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
    /// When its tunnels are to be closed, once that is decided.
    pub farewell: OnceLock<Farewell>,
}

/// When many tunnels are closed: one after the other, so that their clients don't all come back at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Farewell {
    /// When the first one is.
    pub from: Instant,
    /// How much later the last one is.
    pub over: Duration,
}

/// No faster than this are tunnels closed, as long as their spread allows it.
const TUNNEL_PACE: Duration = Duration::from_millis(10);

impl Farewell {
    /// How long closing this many tunnels takes: a few need not wait as long as many.
    #[must_use]
    pub fn length(tunnels: u64, spread: Duration) -> Duration {
        TUNNEL_PACE.saturating_mul(u32::try_from(tunnels).unwrap_or(u32::MAX)).min(spread)
    }

    /// When a tunnel's turn is. `share` is its place among all, from 0 to 1.
    #[must_use]
    pub fn turn(&self, share: f32) -> Instant {
        self.from + self.over.mul_f32(share.clamp(0.0, 1.0))
    }
}

impl LedgerOwner for ActivationInfo {
    fn drained(&self) {
        self.drained.notify_waiters();
    }
}

/// What clients of a service in maintenance are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintenance {
    /// For people.
    pub message: String,
    /// When to come back, in seconds.
    pub retry_after_s: u32,
    /// When it began.
    pub since: Timestamp,
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
    /// Whether new requests are answered by ourselves.
    pub maintenance: Option<Arc<Maintenance>>,
    /// Standbys that can't become active until they are registered again: somebody is about to stop them. Never the
    /// active one.
    pub withdrawn: BTreeSet<BackendName>,
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

    /// Whether it can't become active until it is registered again.
    #[must_use]
    pub fn is_withdrawn(&self, name: &BackendName) -> bool {
        self.withdrawn.contains(name)
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
            maintenance: self.maintenance.clone(),
            withdrawn: self.withdrawn.clone(),
        }
    }
}

/// All routing, immutable.
#[derive(Debug)]
pub struct Snapshot<P: LanePayload> {
    /// Grows at every change.
    pub generation: u64,
    /// In the order of the configuration.
    pub services: Vec<ServiceState<P>>,
    routes: Routes,
}

impl<P: LanePayload> Snapshot<P> {
    /// Routing for these services.
    pub fn new(generation: u64, services: Vec<ServiceState<P>>) -> Self {
        let mut routes = Routes::default();
        for (index, service) in services.iter().enumerate() {
            routes.add(index, &service.config.hosts, &service.config.path_prefix);
        }
        Self { generation, services, routes }
    }

    /// The service for a request, by its `Host` and the path of its target.
    pub fn route(&self, host: &[u8], path: &[u8]) -> Option<&ServiceState<P>> {
        self.services.get(self.routes.find(host, path)?)
    }

    /// A service by its name.
    pub fn service(&self, name: &str) -> Option<&ServiceState<P>> {
        self.services.iter().find(|service| service.config.name.as_str() == name)
    }
}
