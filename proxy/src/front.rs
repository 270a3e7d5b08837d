//! The data path: our own exchange loop on pingora's listeners, streams and connector.
//!
//! ```text
//! worker thread ─ accept ▶ Connection ─loop─▶ read head ▶ Client::exchange ▶ exchange::run
//!                              ▲                              ▶ who answers: a lease on the active backend, or uh-proxy
//!                              │                              ▶ reach: pooled or new upstream, await response
//!                              │                              ▶ relay both bodies at once, or keep a tunnel
//!                              └──── keep-alive ◀─ count, log, drop the lease ◀ release upstream
//! ```
//!
//! From the exchange on, nothing knows which protocol the client speaks: see [`client`].
//!
//! Workers share nothing on the path of a request: each has its own thread, runtime, idle pools, counters and log
//! buffer. In reading order: [`worker`], [`admission`], [`in_flight`], `proxy_header`, `secure`, [`idle`], [`connection`], `http2`, [`client`], [`exchange`],
//! `record`, `reach`, [`relay`], [`pump`], [`splice`], [`pace`], [`pool`], [`budget`], [`endpoint`], [`fittings`], [`upstream`], [`answer`],
//! `error_answer`, `challenge`, `redirect`, [`bypass`], [`scratch`], [`reset`], [`broadcast`], [`lazy_timer`], [`settings`], [`websocket`].

pub mod admission;
pub mod answer;
pub mod broadcast;
pub mod budget;
pub mod bypass;
mod challenge;
pub mod client;
pub mod connection;
pub mod descriptor;
pub mod endpoint;
mod error_answer;
pub mod exchange;
pub mod fittings;
mod http2;
pub mod idle;
pub mod in_flight;
pub mod lazy_timer;
pub mod pace;
pub mod pool;
mod proxy_header;
pub mod pump;
mod reach;
mod record;
mod redirect;
pub mod relay;
pub mod reset;
pub mod scratch;
mod secure;
pub mod settings;
pub mod splice;
pub mod unsent;
pub mod upstream;
pub mod websocket;
pub mod worker;

use uh_switching::ActivationInfo;

use endpoint::Endpoint;
use fittings::Fittings;

/// The switchboard of a running uh-proxy.
pub type Board = uh_switching::Switchboard<Fittings>;

/// What happens to a new request.
pub type Entry = uh_switching::Entry<Fittings>;

/// An exchange's hold on an activation.
pub type Lease = uh_switching::Lease<ActivationInfo<Fittings>, pool::IdlePool>;

/// A service with its current routing.
pub type LiveService = uh_switching::LiveService<Fittings>;

/// A registered backend with the state of its endpoints.
pub type Backend = uh_switching::Registered<Endpoint>;
