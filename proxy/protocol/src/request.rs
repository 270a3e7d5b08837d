//! Requests and successful replies of the admin API. Names of durations end in their unit.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::name::{BackendName, ServiceName};
use crate::status::{BackendStatus, MaintenanceStatus, SplitStatus, Suspect};

/// The longest timeout of a drain: one day, so that a typo doesn't block a client indefinitely.
pub const MAX_DRAIN_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1000;

/// `POST /v1/services/{s}/switch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchRequest {
    /// The backend to make active.
    pub to: BackendName,
    /// Refuse unless this backend is active now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_active: Option<BackendName>,
    /// Refuse unless this is the current generation, so that a slow, old deploy can't undo a newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_generation: Option<u64>,
    /// Switch even to an unhealthy backend. Written to the audit log.
    #[serde(default)]
    pub force: bool,
}

impl SwitchRequest {
    /// A plain switch, with no expectation.
    #[must_use]
    pub fn to(to: BackendName) -> Self {
        Self { to, expect_active: None, expect_generation: None, force: false }
    }
}

/// The reply to a switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switched {
    /// The service.
    pub service: ServiceName,
    /// Active before.
    pub from: BackendName,
    /// Active now.
    pub to: BackendName,
    /// `false`: it was already active.
    pub changed: bool,
    /// The current generation.
    pub generation: u64,
    /// When traffic moved (or, if nothing changed, when it last had): ISO 8601, UTC.
    pub switched_at: Option<String>,
    /// Requests in flight on the previous backend when traffic moved.
    pub in_flight_previous: u64,
    /// `false`: traffic has moved, but the state file couldn't be written; uh-proxy keeps retrying.
    pub persisted: bool,
    /// Why it couldn't be saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_error: Option<String>,
    /// The result of the probe made right before traffic moved. `None`: nothing changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<SwitchProbe>,
    /// Warnings about a switch that was done, such as unhealthy endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `POST /v1/switch`: several services move together, or none does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// The backend to make active, for each service; 1 to [`MAX_RELEASE_SERVICES`].
    #[serde(deserialize_with = "crate::unique::map")]
    pub services: BTreeMap<ServiceName, BackendName>,
    /// Refuse unless this is the current generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_generation: Option<u64>,
    /// Switch even to unhealthy backends. Written to the audit log.
    #[serde(default)]
    pub force: bool,
}

/// The most services in one switch: a refusal names the reason for each, in one reply and one line of the log.
pub const MAX_RELEASE_SERVICES: usize = 64;

/// The reply to a switch of several services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// What happened in each service.
    pub services: BTreeMap<ServiceName, ServiceSwitched>,
    /// `false`: all of them were already active.
    pub changed: bool,
    /// The current generation.
    pub generation: u64,
    /// `false`: traffic has moved, but the state file couldn't be written; uh-proxy keeps retrying.
    pub persisted: bool,
    /// Why it couldn't be saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_error: Option<String>,
}

impl Released {
    /// What happened in one service, as a switch of its own would have replied.
    #[must_use]
    pub fn of(&self, service: &ServiceName) -> Option<Switched> {
        let switched = self.services.get(service)?.clone();
        Some(Switched {
            service: service.clone(),
            from: switched.from,
            to: switched.to,
            changed: switched.changed,
            generation: self.generation,
            switched_at: switched.switched_at,
            in_flight_previous: switched.in_flight_previous,
            persisted: self.persisted,
            persist_error: self.persist_error.clone(),
            probe: switched.probe,
            warnings: switched.warnings,
        })
    }
}

/// What a switch of several services did in one of them. The fields are those of [`Switched`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSwitched {
    /// Active before.
    pub from: BackendName,
    /// Active now.
    pub to: BackendName,
    /// `false`: it was already active.
    pub changed: bool,
    /// When traffic moved (or, if nothing changed, when it last had): ISO 8601, UTC.
    pub switched_at: Option<String>,
    /// Requests in flight on the previous backend when traffic moved.
    pub in_flight_previous: u64,
    /// The result of the probe made right before traffic moved. `None`: nothing changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<SwitchProbe>,
    /// Warnings about a switch that was done, such as unhealthy endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The probe made right before a switch. A bad answer or a refused connection refuses the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchProbe {
    /// Its outcome.
    pub result: SwitchProbeResult,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// The outcome of the probe before a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchProbeResult {
    /// At least one endpoint gave a good answer.
    Good,
    /// No endpoint answered in time: the last regular probes decided.
    NoAnswer,
    /// It was not made: with `force`, where nothing is probed, or where the last good probe is fresh enough.
    Skipped,
    /// A value that only a newer version knows.
    #[serde(other)]
    Other,
}

