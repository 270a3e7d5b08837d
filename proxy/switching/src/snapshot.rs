//! The routing as a value: equal snapshots route alike. Contains no counters, connections or waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use uh_protocol::{BackendName, ServiceName};

use crate::backend::Backend;
use crate::record::ServiceRecord;
use crate::service::{BackendDefinition, Service};
use crate::split::Split;

/// What a service in maintenance tells its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintenance {
    /// For humans.
    pub message: String,
    /// `Retry-After`, in seconds.
    pub retry_after_s: u32,
    /// When it began.
    pub since: Timestamp,
}

/// The backend that receives new requests. A backend that becomes active again begins a new activation with its own
/// counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    /// The backend.
    pub backend: BackendName,
    /// The generation in which this activation began.
    pub since: u64,
}

/// One routed service.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceState<S> {
    /// Its configuration.
    pub config: Arc<S>,
    /// Its backends, in the order of the configuration.
    pub backends: Vec<Arc<Backend>>,
    /// What receives new requests: one of its backends.
    pub active: Active,
    /// The active backend before this one.
    pub previous: Option<BackendName>,
    /// When the active backend last changed.
    pub last_switch: Option<Timestamp>,
    /// Its maintenance, if it is on: uh-proxy answers new requests itself.
    pub maintenance: Option<Arc<Maintenance>>,
    /// Standbys that can't become active until they are registered again, since they are about to be stopped. Never the
    /// active one.
    pub withdrawn: BTreeSet<BackendName>,
    /// The split of its traffic, if there is one: to another of its backends, which isn't withdrawn.
    pub split: Option<Split>,
}

impl<S> ServiceState<S> {
    /// Whether this backend is the active one.
    #[must_use]
    pub fn is_active(&self, name: &BackendName) -> bool {
        self.active.backend == *name
    }

    /// The split that sends a part of the traffic to this backend.
    #[must_use]
    pub fn split_to(&self, name: &BackendName) -> Option<&Split> {
        self.split.as_ref().filter(|split| split.new.backend == *name)
    }

    /// Whether it can't become active until it is registered again.
    #[must_use]
    pub fn is_withdrawn(&self, name: &BackendName) -> bool {
        self.withdrawn.contains(name)
    }

    /// A backend by its name.
    #[must_use]
    pub fn backend(&self, name: &BackendName) -> Option<&Arc<Backend>> {
        self.backends.iter().find(|backend| backend.name == *name)
    }
}

impl<S: Service> ServiceState<S> {
    /// The backend that was active before, if it may still be asked: it isn't about to be stopped, and hasn't been
    /// registered again since, as the next version is.
    #[must_use]
    pub fn asked_previous(&self) -> Option<&Arc<Backend>> {
        let previous = self.backend(self.previous.as_ref()?).filter(|_| self.config.asks_previous())?;
        let is_that_one = previous.endpoints.iter().all(|endpoint| endpoint.since <= self.active.since);
        let stands_by = !self.is_active(&previous.name) && !self.is_withdrawn(&previous.name);
        (is_that_one && stands_by).then_some(previous)
    }

    /// A service that is routed for the first time, in this generation. `known`: its earlier state. `None`: it has no
    /// backend.
    pub(crate) fn first(config: Arc<S>, known: Option<&ServiceRecord>, generation: u64) -> Option<Self> {
        let backend = |configured: &BackendDefinition| {
            let registered = known.and_then(|known| known.registered.get(&configured.name));
            let (addresses, version) = match registered {
                Some(registered) => (&registered.endpoints, &registered.version),
                None => (&configured.endpoints, &configured.version),
            };
            Arc::new(Backend::new(configured.name.clone(), version.as_deref(), addresses, generation))
        };
        let backends: Vec<Arc<Backend>> = config.backends().iter().map(backend).collect();
        let active = first_active(&*config, &backends, known)?;
        let named = |name: &BackendName| backends.iter().any(|backend| backend.name == *name);
        let withdrawn = known.map(|known| &known.withdrawn).into_iter().flatten();
        let withdrawn: BTreeSet<_> =
            withdrawn.filter(|&name| *name != active && named(name)).cloned().collect();
        let may_split = |to: &BackendName| *to != active && named(to) && !withdrawn.contains(to);
        let split = known.and_then(|known| known.split.as_ref()).filter(|split| may_split(&split.to));
        Some(Self {
            split: split.map(|split| split.split(generation)),
            withdrawn,
            previous: known.and_then(|known| known.previous.clone()).filter(|name| named(name)),
            last_switch: known.and_then(|known| known.last_switch),
            maintenance: known.and_then(|known| known.maintenance.clone()).map(Arc::new),
            active: Active { backend: active, since: generation },
            backends,
            config,
        })
    }
}

/// The backend that was active. If it is gone, prefer one that isn't withdrawn.
fn first_active<S: Service>(
    config: &S,
    backends: &[Arc<Backend>],
    known: Option<&ServiceRecord>,
) -> Option<BackendName> {
    let named = |name: &BackendName| backends.iter().find(|backend| backend.name == *name);
    let serves = |backend: &&Arc<Backend>| known.is_none_or(|known| !known.withdrawn.contains(&backend.name));
    let fallback = || {
        named(config.first_active())
            .filter(serves)
            .or_else(|| backends.iter().find(serves))
            .or_else(|| named(config.first_active()))
    };
    let active = known.and_then(|known| named(&known.active)).or_else(fallback)?;
    Some(active.name.clone())
}

impl<S> Clone for ServiceState<S> {
    fn clone(&self) -> Self {
        Self {
            config: Arc::clone(&self.config),
            backends: self.backends.clone(),
            active: self.active.clone(),
            previous: self.previous.clone(),
            last_switch: self.last_switch,
            maintenance: self.maintenance.clone(),
            withdrawn: self.withdrawn.clone(),
            split: self.split.clone(),
        }
    }
}

/// The whole routing.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot<S> {
    /// Increases with every change of the routing.
    pub generation: u64,
    /// How many generations the next change skips, because an earlier run may have used them: see
    /// [`generations`](crate::generations).
    pub leap: u64,
    /// In the order of the configuration.
    pub services: Vec<ServiceState<S>>,
}

impl<S> Clone for Snapshot<S> {
    fn clone(&self) -> Self {
        Self { generation: self.generation, leap: self.leap, services: self.services.clone() }
    }
}

impl<S> Snapshot<S> {
    pub(crate) fn leaving_out(&self, leap: u64) -> Self {
        Self { leap, ..self.clone() }
    }

    pub(crate) fn next_generation(&self) -> u64 {
        self.generation.saturating_add(1).saturating_add(self.leap)
    }
}

impl<S: Service> Snapshot<S> {
    /// The routing of these services, with their earlier state.
    #[must_use]
    pub fn first(services: &[Arc<S>], known: &BTreeMap<ServiceName, ServiceRecord>, generation: u64) -> Self {
        let state =
            |config: &Arc<S>| ServiceState::first(Arc::clone(config), known.get(config.name()), generation);
        Self { generation, leap: 0, services: services.iter().filter_map(state).collect() }
    }

    /// A service by its name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&ServiceState<S>> {
        self.services.iter().find(|service| service.config.name().as_str() == name)
    }
}
