//! The switchboard: the one place where routing changes, and from which requests pick.

mod follow;
mod orders;
mod split;
mod switch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use uh_protocol::{BackendName, ServiceName};

pub use orders::{RegisterOrder, RegisterOutcome, Withdrawal};
pub use split::{SplitEnd, SplitOrder, SplitOutcome};
pub use switch::{Move, Moved, Refusals, SwitchOrder, SwitchOutcome, Target, Tried};

use crate::backend::Health;
use crate::change::{Change, Outcome, in_split, unknown_backend, unknown_service};
use crate::drain::{self, Drain, Holding};
use crate::generations::Generations;
use crate::lease::{Activation, Lease, Ledger};
use crate::live::{ActivationInfo, Fittings, Live, LiveService, Picked, Registered, live_service};
use crate::record::ServiceRecord;
use crate::refusal::Refusal;
use crate::service::Service;
use crate::snapshot::{Maintenance, ServiceState, Snapshot};
use crate::split::{Assigned, ClientKey};
use crate::view::{BackendView, RoutingView, ServiceView};

/// What happens to a new request.
pub enum Entry<F: Fittings> {
    /// No service is configured for this host and path.
    Nowhere,
    /// The service is in maintenance. Nothing was counted.
    Closed(Arc<F::Service>, Arc<Maintenance>),
    /// A lease on the active backend, or where a split sends the client.
    Open(Lease<ActivationInfo<F>, F::Lane>, Option<Assigned>),
}

/// What there is for a request that names the backend which is to answer it.
pub enum Named<F: Fittings> {
    /// It is active.
    Active(Lease<ActivationInfo<F>, F::Lane>),
    /// It stands by.
    Standby(Lease<ActivationInfo<F>, F::Lane>),
    /// It is withdrawn: it may be stopped at any time.
    Withdrawn,
    /// The service has no such backend.
    Unknown,
}

pub(crate) type InfoLedger<F> = Arc<Ledger<ActivationInfo<F>>>;

/// The result of a change. Holds no activation.
pub struct Applied<S> {
    /// The previous routing.
    pub before: Arc<Snapshot<S>>,
    /// The new routing.
    pub after: Arc<Snapshot<S>>,
    /// What changed.
    pub outcome: Outcome,
    /// How long the swap itself took.
    pub swap_took: Duration,
    /// What was in flight when traffic moved on the activations that it has left, by service and backend.
    pub in_flight_before: BTreeMap<(ServiceName, BackendName), Holding>,
}

/// The one place where routing changes.
pub struct Switchboard<F: Fittings> {
    live: ArcSwap<Live<F>>,
    /// The ledgers of all activations with exchanges in flight. Its lock serialises changes; requests never take it.
    ledgers: Mutex<Vec<InfoLedger<F>>>,
    generations: Generations,
    /// Another process leads, or is about to: changes are refused.
    frozen: AtomicBool,
    /// Wakes tasks that depend on the routing.
    changed: Notify,
    workers: usize,
    fittings: F,
}

impl<F: Fittings> Switchboard<F> {
    /// A switchboard for these services, with their state from an earlier run. It counts on from `generation`.
    pub fn new(
        fittings: F,
        services: &[Arc<F::Service>],
        known: &BTreeMap<ServiceName, ServiceRecord>,
        generation: u64,
        workers: usize,
    ) -> Self {
        let nothing = Snapshot { generation, leap: 0, services: Vec::new() };
        let board = Self {
            live: ArcSwap::from_pointee(Live::new(nothing, Vec::new())),
            ledgers: Mutex::default(),
            generations: Generations::free(),
            frozen: AtomicBool::new(false),
            changed: Notify::new(),
            workers,
            fittings,
        };
        let mut ledgers = board.ledgers.lock();
        let first =
            board.make(&mut ledgers, &board.live.load(), Snapshot::first(services, known, generation));
        drop(ledgers);
        board.live.store(Arc::new(first));
        board
    }

