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
//! buffer. In reading order: [`worker`], [`admission`], [`in_flight`], [`rate`], `proxy_header`, `secure`, [`idle`], [`connection`], `http2`, [`client`], [`exchange`],
//! `applied`, `record`, `reach`, [`relay`], [`pump`], [`splice`], [`pace`], [`pool`], [`sticky`], [`trial`], [`budget`], [`endpoint`], [`fittings`], [`upstream`], [`answer`],
//! `error_answer`, [`request_buffer`], `challenge`, `redirect`, `files`, [`bypass`], [`scratch`], [`reset`], [`broadcast`], [`lazy_timer`], [`settings`], [`websocket`].

pub(crate) mod admission;
pub(crate) mod answer;
mod applied;
pub(crate) mod broadcast;
pub(crate) mod budget;
pub(crate) mod bypass;
mod challenge;
pub(crate) mod client;
pub(crate) mod connection;
pub(crate) mod descriptor;
pub(crate) mod endpoint;
mod error_answer;
pub(crate) mod exchange;
mod files;
pub(crate) mod fittings;
mod http2;
pub(crate) mod idle;
pub(crate) mod in_flight;
pub(crate) mod lazy_timer;
pub(crate) mod listener;
pub(crate) mod own_cookies;
pub(crate) mod pace;
mod pick;
pub(crate) mod pool;
mod preview;
pub(crate) mod preview_token;
mod proxy_header;
pub(crate) mod pump;
pub(crate) mod rate;
mod reach;
mod record;
mod redirect;
pub(crate) mod relay;
pub(crate) mod request_buffer;
pub(crate) mod reset;
pub(crate) mod scratch;
mod secure;
pub(crate) mod settings;
pub(crate) mod splice;
mod split;
pub(crate) mod sticky;
pub(crate) mod trial;
pub(crate) mod unsent;
pub(crate) mod upstream;
pub(crate) mod websocket;
pub(crate) mod worker;

use uh_switching::ActivationInfo;

use endpoint::Endpoint;
use fittings::Fittings;

/// The switchboard of a running uh-proxy.
pub(crate) type Board = uh_switching::Switchboard<Fittings>;

/// What happens to a new request.
pub(crate) type Entry = uh_switching::Entry<Fittings>;

/// What there is for a request that names its backend.
pub(crate) type Named = uh_switching::Named<Fittings>;

/// An exchange's hold on an activation.
pub(crate) type Lease = uh_switching::Lease<ActivationInfo<Fittings>, pool::IdlePool>;

/// A service with its current routing.
pub(crate) type LiveService = uh_switching::LiveService<Fittings>;

/// A registered backend with the state of its endpoints.
pub(crate) type Backend = uh_switching::Registered<Endpoint>;
