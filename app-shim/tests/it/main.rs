//! The shim as a real process, with real children and sockets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, helpers too may fail by panicking")]

mod app_health;
mod client;
mod drains;
mod endings;
mod fuzz;
mod http;
mod node;
mod orphans;
mod shim;
mod signals;