    /// The same, with generations that no earlier run can have used.
    #[must_use]
    pub fn numbered_by(self, generations: Generations) -> Self {
        Self { generations, ..self }
    }

    /// Set by the state writer: the reserve on disk.
    pub fn reserved(&self) -> Arc<AtomicU64> {
        self.generations.reserved()
    }

    /// Completes when the routing has changed since the call (not since the first poll).
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Changes the routing: decides with [`Snapshot::after`], makes what the decision needs, and swaps. `change` is
    /// called under the lock, so that the routing it sees can't change before the decision.
    ///
    /// # Errors
    /// If refused; nothing has changed then.
    pub fn apply(
        &self,
        change: impl FnOnce(&Live<F>) -> Change<F::Service>,
    ) -> Result<Applied<F::Service>, Refusal> {
        let mut ledgers = self.ledgers.lock();
        if self.frozen.load(Ordering::Acquire) {
            return Err(Refusal::Frozen);
        }
        let live = self.live.load_full();
        let leap = self.generations.leap(live.snapshot.generation);
        let (snapshot, outcome) = live.snapshot.leaving_out(leap).after(&change(&live))?;
        let before = Arc::clone(&live.snapshot);
        if !outcome.changed {
            let after = Arc::clone(&before);
            let (swap_took, in_flight_before) = (Duration::ZERO, BTreeMap::new());
            return Ok(Applied { before, after, outcome, swap_took, in_flight_before });
        }
        let next = Arc::new(self.make(&mut ledgers, &live, snapshot));
        let after = Arc::clone(&next.snapshot);
        let ended = ended(&live, &next);
        drop(live);
        let start = self.fittings.clock();
        let old = self.live.swap(next);
        let swap_took = self.fittings.clock().saturating_duration_since(start);
        self.changed.notify_waiters();
        let held = |ledger: &InfoLedger<F>| {
            let info = ledger.owner();
            let of = (info.service.name().clone(), info.backend.name().clone());
            (of, drain::sum(std::slice::from_ref(ledger)))
        };
        let in_flight_before = ended.iter().map(held).collect();
        drop(old);
        Ok(Applied { before, after, outcome, swap_took, in_flight_before })
    }

    /// Builds the live state for a snapshot, reusing what exists.
    fn make(
        &self,
        ledgers: &mut Vec<InfoLedger<F>>,
        before: &Live<F>,
        snapshot: Snapshot<F::Service>,
    ) -> Live<F> {
        let mut service = |state: &ServiceState<F::Service>| {
            let before = before.service(state.config.name().as_str());
            live_service(&self.fittings, before, state, |backend| {
                self.activate(ledgers, &state.config, backend)
            })
        };
        let services = snapshot.services.iter().filter_map(&mut service).collect();
        Live::new(snapshot, services)
    }

    fn activate(
        &self,
        ledgers: &mut Vec<InfoLedger<F>>,
        service: &Arc<F::Service>,
        backend: &Arc<Registered<F::Endpoint>>,
    ) -> Arc<Activation<ActivationInfo<F>, F::Lane>> {
        let info = ActivationInfo {
            service: Arc::clone(service),
            backend: Arc::clone(backend),
            meters: self.fittings.meters(service.name(), backend.name()),
            drained: Notify::new(),
            close_schedule: OnceLock::new(),
        };
        let activation = Arc::new(Activation::new(info, self.workers, || self.fittings.lane(backend)));
        ledgers.retain(|ledger| !ledger.is_drained());
        ledgers.push(Arc::clone(activation.ledger()));
        activation
    }

