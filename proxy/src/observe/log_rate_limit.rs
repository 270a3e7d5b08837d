//! Rate-limited log lines for events that may happen thousands of times a second, with the number of lines left out.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The time between two lines: short enough to be seen during an incident, long enough to keep the log readable.
const PAUSE: Duration = Duration::from_secs(10);

/// A rate limit for log lines. Never waits and never allocates, so that it can be used on any path.
#[derive(Debug, Default)]
pub(crate) struct LogRateLimit {
    since: OnceLock<Instant>,
    /// When the next line may come, in milliseconds after `since`.
    next_ms: AtomicU64,
    left_out: AtomicU64,
}

impl LogRateLimit {
    /// `Some`: write a line, which represents this many more since the last one.
    pub(crate) fn allows(&self) -> Option<u64> {
        let since = self.since.get_or_init(Instant::now);
        self.allows_at(since.elapsed())
    }

    fn allows_at(&self, now: Duration) -> Option<u64> {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let next = self.next_ms.load(Ordering::Relaxed);
        let order = Ordering::Relaxed;
        let after = now.saturating_add(u64::try_from(PAUSE.as_millis()).unwrap_or(u64::MAX));
        if now >= next && self.next_ms.compare_exchange(next, after, order, order).is_ok() {
            return Some(self.left_out.swap(0, Ordering::Relaxed));
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_written_and_one_in_a_while_with_the_number_left_out() {
        let log_rate_limit = LogRateLimit::default();
        assert_eq!(log_rate_limit.allows(), Some(0));
        assert_eq!((0..100).filter_map(|_| log_rate_limit.allows()).count(), 0);
        assert_eq!(log_rate_limit.allows_at(PAUSE * 2), Some(100));
        assert_eq!(log_rate_limit.allows_at(PAUSE * 2), None);
        assert_eq!(log_rate_limit.allows_at(PAUSE * 4), Some(1));
    }
}
