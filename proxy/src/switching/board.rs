//! The switchboard: the one place where routing changes, and the one from which requests pick.

mod drain;
mod refusal;
mod register;
mod reload;

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;
use uh_protocol::BackendName;

pub use drain::{Drain, Holding};
pub use refusal::Refusal;
pub use register::{RegisterOrder, Registration, Withdrawal};

use super::backend::{Backend, Health};
use super::lease::{Activation, LanePayload, Lease, Ledger};
use super::snapshot::{ActivationInfo, Maintenance, ServiceState, Snapshot};
use crate::config;
use crate::observe::meters::Meters;
use uh_protocol::Address;

/// What an operator asks for with a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchOrder {
    /// The backend to make active.
    pub to: BackendName,
    /// Refuse unless this one is active.
    pub expect_active: Option<BackendName>,
    /// Refuse unless this is the generation.
    pub expect_generation: Option<u64>,
    /// Switch even if it is not known to be healthy.
    pub force: bool,
}

/// What a switch would be to.
#[derive(Debug, Clone)]
pub struct Target {
    /// The service.
    pub service: Arc<config::Service>,
    /// The backend.
    pub backend: Arc<Backend>,
}

/// What a switch did.
#[derive(Debug, Clone)]
pub struct SwitchOutcome {
    /// Active before.
    pub from: BackendName,
    /// Whether that is another one now.
    pub changed: bool,
    /// The generation now.
    pub generation: u64,
    /// When the active backend last changed.
    pub switched_at: Option<Timestamp>,
    /// What the old backend held when traffic moved.
    pub in_flight_previous: u64,
    /// How long the swap itself took.
    pub swap_took: Duration,
    /// What the new active backend's health was.
    pub health: Health,
    /// The active backend now.
    pub target: Arc<Backend>,
}

/// What is known of a service from an earlier run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// The backend that was active.
    pub active: Option<BackendName>,
    /// The one before.
    pub previous: Option<BackendName>,
    /// When the active one last changed.
    pub last_switch: Option<Timestamp>,
    /// Backends registered at run time, with their endpoints and versions.
    pub registered: Vec<(BackendName, Vec<Address>, Option<String>)>,
    /// The maintenance it was in.
    pub maintenance: Option<Maintenance>,
    /// Backends that were withdrawn.
    pub withdrawn: BTreeSet<BackendName>,
}

/// What becomes of a new request.
pub enum Entry<P: LanePayload> {
    /// No service answers for this host and path.
    Nowhere,
    /// The service is in maintenance. Nothing was counted.
    Closed(Arc<config::Service>, Arc<Maintenance>),
    /// It takes part in the active backend.
    Open(Lease<ActivationInfo, P>),
}

type InfoLedger = Arc<Ledger<ActivationInfo>>;

/// Makes what a worker keeps for an activation of a backend.
type MakePayload<P> = Box<dyn Fn(&Arc<Backend>) -> P + Send + Sync>;

/// The one place where routing changes.
pub struct Switchboard<P: LanePayload> {
    snapshot: ArcSwap<Snapshot<P>>,
    writer: Mutex<Writer>,
    workers: usize,
    meters: Arc<Meters>,
    payload: MakePayload<P>,
}

/// What only the writer needs. Its lock serialises changes; requests never take it.
struct Writer {
    ledgers: Vec<InfoLedger>,
    /// How many generations the next change leaves out.
    leap: u64,
}

impl<P: LanePayload> Switchboard<P> {
    /// A switchboard for these services. `restored` tells what is known of a service from an earlier run; `payload`
    /// makes what a worker keeps for an activation of a backend.
    pub fn new(
        services: &[config::Service],
        restored: impl Fn(&config::Service) -> Restored,
        generation: u64,
        workers: usize,
        meters: Arc<Meters>,
        payload: impl Fn(&Arc<Backend>) -> P + Send + Sync + 'static,
    ) -> Self {
        let board = Self {
            snapshot: ArcSwap::from_pointee(Snapshot::new(generation, Vec::new())),
            writer: Mutex::new(Writer { ledgers: Vec::new(), leap: 0 }),
            workers,
            meters,
            payload: Box::new(payload),
        };
        let mut writer = board.writer.lock();
        let states =
            services.iter().filter_map(|service| board.first_state(&mut writer, service, restored(service)));
        let states = states.collect();
        drop(writer);
        board.snapshot.store(Arc::new(Snapshot::new(generation, states)));
        board
    }

