//! Completes every change of the routing: waits until it is on disk or has failed, and writes the audit log. A refused
//! one is explained.

use std::time::Duration;

use tracing::Value;
use uh_protocol::{BackendName, Code, Problem};
use uh_switching::{Health, Refusal};

use super::control::{Control, cut};
use super::socket::Peer;
use super::status::last_probe;

/// The audit log's fields of a call. Fields that don't apply are left out.
#[derive(Clone, Copy)]
pub(super) struct Audit<'a> {
    /// The caller on the admin socket.
    pub peer: Option<Peer>,
    /// The caller, or the signal.
    pub by: Option<&'a str>,
    /// The requested action.
    pub action: &'static str,
    /// The service, as requested.
    pub service: Option<&'a str>,
    /// The backend.
    pub backend: Option<&'a BackendName>,
    /// The target backend.
    pub to: Option<&'a BackendName>,
    /// Several services with their target backends.
    pub wanted: Option<&'a str>,
    /// Whether `force` was set.
    pub force: Option<bool>,
}

impl<'a> Audit<'a> {
    /// A call about a service.
    pub(super) fn new(peer: Peer, action: &'static str, service: &'a str) -> Self {
        let (peer, service) = (Some(peer), Some(service));
        Self { peer, by: None, action, service, backend: None, to: None, wanted: None, force: None }
    }

    /// A switch of several services.
    pub(super) fn release(peer: Peer) -> Self {
        Self { service: None, ..Self::new(peer, "switch", "") }
    }

    /// A call about a backend.
    pub(super) fn of_backend(
        peer: Peer,
        action: &'static str,
        service: &'a str,
        backend: &'a BackendName,
    ) -> Self {
        Self { backend: Some(backend), ..Self::new(peer, action, service) }
    }

    /// The end of a split that nobody has asked for. `by`: why.
    pub(super) fn split_ended(by: &'a str, service: &'a str) -> Self {
        Self { action: "split_end", service: Some(service), ..Self::reload(by) }
    }

    /// A reload, requested by a call or a signal.
    pub(super) fn reload(by: &'a str) -> Self {
        let (peer, service, backend, to, wanted, force) = (None, None, None, None, None, None);
        Self { peer, by: Some(by), action: "reload", service, backend, to, wanted, force }
    }

    /// Logs a refusal.
    pub(super) fn refused(&self, problem: &Problem) {
        let Self { peer, by, action, service, backend, to, wanted, force } = *self;
        tracing::warn!(target: "audit", peer = peer.map(display), by = by.map(display), action, service = service.map(cut),
            backend = backend.map(display), to = to.map(display), services = wanted, force, result = "refused", reason = problem.detail);
    }

    /// Logs a completed call.
    fn done(&self, did: &Did<'_>, persisted: bool) {
        let Self { peer, by, action, service, backend, to, wanted: _, force } = *self;
        let changed: &dyn Value = match &did.changed {
            Changed::Whether(changed) => changed,
            Changed::What(changed) => changed,
        };
        tracing::info!(target: "audit", peer = peer.map(display), by = by.map(display), action, service = service.map(display),
            backend = backend.map(display), from = did.from.map(display), to = to.map(display), services = did.moved, force,
            forced_past_health = did.forced_past_health, on = did.on, weight = did.weight, until = did.until,
            split_ended = did.split_ended, endpoints = did.endpoints, version = did.version,
            changed, needs_restart = did.needs_restart, overridden = did.overridden,
            generation = did.generation, swap_us = did.swap_took.map(|took| took.as_micros() as u64),
            in_flight_previous = did.in_flight_previous, requests_in_flight = did.requests_in_flight,
            tunnels = did.tunnels, message = did.message, retry_after_s = did.retry_after_s, persisted, result = "done");
    }
}

/// What changed.
#[derive(Clone, Copy)]
pub(super) enum Changed<'a> {
    /// Whether anything changed.
    Whether(bool),
    /// The changed configuration keys.
    What(&'a str),
}

