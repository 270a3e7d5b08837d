//! The shared-memory primitives that [`super::lease`] uses, so that a model checker can replace them: `tests/loom`
//! compiles the same source file with loom's.

pub use std::sync::Arc;
pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
