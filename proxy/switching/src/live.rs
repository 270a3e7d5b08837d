//! The routing in force: a [`Snapshot`], and what was made for it: counts, idle connections, what is found out about
//! endpoints. All of that is the user's own; see [`Fittings`].

use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use uh_protocol::{BackendName, ServiceName};

use crate::backend::{Backend, EndpointId, Health};
use crate::lease::{Activation, LanePayload, LedgerOwner};
use crate::route::Routes;
use crate::service::Service;
use crate::snapshot::{ServiceState, Snapshot};

/// What a program keeps with its routing. The core makes it when it is needed, carries it, and drops it when it is over;
/// it never looks into it.
pub trait Fittings: Send + Sync + 'static {
    /// How a service is configured.
    type Service: Service;
    /// What is found out about one endpoint, for as long as it is registered.
    type Endpoint: Send + Sync + 'static;
    /// Where the exchanges on a backend are counted.
    type Meters: Send + Sync + 'static;
    /// What a worker keeps for an activation.
    type Lane: LanePayload + Send + Sync + 'static;

    /// For an endpoint that was not registered before.
    fn endpoint(&self, service: &Self::Service, id: &EndpointId) -> Self::Endpoint;

    /// For an activation that begins.
    fn meters(&self, service: &ServiceName, backend: &BackendName) -> Self::Meters;

    /// For each worker of an activation that begins.
    fn lane(&self, backend: &Arc<Registered<Self::Endpoint>>) -> Self::Lane;

    /// What the probes think of an endpoint now.
    fn health(&self, endpoint: &Self::Endpoint) -> Health;

    /// The version that the app reports itself at an endpoint.
    fn version(&self, endpoint: &Self::Endpoint) -> Option<String>;

    /// Time that only goes forward: how long a swap takes is measured with it.
    fn clock(&self) -> std::time::Instant;
}

/// Fittings of nothing, for tests and measurements of the core alone.
pub struct Bare<S> {
    /// Time that only goes forward.
    pub clock: fn() -> std::time::Instant,
    /// Whose services are routed.
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

/// A registered backend, and what is found out about each of its endpoints.
#[derive(Debug)]
pub struct Registered<E> {
    /// How it is registered.
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

    /// What is found out about an endpoint, if it is one of its.
    fn endpoint(&self, id: &EndpointId) -> Option<&Arc<E>> {
        let place = self.backend.endpoints.iter().position(|endpoint| endpoint == id)?;
        self.endpoints.get(place)
    }
}

/// What an activation is about.
pub struct ActivationInfo<F: Fittings> {
    /// The service it belongs to, with the settings in force when it began.
    pub service: Arc<F::Service>,
    /// The backend that is active.
    pub backend: Arc<Registered<F::Endpoint>>,
    /// Where exchanges on it are counted.
    pub meters: F::Meters,
    /// Wakes those who wait for the drain.
    pub drained: Notify,
    /// When its tunnels are to be closed, once that is decided.
    pub farewell: OnceLock<Farewell>,
}

impl<F: Fittings> LedgerOwner for ActivationInfo<F> {
    fn drained(&self) {
        self.drained.notify_waiters();
    }
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

/// One service as it is routed now.
pub struct LiveService<F: Fittings> {
    /// What was decided.
    pub state: ServiceState<F::Service>,
    /// In the order of the configuration.
    pub backends: Vec<Arc<Registered<F::Endpoint>>>,
    /// What gets new requests.
    pub(crate) active: Arc<Activation<ActivationInfo<F>, F::Lane>>,
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

    /// Idle connections that are kept to a backend: only the active one has any.
    #[must_use]
    pub fn idle(&self, name: &BackendName) -> u64 {
        let kept = || self.active.lanes().map(|lane| lane.payload().idle() as u64).sum();
        if self.state.is_active(name) { kept() } else { 0 }
    }
}

/// The routing in force. Whoever keeps it keeps its activations, so that none of them is drained: requests never do.
pub struct Live<F: Fittings> {
    /// What was decided.
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

/// What is made for a service, with what of it there is already. `activate` makes an activation.
pub(crate) fn live_service<F: Fittings>(
    fittings: &F,
    before: Option<&LiveService<F>>,
    state: &ServiceState<F::Service>,
    activate: impl FnOnce(&Arc<Registered<F::Endpoint>>) -> Arc<Activation<ActivationInfo<F>, F::Lane>>,
) -> Option<LiveService<F>> {
    let backends: Vec<_> =
        state.backends.iter().map(|backend| registered(fittings, before, state, backend)).collect();
    let active = match before.filter(|before| before.state.active == state.active) {
        Some(before) => Arc::clone(&before.active),
        None => activate(backends.iter().find(|backend| state.is_active(backend.name()))?),
    };
    Some(LiveService { state: state.clone(), backends, active })
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
