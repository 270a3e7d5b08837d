//! Makes any app drain properly: as process 1 beside it, or from within.
//!
//! The program `app-shim` starts an app, sits in the path of its requests, and on SIGTERM lets what is in flight
//! finish before the app gets to know. A Rust app needs no process beside it: it can embed [`drain`], [`server`] and
//! [`health`], the parts the program is made of.
//!
//! In reading order. For both: [`drain`] (what is in flight), [`server`] (accept, serve, leave), [`health`] (what is
//! said of it). The program: [`cli`] → `settings` → `run` (puts it together) → `supervise` (the order of events) on
//! top of `signals`, `process` (the app), `sockets` (of an app we don't sit in front of), `exit` and `log`; `forward`
//! carries the requests, `checks` answers health checks, `metrics` counts, and `side` serves both beside the path.
//! `ask` is the other end of a health check: `--check`, for images that have no curl.

mod ask;
mod checks;
pub mod cli;
pub mod drain;
mod exit;
mod forward;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod health;
mod log;
mod metrics;
mod process;
mod run;
pub mod server;
mod settings;
mod side;
mod signals;
mod sockets;
mod supervise;
