//! Why a change of routing was refused.

use uh_protocol::{BackendName, ServiceName};

use crate::backend::Health;
use crate::split::Weight;

/// Why a change was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another process decides, or is about to.
    #[error("uh-proxy is being replaced: ask again in a second; nothing was changed")]
    Frozen,
    /// No such service.
    #[error("no service is named {asked}; configured services: {}", known.join(", "))]
    UnknownService {
        /// The requested name.
        asked: String,
        /// The existing names.
        known: Vec<String>,
    },
    /// No such backend.
    #[error("service {service} has no backend {asked}; its backends: {}", known.join(", "))]
    UnknownBackend {
        /// The service.
        service: String,
        /// The requested name.
        asked: String,
        /// The existing names.
        known: Vec<String>,
    },
    /// Another backend is active than expected.
    #[error(
        "expected {expected} to be active, but {active} is (generation {generation}); nothing was changed"
    )]
    NotActive {
        /// Expected.
        expected: BackendName,
        /// Actual.
        active: BackendName,
        /// The current generation.
        generation: u64,
    },
    /// The routing has changed meanwhile.
    #[error(
        "expected generation {expected}, but the current one is {generation} and {active} is active: another change came first; nothing was changed"
    )]
    OtherGeneration {
        /// Expected.
        expected: u64,
        /// Actual.
        generation: u64,
        /// The active backend.
        active: BackendName,
    },
    /// It isn't known to be healthy.
    #[error("{backend} isn't known to be healthy; {active} stays active")]
    Unhealthy {
        /// The requested backend.
        backend: BackendName,
        /// The active backend.
        active: BackendName,
        /// Unhealthy, or not probed often enough yet.
        health: Health,
    },
    /// It failed the probe right before the switch.
    #[error(
        "{backend} failed a probe right before the switch: {error}; {active} stays active. To switch anyway, use force"
    )]
    FailedProbe {
        /// The requested backend.
        backend: BackendName,
        /// The active backend.
        active: BackendName,
        /// The error of each endpoint.
        error: String,
    },
    /// It is about to be stopped, or already stopped.
    #[error(
        "{backend} is withdrawn, so nothing can switch to it, not even with force; {active} stays active. To use it again, start it, then run uh-proxy backend set {backend} --endpoint ADDRESS, or uh-proxy backend unset {backend} to use the endpoints from the configuration file"
    )]
    Withdrawn {
        /// The requested backend.
        backend: BackendName,
        /// The active backend.
        active: BackendName,
    },
    /// Traffic would move to endpoints that haven't been probed.
    #[error(
        "{backend} is active: registering other endpoints for it would move traffic to endpoints that haven't been probed. Register them for a standby and switch to it, or use force"
    )]
    ActiveMoved {
        /// The backend.
        backend: BackendName,
    },
    /// Traffic would have nowhere to go.
    #[error(
        "{backend} is active for {service}, but the new configuration no longer has it: switch to another backend first; nothing was changed"
    )]
    ActiveRemoved {
        /// The service.
        service: ServiceName,
        /// The backend.
        backend: BackendName,
    },
    /// Only a standby can be drained or withdrawn.
    #[error("{backend} is active and gets new requests: switch to another backend first")]
    Active {
        /// The backend.
        backend: BackendName,
    },
    /// A split sends a part of the traffic to it.
    #[error(
        "{backend} gets {weight} of the traffic of {service} by a split: end the split first, with uh-proxy split off --service {service}; nothing was changed"
    )]
    InSplit {
        /// The service.
        service: ServiceName,
        /// The backend.
        backend: BackendName,
        /// Its share.
        weight: Weight,
    },
    /// A split is between the active backend and another one.
    #[error(
        "{backend} is active, so it gets all traffic that a split doesn't send elsewhere: name another backend; nothing was changed"
    )]
    SplitToActive {
        /// The backend.
        backend: BackendName,
    },
    /// Only a standby can be previewed.
    #[error("{backend} is active, so everybody gets it already: name a standby")]
    PreviewOfActive {
        /// The backend.
        backend: BackendName,
    },
    /// There is a split whose trial suspects the other side.
    #[error(
        "{weight} of the traffic of {service} already goes to {current} by a split whose trial suspects the other side: end that split first, with uh-proxy split off --service {service}; nothing was changed"
    )]
    OtherSuspect {
        /// The service.
        service: ServiceName,
        /// The split's backend.
        current: BackendName,
        /// Its share.
        weight: Weight,
    },
    /// There is another split.
    #[error(
        "{weight} of the traffic of {service} already goes to {current}, not to {asked}: end that split first, with uh-proxy split off --service {service}; nothing was changed"
    )]
    OtherSplit {
        /// The service.
        service: ServiceName,
        /// The requested backend.
        asked: BackendName,
        /// The split's backend.
        current: BackendName,
        /// Its share.
        weight: Weight,
    },
}
