//! Helpers of the tests: a real Prometheus, and the shipped compose files on a real Docker Engine.
//!
//! Nothing depends on this package.

pub mod dashboard;
pub mod prometheus;
pub mod repository;
pub mod stack;
