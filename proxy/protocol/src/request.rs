//! What the admin API takes, and what it replies on success. Durations end in their unit.

use serde::{Deserialize, Serialize};

use crate::name::{BackendName, ServiceName};
use crate::status::{BackendStatus, MaintenanceStatus};

/// The longest time that a drain may be asked to wait: one day, so that a typo does not park a client for ever.
pub const MAX_DRAIN_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1000;

/// `POST /v1/services/{s}/switch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchRequest {
    /// The backend to make active.
    pub to: BackendName,
    /// Refuse unless this one is active now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_active: Option<BackendName>,
    /// Refuse unless this is the generation now, so that a slow, old deploy can't undo a newer one.
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
    /// `false`: it was active already.
    pub changed: bool,
    /// The generation now.
    pub generation: u64,
    /// When traffic moved (or, if nothing changed, when it last had): ISO 8601, UTC.
    pub switched_at: Option<String>,
    /// Exchanges that the previous backend held when traffic moved.
    pub in_flight_previous: u64,
    /// `false`: traffic has moved, but the disk refused the state file; it is tried again.
    pub persisted: bool,
    /// Why it is not on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_error: Option<String>,
    /// What a fresh probe of the backend found right before traffic moved. `None`: nothing changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<SwitchProbe>,
    /// What an operator should know although the switch was done, such as endpoints that are unhealthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The fresh probe that comes before a switch. A bad answer or a refused connection refuses the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchProbe {
    /// What came of it.
    pub result: SwitchProbeResult,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// What came of a fresh probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchProbeResult {
    /// At least one endpoint gave a good answer.
    Good,
    /// No endpoint answered in time: the last regular probes decided.
    NoAnswer,
    /// It was not made: with `force`, where nothing is probed, or where the last good probe is fresh enough.
    Skipped,
    /// Something that only a newer version knows.
    #[serde(other)]
    Other,
}

/// `POST /v1/services/{s}/backends/{b}/drain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// How long to wait at most; left out: the service's `drain_timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// When the time is up: `true` cuts what is left, `false` cuts nothing; left out, the service's configuration
    /// decides what becomes of tunnels, and requests are left alone.
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
    /// Exchanges that ended by themselves meanwhile.
    pub finished: u64,
    /// Exchanges that were cut.
    pub cut: u64,
    /// What is still there.
    pub remaining: Remaining,
}

/// Exchanges that a backend still holds.
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
    /// Refuse unless this is the generation now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_generation: Option<u64>,
    /// Give even the active backend other endpoints, which nobody has probed yet.
    #[serde(default)]
    pub force: bool,
}

/// `DELETE /v1/services/{s}/backends/{b}`. The body may be left out. The reply is [`Registered`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnsetRequest {
    /// Refuse unless this is the generation now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_generation: Option<u64>,
    /// Give even the active backend other endpoints, which nobody has probed yet.
    #[serde(default)]
    pub force: bool,
}

/// The reply to a registration, and to its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    /// The backend as it is now.
    #[serde(flatten)]
    pub backend: BackendStatus,
    /// `false`: it was so already.
    #[serde(default)]
    pub changed: bool,
    /// The generation now; 0 from a proxy that doesn't report it here.
    #[serde(default)]
    pub generation: u64,
    /// `false`: it is so, but the disk refused the state file; it is tried again.
    #[serde(default = "yes")]
    pub persisted: bool,
    /// Why it is not on disk.
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
    /// Refuse unless this is the generation now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_generation: Option<u64>,
}

/// The reply to a withdrawal: from now on no exchange starts on the backend, and none can be switched to it, until it
/// is registered again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawn {
    /// The service.
    pub service: ServiceName,
    /// The backend.
    pub backend: BackendName,
    /// `false`: it was withdrawn already.
    pub changed: bool,
    /// The generation now.
    pub generation: u64,
    /// Requests that it still holds. Drain it before you stop it.
    pub requests_in_flight: u64,
    /// Upgraded connections that it still holds.
    pub tunnels: u64,
    /// `false`: it is withdrawn, but the disk refused the state file, so a restart could undo it; it is tried again.
    pub persisted: bool,
    /// Why it is not on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_error: Option<String>,
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
    /// `false`: it was so already.
    pub changed: bool,
    /// What clients are told, if it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<MaintenanceStatus>,
    /// `false`: it is so, but the disk refused the state file; it is tried again.
    pub persisted: bool,
    /// Why it is not on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_error: Option<String>,
}

/// The reply of `POST /v1/reload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The generation now.
    pub generation: u64,
    /// What is different now, as keys of the configuration.
    pub changed: Vec<String>,
    /// What is different in the file, and is not in force until the front door is restarted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs_restart: Vec<String>,
    /// What the file says of backends and is not in force, because a registration says otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overridden: Vec<String>,
    /// `false`: it is in force, but the disk refused the state file; it is tried again.
    #[serde(default = "yes")]
    pub persisted: bool,
    /// Why it is not on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_error: Option<String>,
}