    /// Makes the next change leave out so many generations. For a start after an earlier run, which may have handed out
    /// generations that never reached the disk: an expectation of one of those must not hold for another change.
    pub fn leap(&self, generations: u64) {
        self.writer.lock().leap = generations;
    }

    fn first_state(
        &self,
        writer: &mut Writer,
        service: &config::Service,
        restored: Restored,
    ) -> Option<ServiceState<P>> {
        let health = first_health(service);
        let backend = |configured: &config::BackendConfig| {
            let registered = restored.registered.iter().find(|(name, ..)| *name == configured.name);
            let (addresses, version) = match registered {
                Some((_, addresses, version)) => (addresses.as_slice(), version.as_deref()),
                None => (configured.endpoints.as_slice(), configured.version.as_deref()),
            };
            Arc::new(Backend::new(configured.name.clone(), version, addresses, health))
        };
        let backends: Vec<Arc<Backend>> = service.backends.iter().map(backend).collect();
        let named = |name: &BackendName| backends.iter().find(|backend| backend.name == *name);
        let serves = |backend: &&Arc<Backend>| !restored.withdrawn.contains(&backend.name);
        // Without the backend that was active, rather another one than one that somebody has stopped.
        let fallback = || {
            named(&service.active)
                .filter(serves)
                .or_else(|| backends.iter().find(serves))
                .or_else(|| named(&service.active))
        };
        let active = restored.active.as_ref().and_then(named).or_else(fallback)?;
        let withdrawn =
            restored.withdrawn.iter().filter(|&name| *name != active.name && named(name).is_some());
        let withdrawn = withdrawn.cloned().collect();
        let config = Arc::new(service.clone());
        let active = self.activate(writer, &config, active);
        Some(ServiceState {
            config,
            active,
            previous: restored.previous.filter(|name| named(name).is_some()),
            last_switch: restored.last_switch,
            maintenance: restored.maintenance.map(Arc::new),
            withdrawn,
            backends,
        })
    }

    fn activate(
        &self,
        writer: &mut Writer,
        service: &Arc<config::Service>,
        backend: &Arc<Backend>,
    ) -> Arc<Activation<ActivationInfo, P>> {
        let info = ActivationInfo {
            service: Arc::clone(service),
            backend: Arc::clone(backend),
            meters: self.meters.backend(&service.name, &backend.name),
            drained: Notify::new(),
            farewell: OnceLock::new(),
        };
        let activation = Arc::new(Activation::new(info, self.workers, || (self.payload)(backend)));
        writer.ledgers.retain(|ledger| !ledger.is_drained());
        writer.ledgers.push(Arc::clone(activation.ledger()));
        activation
    }

    /// Finds the service for a new request, and takes part in its active backend unless the service is in maintenance.
    pub fn enter(&self, host: &[u8], path: &[u8], worker: usize) -> Entry<P> {
        let snapshot = self.snapshot.load();
        match snapshot.route(host, path) {
            None => Entry::Nowhere,
            Some(ServiceState { config, maintenance: Some(maintenance), .. }) => {
                Entry::Closed(Arc::clone(config), Arc::clone(maintenance))
            }
            Some(service) => Entry::Open(service.active.lease(worker)),
        }
    }

    /// Finds the service for a request and takes part in its active backend: the pick and the count, in one act. For
    /// requests that have entered: maintenance that began since does not concern them.
    /// `None`: no service answers for this host and path.
    pub fn pick(&self, host: &[u8], path: &[u8], worker: usize) -> Option<Lease<ActivationInfo, P>> {
        Some(self.snapshot.load().route(host, path)?.active.lease(worker))
    }

