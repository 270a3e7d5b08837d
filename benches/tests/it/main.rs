//! The workspace as a whole: its arrows, its manifests, its files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, helpers too may fail by panicking")]

mod arrows;
mod defaults;
mod docs;
mod files;
mod modules;
mod short_forms;
mod workspace;
