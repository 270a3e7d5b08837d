//! The hand-over between a uh-proxy and its successor: what they say to each other ([`wire`]), and what the successor
//! knows of its predecessor while that one ends ([`predecessor`]). [`stay`] is how long the predecessor stays at least, and
//! [`end`] what it waits for last.
//!
//! ```text
//! successor                       predecessor, which leads
//! join ─────────────────────────▶
//!      ◀──────────────── joined   its routing and health
//! (probes, until it knows as much)
//! yield ────────────────────────▶ if it finds more healthy: not yet; otherwise refuses changes, writes the state, releases its locks
//!      ◀─────────────── yielded   the generation
//! (takes the locks, reads the state, replaces the admin socket, accepts)
//! leading ──────────────────────▶ stops accepting, finishes its requests
//! follow: routing ──────────────▶ takes it over
//!      ◀──────────────── counts   what it still holds; also on its own, when that changes
//! ready ────────────────────────▶ stays for another moment, in case the successor crashes
//! ```
//!
//! Who has the lock of the state file leads, and nobody else writes it or changes the routing. If the successor is gone
//! before it leads, or while the predecessor is still there, the predecessor takes the locks back.

pub(crate) mod end;
pub(crate) mod leader;
pub(crate) mod liveness;
pub(crate) mod parent;
pub(crate) mod predecessor;
pub(crate) mod stay;
pub(crate) mod wire;