/// `POST /v1/upgrade`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpgradeRequest {
    /// The program to start; default: the path from which uh-proxy was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
    /// How long the new process may take until it leads; default: [`UPGRADE_TIMEOUT_MS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// How long a new uh-proxy may take until it leads, unless the request says so: it has 60 s to probe the backends.
pub const UPGRADE_TIMEOUT_MS: u64 = 90_000;

/// The longest such time.
pub const MAX_UPGRADE_TIMEOUT_MS: u64 = 600_000;

/// The reply to an upgrade, and to the way back: who leads now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// Its process ID.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// How long it took.
    pub took_ms: u64,
}

/// `POST /v1/services/{s}/backends/{b}/drain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Wait at most this long; default: the service's `drain_timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// When the time is up, `true` cuts what is left and `false` cuts nothing. If absent, the service's configuration
    /// decides what happens to tunnels, and requests are never cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<bool>,
}

/// The reply to a drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Whether nothing is left on the backend.
    pub drained: bool,
    /// How long it took.
    pub waited_ms: u64,
    /// Requests and tunnels that ended by themselves meanwhile.
    pub finished: u64,
    /// Requests and tunnels that were cut.
    pub cut: u64,
    /// What is still in flight.
    pub remaining: Remaining,
}

/// What is in flight on a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remaining {
    /// Requests.
    pub requests: u64,
    /// Upgraded connections.
    pub tunnels: u64,
}

impl Remaining {
    /// Requests and tunnels together.
    #[must_use]
    pub fn total(self) -> u64 {
        self.requests + self.tunnels
    }
}

/// `PUT /v1/services/{s}/backends/{b}`. The reply is [`Registered`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendRequest {
    /// `host:port` or `unix:/path`; at least one.
    pub endpoints: Vec<String>,
    /// The app's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Refuse unless this is the current generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_generation: Option<u64>,
    /// Change even the active backend's endpoints, although the new ones haven't been probed.
    #[serde(default)]
    pub force: bool,
}

/// `DELETE /v1/services/{s}/backends/{b}`. The body may be left out. The reply is [`Registered`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnsetRequest {
    /// Refuse unless this is the current generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_generation: Option<u64>,
    /// Change even the active backend's endpoints, although the new ones haven't been probed.
    #[serde(default)]
    pub force: bool,
}

/// The reply to a registration, and to its removal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    /// The backend as it is now.
    #[serde(flatten)]
    pub backend: BackendStatus,
    /// `false`: nothing was different.
    #[serde(default)]
    pub changed: bool,
    /// The current generation; 0 from a proxy that doesn't report it here.
    #[serde(default)]
    pub generation: u64,
    /// `false`: applied, but the state file couldn't be written; uh-proxy keeps retrying.
    #[serde(default = "yes")]
    pub persisted: bool,
    /// Why it couldn't be saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_error: Option<String>,
}

fn yes() -> bool {
    true
}

/// `POST /v1/services/{s}/backends/{b}/withdraw`. The body may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithdrawRequest {
    /// Refuse unless this is the current generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_generation: Option<u64>,
}

/// The reply to a withdrawal: no request starts on the backend, and nothing can switch to it, until it is registered
/// again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawn {
    /// The service.
    pub service: ServiceName,
    /// The backend.
    pub backend: BackendName,
    /// `false`: it was already withdrawn.
    pub changed: bool,
    /// The current generation.
    pub generation: u64,
    /// Requests still in flight on it. Drain it before you stop it.
    pub requests_in_flight: u64,
    /// Tunnels still open on it.
    pub tunnels: u64,
    /// `false`: it is withdrawn, but the state file couldn't be written, so a restart would undo it; uh-proxy keeps
    /// retrying.
    pub persisted: bool,
    /// Why it couldn't be saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_error: Option<String>,
}

