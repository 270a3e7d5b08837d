//! The shared-memory primitives that [`super::lease`] is written against, so that a model checker can stand in for
//! them: `tests/loom` compiles the same source file with loom's.

pub use std::sync::Arc;
pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
