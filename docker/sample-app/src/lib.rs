//! A small HTTP/1.1 server that stands in for a real app behind uh-proxy.
//!
//! Every response names its backend and version, so that a test sees which one served, and there is one endpoint for
//! each kind of traffic that uh-proxy must forward. It keeps no state between requests, and never holds more than a
//! chunk of a body in memory.
//!
//! In reading order: [`settings`] (environment → values), [`server`] (the listener, with the server and drain of
//! `uh_app_shim`), `routes` (paths and simple endpoints), then `streams`, `uploads` and [`websocket`] on top of
//! `reply` (bodies and rejections) and `query`.

mod query;
mod reply;
mod routes;
pub mod server;
pub mod settings;
mod streams;
mod uploads;
pub mod websocket;

use std::fmt::Display;
use std::io::Write;

/// Writes one line to stderr. Stdout only has the `listening on` line.
pub fn note(message: impl Display) {
    // If stderr is gone, the error can't be reported either.
    let _ = writeln!(std::io::stderr(), "sample-app: {message}");
}
