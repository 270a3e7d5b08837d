//! What [`super::tally`] is written against, so that a model checker can stand in for it: `tests/loom` compiles the same
//! source file with loom's.

pub(super) use std::sync::{Arc, Mutex, MutexGuard};
