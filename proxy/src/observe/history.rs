//! What a backend is known by when a trial compares another one with it: what was counted of its requests before.
//!
//! Health checks aren't part of it. A load balancer may send more of them than all clients send requests, and they say
//! little about what clients see. Neither are previews, which no client makes, nor requests
//! that were rescued.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::meters::{BOUNDS_US, Histogram, add};

/// Cumulative counts by [`BOUNDS_US`]; the last one is the number of all.
pub(crate) type Cumulative = [u64; BOUNDS_US.len() + 1];

/// One worker's counters for the history of one backend.
#[derive(Debug, Default)]
pub(crate) struct HistoryCounters {
    failed: AtomicU64,
    left: Histogram,
    /// Of health checks, previews and rescued requests.
    left_out: Histogram,
}

impl HistoryCounters {
    /// Counts an exchange that failed as a trial counts failures: at its end, at most once.
    pub(crate) fn has_failed(&self) {
        add(&self.failed, 1);
    }

    /// Counts a client that left without an answer, after it had waited for so long. Whether that is a failure depends on
    /// what is slow.
    pub(crate) fn client_left(&self, waited: Duration) {
        self.left.observe(waited);
    }

    /// Counts a health check, which is no client's request.
    pub(crate) fn health_check(&self, took: Duration) {
        self.left_out.observe(took);
    }

    /// Counts a preview, which is no client's request either, or a rescued request, which took a time on another backend.
    pub(crate) fn left_out(&self, took: Duration) {
        self.left_out.observe(took);
    }

    /// Adds itself to `into`. `durations`: of all exchanges of the worker.
    pub(super) fn add_to(&self, into: &mut HistoryReading, durations: &Histogram) {
        into.failed += self.failed.load(Ordering::Relaxed);
        self.left.read(&mut into.left);
        let (mut all, mut left_out) = (Cumulative::default(), Cumulative::default());
        // First what is subtracted: it may grow meanwhile.
        self.left_out.read(&mut left_out);
        durations.read(&mut all);
        for (into, (all, left_out)) in into.durations.iter_mut().zip(all.iter().zip(left_out)) {
            *into += all.saturating_sub(left_out);
        }
    }
}

/// What was counted of a backend's requests, without health checks and previews.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct HistoryReading {
    /// How many failed.
    pub failed: u64,
    /// How long clients waited that left without an answer.
    pub left: Cumulative,
    /// How long all requests took.
    pub durations: Cumulative,
}

impl HistoryReading {
    /// What was counted after `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let minus = |now: &Cumulative, earlier: &Cumulative| {
            std::array::from_fn(|at| now[at].saturating_sub(earlier[at]))
        };
        Self {
            failed: self.failed.saturating_sub(earlier.failed),
            left: minus(&self.left, &earlier.left),
            durations: minus(&self.durations, &earlier.durations),
        }
    }

    /// All requests.
    pub(crate) fn requests(&self) -> u64 {
        self.durations[BOUNDS_US.len()]
    }

    /// Those that failed, if clients that left without an answer had waited for too long after `bound_us`, one of
    /// [`BOUNDS_US`].
    pub(crate) fn failed(&self, bound_us: Option<u64>) -> u64 {
        let all_left = self.left[BOUNDS_US.len()];
        let in_time = BOUNDS_US.iter().zip(self.left).find(|(bound, _)| Some(**bound) == bound_us);
        self.failed + in_time.map_or(0, |(_, in_time)| all_left.saturating_sub(in_time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_checks_are_left_out_and_clients_that_waited_too_long_are_failures() {
        let (counters, durations) = (HistoryCounters::default(), Histogram::default());
        let ms = Duration::from_millis;
        for took in [1, 1, 3, 40, 400] {
            durations.observe(ms(took));
        }
        counters.health_check(ms(1));
        counters.has_failed();
        counters.client_left(ms(3));
        counters.client_left(ms(400));
        let mut reading = HistoryReading::default();
        counters.add_to(&mut reading, &durations);
        assert_eq!((reading.requests(), reading.durations[1]), (4, 1));
        assert_eq!(reading.failed(None), 1, "nothing is slow yet");
        assert_eq!(reading.failed(Some(100_000)), 2);
        assert_eq!(reading.failed(Some(1_000)), 3);
        assert_eq!(reading.since(&reading), HistoryReading::default());
    }
}
