//! A small HTTP/1.1 server that stands in for Unite-Hub (a Next.js app) behind the front door.
//!
//! It says on every answer which backend and version gave it, so that a test can tell who served, and it has one
//! endpoint for each kind of traffic the front door must carry. It never keeps state between requests and never
//! holds more than a chunk of a body in memory.
//!
//! In reading order: [`settings`] (environment → values), [`server`] (what is served until when, by the server and the
//! drain of `uh_app_shim`), `routes` (which path answers what), then the families `streams`, `uploads` and
//! [`websocket`] on top of `reply` (bodies and refusals) and `query`.

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

/// Writes one line for the operator to stderr. Stdout carries the `listening on` line and nothing else.
pub fn note(message: impl Display) {
    // With stderr gone there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "sample-app: {message}");
}
