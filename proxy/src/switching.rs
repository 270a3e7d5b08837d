//! The switching core: which backend is active, and what every backend still holds. Pure: no I/O, no clock.
//!
//! ```text
//! Switchboard ──ArcSwap──▶ Snapshot ──▶ ServiceState ──▶ Activation ──▶ Lane (one a worker) ◀── Lease (one an exchange)
//!      └── Ledgers: what every activation, current or past, still holds (weak: they keep nothing alive)
//! ```
//!
//! Picking a backend and counting the exchange are one act: an exchange clones the `Arc` of its worker's [`Lane`](lease::Lane), and
//! that clone *is* the count. A switch swaps in a snapshot with a fresh [`Activation`]. `ArcSwap::swap` returns only
//! when every reader that saw the old snapshot holds its own reference, so from then on the old activation's leases
//! can only go, and its last lane's drop *is* the drained event. There is no moment in which an exchange could slip in
//! behind it, and a lease is a value on the exchange's stack: no return, panic or cancellation can leak it.
//!
//! Must never: take a lock in [`Switchboard::pick`], do I/O, or keep a strong reference to a lane anywhere but in an
//! [`Activation`] and in leases.

pub mod backend;
pub mod board;
pub mod lease;
pub mod route;
pub mod snapshot;
pub mod sync;

pub use backend::{Backend, Endpoint, Health};
pub use board::{Drain, Entry, Refusal, SwitchOrder, SwitchOutcome, Switchboard};
pub use lease::{Activation, LanePayload, Lease, Ledger};
pub use snapshot::{Maintenance, ServiceState, Snapshot};
pub use uh_protocol::Address;
