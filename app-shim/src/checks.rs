//! Answers health checks, from the phase of the app and a probe of it.

mod probe;

use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request, Response};
use tokio::sync::watch;

use crate::drain::Drain;
use crate::health::{HealthReporter, HealthStatus};
use crate::phase::AppPhase;
use crate::settings::{AppAddress, HealthSource, ShimSettings};
use crate::sockets;

/// Answers health checks.
#[derive(Debug)]
pub(crate) struct HealthChecks {
    app: AppAddress,
    path: String,
    source: HealthSource,
    phase: watch::Receiver<AppPhase>,
    in_flight: InFlight,
    health: HealthReporter,
}

/// Where the number of requests in flight comes from.
#[derive(Debug)]
pub(crate) enum InFlight {
    /// Exchanges and tunnels that pass through the shim.
    Exchanges(Arc<Drain>),
    /// Connections to the app's port.
    Connections(u16),
}

impl InFlight {
    fn count(&self) -> usize {
        match self {
            Self::Exchanges(drain) => drain.in_flight(),
            Self::Connections(port) => sockets::established(*port).unwrap_or_default(),
        }
    }
}

impl HealthChecks {
    pub(crate) fn new(
        settings: &ShimSettings,
        health: HealthReporter,
        phase: watch::Receiver<AppPhase>,
        in_flight: InFlight,
    ) -> Self {
        Self {
            app: settings.app.clone(),
            path: settings.health_path.clone(),
            source: settings.health,
            phase,
            in_flight,
            health,
        }
    }

    pub(crate) fn phase(&self) -> AppPhase {
        *self.phase.borrow()
    }

    /// Whether a request is a health check.
    pub(crate) fn is_asked<B>(&self, request: &Request<B>) -> bool {
        request.uri().path() == self.path && matches!(*request.method(), Method::GET | Method::HEAD)
    }

    /// Whether the app answers this health check itself.
    pub(crate) fn is_left_to_the_app(&self) -> bool {
        self.source == HealthSource::App && self.phase() == AppPhase::Serving
    }

    /// Answers a check. `asking` is how many of the exchanges in flight are checks themselves.
    pub(crate) async fn answer(&self, asking: usize) -> Response<Full<Bytes>> {
        let (status, reason) = match self.phase() {
            AppPhase::Starting => (
                HealthStatus::Starting,
                Some(format!("the app doesn't accept connections on {} yet", self.app)),
            ),
            AppPhase::Draining => (HealthStatus::Draining, None),
            AppPhase::Serving => match self.probe().await {
                Ok(()) => (HealthStatus::Healthy, None),
                Err(reason) => (HealthStatus::Unhealthy, Some(reason)),
            },
        };
        self.health.answer(status, self.in_flight.count().saturating_sub(asking), reason)
    }

    async fn probe(&self) -> Result<(), String> {
        match self.source {
            HealthSource::Shim => probe::connects(&self.app).await,
            HealthSource::App | HealthSource::Both => probe::asks(&self.app, &self.path).await,
        }
    }
}