/// `POST /v1/services/{s}/split`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitRequest {
    /// The backend that gets a part of the traffic. May be left out if `weight` is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<BackendName>,
    /// The percentage of clients that go there, from 0 to 100, with at most four decimals; 0 ends the split.
    pub weight: f64,
    /// The split ends after this time unless it is renewed by another request. If absent, it ends after the service's
    /// `split.hold_timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// Refuse unless this is the current generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_generation: Option<u64>,
    /// Which side the trial suspects. A call for a split that goes on must say the same.
    #[serde(default, skip_serializing_if = "Suspect::is_default")]
    pub suspect: Suspect,
    /// For how long from its beginning the trial doesn't judge slowness: at most [`MAX_WARM_UP_MS`]. If absent, 10 s. It counts
    /// when the split begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up_ms: Option<u64>,
}

/// The longest `warm_up_ms` of a split: 10 minutes.
pub const MAX_WARM_UP_MS: u64 = 600_000;

/// The shortest `ttl_ms` of a split, so that a slow disk or a busy machine doesn't end one that is renewed.
pub const MIN_SPLIT_TTL_MS: u64 = 100;

/// The reply to a [`SplitRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitReply {
    /// The service.
    pub service: ServiceName,
    /// The backend that all other clients go to.
    pub active: BackendName,
    /// `false`: no client goes elsewhere than before. The split may have been renewed.
    pub changed: bool,
    /// The current generation.
    pub generation: u64,
    /// The split; `None`: there is none.
    pub split: Option<SplitStatus>,
    /// The split that has ended, if one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<SplitStatus>,
    /// What was in flight on its backend when it ended. A drain waits for that.
    #[serde(default)]
    pub remaining: Remaining,
    /// `false`: applied, but the state file couldn't be written; uh-proxy keeps retrying.
    pub persisted: bool,
    /// Why it couldn't be saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_error: Option<String>,
}

/// `POST /v1/services/{s}/preview`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviewRequest {
    /// The standby to look at.
    pub to: BackendName,
    /// How long the link is valid, in milliseconds: [`MIN_PREVIEW_TTL_MS`] to [`MAX_PREVIEW_TTL_MS`]. If absent,
    /// [`PREVIEW_TTL_MS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

/// The shortest `ttl_ms` of a preview: its end is a whole second.
pub const MIN_PREVIEW_TTL_MS: u64 = 1000;

/// The longest: a week. A link that is forgotten ends by itself.
pub const MAX_PREVIEW_TTL_MS: u64 = 7 * 24 * 3600 * 1000;

/// The default: an hour.
pub const PREVIEW_TTL_MS: u64 = 3600 * 1000;

/// The parameter of a link's query that has the token. The cookie has the same name.
pub const PREVIEW_PARAMETER: &str = "__uh-preview";

/// The reply to a [`PreviewRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewReply {
    /// The service.
    pub service: ServiceName,
    /// The standby.
    pub backend: BackendName,
    /// Whoever has it gets answers from the standby: by the link, or in a field `X-UH-Preview`.
    pub token: String,
    /// Until when it is valid: ISO 8601, UTC.
    pub until: String,
    /// The link, for the first host of the service that previews can use; `None`: it has none without a wildcard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

/// The link with a preview's token for this address, which has no fragment.
#[must_use]
pub fn preview_link(address: &str, token: &str) -> String {
    let separator = if address.contains('?') { '&' } else { '?' };
    format!("{address}{separator}{PREVIEW_PARAMETER}={token}")
}

/// `POST /v1/services/{s}/maintenance`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceRequest {
    /// On or off.
    pub on: bool,
    /// Shown on the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// For the `Retry-After` header, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
}

/// The reply to a maintenance request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintained {
    /// The service.
    pub service: ServiceName,
    /// Whether it is in maintenance now.
    pub on: bool,
    /// `false`: nothing was different.
    pub changed: bool,
    /// The maintenance details, if it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<MaintenanceStatus>,
    /// `false`: applied, but the state file couldn't be written; uh-proxy keeps retrying.
    pub persisted: bool,
    /// Why it couldn't be saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_error: Option<String>,
}

/// The reply of `POST /v1/reload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The current generation.
    pub generation: u64,
    /// The changed configuration keys. `server.tls.certificates` also if only the files' contents changed.
    pub changed: Vec<String>,
    /// Changed keys that only take effect after a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs_restart: Vec<String>,
    /// Backend keys of the file that a registration overrides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overridden: Vec<String>,
    /// `false`: applied, but the state file couldn't be written; uh-proxy keeps retrying.
    #[serde(default = "yes")]
    pub persisted: bool,
    /// Why it couldn't be saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_error: Option<String>,
}
