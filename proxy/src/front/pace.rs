//! Whether a client is too slow: the bytes that it moved, over the time in which it was the one waited for.
//!
//! Only that time counts, so a backend that takes its time makes no client slow. It is measured over a window, so a
//! pause is not a rate. Pure: time is a value.

use std::time::Duration;

use tokio::time::Instant;

use super::watchdog::OVERSLEPT;

/// The client was slower than its minimum rate, over a whole window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSlow;

/// The pace of one direction of one exchange.
#[derive(Debug, Default)]
pub struct Pace {
    /// Since when the client is waited for; `None`: it isn't.
    since: Option<Instant>,
    /// How long it was waited for in this window, up to `since`.
    waited: Duration,
    /// What had moved at the start of this window.
    mark: Option<u64>,
    /// A window was forgiven, and none has been passed since.
    forgiven: bool,
}

impl Pace {
    /// The client is waited for until further notice. `moved` counts its bytes; it is asked only at the ends of
    /// windows. Returns when to look again.
    ///
    /// # Errors
    /// A window is over in which it moved less than `rate` bytes for each second.
    pub fn waits(
        &mut self,
        now: Instant,
        rate: u64,
        window: Duration,
        moved: impl FnOnce() -> u64,
    ) -> Result<Instant, TooSlow> {
        // It was to be looked at when the window is over. If it is far later, we were not running, and nobody knows
        // how fast the client would have been. Not twice running: or where we always are late, nobody would be too slow.
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

    /// Whether the client was waited for until now.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.since.is_some()
    }

    /// The client is not waited for any more.
    pub fn stop(&mut self, now: Instant) {
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
    fn a_client_that_keeps_the_rate_may_go_on_for_ever() {
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
    fn a_client_below_the_rate_is_told_at_the_end_of_the_window() {
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
    fn time_in_which_we_did_not_run_is_held_against_nobody() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        pace.waits(start, 100, WINDOW, || 0).unwrap();
        assert_eq!(pace.waits(at(start, 60), 100, WINDOW, || 5), Ok(at(start, 70)));
        assert_eq!(pace.waits(at(start, 70), 100, WINDOW, || 1005), Ok(at(start, 80)), "1000 in 10 s");
        assert_eq!(pace.waits(at(start, 140), 100, WINDOW, || 1005), Ok(at(start, 150)));
        assert_eq!(pace.waits(at(start, 210), 100, WINDOW, || 1005), Err(TooSlow), "not twice running");
    }
}
