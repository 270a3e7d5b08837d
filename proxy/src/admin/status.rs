//! `GET /v1/status`: everything that is in force, and what probes and requests have found out.

use std::sync::LazyLock;

use uh_protocol::BackendName;
use uh_protocol::status::{
    BackendStatus, EndpointStatus, MaintenanceStatus, ProbeStatus, ProxyStatus, Role, ServiceStatus,
    SplitStatus, Status, Suspect,
};
use uh_switching::{Health, Maintenance, ServiceState, Side, Split, Term};

use super::control::Control;
use crate::config::Service;
use crate::front::broadcast::StopStage;
use crate::front::endpoint::Endpoint;
use crate::front::{Backend, LiveService};
use crate::state::time::iso_millis;

/// The host's name. Two containers of one front door both have process ID 1, but each has a name of its own.
static HOST: LazyLock<String> = LazyLock::new(|| {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map(|name| name.trim().to_owned()).unwrap_or_default()
});

impl Control {
    /// `GET /v1/status`
    pub(crate) fn status(&self) -> Status {
        let live = self.board.live();
        Status {
            proxy: ProxyStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                host: HOST.clone(),
                uptime_s: self.started.elapsed().as_secs(),
                listen: self.listen.clone(),
                listen_tls: self.listen_tls.clone(),
                listen_h2c: self.listen_h2c.clone(),
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

    fn service_status(&self, service: &LiveService) -> ServiceStatus {
        let state = &service.state;
        ServiceStatus {
            name: state.config.name.clone(),
            active: state.active.backend.clone(),
            previous: state.previous.clone(),
            last_switch: state.last_switch.map(iso_millis),
            maintenance: state.maintenance.is_some(),
            maintenance_details: state.maintenance.as_deref().map(maintenance_status),
            split: state.split.as_ref().map(split_status),
            trial: self
                .trials
                .status(&state.config.name, state.split.as_ref().map(|split| split.assignment.salt)),
            warnings: partly_healthy(service.active_backend(), &[]).into_iter().collect(),
            backends: service.backends.iter().map(|backend| self.backend_status(service, backend)).collect(),
        }
    }

    pub(super) fn backend_status(&self, service: &LiveService, backend: &Backend) -> BackendStatus {
        let view = self.board.backend_view(service, backend);
        let theirs = self.predecessor.holding(&service.state.config.name, backend.name());
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
            requests_in_flight: view.holding.requests + theirs.requests,
            tunnels: view.holding.tunnels + theirs.tunnels,
            connections: meters.connections(view.idle),
        }
    }
}

/// A warning if only some of a backend's endpoints are healthy. `bad`: the failures of the last probe.
pub(super) fn partly_healthy(backend: &Backend, bad: &[(String, String)]) -> Option<String> {
    let reason = |endpoint: &Endpoint| {
        let address = endpoint.address.to_string();
        let fresh = bad.iter().find(|(of, _)| *of == address).map(|(_, error)| error.clone());
        let last = || endpoint.last_probe().and_then(|probe| probe.error).unwrap_or(address);
        fresh.or_else(|| (endpoint.health() == Health::Unhealthy).then(last))
    };
    let sick: Vec<String> = backend.endpoints.iter().filter_map(|endpoint| reason(endpoint)).collect();
    let all = backend.endpoints.len();
    if sick.is_empty() || sick.len() == all {
        return None;
    }
    let well = all - sick.len();
    Some(format!("only {well} of {all} endpoints of {} are healthy: {}", backend.name(), sick.join("; ")))
}

/// For the status.
pub(super) fn maintenance_status(maintenance: &Maintenance) -> MaintenanceStatus {
    MaintenanceStatus {
        since: iso_millis(maintenance.since),
        message: maintenance.message.clone(),
        retry_after_s: maintenance.retry_after_s,
    }
}

/// For the status.
pub(super) fn split_status(split: &Split) -> SplitStatus {
    SplitStatus {
        to: split.new.backend.clone(),
        weight: split.assignment.weight.percent(),
        since: iso_millis(split.began),
        until: iso_millis(split.until),
        leased: matches!(split.term, Term::Lease(_)),
        suspect: match split.judging.suspect {
            Side::New => Suspect::Split,
            Side::Old => Suspect::Active,
        },
    }
}

/// The latest probe of any endpoint; a failed one takes precedence.
pub(super) fn last_probe(backend: &Backend) -> Option<ProbeStatus> {
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
