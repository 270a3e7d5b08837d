//! The workspace as a whole: its arrows, its manifests, its files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, helpers too may fail by panicking")]

use std::sync::{Mutex, MutexGuard, PoisonError};

mod arrows;
mod defaults;
mod docs;
mod faults;
mod files;
mod modules;
mod slow_clients;
mod soak;
mod workspace;

/// For the tests that load the machine: side by side they would measure each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
