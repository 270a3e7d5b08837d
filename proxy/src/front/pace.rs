//! Whether a client is too slow: the bytes it moved, over the time spent waiting for it.
//!
//! Only that time counts, so a slow backend doesn't make its client slow. It is measured over a window, so a short
//! pause does no harm. Pure: time is a value.

use std::time::Duration;

use tokio::time::Instant;

use super::lazy_timer::OVERSLEPT;

/// The client was slower than its minimum rate, over a whole window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooSlow;

/// The pace of one direction of one exchange.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Since when the client has been awaited; `None`: it isn't.
    since: Option<Instant>,
    /// How long it was awaited in this window, up to `since`.
    waited: Duration,
    /// What had moved at the start of this window.
    mark: Option<u64>,
    /// A window was forgiven, and none has been passed since.
    forgiven: bool,
}

impl Pace {
    /// The client is awaited until further notice. `moved` counts its bytes; it is only called at the end of a window.
    /// Returns when to check again.
    ///
    /// # Errors
    /// If it moved fewer than `rate` bytes per second in a whole window.
    pub(crate) fn waits(
        &mut self,
        now: Instant,
        rate: u64,
        window: Duration,
        moved: impl FnOnce() -> u64,
    ) -> Result<Instant, TooSlow> {
        // The check was due at the end of the window. If it is much later, this process wasn't running, so the client's
        // rate is unknown. Not twice in a row, or on a busy machine no client would ever be too slow.
        let overslept = self.since.is_some_and(|since| self.waited + (now - since) >= window + OVERSLEPT);
        self.stop(now);
        self.since = Some(now);
        if overslept && !self.forgiven {
            (self.mark, self.waited, self.forgiven) = (None, Duration::ZERO, true);
        }
        let Some(mark) = self.mark else {
            self.mark = Some(moved());
            return Ok(now + window);
        };
        if self.waited >= window {
            let moved = moved();
            let wanted = u128::from(rate) * self.waited.as_millis() / 1000;
            if u128::from(moved.saturating_sub(mark)) < wanted {
                return Err(TooSlow);
            }
            (self.mark, self.waited, self.forgiven) = (Some(moved), Duration::ZERO, false);
        }
        Ok(now + (window - self.waited))
    }

    /// Whether the client was awaited until now.
    #[must_use]
    pub(crate) fn is_waiting(&self) -> bool {
        self.since.is_some()
    }

    /// The client is no longer awaited.
    pub(crate) fn stop(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.waited += now.saturating_duration_since(since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_client_that_keeps_the_rate_may_continue_indefinitely() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        for second in 0..100 {
            assert!(pace.waits(at(start, second), 100, WINDOW, || second * 100).is_ok(), "second {second}");
        }
    }

    #[test]
    fn a_pause_is_not_a_rate() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        pace.waits(start, 100, WINDOW, || 0).unwrap();
        // Nothing for nine seconds, and then all of it at once.
        assert_eq!(pace.waits(at(start, 9), 100, WINDOW, || 0), Ok(at(start, 10)));
        assert!(pace.waits(at(start, 10), 100, WINDOW, || 1000).is_ok());
    }

    #[test]
    fn a_client_below_the_rate_fails_at_the_end_of_the_window() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        for second in 0..10 {
            assert!(pace.waits(at(start, second), 100, WINDOW, || second * 99).is_ok());
        }
        assert_eq!(pace.waits(at(start, 10), 100, WINDOW, || 990), Err(TooSlow));
    }

    #[test]
    fn only_the_time_in_which_the_client_is_waited_for_counts() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        for round in 0..9 {
            assert!(pace.waits(at(start, round * 100), 100, WINDOW, || 0).is_ok());
            pace.stop(at(start, round * 100 + 1));
            assert!(!pace.is_waiting());
        }
        assert_eq!(pace.waits(at(start, 1000), 100, WINDOW, || 0), Ok(at(start, 1001)));
        assert_eq!(pace.waits(at(start, 1001), 100, WINDOW, || 0), Err(TooSlow));
    }

    #[test]
    fn time_in_which_the_process_did_not_run_does_not_count() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        pace.waits(start, 100, WINDOW, || 0).unwrap();
        assert_eq!(pace.waits(at(start, 60), 100, WINDOW, || 5), Ok(at(start, 70)));
        assert_eq!(pace.waits(at(start, 70), 100, WINDOW, || 1005), Ok(at(start, 80)), "1000 in 10 s");
        assert_eq!(pace.waits(at(start, 140), 100, WINDOW, || 1005), Ok(at(start, 150)));
        assert_eq!(pace.waits(at(start, 210), 100, WINDOW, || 1005), Err(TooSlow), "not twice running");
    }
}
