//! How much a client may do that brings it nothing: cancel requests, and send frames that carry nothing. Pure: time is a
//! value.

use std::time::{Duration, Instant};

/// The time that a budget is for.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// Counts what is spent. The clock is only read when the budget seems to be exceeded.
#[derive(Debug)]
pub(super) struct Budget {
    /// When counting began.
    since: Instant,
    spent: u32,
}

/// A budget was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exceeded;

impl Budget {
    /// A budget whose first window begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, spent: 0 }
    }

    /// Spends `count` of `most`.
    ///
    /// # Errors
    /// More than that were spent within [`WINDOW`].
    pub(super) fn spend(
        &mut self,
        count: u32,
        most: u32,
        now: impl FnOnce() -> Instant,
    ) -> Result<(), Exceeded> {
        self.spent = self.spent.saturating_add(count);
        if self.spent <= most {
            return Ok(());
        }
        let now = now();
        let elapsed = now.duration_since(self.since) >= WINDOW;
        if !elapsed {
            return Err(Exceeded);
        }
        (self.since, self.spent) = (now, count);
        if count > most { Err(Exceeded) } else { Ok(()) }
    }

    /// Gives back what turned out to be worth something.
    pub(super) fn earn(&mut self, count: u32) {
        self.spent = self.spent.saturating_sub(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_limited_and_a_slow_stream_is_not() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for _ in 0..100 {
            assert_eq!(budget.spend(1, 100, || start), Ok(()));
        }
        assert_eq!(budget.spend(1, 100, || start + WINDOW / 2), Err(Exceeded));
        assert_eq!(budget.spend(1, 100, || start + WINDOW), Ok(()), "a new window");
        let mut budget = Budget::new(start);
        for second in 0..1000 {
            let now = start + Duration::from_secs(second);
            for _ in 0..9 {
                assert_eq!(budget.spend(1, 100, || now), Ok(()), "{second}");
            }
        }
    }

    #[test]
    fn what_is_earned_may_be_spent_again() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for _ in 0..1000 {
            assert_eq!(budget.spend(1, 10, || start), Ok(()));
            budget.earn(1);
        }
    }

    #[test]
    fn a_budget_of_nothing_allows_nothing() {
        let start = Instant::now();
        assert_eq!(Budget::new(start).spend(1, 0, || start + 2 * WINDOW), Err(Exceeded));
    }
}
