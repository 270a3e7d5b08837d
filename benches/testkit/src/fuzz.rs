//! Nearly valid bytes for whatever reads bytes from outside, and what must hold of all of them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "for tests, which fail by panicking")]

pub mod calls;
#[cfg(feature = "mutate")]
pub mod mutate;
pub mod reference;
pub mod witness;
pub mod words;
