//! The health that results from a series of probes. Pure.

use uh_switching::Health;

/// Counts equal results in a row, so that a single outlier changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streak {
    health: Health,
    good: u32,
    bad: u32,
}

impl Default for Streak {
    fn default() -> Self {
        Self { health: Health::Unknown, good: 0, bad: 0 }
    }
}

impl Streak {
    /// Adds one result, and returns the new health. An endpoint that was never healthy is unhealthy from its first
    /// failure on.
    pub(crate) fn add(&mut self, ok: bool, healthy_after: u32, unhealthy_after: u32) -> Health {
        if ok {
            (self.good, self.bad) = (self.good.saturating_add(1), 0);
            if self.good >= healthy_after {
                self.health = Health::Healthy;
            }
        } else {
            (self.good, self.bad) = (0, self.bad.saturating_add(1));
            if self.bad >= unhealthy_after || self.health == Health::Unknown {
                self.health = Health::Unhealthy;
            }
        }
        self.health
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_takes_enough_in_a_row() {
        let mut streak = Streak::default();
        let mut add = |ok| streak.add(ok, 2, 3);
        assert_eq!([add(true), add(true)], [Health::Unknown, Health::Healthy]);
        assert_eq!([add(false), add(false), add(true)], [Health::Healthy; 3]);
        assert_eq!(
            [add(false), add(false), add(false)],
            [Health::Healthy, Health::Healthy, Health::Unhealthy]
        );
        assert_eq!(
            [add(true), add(false), add(true), add(true)],
            [Health::Unhealthy, Health::Unhealthy, Health::Unhealthy, Health::Healthy]
        );
    }

    #[test]
    fn a_first_failure_is_enough_for_one_that_never_was_healthy() {
        assert_eq!(Streak::default().add(false, 2, 3), Health::Unhealthy);
    }

    proptest! {
        #[test]
        fn healthy_needs_a_row_of_good_ones(results in prop::collection::vec(any::<bool>(), 1..40), healthy_after in 1u32..5, unhealthy_after in 1u32..5) {
            let mut streak = Streak::default();
            let mut before = Health::Unknown;
            for (at, &ok) in results.iter().enumerate() {
                let after = streak.add(ok, healthy_after, unhealthy_after);
                if after == Health::Healthy && before != Health::Healthy {
                    let row = results[..=at].iter().rev().take_while(|ok| **ok).count();
                    prop_assert!(row >= healthy_after as usize);
                }
                if after == Health::Unhealthy && before == Health::Healthy {
                    let row = results[..=at].iter().rev().take_while(|ok| !**ok).count();
                    prop_assert!(row >= unhealthy_after as usize);
                }
                before = after;
            }
        }
    }
}
