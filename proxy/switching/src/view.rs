//! The routing and the state of its backends as a plain value, for reporting.

use std::sync::Arc;

use crate::backend::{Backend, Health};
use crate::drain::Holding;
use crate::snapshot::ServiceState;

/// The routing at one moment.
#[derive(Debug, Clone)]
pub struct RoutingView<S> {
    /// The generation.
    pub generation: u64,
    /// The generations that a state with this routing reserves: none beyond it is used before a state with a larger
    /// reserve is on disk.
    pub generation_reserve: u64,
    /// In the order of the configuration.
    pub services: Vec<ServiceView<S>>,
}

/// One service.
#[derive(Debug, Clone)]
pub struct ServiceView<S> {
    /// The decided routing.
    pub state: ServiceState<S>,
    /// In the order of the configuration.
    pub backends: Vec<BackendView>,
}

impl<S> ServiceView<S> {
    /// The active backend.
    #[must_use]
    pub fn active(&self) -> Option<&BackendView> {
        self.backends.iter().find(|view| self.state.is_active(&view.backend.name))
    }
}

/// One backend.
#[derive(Debug, Clone)]
pub struct BackendView {
    /// Its registration.
    pub backend: Arc<Backend>,
    /// Its health.
    pub health: Health,
    /// Its version: the registered one, or else the one that the app reports.
    pub version: Option<String>,
    /// What is in flight on it, in its current and all its past activations.
    pub holding: Holding,
    /// The number of idle connections to it.
    pub idle: u64,
}