    /// Finds the service for a new request, and takes a lease for it unless the service is in maintenance. `key` is its
    /// client's, and is only asked for if the service's traffic is split.
    pub fn enter(
        &self,
        host: &[u8],
        path: &[u8],
        worker: usize,
        key: impl FnOnce(&F::Service) -> ClientKey,
    ) -> Entry<F> {
        let live = self.live.load();
        match live.route(host, path) {
            None => Entry::Nowhere,
            Some(LiveService {
                state: ServiceState { config, maintenance: Some(maintenance), .. }, ..
            }) => Entry::Closed(Arc::clone(config), Arc::clone(maintenance)),
            Some(service) => {
                let (lease, assigned) = service.lease(worker, key);
                Entry::Open(lease, assigned)
            }
        }
    }

    /// Finds the service for a request and takes a lease for it: pick and count in one step. For requests already
    /// admitted: maintenance that began since doesn't affect them. `None`: no service is configured for this host and
    /// path.
    pub fn pick(
        &self,
        host: &[u8],
        path: &[u8],
        worker: usize,
        key: impl FnOnce(&F::Service) -> ClientKey,
    ) -> Option<Picked<F>> {
        Some(self.live.load().route(host, path)?.lease(worker, key))
    }

    /// A lease on the backend that may be asked for what `other` has nothing for, if there is one: the one that was active
    /// before the active backend; and for a split's new side, the active backend.
    pub fn pick_previous(
        &self,
        host: &[u8],
        path: &[u8],
        worker: usize,
        other: &BackendName,
    ) -> Option<Lease<ActivationInfo<F>, F::Lane>> {
        let live = self.live.load();
        let service = live.route(host, path)?;
        let of_split = service.state.split_to(other).is_some() && service.state.config.asks_previous();
        let asked = if of_split { &service.active } else { service.previous.as_ref()? };
        Some(asked.lease(worker))
    }

    /// A lease on the active backend, however traffic is split.
    pub fn pick_active(
        &self,
        host: &[u8],
        path: &[u8],
        worker: usize,
    ) -> Option<Lease<ActivationInfo<F>, F::Lane>> {
        Some(self.live.load().route(host, path)?.active.lease(worker))
    }

    /// A lease on the backend with this name, whichever is active and however traffic is split.
    pub fn pick_named(&self, host: &[u8], path: &[u8], worker: usize, name: &str) -> Named<F> {
        let live = self.live.load();
        let Some(service) = live.route(host, path) else { return Named::Unknown };
        if service.state.active.backend.as_str() == name {
            return Named::Active(service.active.lease(worker));
        }
        match service.standby(name) {
            Some(standby) => Named::Standby(standby.lease(worker)),
            None if service.state.withdrawn.iter().any(|withdrawn| withdrawn.as_str() == name) => {
                Named::Withdrawn
            }
            None => Named::Unknown,
        }
    }

    /// The current routing, as a value.
    pub fn snapshot(&self) -> Arc<Snapshot<F::Service>> {
        Arc::clone(&self.live.load().snapshot)
    }

    /// The current routing with its live state. For the admin side: a holder holds every service's activation.
    pub fn live(&self) -> Arc<Live<F>> {
        self.live.load_full()
    }

    /// The current routing and the state of its backends, for reporting.
    pub fn view(&self) -> RoutingView<F::Service> {
        let live = self.live.load_full();
        let service = |service: &LiveService<F>| ServiceView {
            state: service.state.clone(),
            backends: service.backends.iter().map(|backend| self.backend_view(service, backend)).collect(),
        };
        RoutingView {
            generation: live.snapshot.generation,
            generation_reserve: self.generations.reserve(live.snapshot.generation),
            services: live.services.iter().map(service).collect(),
        }
    }

    /// The current state of a backend.
    pub fn backend_view(&self, service: &LiveService<F>, backend: &Registered<F::Endpoint>) -> BackendView {
        let reported = || backend.endpoints.iter().find_map(|endpoint| self.fittings.version(endpoint));
        BackendView {
            backend: Arc::clone(&backend.backend),
            health: self.health(backend),
            version: backend.version().map(str::to_owned).or_else(reported),
            holding: self.holding(service.state.config.name(), backend.name()),
            idle: service.idle(backend.name()),
        }
    }

