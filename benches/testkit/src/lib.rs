//! Starts the programs of this workspace as processes, puts load on them, and judges the answers.
//!
//! Every test, bench and demo uses it, and each package's `harness` puts its own notions on top. It knows the programs
//! only from outside: their files, their sockets and their exit codes. Nothing in it hides a failure.

pub mod wait;

pub mod process;
pub mod sample_app;
pub mod shim;
pub mod uh_deploy;
pub mod uh_proxy;

pub mod http;
pub mod judgement;
pub mod load;
pub mod log;
pub mod websocket;

pub mod fuzz;
