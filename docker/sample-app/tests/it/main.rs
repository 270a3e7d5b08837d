//! The sample app over real sockets: each endpoint in this process, start and stop as a process of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, helpers too may fail by panicking")]

mod pages;
mod process;
mod streams;
mod support;
mod uploads;
mod websocket;
