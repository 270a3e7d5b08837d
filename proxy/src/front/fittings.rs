//! What the data path attaches to the routing: endpoint state, counters and idle connections.

use std::sync::Arc;
use std::time::Instant;

use uh_protocol::{BackendName, ServiceName};
use uh_switching::{EndpointId, Health, Registered};

use super::endpoint::Endpoint;
use super::pool::{IdlePool, RetiredConnections};
use crate::config;
use crate::observe::meters::{BackendMeters, Meters};

/// Creates what the data path attaches to the routing.
pub(crate) struct Fittings {
    /// The data path's counters.
    pub meters: Arc<Meters>,
    /// Where retired connections go.
    pub retired_connections: Arc<RetiredConnections>,
}

impl uh_switching::Fittings for Fittings {
    type Service = config::Service;
    type Endpoint = Endpoint;
    type Meters = Arc<BackendMeters>;
    type Lane = IdlePool;

    fn endpoint(&self, service: &config::Service, id: &EndpointId) -> Endpoint {
        let health = if service.health.enabled { Health::Unknown } else { Health::NotProbed };
        Endpoint::new(id.address.clone(), health)
    }

    fn meters(&self, service: &ServiceName, backend: &BackendName) -> Arc<BackendMeters> {
        self.meters.backend(service, backend)
    }

    fn lane(&self, backend: &Arc<Registered<Endpoint>>) -> IdlePool {
        IdlePool::new(backend, Arc::clone(&self.retired_connections))
    }

    fn health(&self, endpoint: &Endpoint) -> Health {
        endpoint.health()
    }

    fn version(&self, endpoint: &Endpoint) -> Option<String> {
        endpoint.last_probe()?.version
    }

    fn clock(&self) -> Instant {
        Instant::now()
    }
}
