//! The live routing: a [`Snapshot`] with its counts, idle connections and endpoint state. These belong to the user of
//! this package; see [`Fittings`].

use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use uh_protocol::{BackendName, ServiceName};

use crate::backend::{Backend, EndpointId, Health};
use crate::lease::{Activation, LanePayload, Lease, LedgerOwner};
use crate::route::Routes;
use crate::service::Service;
use crate::snapshot::{Active, ServiceState, Snapshot};
use crate::split::{Assigned, Assignment, ClientKey, Side};

/// What a program attaches to its routing. The core creates it when needed and drops it when it is over, but never
/// inspects it.
pub trait Fittings: Send + Sync + 'static {
    /// The configuration of a service.
    type Service: Service;
    /// The run-time state of one registered endpoint.
    type Endpoint: Send + Sync + 'static;
    /// The counters of a backend.
    type Meters: Send + Sync + 'static;
    /// What a worker keeps for an activation.
    type Lane: LanePayload + Send + Sync + 'static;

    /// Creates the state of a new endpoint.
    fn endpoint(&self, service: &Self::Service, id: &EndpointId) -> Self::Endpoint;

    /// Creates the counters of a new activation.
    fn meters(&self, service: &ServiceName, backend: &BackendName) -> Self::Meters;

    /// Creates what each worker keeps for a new activation.
    fn lane(&self, backend: &Arc<Registered<Self::Endpoint>>) -> Self::Lane;

    /// The current health of an endpoint.
    fn health(&self, endpoint: &Self::Endpoint) -> Health;

    /// The version that the app reports at an endpoint.
    fn version(&self, endpoint: &Self::Endpoint) -> Option<String>;

    /// Monotonic time, to measure how long a swap takes.
    fn clock(&self) -> std::time::Instant;
}

/// Empty fittings, for tests and measurements of the core alone.
pub struct Bare<S> {
    /// Monotonic time.
    pub clock: fn() -> std::time::Instant,
    /// The type of the services.
    pub services: PhantomData<S>,
}

impl<S: Service> Fittings for Bare<S> {
    type Service = S;
    type Endpoint = ();
    type Meters = ();
    type Lane = ();

    fn endpoint(&self, _service: &S, _id: &EndpointId) {}

    fn meters(&self, _service: &ServiceName, _backend: &BackendName) {}

    fn lane(&self, _backend: &Arc<Registered<()>>) {}

    fn health(&self, (): &()) -> Health {
        Health::NotProbed
    }

    fn version(&self, (): &()) -> Option<String> {
        None
    }

    fn clock(&self) -> std::time::Instant {
        (self.clock)()
    }
}

/// A registered backend with the run-time state of its endpoints.
#[derive(Debug)]
pub struct Registered<E> {
    /// Its registration.
    pub backend: Arc<Backend>,
    /// In the order of its endpoints.
    pub endpoints: Box<[Arc<E>]>,
}

impl<E> Registered<E> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &BackendName {
        &self.backend.name
    }

    /// The app's version, if it was registered with one.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.backend.version.as_deref()
    }

    /// The state of an endpoint, if it belongs to this backend.
    fn endpoint(&self, id: &EndpointId) -> Option<&Arc<E>> {
        let place = self.backend.endpoints.iter().position(|endpoint| endpoint == id)?;
        self.endpoints.get(place)
    }
}

/// What an activation belongs to.
pub struct ActivationInfo<F: Fittings> {
    /// The service it belongs to, with the settings from when it began.
    pub service: Arc<F::Service>,
    /// The backend that is active.
    pub backend: Arc<Registered<F::Endpoint>>,
    /// Where exchanges on it are counted.
    pub meters: F::Meters,
    /// Wakes tasks that wait for the drain.
    pub drained: Notify,
    /// When its tunnels are to be closed, once that is decided.
    pub close_schedule: OnceLock<CloseSchedule>,
}

impl<F: Fittings> LedgerOwner for ActivationInfo<F> {
    fn drained(&self) {
        self.drained.notify_waiters();
    }
}

/// The schedule for closing many tunnels: one after the other, so that their clients don't all reconnect at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseSchedule {
    /// When the first one is closed.
    pub from: Instant,
    /// How much later the last one is closed.
    pub over: Duration,
}

