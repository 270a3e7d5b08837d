//! The demo and the load programs: the real binaries under load that records every response.
//!
//! A program here starts apps and uh-proxy, applies load, switches, and judges the result. Only tests depend on this
//! crate, and nothing in it may hide a failure: an unexplained response is a failure.

pub mod compare;
pub mod faults;

pub mod percentiles;
pub mod picture;
pub mod series;
pub mod watcher;

pub mod fickle;
pub mod machine;
pub mod workdir;
