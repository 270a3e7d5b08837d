//! What can be asked of a running front door. Each change is: check → swap → persist → reply, and one audit line.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use uh_protocol::status::{BackendStatus, EndpointStatus, ProxyStatus, Role, ServiceStatus, Status};
use uh_protocol::{BackendName, Code, Problem, ServiceName};

use super::maintenance::maintenance_status;
use super::reload::Reloading;
use super::socket::Peer;
use super::switch::partly_healthy;
use crate::front::Board;
use crate::front::attention::{Bell, Stage};
use crate::health::prober::HealthNews;
use crate::observe::meters::{BackendMeters, Meters};
use crate::observe::metrics::Metrics;
use crate::state::file::StateFile;
use crate::state::keeper::{Change, Keeper};
use crate::state::time::iso_millis;
use crate::switching::{Backend, Health, Refusal, ServiceState};

/// A running front door, as the admin side sees it.
pub struct Control {
    /// Where routing changes.
    pub board: Arc<Board>,
    /// Writes the state.
    pub keeper: Arc<Keeper>,
    /// The data path's counters.
    pub meters: Arc<Meters>,
    /// The Prometheus text.
    pub metrics: Metrics,
    /// Wakes the workers' connections.
    pub bells: Vec<Arc<Bell>>,
    /// What a reload needs.
    pub reloading: Reloading,
    /// Grows as long as the admin thread makes progress.
    pub admin_heartbeat: AtomicU64,
    /// Wakes the prober.
    pub news: Arc<HealthNews>,
    /// When the process started.
    pub started: Instant,
    /// Addresses really bound.
    pub listen: Vec<String>,
    /// The metrics listener's address.
    pub metrics_address: Option<String>,
    /// What was wrong with the state file at the start.
    pub warnings: Vec<String>,
}

