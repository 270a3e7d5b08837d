//! Why a change of routing was refused.

use uh_protocol::{BackendName, ServiceName};

use crate::backend::Health;

/// Why a change was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such service.
    #[error("there is no service {asked}; there are: {}", known.join(", "))]
    UnknownService {
        /// What was asked for.
        asked: String,
        /// What there is.
        known: Vec<String>,
    },
    /// No such backend.
    #[error("service {service} has no backend {asked}; it has: {}", known.join(", "))]
    UnknownBackend {
        /// The service.
        service: String,
        /// What was asked for.
        asked: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Another backend is active than expected.
    #[error(
        "expected {expected} to be active, but {active} is (generation {generation}); nothing has changed"
    )]
    NotActive {
        /// Expected.
        expected: BackendName,
        /// True.
        active: BackendName,
        /// The generation now.
        generation: u64,
    },
    /// Routing has changed since.
    #[error(
        "expected generation {expected}, but it is {generation} and {active} is active: routing has changed since; nothing has changed now"
    )]
    OtherGeneration {
        /// Expected.
        expected: u64,
        /// True.
        generation: u64,
        /// The active backend.
        active: BackendName,
    },
    /// It has not proven itself healthy.
    #[error("{backend} is not known to be healthy; {active} stays active")]
    Unhealthy {
        /// The backend asked for.
        backend: BackendName,
        /// Who serves.
        active: BackendName,
        /// Unhealthy, or not probed often enough yet.
        health: Health,
    },
    /// It failed the fresh probe before the switch.
    #[error("{backend} failed a probe just now: {error}; {active} stays active. To switch anyway, use force")]
    FailedProbe {
        /// The backend asked for.
        backend: BackendName,
        /// Who serves.
        active: BackendName,
        /// What each of its endpoints answered.
        error: String,
    },
    /// Somebody is about to stop it, or has.
    #[error(
        "{backend} is withdrawn, so nothing can switch to it, not even by force; {active} stays active. To use it again, start it and register it: uh-proxy backend set {backend} --endpoint ADDRESS, or uh-proxy backend unset {backend} for the endpoints of the configuration file"
    )]
    Withdrawn {
        /// The backend asked for.
        backend: BackendName,
        /// Who serves.
        active: BackendName,
    },
    /// Traffic would move to endpoints that nobody has probed.
    #[error(
        "{backend} is active: registering other endpoints for it would move its traffic to what nobody has probed. Register them for a standby and switch to it; or use force to do it anyway"
    )]
    ActiveMoved {
        /// The backend.
        backend: BackendName,
    },
    /// Traffic would have nowhere to go.
    #[error(
        "{backend} is active for {service}, but the configuration has no such backend any more: switch to another one first; nothing has changed"
    )]
    ActiveRemoved {
        /// The service.
        service: ServiceName,
        /// The backend.
        backend: BackendName,
    },
    /// A drain and a withdrawal are for standbys.
    #[error("{backend} is active and gets new requests: switch to another backend first")]
    Active {
        /// The backend.
        backend: BackendName,
    },
}
