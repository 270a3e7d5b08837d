//! The operations of a running uh-proxy. Each change is: check → swap → persist → reply, and one audit line.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use jiff::Timestamp;
use uh_protocol::status::{
    BackendStatus, CertificateStatus, EndpointStatus, ProbeStatus, ProxyStatus, Role, ServiceStatus, Status,
};
use uh_protocol::{BackendName, Code, Problem, ServiceName};
use uh_switching::{Health, Refusal, ServiceState};

use super::maintenance::maintenance_status;
use super::reload::Reloading;
use super::switch::partly_healthy;
use crate::config::Service;
use crate::front::broadcast::{Broadcast, StopStage};
use crate::front::{Backend, Board, LiveService};
use crate::health::prober::HealthNews;
use crate::observe::meters::{BackendMeters, Meters};
use crate::observe::metrics::Metrics;
use crate::state::file::StateFile;
use crate::state::time::iso_millis;
use crate::state::writer::{StateChange, StateWriter};
use crate::tls;

/// A running uh-proxy, as the admin side sees it.
pub struct Control {
    /// Where routing changes.
    pub board: Arc<Board>,
    /// Writes the state.
    pub state_writer: Arc<StateWriter>,
    /// The data path's counters.
    pub meters: Arc<Meters>,
    /// The Prometheus text.
    pub metrics: Metrics,
    /// Wakes the workers' connections.
    pub broadcasts: Vec<Arc<Broadcast>>,
    /// What a reload needs.
    pub reloading: Reloading,
    /// Increases as long as the admin thread makes progress.
    pub admin_heartbeat: AtomicU64,
    /// Wakes the prober.
    pub news: Arc<HealthNews>,
    /// When the process started.
    pub started: Instant,
    /// The addresses bound for plain HTTP.
    pub listen: Vec<String>,
    /// Those for HTTPS.
    pub listen_tls: Vec<String>,
    /// What serves HTTPS, if it is served.
    pub tls: Option<Arc<tls::Server>>,
    /// The metrics listener's address.
    pub metrics_address: Option<String>,
    /// Problems with the state file found at start.
    pub warnings: Vec<String>,
}

impl Control {
    /// `GET /v1/status`
    pub fn status(&self) -> Status {
        let live = self.board.live();
        Status {
            proxy: ProxyStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_s: self.started.elapsed().as_secs(),
                listen: self.listen.clone(),
                listen_tls: self.listen_tls.clone(),
                certificates: self.certificates(),
                metrics: self.metrics_address.clone(),
                stopping: self.broadcasts.iter().any(|broadcast| broadcast.stage() != StopStage::Running),
            },
            generation: live.snapshot.generation,
            persisted: self.state_writer.is_persisted(),
            warnings: self.warnings.clone(),
            services: live.services.iter().map(|service| self.service_status(service)).collect(),
        }
    }

    fn certificates(&self) -> Vec<CertificateStatus> {
        let Some(server) = &self.tls else { return Vec::new() };
        let status = |certificate: &Arc<tls::Certificate>| CertificateStatus {
            name: certificate.name.clone(),
            names: certificate.names.clone(),
            expires: Timestamp::from_second(certificate.not_after).unwrap_or_default().to_string(),
            file: certificate.files.cert.display().to_string(),
            problem: server.problem(certificate),
        };
        server.names().all().iter().map(status).collect()
    }

    fn service_status(&self, service: &LiveService) -> ServiceStatus {
        let state = &service.state;
        ServiceStatus {
            name: state.config.name.clone(),
            active: state.active.backend.clone(),
            previous: state.previous.clone(),
            last_switch: state.last_switch.map(iso_millis),
            maintenance: state.maintenance.is_some(),
            maintenance_details: state.maintenance.as_deref().map(maintenance_status),
            warnings: partly_healthy(service.active_backend(), &[]).into_iter().collect(),
            backends: service.backends.iter().map(|backend| self.backend_status(service, backend)).collect(),
        }
    }

    pub(super) fn backend_status(&self, service: &LiveService, backend: &Backend) -> BackendStatus {
        let view = self.board.backend_view(service, backend);
        let meters = self.meters.backend(&service.state.config.name, backend.name());
        BackendStatus {
            name: backend.name().clone(),
            version: view.version,
            role: role(&service.state, backend.name()),
            healthy: view.health.as_option(),
            last_probe: last_probe(backend),
            endpoints: backend
                .endpoints
                .iter()
                .map(|endpoint| EndpointStatus {
                    address: endpoint.address.to_string(),
                    healthy: endpoint.health().as_option(),
                    last_probe: endpoint.last_probe(),
                })
                .collect(),
            requests_in_flight: view.holding.requests,
            tunnels: view.holding.tunnels,
            connections: meters.connections(view.idle),
        }
    }

    pub(super) fn backend_meters(
        &self,
        service: &str,
        backend: &BackendName,
    ) -> Result<Arc<BackendMeters>, Problem> {
        let service: ServiceName = service.parse().map_err(|_| internal("the service name isn't valid"))?;
        Ok(self.meters.backend(&service, backend))
    }

    /// Tunnels in flight, of all backends.
    pub fn tunnels(&self) -> u64 {
        let snapshot = self.board.snapshot();
        let of = |state: &ServiceState<Service>| -> u64 {
            let names = state.backends.iter().map(|backend| &backend.name);
            names.map(|name| self.board.holding(&state.config.name, name).tunnels).sum()
        };
        snapshot.services.iter().map(of).sum()
    }

    /// Writes the state in the background, for changes that nobody waits for.
    pub fn persist_later(&self) {
        if let Some(state) = StateFile::of(&self.board.view()) {
            self.state_writer.submit(state, StateChange::BackendInfo);
        }
    }

    pub(super) async fn persist(&self) -> Result<(), String> {
        match StateFile::of(&self.board.view()) {
            Some(state) => {
                self.state_writer.wait(self.state_writer.submit(state, StateChange::Routing)).await
            }
            None => Ok(()),
        }
    }

    /// Explains a refusal to the caller: the current state, and what to do.
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
            let live = self.board.live();
            let found = live.service(service).and_then(|service| service.backend(backend));
            let probe = found.and_then(|backend| last_probe(backend));
            let reason = match (probe.as_ref().and_then(|probe| probe.error.as_deref()), health) {
                (Some(error), _) => format!("its last probe failed: {error}"),
                (None, Health::Unknown) => {
                    "it hasn't passed enough probes yet; try again in a moment".to_owned()
                }
                (None, _) => "its last probe passed, but it hasn't passed enough in a row".to_owned(),
            };
            let at = probe.map(|probe| format!(" ({})", probe.at)).unwrap_or_default();
            detail = format!("{detail}: {reason}{at}. To switch anyway, use force");
        }
        Problem::new(code, detail)
    }
}

/// The latest probe of any endpoint; a failed one takes precedence.
fn last_probe(backend: &Backend) -> Option<ProbeStatus> {
    let probes = backend.endpoints.iter().filter_map(|endpoint| endpoint.last_probe());
    probes.max_by(|a, b| (!a.ok, &a.at).cmp(&(!b.ok, &b.at)))
}

fn role(state: &ServiceState<Service>, name: &BackendName) -> Role {
    match (state.is_active(name), state.is_withdrawn(name)) {
        (true, _) => Role::Active,
        (false, true) => Role::Withdrawn,
        (false, false) => Role::Standby,
    }
}

pub(super) fn internal(detail: &str) -> Problem {
    Problem::new(Code::Internal, detail)
}

/// A client's text, shortened for a log line.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(uh_protocol::name::MAX_NAME_BYTES).collect()
}
