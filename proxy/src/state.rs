//! State that survives a restart: the active backend of each service, and run-time registrations.
//! [`mod@file`] is the format, [`store`] reads and writes it crash-safely, `writer` does so on a separate thread.

pub(crate) mod cookie_key;
pub mod file;
pub mod split;
pub mod store;
pub(crate) mod time;
pub(crate) mod writer;
