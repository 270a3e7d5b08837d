//! What a cross-check compares: only requests that came while the clients were divided. Those that the new version had from
//! before may hang or fail at any time, and the old version has none like them.
//!
//! uh-proxy's trial counts the requests of its split. How long they took is in the counters of their backend, with all others.

use std::time::Duration;

use uh_protocol::BackendName;
use uh_protocol::status::{TrialFigures, TrialStatus};

use crate::counters::{Answers, Reading};
use crate::proxy::ServiceView;
use crate::verdict::cross_check::Sides;

/// What was counted when a check began, or when it went on because both versions failed. The suspect comes first.
pub(super) struct Baseline {
    answers: [Answers; 2],
    readings: [Reading; 2],
    /// How many requests from before the split may still be open.
    from_before: [u64; 2],
}

impl Baseline {
    /// A check begins, with so many open requests.
    pub(super) fn at_the_start(trial: Option<&TrialStatus>, readings: [Reading; 2], open: [u64; 2]) -> Self {
        Self { answers: answers(trial), readings, from_before: open }
    }

    /// The comparison goes on with what is counted from now on.
    pub(super) fn go_on(&mut self, trial: Option<&TrialStatus>, readings: [Reading; 2], open: [u64; 2]) {
        let from_before = std::array::from_fn(|side| self.from_before[side].min(open[side]));
        *self = Self { answers: answers(trial), readings, from_before };
    }

    /// What both versions have answered since.
    pub(super) fn sides(
        &self,
        trial: Option<&TrialStatus>,
        readings: &[Reading; 2],
        open: [u64; 2],
    ) -> Sides {
        let now = answers(trial);
        let [suspect, other] = std::array::from_fn(|side| since(now[side], self.answers[side]));
        Sides { suspect, other, p95: std::array::from_fn(|side| self.p95(side, readings)), waiting: open }
    }

    /// Which of the requests that ended are from before the split isn't known, so as many of the slowest are left out.
    fn p95(&self, side: usize, readings: &[Reading; 2]) -> Option<Duration> {
        readings[side].since(&self.readings[side]).p95_without_slowest(self.from_before[side])
    }
}

/// How many requests each of them hasn't answered yet.
pub(super) fn open_requests(view: &ServiceView, names: [&BackendName; 2]) -> [u64; 2] {
    names.map(|name| view.backend(name).map_or(0, |backend| backend.requests_in_flight))
}

/// What a trial has counted on both sides: nothing before it has begun.
fn answers(trial: Option<&TrialStatus>) -> [Answers; 2] {
    let Some(TrialStatus { failures, .. }) = trial else { return [Answers::default(); 2] };
    let TrialFigures { new_requests, new_bad, old_requests, old_bad, .. } = *failures;
    let of = |all: u64, bad: u64| Answers { good: all.saturating_sub(bad), bad };
    [of(new_requests, new_bad), of(old_requests, old_bad)]
}

/// What was added. One that was open and slow may have failed since, so the good ones may have become fewer. A trial that has
/// fewer requests than before has begun again, because uh-proxy was restarted.
fn since(now: Answers, before: Answers) -> Answers {
    match (now.all().checked_sub(before.all()), now.bad.checked_sub(before.bad)) {
        (Some(all), Some(bad)) => Answers { good: all.saturating_sub(bad), bad },
        _ => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_that_began_again_is_counted_from_zero() {
        let of = |good, bad| Answers { good, bad };
        assert_eq!(since(of(20, 5), of(15, 5)), of(5, 0));
        assert_eq!(since(of(14, 7), of(15, 5)), of(0, 2), "one that was counted has failed since");
        assert_eq!(since(of(20, 1), of(15, 5)), of(20, 1));
        assert_eq!(since(of(3, 5), of(15, 5)), of(3, 5));
    }
}
