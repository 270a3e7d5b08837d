//! The retry budget: limits a worker's unsuccessful retries, so that a failing backend isn't overloaded. Pure: time is
//! a value.
//!
//! A retry that is answered costs nothing: the backend works, as after a stale connection. One that isn't costs a
//! token. Tokens come back with answered exchanges (a share of a token each) and with time. Without a token nothing is
//! retried, and clients get the first failure at once.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Retries;

/// A token, in the unit of the count.
const TOKEN: u64 = 100;

/// How long tokens earned by time are saved up.
const SAVED_SECONDS: u64 = 10;

/// The smallest capacity, in tokens, if any are earned at all.
const SAVED_AT_LEAST: u64 = 10;

/// One worker's tokens for one activation. Only that worker changes them, so plain loads and stores are enough.
#[derive(Debug, Default)]
pub(crate) struct RetryBudget {
    /// How much is missing, in hundredths of a token: it starts full.
    missing: AtomicU64,
    refilled_ms: AtomicU64,
}

impl RetryBudget {
    /// Whether a retry is allowed now.
    pub(crate) fn allows(&self, retries: &Retries, now_ms: u64) -> bool {
        let missing = self.missing.load(Ordering::Relaxed);
        let since = now_ms.saturating_sub(self.refilled_ms.load(Ordering::Relaxed));
        let refill = u64::from(retries.per_second) * TOKEN * since / 1000;
        if refill > 0 {
            self.refilled_ms.store(now_ms, Ordering::Relaxed);
        }
        let missing = missing.saturating_sub(refill);
        self.missing.store(missing, Ordering::Relaxed);
        missing + TOKEN <= capacity(retries)
    }

    /// An exchange was answered.
    pub(crate) fn answered(&self, retries: &Retries) {
        let missing = self.missing.load(Ordering::Relaxed);
        if missing > 0 {
            self.missing.store(missing.saturating_sub(u64::from(retries.percent)), Ordering::Relaxed);
        }
    }

    /// A retry did not help.
    pub(crate) fn spend(&self, retries: &Retries) {
        let missing = self.missing.load(Ordering::Relaxed) + TOKEN;
        self.missing.store(missing.min(capacity(retries)), Ordering::Relaxed);
    }
}

fn capacity(retries: &Retries) -> u64 {
    if retries.percent == 0 && retries.per_second == 0 {
        return 0;
    }
    TOKEN * (u64::from(retries.per_second) * SAVED_SECONDS).max(SAVED_AT_LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(budget: &RetryBudget, retries: &Retries, now_ms: u64) -> usize {
        let mut count = 0;
        while budget.allows(retries, now_ms) && count < 10_000 {
            budget.spend(retries);
            count += 1;
        }
        count
    }

    #[test]
    fn what_does_not_help_is_bounded_by_time_and_by_what_is_answered() {
        let retries = Retries { percent: 20, per_second: 10 };
        let budget = RetryBudget::default();
        assert_eq!(allowed(&budget, &retries, 0), 100);
        assert_eq!(allowed(&budget, &retries, 0), 0);
        assert_eq!(allowed(&budget, &retries, 500), 5, "ten come with each second");
        (0..50).for_each(|_| budget.answered(&retries));
        assert_eq!(allowed(&budget, &retries, 500), 10, "one comes with five answers");
        assert_eq!(allowed(&budget, &retries, 1_000_000), 100, "the most that is saved up");
    }

    #[test]
    fn retries_that_help_are_never_refused() {
        let retries = Retries { percent: 20, per_second: 0 };
        let budget = RetryBudget::default();
        for _ in 0..1000 {
            assert!(budget.allows(&retries, 0));
            budget.answered(&retries);
        }
    }

    #[test]
    fn a_budget_of_nothing_allows_nothing() {
        assert!(!RetryBudget::default().allows(&Retries { percent: 0, per_second: 0 }, 1000));
    }
}