impl Control {
    /// `GET /v1/status`
    pub fn status(&self) -> Status {
        let snapshot = self.board.snapshot();
        Status {
            proxy: ProxyStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_s: self.started.elapsed().as_secs(),
                listen: self.listen.clone(),
                metrics: self.metrics_address.clone(),
                stopping: self.bells.iter().any(|bell| bell.stage() != Stage::Running),
            },
            generation: snapshot.generation,
            persisted: self.keeper.is_persisted(),
            warnings: self.warnings.clone(),
            services: snapshot.services.iter().map(|state| self.service_status(state)).collect(),
        }
    }

    fn service_status(&self, state: &ServiceState<crate::front::pool::IdlePool>) -> ServiceStatus {
        ServiceStatus {
            name: state.config.name.clone(),
            active: state.active_backend().name.clone(),
            previous: state.previous.clone(),
            last_switch: state.last_switch.map(iso_millis),
            maintenance: state.maintenance.is_some(),
            maintenance_details: state.maintenance.as_deref().map(maintenance_status),
            warnings: partly_healthy(state.active_backend(), &[]).into_iter().collect(),
            backends: state.backends.iter().map(|backend| self.backend_status(state, backend)).collect(),
        }
    }

    pub(super) fn backend_status(
        &self,
        state: &ServiceState<crate::front::pool::IdlePool>,
        backend: &Arc<Backend>,
    ) -> BackendStatus {
        let holding = self.board.holding(&state.config, &backend.name);
        let meters = self.meters.backend(&state.config.name, &backend.name);
        BackendStatus {
            name: backend.name.clone(),
            version: backend.known_version(),
            role: role(state, &backend.name),
            healthy: backend.health().as_option(),
            last_probe: backend.last_probe(),
            endpoints: backend
                .endpoints
                .iter()
                .map(|endpoint| EndpointStatus {
                    address: endpoint.address.to_string(),
                    healthy: endpoint.health().as_option(),
                    last_probe: endpoint.last_probe(),
                })
                .collect(),
            requests_in_flight: holding.requests,
            tunnels: holding.tunnels,
            connections: state.connections(&backend.name, &meters),
        }
    }

    pub(super) fn backend_meters(
        &self,
        service: &str,
        backend: &BackendName,
    ) -> Result<Arc<BackendMeters>, Problem> {
        let service: ServiceName = service.parse().map_err(|_| internal("the service's name is odd"))?;
        Ok(self.meters.backend(&service, backend))
    }

    /// Tunnels in flight, of all backends.
    pub fn tunnels(&self) -> u64 {
        let snapshot = self.board.snapshot();
        let of = |state: &ServiceState<_>| -> u64 {
            let names = state.backends.iter().map(|backend| &backend.name);
            names.map(|name| self.board.holding(&state.config, name).tunnels).sum()
        };
        snapshot.services.iter().map(of).sum()
    }

    /// Writes the state in the background, for what nobody waits for.
    pub fn persist_later(&self) {
        if let Some(state) = StateFile::of(&self.board) {
            self.keeper.submit(state, Change::Facts);
        }
    }

    /// Waits until a change is on disk. Where nothing has changed, that goes for the change before: the reply tells the
    /// truth about what is in force.
    pub(super) async fn persist_change(&self, changed: bool) -> Result<(), String> {
        if changed { self.persist().await } else { self.keeper.wait(self.keeper.routing()).await }
    }

    pub(super) async fn persist(&self) -> Result<(), String> {
        match StateFile::of(&self.board) {
            Some(state) => self.keeper.wait(self.keeper.submit(state, Change::Routing)).await,
            None => Ok(()),
        }
    }

    /// Logs a refusal, and explains it.
    pub(super) fn refused(
        &self,
        action: &str,
        service: &str,
        backend: &BackendName,
        refusal: &Refusal,
        peer: Peer,
    ) -> Problem {
        let problem = self.explain(service, refusal);
        tracing::warn!(target: "audit", %peer, action, service = cut(service), %backend, result = "refused",
            reason = problem.detail);
        problem
    }

    /// What a refusal means to whoever asked: what is true, and what to do.
    pub(super) fn explain(&self, service: &str, refusal: &Refusal) -> Problem {
        let code = match refusal {
            Refusal::UnknownService { .. } => Code::UnknownService,
            Refusal::UnknownBackend { .. } => Code::UnknownBackend,
            Refusal::NotActive { .. } | Refusal::OtherGeneration { .. } => Code::Conflict,
            Refusal::Unhealthy { .. } | Refusal::FailedProbe { .. } => Code::BackendUnhealthy,
            Refusal::Withdrawn { .. } => Code::BackendWithdrawn,
            Refusal::Active { .. } | Refusal::ActiveMoved { .. } | Refusal::ActiveRemoved { .. } => {
                Code::BackendActive
            }
        };
        let mut detail = refusal.to_string();
        if let Refusal::Unhealthy { backend, health, .. } = refusal {
            let snapshot = self.board.snapshot();
            let probe = snapshot.service(service).and_then(|state| state.backend(backend)?.last_probe());
            let reason = match (probe.as_ref().and_then(|probe| probe.error.as_deref()), health) {
                (Some(error), _) => format!("its last probe failed: {error}"),
                (None, Health::Unknown) => {
                    "there have not been enough good probes yet; try again in a moment".to_owned()
                }
                (None, _) => "its last probe was good, but too few in a row were".to_owned(),
            };
            let at = probe.map(|probe| format!(" ({})", probe.at)).unwrap_or_default();
            detail = format!("{detail}: {reason}{at}. To switch anyway, use force");
        }
        Problem::new(code, detail)
    }
}

fn role(state: &ServiceState<crate::front::pool::IdlePool>, name: &BackendName) -> Role {
    match (state.is_active(name), state.is_withdrawn(name)) {
        (true, _) => Role::Active,
        (false, true) => Role::Withdrawn,
        (false, false) => Role::Standby,
    }
}

pub(super) fn internal(detail: &str) -> Problem {
    Problem::new(Code::Internal, detail)
}

/// What a client sent, short enough for a log line.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(uh_protocol::name::MAX_NAME_BYTES).collect()
}
