//! What must survive a restart: which backend of each service is active, and what was registered at run time.
//! [`mod@file`] is the format, [`store`] reads and writes it crash-safe, [`keeper`] does so on a thread of its own.

pub mod file;
pub mod keeper;
pub mod store;
pub mod time;