    /// The routing now. For the admin side: a request that held it would hold every service's activation.
    pub fn snapshot(&self) -> Arc<Snapshot<P>> {
        self.snapshot.load_full()
    }

    /// Calls back with every activation that is active now; for housekeeping on a worker's own lane.
    pub fn for_each_active(&self, mut visit: impl FnMut(&Activation<ActivationInfo, P>)) {
        self.snapshot.load().services.iter().for_each(|service| visit(&service.active));
    }

    /// What a switch would be to: the service and the backend; `None` if that is active already. Changes nothing, so all of
    /// it is checked again by the switch itself.
    ///
    /// # Errors
    /// It would be refused.
    pub fn target(&self, service: &str, order: &SwitchOrder) -> Result<Option<Target>, Refusal> {
        let snapshot = self.snapshot.load_full();
        let (_, state, target) = check_switch(&snapshot, service, order)?;
        let (service, backend) = (Arc::clone(&state.config), Arc::clone(target));
        Ok((!state.is_active(&order.to)).then_some(Target { service, backend }))
    }

    /// Makes another backend active.
    ///
    /// # Errors
    /// Refused; then nothing has changed.
    pub fn switch(
        &self,
        service: &str,
        order: &SwitchOrder,
        now: Timestamp,
    ) -> Result<SwitchOutcome, Refusal> {
        let mut writer = self.writer.lock();
        let old = self.snapshot.load_full();
        let (index, state, target) = check_switch(&old, service, order)?;
        let active = &state.active_backend().name;
        let health = target.health();
        let mut outcome = SwitchOutcome {
            from: active.clone(),
            changed: false,
            generation: old.generation,
            switched_at: state.last_switch,
            in_flight_previous: 0,
            swap_took: Duration::ZERO,
            health,
            target: Arc::clone(target),
        };
        if *active == order.to {
            return Ok(outcome);
        }
        let mut changed = state.clone();
        changed.previous = Some(active.clone());
        changed.last_switch = Some(now);
        changed.active = self.activate(&mut writer, &state.config, target);
        let ledger = Arc::clone(state.active.ledger());
        let next = writer.replace(&old, index, changed);
        outcome.generation = next.generation;
        outcome.switched_at = Some(now);
        outcome.changed = true;
        drop(old);
        let start = std::time::Instant::now();
        let old = self.snapshot.swap(next);
        outcome.swap_took = start.elapsed();
        outcome.in_flight_previous = ledger.requests() + ledger.tunnels();
        drop(old);
        Ok(outcome)
    }

    /// Begins or ends maintenance; the time at which it began stays if it only changes its words. Returns what is in
    /// force now, and whether anything is different. The generation stays: who serves does not change, and a deploy
    /// that is under way goes on.
    ///
    /// # Errors
    /// No such service.
    pub fn set_maintenance(
        &self,
        service: &str,
        wanted: Option<Maintenance>,
    ) -> Result<(Option<Arc<Maintenance>>, bool), Refusal> {
        let _writer = self.writer.lock();
        let old = self.snapshot.load_full();
        let (index, state) = find(&old, service)?;
        let current = state.maintenance.as_deref();
        let since = current.map(|current| current.since);
        let wanted = wanted.map(|wanted| Maintenance { since: since.unwrap_or(wanted.since), ..wanted });
        if current == wanted.as_ref() {
            return Ok((state.maintenance.clone(), false));
        }
        let mut services = old.services.clone();
        services[index].maintenance = wanted.map(Arc::new);
        let now = services[index].maintenance.clone();
        self.snapshot.store(Arc::new(Snapshot::new(old.generation, services)));
        Ok((now, true))
    }

    /// A handle on the exchanges that a standby still holds.
    ///
    /// # Errors
    /// Refused for the active backend.
    pub fn drain(&self, service: &str, name: &BackendName) -> Result<Drain, Refusal> {
        let writer = self.writer.lock();
        let snapshot = self.snapshot.load();
        let (_, state) = find(&snapshot, service)?;
        find_backend(state, name)?;
        if state.active_backend().name == *name {
            return Err(Refusal::Active { backend: name.clone() });
        }
        Ok(Drain { ledgers: writer.of(&state.config, name) })
    }

