//! The switchboard: the one place where routing changes, and from which requests pick.

mod orders;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use uh_protocol::{BackendName, ServiceName};

pub use orders::{RegisterOrder, RegisterOutcome, SwitchOrder, SwitchOutcome, Target, Withdrawal};

use crate::backend::Health;
use crate::change::{Change, Outcome, unknown_backend, unknown_service};
use crate::drain::{self, Drain, Holding};
use crate::generations::Generations;
use crate::lease::{Activation, Lease, Ledger};
use crate::live::{ActivationInfo, Fittings, Live, LiveService, Registered, live_service};
use crate::record::ServiceRecord;
use crate::refusal::Refusal;
use crate::service::Service;
use crate::snapshot::{Maintenance, ServiceState, Snapshot};
use crate::view::{BackendView, RoutingView, ServiceView};

/// What happens to a new request.
pub enum Entry<F: Fittings> {
    /// No service is configured for this host and path.
    Nowhere,
    /// The service is in maintenance. Nothing was counted.
    Closed(Arc<F::Service>, Arc<Maintenance>),
    /// A lease on the active backend.
    Open(Lease<ActivationInfo<F>, F::Lane>),
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
    /// What was in flight on the ended activations when traffic moved.
    pub in_flight_before: Holding,
}

/// The one place where routing changes.
pub struct Switchboard<F: Fittings> {
    live: ArcSwap<Live<F>>,
    /// The ledgers of all activations with exchanges in flight. Its lock serialises changes; requests never take it.
    ledgers: Mutex<Vec<InfoLedger<F>>>,
    generations: Generations,
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
        let live = self.live.load_full();
        let leap = self.generations.leap(live.snapshot.generation);
        let (snapshot, outcome) = live.snapshot.leaving_out(leap).after(&change(&live))?;
        let before = Arc::clone(&live.snapshot);
        if !outcome.changed {
            let after = Arc::clone(&before);
            let (swap_took, in_flight_before) = (Duration::ZERO, Holding::default());
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
        let in_flight_before = drain::sum(&ended);
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

    /// Finds the service for a new request, and takes a lease on its active backend unless the service is in
    /// maintenance.
    pub fn enter(&self, host: &[u8], path: &[u8], worker: usize) -> Entry<F> {
        let live = self.live.load();
        match live.route(host, path) {
            None => Entry::Nowhere,
            Some(LiveService {
                state: ServiceState { config, maintenance: Some(maintenance), .. }, ..
            }) => Entry::Closed(Arc::clone(config), Arc::clone(maintenance)),
            Some(service) => Entry::Open(service.active.lease(worker)),
        }
    }

    /// Finds the service for a request and takes a lease on its active backend: pick and count in one step. For
    /// requests already admitted: maintenance that began since doesn't affect them. `None`: no service is configured
    /// for this host and path.
    pub fn pick(&self, host: &[u8], path: &[u8], worker: usize) -> Option<Lease<ActivationInfo<F>, F::Lane>> {
        Some(self.live.load().route(host, path)?.active.lease(worker))
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

    /// Calls back with every active activation; for housekeeping on a worker's own lane.
    pub fn for_each_active(&self, mut visit: impl FnMut(&Activation<ActivationInfo<F>, F::Lane>)) {
        self.live.load().services.iter().for_each(|service| visit(&service.active));
    }

    /// A handle on the exchanges still in flight on a standby.
    ///
    /// # Errors
    /// If the backend is active.
    pub fn drain(&self, service: &str, name: &BackendName) -> Result<Drain<F>, Refusal> {
        let ledgers = self.ledgers.lock();
        let live = self.live.load();
        let services = &live.snapshot.services;
        let state = live.snapshot.service(service).ok_or_else(|| unknown_service(services, service))?;
        state.backend(name).ok_or_else(|| unknown_backend(state, name))?;
        if state.is_active(name) {
            return Err(Refusal::Active { backend: name.clone() });
        }
        Ok(Drain { ledgers: of(&ledgers, state.config.name(), name) })
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
    let goes_on =
        |activation: &Arc<_>| after.services.iter().any(|service| Arc::ptr_eq(&service.active, activation));
    let active = before.services.iter().map(|service| &service.active);
    active
        .filter(|activation| !goes_on(activation))
        .map(|activation| Arc::clone(activation.ledger()))
        .collect()
}
