//! The demo and the load programs: the real binaries under load that records every response.
//!
//! A program here starts apps and uh-proxy, applies load, switches, and judges the result. Only tests depend on this
//! crate, and nothing in it may hide a failure: an unexplained response is a failure.

pub mod compare;
pub mod http;
pub mod judgement;
pub mod load;
pub mod percentiles;
pub mod picture;
pub mod watcher;
pub mod websocket;

pub mod faults;
pub mod series;

pub mod controller;
pub mod fickle;
pub mod front_door;
pub mod mounts;
pub mod process;
pub mod sample_app;
pub mod workdir;
