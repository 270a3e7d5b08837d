//! Deploys a new version next to the one that serves, verifies it and switches. It can be killed at any moment and
//! recovers.
//!
//! In reading order: [`config`] is the configuration; [`deploy`] decides, records, acts and reports what happens;
//! [`runtime`] builds, starts and stops instances of the app; `proxy` talks to uh-proxy; `gate` is the health gate,
//! which uses `probe`; [`counters`] and [`verdict`] judge a backend, with `evidence` for a breach; `downtime`
//! measures what users noticed; `notice` runs hooks and the webhook; `validate` checks everything before a deploy;
//! [`cli`] is the command line, and the only place that prints. What is printed holds no secrets (`redact`). Helpers:
//! `assets`, `check`, `command`, [`env_file`], `files`, `time`, `fault`, `lines`, [`waiting`], `names`.

mod assets;
mod check;
pub mod cli;
mod command;
pub mod config;
pub mod counters;
pub mod deploy;
mod downtime;
pub mod env_file;
mod evidence;
mod fault;
mod files;
mod gate;
mod lines;
mod names;
mod notice;
mod probe;
mod proxy;
mod redact;
pub mod runtime;
mod time;
mod validate;
pub mod verdict;
pub mod waiting;

pub use uh_system::plain as chain;
