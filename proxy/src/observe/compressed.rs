//! Counters of compressed responses.

use std::sync::atomic::AtomicU64;

/// One worker's counters for one backend. Only that worker's thread writes them.
#[derive(Debug, Default)]
pub(crate) struct CompressionCounters {
    /// Compressed responses, complete or not.
    pub(crate) responses: AtomicU64,
    /// Responses that weren't compressed because too many were at the same time.
    pub(crate) skipped: AtomicU64,
    /// Bytes of content before.
    pub(crate) bytes_in: AtomicU64,
    /// And after.
    pub(crate) bytes_out: AtomicU64,
}

/// What a scrape reads of one backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompressionReading {
    /// Compressed responses.
    pub responses: u64,
    /// Responses that weren't compressed because too many were at the same time.
    pub skipped: u64,
    /// Bytes of content before.
    pub bytes_in: u64,
    /// And after.
    pub bytes_out: u64,
}
