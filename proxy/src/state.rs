//! State that survives a restart: the active backend of each service, and run-time registrations.
//! [`mod@file`] is the format, [`store`] reads and writes it crash-safely, [`writer`] does so on a separate thread.

pub mod file;
pub mod store;
pub mod time;
pub mod writer;