    /// The current health of a backend: healthy if any endpoint is.
    pub fn health(&self, backend: &Registered<F::Endpoint>) -> Health {
        Health::of_any(backend.endpoints.iter().map(|endpoint| self.fittings.health(endpoint)))
    }

    /// Calls back with every current activation; for housekeeping on a worker's own lane.
    pub fn for_each_active(&self, mut visit: impl FnMut(&Activation<ActivationInfo<F>, F::Lane>)) {
        let live = self.live.load();
        live.services.iter().flat_map(LiveService::activations).for_each(|activation| visit(activation));
    }

    /// The configuration of a service of which this standby may be previewed.
    ///
    /// # Errors
    /// If the backend is active, withdrawn or unknown.
    pub fn try_preview(&self, service: &str, name: &BackendName) -> Result<Arc<F::Service>, Refusal> {
        let snapshot = self.snapshot();
        let state = snapshot.service(service).ok_or_else(|| unknown_service(&snapshot.services, service))?;
        state.backend(name).ok_or_else(|| unknown_backend(state, name))?;
        if state.is_active(name) {
            return Err(Refusal::PreviewOfActive { backend: name.clone() });
        }
        if state.is_withdrawn(name) {
            return Err(Refusal::Withdrawn { backend: name.clone(), active: state.active.backend.clone() });
        }
        Ok(Arc::clone(&state.config))
    }

    /// A handle on the exchanges still in flight on a standby, from when it got new requests. Those of requests that name
    /// it, and of what it is asked as the previous one, are included once it is withdrawn.
    ///
    /// # Errors
    /// If the backend gets new requests: it is active, or a split sends some there.
    pub fn drain(&self, service: &str, name: &BackendName) -> Result<Drain<F>, Refusal> {
        let ledgers = self.ledgers.lock();
        let live = self.live.load();
        let services = &live.snapshot.services;
        let state = live.snapshot.service(service).ok_or_else(|| unknown_service(services, service))?;
        state.backend(name).ok_or_else(|| unknown_backend(state, name))?;
        if state.is_active(name) {
            return Err(Refusal::Active { backend: name.clone() });
        }
        in_split(state, name).map_or(Ok(()), Err)?;
        let standby = live.service(service).and_then(|service| service.standby(name.as_str()));
        let goes_on =
            |ledger: &InfoLedger<F>| standby.is_some_and(|standby| Arc::ptr_eq(standby.ledger(), ledger));
        let mut ledgers = of(&ledgers, state.config.name(), name);
        ledgers.retain(|ledger| !goes_on(ledger));
        Ok(Drain { ledgers })
    }

    /// What is in flight on a backend, in its current and all its past activations.
    pub fn holding(&self, service: &ServiceName, name: &BackendName) -> Holding {
        drain::sum(&of(&self.ledgers.lock(), service, name))
    }
}

/// The ledgers of a backend with exchanges in flight.
fn of<F: Fittings>(
    ledgers: &[InfoLedger<F>],
    service: &ServiceName,
    backend: &BackendName,
) -> Vec<InfoLedger<F>> {
    let belongs = |ledger: &&InfoLedger<F>| {
        let info = ledger.owner();
        info.service.name() == service && info.backend.name() == backend && !ledger.is_drained()
    };
    ledgers.iter().filter(belongs).cloned().collect()
}

/// The ledgers of activations that get no new requests.
fn ended<F: Fittings>(before: &Live<F>, after: &Live<F>) -> Vec<InfoLedger<F>> {
    let goes_on = |activation: &Arc<_>| {
        after.services.iter().flat_map(LiveService::serving).any(|other| Arc::ptr_eq(other, activation))
    };
    let serving = before.services.iter().flat_map(LiveService::serving);
    serving
        .filter(|activation| !goes_on(activation))
        .map(|activation| Arc::clone(activation.ledger()))
        .collect()
}