/// The audit log's fields of a completed call. Fields that don't apply are left out.
#[derive(Clone, Copy)]
pub(super) struct Did<'a> {
    /// What changed.
    pub changed: Changed<'a>,
    /// The current generation.
    pub generation: Option<u64>,
    pub from: Option<&'a BackendName>,
    /// What moved, of several services.
    pub moved: Option<&'a str>,
    pub forced_past_health: Option<bool>,
    pub on: Option<bool>,
    /// The weight of a split, in percent.
    pub weight: Option<f64>,
    /// When the split ends unless it is renewed.
    pub until: Option<&'a str>,
    /// The split that has ended.
    pub split_ended: Option<&'a str>,
    pub endpoints: Option<&'a str>,
    pub version: Option<&'a str>,
    pub needs_restart: Option<&'a str>,
    pub overridden: Option<&'a str>,
    pub swap_took: Option<Duration>,
    pub in_flight_previous: Option<u64>,
    pub requests_in_flight: Option<u64>,
    pub tunnels: Option<u64>,
    pub message: Option<&'a str>,
    pub retry_after_s: Option<u32>,
}

impl Default for Did<'_> {
    fn default() -> Self {
        Self {
            changed: Changed::Whether(false),
            generation: None,
            from: None,
            moved: None,
            forced_past_health: None,
            on: None,
            weight: None,
            until: None,
            split_ended: None,
            endpoints: None,
            version: None,
            needs_restart: None,
            overridden: None,
            swap_took: None,
            in_flight_previous: None,
            requests_in_flight: None,
            tunnels: None,
            message: None,
            retry_after_s: None,
        }
    }
}

/// What has to be on disk before the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// What the call has changed.
    ThisChange,
    /// Nothing: wait for the previous change, so that the reply is true of the current state.
    LastChange,
    /// Nothing.
    Nothing,
}

impl Wait {
    /// For a call that changed something, or found it already done.
    pub(super) fn after(changed: bool) -> Self {
        if changed { Self::ThisChange } else { Self::LastChange }
    }
}

/// Whether a change is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Persisted(Result<(), String>);

impl Persisted {
    pub(super) fn is_ok(&self) -> bool {
        self.0.is_ok()
    }

    /// Why it isn't.
    pub(super) fn error(self) -> Option<String> {
        self.0.err()
    }
}

impl Control {
    /// Completes a call that wasn't refused: waits for the disk, and logs it.
    pub(super) async fn settle(&self, wait: Wait, audit: Audit<'_>, did: Did<'_>) -> Persisted {
        let persisted = match wait {
            Wait::ThisChange => self.persist().await,
            Wait::LastChange => self.state_writer.wait(self.state_writer.routing()).await,
            Wait::Nothing => Ok(()),
        };
        // In any case: the reply must be true of the process that this one has replaced, too.
        self.follow().await;
        audit.done(&did, persisted.is_ok());
        Persisted(persisted)
    }

    /// Completes a refused call: logs and explains it.
    pub(super) fn refuse(&self, audit: Audit<'_>, refusal: &Refusal) -> Problem {
        let problem = self.explain(audit.service.unwrap_or_default(), refusal, audit.force.is_some());
        audit.refused(&problem);
        problem
    }

    /// Explains a refusal to the caller: the current state, and what to do. `force_helps`: the call can be forced.
    pub(super) fn explain(&self, service: &str, refusal: &Refusal, force_helps: bool) -> Problem {
        let code = match refusal {
            Refusal::Frozen => Code::Busy,
            Refusal::UnknownService { .. } => Code::UnknownService,
            Refusal::UnknownBackend { .. } => Code::UnknownBackend,
            Refusal::NotActive { .. }
            | Refusal::OtherGeneration { .. }
            | Refusal::OtherSplit { .. }
            | Refusal::OtherSuspect { .. } => Code::Conflict,
            Refusal::Unhealthy { .. } | Refusal::FailedProbe { .. } => Code::BackendUnhealthy,
            Refusal::Withdrawn { .. } => Code::BackendWithdrawn,
            Refusal::Active { .. }
            | Refusal::ActiveMoved { .. }
            | Refusal::ActiveRemoved { .. }
            | Refusal::InSplit { .. }
            | Refusal::PreviewOfActive { .. }
            | Refusal::SplitToActive { .. } => Code::BackendActive,
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
            let force = if force_helps { ". To switch anyway, use force" } else { "" };
            detail = format!("{detail}: {reason}{at}{force}");
        }
        Problem::new(code, detail)
    }
}
