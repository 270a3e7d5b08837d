//! The switching core: which backend is active, and what is in flight on every backend. No I/O, and no dependency on
//! configuration, metrics or a clock: those belong to the user of this package and are opaque here.
//!
//! ```text
//! Snapshot ──after(&Change)──▶ Snapshot      values: who is active, how backends are registered
//!    │ put in force by
//! Switchboard ──ArcSwap──▶ Live ──▶ LiveService ──▶ Activation ──▶ Lane (one a worker) ◀── Lease (one an exchange)
//!    └── Ledgers: what every activation, current or past, still holds (weak: they keep nothing alive)
//! ```
//!
//! While a service's traffic is split, it has two activations that get requests: see [`split`].
//!
//! A change of routing is decided on values alone ([`Snapshot::after`]); what must survive a restart is a value, too
//! ([`RoutingRecord`]). The [`Switchboard`] takes its lock, decides, makes what the decision needs, and swaps.
//!
//! Picking a backend and counting the exchange are one act: an exchange clones the `Arc` of its worker's
//! [`Lane`](lease::Lane), and that clone *is* the count. A switch swaps in a fresh [`Activation`]. `ArcSwap::swap`
//! returns only when every reader that saw the old routing holds its own reference, so from then on the old activation's
//! leases can only go, and its last lane's drop *is* the drained event. There is no moment in which an exchange could
//! slip in behind it, and a lease is a value on the exchange's stack: no return, panic or cancellation can leak it.
//!
//! Must never: take a lock in [`Switchboard::pick`], do I/O, or keep a strong reference to a lane anywhere but in an
//! [`Activation`] and in leases.

pub mod backend;
pub mod board;
pub mod change;
pub mod drain;
mod follow;
pub mod generations;
pub mod lease;
pub mod live;
pub mod record;
pub mod refusal;
pub mod route;
pub mod service;
pub mod snapshot;
pub mod split;
pub mod sync;
pub mod view;

pub use backend::{Backend, EndpointId, Health};
pub use board::{Applied, Entry, Named, Switchboard};
pub use change::{Change, OneSplit, Outcome, Step};
pub use drain::{Drain, Holding};
pub use generations::{Earlier, Generations};
pub use lease::{Activation, LanePayload, Lease, Ledger};
pub use live::{ActivationInfo, Bare, CloseSchedule, Fittings, Live, LiveService, Picked, Registered};
pub use record::{Registration, RoutingRecord, ServiceRecord};
pub use refusal::Refusal;
pub use service::{BackendDefinition, Service};
pub use snapshot::{Active, Maintenance, ServiceState, Snapshot};
pub use split::{
    Assigned, Assignment, BadWeight, ClientKey, Judging, Salt, Side, Split, SplitRecord, Term, Weight,
};
pub use view::{BackendView, RoutingView, ServiceView};

#[cfg(test)]
mod tests;