    /// What a backend holds now, in its current and all its past activations.
    pub fn holding(&self, service: &config::Service, name: &BackendName) -> Holding {
        let writer = self.writer.lock();
        drain::sum(&writer.of(service, name))
    }
}

impl Writer {
    fn next_generation(&mut self, now: u64) -> u64 {
        now.saturating_add(1).saturating_add(std::mem::take(&mut self.leap))
    }

    fn replace<P: LanePayload>(
        &mut self,
        old: &Snapshot<P>,
        index: usize,
        changed: ServiceState<P>,
    ) -> Arc<Snapshot<P>> {
        let mut services = old.services.clone();
        services[index] = changed;
        Arc::new(Snapshot::new(self.next_generation(old.generation), services))
    }

    fn of(&self, service: &config::Service, backend: &BackendName) -> Vec<InfoLedger> {
        let belongs = |ledger: &&InfoLedger| {
            let info = ledger.owner();
            info.service.name == service.name && info.backend.name == *backend && !ledger.is_drained()
        };
        self.ledgers.iter().filter(belongs).cloned().collect()
    }
}

fn first_health(service: &config::Service) -> Health {
    if service.health.enabled { Health::Unknown } else { Health::NotProbed }
}

fn find<'a, P: LanePayload>(
    snapshot: &'a Snapshot<P>,
    name: &str,
) -> Result<(usize, &'a ServiceState<P>), Refusal> {
    let mut services = snapshot.services.iter().enumerate();
    services.find(|(_, service)| service.config.name.as_str() == name).ok_or_else(|| {
        Refusal::UnknownService {
            asked: name.chars().take(uh_protocol::name::MAX_NAME_BYTES).collect(),
            known: snapshot.services.iter().map(|service| service.config.name.to_string()).collect(),
        }
    })
}

fn find_backend<'a, P: LanePayload>(
    state: &'a ServiceState<P>,
    name: &BackendName,
) -> Result<&'a Arc<Backend>, Refusal> {
    state.backend(name).ok_or_else(|| Refusal::UnknownBackend {
        service: state.config.name.to_string(),
        asked: name.to_string(),
        known: state.backends.iter().map(|backend| backend.name.to_string()).collect(),
    })
}

/// Whether a switch may be made as things stand.
fn check_switch<'a, P: LanePayload>(
    snapshot: &'a Snapshot<P>,
    service: &str,
    order: &SwitchOrder,
) -> Result<(usize, &'a ServiceState<P>, &'a Arc<Backend>), Refusal> {
    let (index, state) = find(snapshot, service)?;
    let target = find_backend(state, &order.to)?;
    let active = &state.active_backend().name;
    check_expectations(snapshot, active, order.expect_active.as_ref(), order.expect_generation)?;
    if *active == order.to {
        return Ok((index, state, target));
    }
    if state.is_withdrawn(&order.to) {
        return Err(Refusal::Withdrawn { backend: order.to.clone(), active: active.clone() });
    }
    let health = target.health();
    if !order.force && matches!(health, Health::Unhealthy | Health::Unknown) {
        return Err(Refusal::Unhealthy { backend: order.to.clone(), active: active.clone(), health });
    }
    Ok((index, state, target))
}

fn check_expectations<P: LanePayload>(
    snapshot: &Snapshot<P>,
    active: &BackendName,
    expect_active: Option<&BackendName>,
    expect_generation: Option<u64>,
) -> Result<(), Refusal> {
    let generation = snapshot.generation;
    if let Some(expected) = expect_active.filter(|expected| *expected != active) {
        return Err(Refusal::NotActive { expected: expected.clone(), active: active.clone(), generation });
    }
    if let Some(expected) = expect_generation.filter(|expected| *expected != generation) {
        return Err(Refusal::OtherGeneration { expected, generation, active: active.clone() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