/// Tunnels are closed no faster than this, as long as the spread allows it.
const TUNNEL_PACE: Duration = Duration::from_millis(10);

impl CloseSchedule {
    /// How long closing this many tunnels takes: a few take less time than many.
    #[must_use]
    pub fn length(tunnels: u64, spread: Duration) -> Duration {
        TUNNEL_PACE.saturating_mul(u32::try_from(tunnels).unwrap_or(u32::MAX)).min(spread)
    }

    /// When it is a tunnel's turn. `share` is its position among all, from 0 to 1.
    #[must_use]
    pub fn turn(&self, share: f32) -> Instant {
        self.from + self.over.mul_f32(share.clamp(0.0, 1.0))
    }
}

/// One service with its current routing.
pub struct LiveService<F: Fittings> {
    /// The decided routing.
    pub state: ServiceState<F::Service>,
    /// In the order of the configuration.
    pub backends: Vec<Arc<Registered<F::Endpoint>>>,
    /// The current activation.
    pub(crate) active: Arc<Activation<ActivationInfo<F>, F::Lane>>,
    /// An activation of each standby that isn't withdrawn, for the requests that name it. Its exchanges hold leases like
    /// all others, and are waited for once the backend is withdrawn or has become active.
    pub(crate) standbys: Vec<Arc<Activation<ActivationInfo<F>, F::Lane>>>,
    /// That of the previous backend, for requests that the active one has nothing for.
    pub(crate) previous: Option<Arc<Activation<ActivationInfo<F>, F::Lane>>>,
    /// The new side of a split.
    pub(crate) split: Option<LiveSplit<F>>,
}

/// A lease for a request, and where a split has put its client, if there is one.
pub type Picked<F> = (Lease<ActivationInfo<F>, <F as Fittings>::Lane>, Option<Assigned>);

/// The new side of a split.
pub(crate) struct LiveSplit<F: Fittings> {
    /// The current activation of its backend.
    pub(crate) activation: Arc<Activation<ActivationInfo<F>, F::Lane>>,
    /// Which clients go there.
    pub(crate) assignment: Assignment,
}

impl<F: Fittings> LiveService<F> {
    /// A backend by its name.
    #[must_use]
    pub fn backend(&self, name: &BackendName) -> Option<&Arc<Registered<F::Endpoint>>> {
        self.backends.iter().find(|backend| backend.name() == name)
    }

    /// The active backend.
    #[must_use]
    pub fn active_backend(&self) -> &Arc<Registered<F::Endpoint>> {
        &self.active.ledger().owner().backend
    }

    /// A lease for an exchange of a client: on the active backend, or where a split sends the client. `key` is only asked
    /// for if there is a split.
    pub(crate) fn lease(&self, worker: usize, key: impl FnOnce(&F::Service) -> ClientKey) -> Picked<F> {
        let Some(split) = &self.split else { return (self.active.lease(worker), None) };
        let (key, by) = (key(&self.state.config), split.assignment);
        let side = by.side(key);
        let activation = match side {
            Side::Old => &self.active,
            Side::New => &split.activation,
        };
        (activation.lease(worker), Some(Assigned { key, side, by }))
    }

    /// The activations that get new requests: of the active backend, and of a split's.
    pub(crate) fn serving(&self) -> impl Iterator<Item = &Arc<Activation<ActivationInfo<F>, F::Lane>>> {
        std::iter::once(&self.active).chain(self.split.iter().map(|split| &split.activation))
    }

    /// The current activations: those that get new requests, and of the standbys.
    pub(crate) fn activations(&self) -> impl Iterator<Item = &Arc<Activation<ActivationInfo<F>, F::Lane>>> {
        self.serving().chain(&self.standbys)
    }

    /// The activation of a standby that isn't withdrawn.
    pub(crate) fn standby(&self, name: &str) -> Option<&Arc<Activation<ActivationInfo<F>, F::Lane>>> {
        self.standbys.iter().find(|standby| standby.ledger().owner().backend.name().as_str() == name)
    }

    /// The number of idle connections to a backend: only those with a current activation have any.
    #[must_use]
    pub fn idle(&self, name: &BackendName) -> u64 {
        let of = self.activations().filter(|activation| activation.ledger().owner().backend.name() == name);
        of.flat_map(|activation| activation.lanes()).map(|lane| lane.payload().idle() as u64).sum()
    }
}

