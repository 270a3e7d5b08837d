//! The routing and what is known of its backends, as a plain value: for those who only report.

use std::sync::Arc;

use crate::backend::{Backend, Health};
use crate::drain::Holding;
use crate::snapshot::ServiceState;

/// The routing at one moment.
#[derive(Debug, Clone)]
pub struct RoutingView<S> {
    /// The generation.
    pub generation: u64,
    /// The generations that a state with this routing reserves: none beyond it is handed out before a state that reserves
    /// more is on disk.
    pub generation_reserve: u64,
    /// In the order of the configuration.
    pub services: Vec<ServiceView<S>>,
}

/// One service.
#[derive(Debug, Clone)]
pub struct ServiceView<S> {
    /// What was decided.
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
    /// How it is registered.
    pub backend: Arc<Backend>,
    /// What its probes say.
    pub health: Health,
    /// Its version: as registered, or else as the app reports it.
    pub version: Option<String>,
    /// What it holds, in its current and all its past activations.
    pub holding: Holding,
    /// Idle connections that are kept to it.
    pub idle: u64,
}
