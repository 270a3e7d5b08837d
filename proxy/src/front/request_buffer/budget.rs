//! How much all buffered bodies together may have, in memory and on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::observe::log_rate_limit::LogRateLimit;

/// What all buffered bodies have now, of all workers.
#[derive(Debug, Default)]
pub(crate) struct BufferBudgets {
    memory: Arc<AtomicU64>,
    disk: Arc<AtomicU64>,
    /// For warnings that a body can't be buffered.
    pub(super) logged: LogRateLimit,
}

impl BufferBudgets {
    /// Bytes in memory.
    #[must_use]
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// Bytes on disk.
    #[must_use]
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.disk.load(Ordering::Relaxed)
    }

    /// A share of the memory, still empty.
    pub(super) fn of_memory(&self) -> Share {
        Share { of: Arc::clone(&self.memory), bytes: 0 }
    }

    /// A share of the disk, still empty.
    pub(super) fn of_disk(&self) -> Share {
        Share { of: Arc::clone(&self.disk), bytes: 0 }
    }
}

/// What one body has. Given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<AtomicU64>,
    bytes: u64,
}

impl Share {
    /// Takes more, unless all together would then have more than `most`.
    pub(super) fn grow(&mut self, bytes: u64, most: u64) -> bool {
        let add = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= most);
        let grown = self.of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok();
        self.bytes += if grown { bytes } else { 0 };
        grown
    }

    /// Gives all of it back.
    pub(super) fn clear(&mut self) {
        self.of.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_limited_together_and_given_back() {
        let budgets = BufferBudgets::default();
        let (mut one, mut other) = (budgets.of_memory(), budgets.of_memory());
        assert!(one.grow(60, 100) && !other.grow(41, 100) && other.grow(40, 100));
        assert!(!one.grow(u64::MAX, u64::MAX), "an overflow is no room");
        assert_eq!((budgets.memory_bytes(), budgets.disk_bytes()), (100, 0));
        one.clear();
        assert_eq!(budgets.memory_bytes(), 40);
        assert!(one.grow(60, 100));
        drop((one, other));
        assert_eq!(budgets.memory_bytes(), 0);
    }
}