/// The live routing. Holding it keeps its activations from draining, so requests never hold it.
pub struct Live<F: Fittings> {
    /// The decided routing.
    pub snapshot: Arc<Snapshot<F::Service>>,
    /// In the order of the configuration.
    pub services: Vec<LiveService<F>>,
    routes: Routes,
}

impl<F: Fittings> Live<F> {
    pub(crate) fn new(snapshot: Snapshot<F::Service>, services: Vec<LiveService<F>>) -> Self {
        let mut routes = Routes::default();
        for (index, service) in services.iter().enumerate() {
            let config = &service.state.config;
            routes.add(index, config.hosts(), config.path_prefix());
        }
        Self { snapshot: Arc::new(snapshot), services, routes }
    }

    /// The service for a request, by its `Host` and the path of its target.
    pub fn route(&self, host: &[u8], path: &[u8]) -> Option<&LiveService<F>> {
        self.services.get(self.routes.find(host, path)?)
    }

    /// A service by its name.
    pub fn service(&self, name: &str) -> Option<&LiveService<F>> {
        self.services.iter().find(|service| service.state.config.name().as_str() == name)
    }
}

/// Builds the live state of a service, reusing what exists. `activate` creates an activation.
pub(crate) fn live_service<F: Fittings>(
    fittings: &F,
    before: Option<&LiveService<F>>,
    state: &ServiceState<F::Service>,
    mut activate: impl FnMut(&Arc<Registered<F::Endpoint>>) -> Arc<Activation<ActivationInfo<F>, F::Lane>>,
) -> Option<LiveService<F>> {
    let backends: Vec<_> =
        state.backends.iter().map(|backend| registered(fittings, before, state, backend)).collect();
    let mut begin =
        |of: &Active| backends.iter().find(|backend| *backend.name() == of.backend).map(&mut activate);
    let active = match before.filter(|before| before.state.active == state.active) {
        Some(before) => Arc::clone(&before.active),
        None => begin(&state.active)?,
    };
    let split = state.split.as_ref().and_then(|split| {
        let goes_on =
            |before: &&LiveService<F>| before.state.split.as_ref().is_some_and(|b| b.new == split.new);
        let kept = before.filter(goes_on).and_then(|before| before.split.as_ref());
        let activation = kept.map_or_else(|| begin(&split.new), |kept| Some(Arc::clone(&kept.activation)));
        Some(LiveSplit { activation: activation?, assignment: split.assignment })
    });
    let stands_by = |backend: &&Arc<Registered<F::Endpoint>>| {
        !state.is_active(backend.name()) && !state.is_withdrawn(backend.name())
    };
    let standby = |backend: &Arc<Registered<F::Endpoint>>| {
        let before = before.and_then(|before| before.standby(backend.name().as_str()));
        let kept = before.filter(|kept| {
            let info = kept.ledger().owner();
            info.backend.backend == backend.backend && Arc::ptr_eq(&info.service, &state.config)
        });
        kept.map_or_else(|| activate(backend), Arc::clone)
    };
    let standbys: Vec<_> = backends.iter().filter(stands_by).map(standby).collect();
    let asked = state.asked_previous();
    let is_asked = |standby: &&Arc<Activation<ActivationInfo<F>, F::Lane>>| {
        asked.is_some_and(|asked| *asked == standby.ledger().owner().backend.backend)
    };
    let previous = standbys.iter().find(is_asked).cloned();
    Some(LiveService { state: state.clone(), backends, active, standbys, previous, split })
}

fn registered<F: Fittings>(
    fittings: &F,
    before: Option<&LiveService<F>>,
    state: &ServiceState<F::Service>,
    backend: &Arc<Backend>,
) -> Arc<Registered<F::Endpoint>> {
    let before = before.and_then(|before| before.backend(&backend.name));
    if let Some(before) = before.filter(|before| before.backend == *backend) {
        return Arc::clone(before);
    }
    let endpoint = |id: &EndpointId| {
        let kept = before.and_then(|before| before.endpoint(id)).cloned();
        kept.unwrap_or_else(|| Arc::new(fittings.endpoint(&state.config, id)))
    };
    let endpoints = backend.endpoints.iter().map(endpoint).collect();
    Arc::new(Registered { backend: Arc::clone(backend), endpoints })
}
