//! The reply of `GET /v1/status`: what the front door knows about itself.

use serde::{Deserialize, Serialize};

use crate::name::{BackendName, ServiceName};

/// Everything an operator asks for first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The front door's own process.
    pub proxy: ProxyStatus,
    /// Grows at every change of routing, by one as a rule; the first change after a restart leaves some numbers out.
    pub generation: u64,
    /// Whether the routing in force is on disk. `false`: a restart now could serve an older backend.
    pub persisted: bool,
    /// What was wrong with the state file at start, while that still matters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// In the order of the configuration.
    pub services: Vec<ServiceStatus>,
}

/// The front door's own process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Addresses that are really bound, with their ports.
    pub listen: Vec<String>,
    /// Those on which HTTPS is served.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen_tls: Vec<String>,
    /// The certificates that are served over HTTPS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateStatus>,
    /// The metrics listener's address, if there is one.
    pub metrics: Option<String>,
    /// True from the first SIGTERM on.
    pub stopping: bool,
}

/// A certificate that is served over HTTPS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Its first name, or else its file.
    pub name: String,
    /// All hosts that it is for.
    pub names: Vec<String>,
    /// When it expires: ISO 8601, UTC.
    pub expires: String,
    /// Its file.
    pub file: String,
    /// Why its files, which have changed, can't be served. What is described here stays in force meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One service and its backends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: ServiceName,
    /// The backend that gets new requests.
    pub active: BackendName,
    /// The one before it, for rolling back.
    pub previous: Option<BackendName>,
    /// When the active backend last changed: ISO 8601, UTC.
    pub last_switch: Option<String>,
    /// Whether new requests are answered with the maintenance page.
    pub maintenance: bool,
    /// What they are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance_details: Option<MaintenanceStatus>,
    /// What an operator should know, such as unhealthy endpoints of the active backend.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// In the order of the configuration.
    pub backends: Vec<BackendStatus>,
}

/// What clients of a service in maintenance are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceStatus {
    /// When it began: ISO 8601, UTC.
    pub since: String,
    /// For people.
    pub message: String,
    /// For the `Retry-After` header, in seconds.
    pub retry_after_s: u32,
}

/// Whether a backend gets new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It gets new requests.
    Active,
    /// It gets none, and can be switched to.
    Standby,
    /// It gets none, and can't be switched to until it is registered again.
    Withdrawn,
    /// Something that only a newer version knows.
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
    /// Whether it gets new requests.
    pub role: Role,
    /// `null` until enough probes have been made, and where probing is off.
    pub healthy: Option<bool>,
    /// The newest probe of any of its endpoints; a failed one before a good one.
    pub last_probe: Option<ProbeStatus>,
    /// Its addresses.
    pub endpoints: Vec<EndpointStatus>,
    /// Requests between their pick and their last byte, tunnels not counted.
    pub requests_in_flight: u64,
    /// Upgraded connections in flight.
    pub tunnels: u64,
    /// Connections to it.
    pub connections: ConnectionCounts,
}

/// Connections to a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionCounts {
    /// Carrying an exchange.
    pub active: u64,
    /// Kept for the next exchange.
    pub idle: u64,
}

/// One address of a backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// As configured: `host:port` or `unix:/path`.
    pub address: String,
    /// `null` until enough probes have been made.
    pub healthy: Option<bool>,
    /// Its newest probe.
    pub last_probe: Option<ProbeStatus>,
}

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// When it ended: ISO 8601, UTC.
    pub at: String,
    /// Whether it counts as healthy.
    pub ok: bool,
    /// The HTTP status, if one came.
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
