//! The sample app over real sockets: endpoints in this process, start and stop in a separate process.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, helpers too may fail by panicking")]

mod pages;
mod process;
mod streams;
mod support;
mod uploads;
mod websocket;
