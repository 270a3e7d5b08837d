//! The data path: our own exchange loop on pingora's listeners, streams and connector.
//!
//! ```text
//! worker thread ─ accept ▶ Connection ─loop─▶ read head ▶ Exchange: pick + count ▶ pooled or new upstream
//!                              ▲                              ▶ await response ▶ relay both bodies at once
//!                              └──── keep-alive ◀─ log, count ◀ release upstream, drop the count
//! ```
//!
//! Workers share nothing on the path of a request: each has its own thread, runtime, idle pools, counters and log
//! buffer. In reading order: [`worker`], [`admission`], [`idle`], [`connection`], [`exchange`], [`relay`], [`pump`], [`splice`],
//! [`pace`], [`pool`], [`budget`], [`upstream`], [`answer`], [`bypass`], [`reset`], [`attention`], [`watchdog`],
//! [`settings`], [`websocket`].

pub mod admission;
pub mod answer;
pub mod attention;
pub mod budget;
pub mod bypass;
pub mod client;
pub mod connection;
pub mod descriptor;
pub mod exchange;
pub mod idle;
pub mod pace;
pub mod pool;
pub mod pump;
mod reach;
mod record;
mod refusal;
pub mod relay;
pub mod reset;
pub mod scratch;
pub mod settings;
pub mod splice;
pub mod unsent;
pub mod upstream;
pub mod watchdog;
pub mod websocket;
pub mod worker;

use crate::switching::snapshot::ActivationInfo;

/// The switchboard of a running front door.
pub type Board = crate::switching::Switchboard<pool::IdlePool>;

/// What becomes of a new request.
pub type Entry = crate::switching::Entry<pool::IdlePool>;

/// An exchange's hold on an activation.
pub type Lease = crate::switching::Lease<ActivationInfo, pool::IdlePool>;
