//! Makes any app drain properly: as process 1 in front of it, or as a library.
//!
//! The program `app-shim` starts an app, forwards its requests, and on SIGTERM lets requests in flight finish before
//! it stops the app. A Rust app needs no extra process: it can use [`drain`], [`server`] and [`health`], the parts
//! the program is made of.
//!
//! In reading order. For both: [`drain`] (counts what is in flight), [`server`] (accepts, serves, drains), [`health`]
//! (builds health answers). The program: [`cli`] → `settings` → `run` (puts it together) → `lifecycle` (the order of
//! events, in terms of `phase`) on top of `signals`, `process` (the app), `sockets` (connection counts for
//! `--supervise-only`), `exit`, `log`; `forward` forwards requests over `app_link`, `checks` answers health checks,
//! `metrics` counts, and `status_server` serves health and metrics on other ports. `health_client` implements `--check`, the client of a health check for images
//! without curl.

mod app_link;
mod checks;
pub mod cli;
pub mod drain;
mod exit;
mod forward;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod health;
mod health_client;
mod lifecycle;
mod log;
mod metrics;
mod phase;
mod process;
mod run;
pub mod server;
mod settings;
mod signals;
mod sockets;
mod status_server;
