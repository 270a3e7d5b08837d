//! The synchronisation types that [`super::counter`] uses. `tests/loom` compiles that file with loom's types instead.

pub(super) use std::sync::{Arc, Mutex, MutexGuard};
