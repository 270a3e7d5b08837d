//! The reply of `GET /v1/status`.

use serde::{Deserialize, Serialize};

use crate::name::{BackendName, ServiceName};

/// The state of uh-proxy and all its services.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The uh-proxy process.
    pub proxy: ProxyStatus,
    /// Increases with every change of routing, normally by one; the first change after a restart skips some numbers.
    pub generation: u64,
    /// Whether the current routing is saved to disk. `false`: a restart now could activate an older backend.
    pub persisted: bool,
    /// Problems with the state file found at start, as long as they matter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// In the order of the configuration.
    pub services: Vec<ServiceStatus>,
}

/// The uh-proxy process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Version of the program.
    pub version: String,
    /// Process ID.
    pub pid: u32,
    /// Name of the host, or of the container. Older versions don't say it.
    #[serde(default)]
    pub host: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Bound addresses, with their actual ports.
    pub listen: Vec<String>,
    /// The addresses for HTTPS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen_tls: Vec<String>,
    /// The addresses for HTTP/2 without TLS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen_h2c: Vec<String>,
    /// The certificates being served, and those that are still to be issued.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateStatus>,
    /// The metrics listener's address, if there is one.
    pub metrics: Option<String>,
    /// True from the first SIGTERM on.
    pub stopping: bool,
}

/// The reply of `GET /v1/certificates`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    /// The certificates being served, and those that are still to be issued.
    pub certificates: Vec<CertificateStatus>,
}

/// A certificate being served, or still to be issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Its first DNS name, or its file if it has none.
    pub name: String,
    /// All hosts that it covers.
    pub names: Vec<String>,
    /// Where it comes from.
    pub source: CertificateSource,
    /// When it expires: ISO 8601, UTC; `null`: it hasn't been issued yet.
    pub expires: Option<String>,
    /// Its file; `null`: it hasn't been issued yet.
    pub file: Option<String>,
    /// When it is renewed, or tried again: ISO 8601, UTC. Only with ACME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<String>,
    /// Why its changed files can't be served, or why it can't be issued or renewed. What is served stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Where a certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateSource {
    /// The configuration names its files.
    File,
    /// A certificate authority issues it by ACME.
    Acme,
    /// A value that only a newer version knows.
    #[serde(other)]
    Other,
}

/// One service and its backends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: ServiceName,
    /// The backend that receives new requests.
    pub active: BackendName,
    /// The previously active backend, for a rollback.
    pub previous: Option<BackendName>,
    /// When the active backend last changed: ISO 8601, UTC.
    pub last_switch: Option<String>,
    /// Whether new requests are answered with the maintenance page.
    pub maintenance: bool,
    /// The maintenance details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance_details: Option<MaintenanceStatus>,
    /// The split of its traffic between the active backend and another one, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitStatus>,
    /// The trial of that split, or else of the last one since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialStatus>,
    /// Warnings, such as unhealthy endpoints of the active backend.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// In the order of the configuration.
    pub backends: Vec<BackendStatus>,
}

/// The trial of a backend that gets a part of the traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialStatus {
    /// The backend on trial.
    pub backend: BackendName,
    /// What is thought of it.
    pub state: TrialState,
    /// Whether its split has ended.
    pub ended: bool,
    /// Whether it is the backend of the split, or the active one in a cross-check.
    #[serde(default, skip_serializing_if = "Suspect::is_default")]
    pub suspect: Suspect,
    /// A request that takes longer than this many milliseconds is slow. None: the old version has no history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_after_ms: Option<u64>,
    /// Failures on both sides.
    pub failures: TrialFigures,
    /// Slow requests on both sides. None: not judged yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowness: Option<TrialFigures>,
    /// Where clients of the backend on trial failed first, most of them first.
    pub routes: Vec<TrialRoute>,
    /// Of some requests that failed there.
    pub request_ids: Vec<String>,
}

/// What a trial thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialState {
    /// There is too little evidence for anything.
    Undecided,
    /// It seems worse, and too few clients are left on the old version to be sure.
    Suspicious,
    /// It is worse.
    Bad,
}

/// One kind of bad requests in a trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialFigures {
    /// The new version's requests.
    pub new_requests: u64,
    /// Those that were bad.
    pub new_bad: u64,
    /// How many clients they came from.
    pub new_clients: u64,
    /// The old version's requests.
    pub old_requests: u64,
    /// Those that were bad.
    pub old_bad: u64,
    /// How many clients they came from.
    pub old_clients: u64,
    /// The old version's bad requests before the trial, in percent.
    pub before_percent: f64,
    /// Natural logarithm of the evidence of the coin test.
    pub ln_coin: f64,
    /// Natural logarithm of the evidence of the window test, for slowness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ln_windows: Option<f64>,
    /// Natural logarithm of the evidence of the history test.
    pub ln_history: f64,
    /// The new version isn't worse by more than this many points.
    pub not_worse_by_points: f64,
}

impl TrialFigures {
    /// Natural logarithm of the evidence that compares both versions at the same moment.
    #[must_use]
    pub fn ln_same_moment(&self) -> f64 {
        self.ln_windows.map_or(self.ln_coin, |windows| windows.min(self.ln_coin))
    }
}

/// Where clients failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialRoute {
    /// The path without its values, such as `/orders/*`.
    pub template: String,
    /// How many clients failed there first, on the new version.
    pub new_clients: u64,
    /// And on the old one.
    pub old_clients: u64,
}

/// A split of a service's traffic. The clients that don't go to its backend go to the active one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitStatus {
    /// The backend that gets a part of the traffic.
    pub to: BackendName,
    /// The percentage of clients that go there.
    pub weight: f64,
    /// When it began: ISO 8601, UTC.
    pub since: String,
    /// When it ends unless it is renewed: ISO 8601, UTC.
    pub until: String,
    /// Whether it is a lease (`ttl_ms`). `false`: it ends after the service's `split.hold_timeout`.
    pub leased: bool,
    /// Which side its trial suspects.
    #[serde(default, skip_serializing_if = "Suspect::is_default")]
    pub suspect: Suspect,
}

/// The side of a split that its trial suspects. The other one is what it is compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suspect {
    /// The backend of the split: a new version that gets some of the clients. If it is worse, the split ends.
    #[default]
    Split,
    /// The active backend: a new version that has given some of its clients back for a cross-check. If it is worse, nothing
    /// happens by itself, because all clients would get it.
    Active,
}

impl Suspect {
    /// Whether it is the one that needn't be said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a service in maintenance tells its clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceStatus {
    /// When it began: ISO 8601, UTC.
    pub since: String,
    /// For humans.
    pub message: String,
    /// For the `Retry-After` header, in seconds.
    pub retry_after_s: u32,
}

/// Whether a backend receives new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It receives new requests.
    Active,
    /// It receives none, and can be switched to.
    Standby,
    /// It receives none, and can't be switched to until it is registered again.
    Withdrawn,
    /// A value that only a newer version knows.
    #[serde(other)]
    Other,
}

/// One backend of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its name.
    pub name: BackendName,
    /// The app's version, as registered with `PUT backends`.
    pub version: Option<String>,
    /// Whether it receives new requests.
    pub role: Role,
    /// `null` until enough probes have been made, and where probing is off.
    pub healthy: Option<bool>,
    /// The latest probe of any of its endpoints; a failed one takes precedence.
    pub last_probe: Option<ProbeStatus>,
    /// Its addresses.
    pub endpoints: Vec<EndpointStatus>,
    /// Requests between their pick and their last byte, tunnels not counted.
    pub requests_in_flight: u64,
    /// Open tunnels (upgraded connections).
    pub tunnels: u64,
    /// Connections to it.
    pub connections: ConnectionCounts,
}

/// Connections to a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionCounts {
    /// Carrying an exchange.
    pub active: u64,
    /// Idle, kept for reuse.
    pub idle: u64,
}

/// One address of a backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// As configured: `host:port` or `unix:/path`.
    pub address: String,
    /// `null` until enough probes have been made.
    pub healthy: Option<bool>,
    /// Its latest probe.
    pub last_probe: Option<ProbeStatus>,
}

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// When it ended: ISO 8601, UTC.
    pub at: String,
    /// Whether it counts as healthy.
    pub ok: bool,
    /// The HTTP status, if there was a response.
    pub status: Option<u16>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Why it failed, in full: the error, the redirect's target, or the head of the body.
    pub error: Option<String>,
    /// `deployment` as the app reported it.
    pub deployment: Option<String>,
    /// `version` as the app reported it.
    pub version: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_that_a_newer_version_adds_breaks_no_reader() {
        assert_eq!(serde_json::from_str::<Role>("\"resting\"").unwrap(), Role::Other);
        assert_eq!(serde_json::from_str::<Role>("\"withdrawn\"").unwrap(), Role::Withdrawn);
    }
}
