//! Allocates generations. A number must never be used for two changes, or an old expectation would match by chance.
//! That includes earlier runs, whose last numbers may never have reached the disk.
//!
//! So the state on disk has a *reserve*: numbers up to it belong to this run, and the next run begins after it. A
//! number beyond the reserve is only used by skipping to a range that no run counting from a reserve ever reaches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many numbers a state reserves: more changes than any run makes while it can't write to disk.
const RESERVED_AHEAD: u64 = 1000;

/// Numbers from here on were taken from a clock (milliseconds since 1970). No count of changes gets this far.
const OF_A_CLOCK: u64 = 1_000_000_000_000;

/// What a start knows about the numbers of earlier runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// There was no earlier run.
    Never,
    /// None went beyond this reserve, from an undamaged state.
    Reserved(u64),
    /// Unknown, but at least up to here.
    Unknown(u64),
}

/// Allocates generations.
#[derive(Debug)]
pub struct Generations {
    /// Earlier runs may have used all numbers up to here.
    used: u64,
    /// Where to continue when the reserve is used up.
    leap: u64,
    /// The reserve on disk: numbers up to here belong to this run.
    reserved: Arc<AtomicU64>,
}

impl Generations {
    /// `now`: milliseconds since 1970. No run makes a change every millisecond, so each run that counts from its own
    /// start time has its own numbers.
    #[must_use]
    pub fn after(earlier: Earlier, now: u64) -> Self {
        let used = match earlier {
            Earlier::Never => 0,
            Earlier::Reserved(reserve) if reserve < OF_A_CLOCK => reserve,
            Earlier::Reserved(reserve) => reserve.max(now),
            // Whatever the clock shows.
            Earlier::Unknown(least) => least.saturating_add(RESERVED_AHEAD).max(now),
        };
        let leap = if now > used { now } else { used.saturating_add(RESERVED_AHEAD) };
        Self { used, leap, reserved: Arc::default() }
    }

    /// For use without a state writer: the reserve is unlimited.
    pub(crate) fn free() -> Self {
        let reserved = Arc::new(AtomicU64::new(u64::MAX));
        Self { reserved, ..Self::after(Earlier::Never, 0) }
    }

    /// How many numbers the change after `current` skips.
    pub(crate) fn leap(&self, current: u64) -> u64 {
        self.next(current).saturating_sub(current).saturating_sub(1)
    }

    /// The number after `current`.
    pub(crate) fn next(&self, current: u64) -> u64 {
        let next = current.max(self.used).saturating_add(1);
        if next <= self.reserved.load(Ordering::Acquire) { next } else { next.max(self.leap) }
    }

    /// The reserve of a state written now.
    pub(crate) fn reserve(&self, current: u64) -> u64 {
        current.max(self.used).saturating_add(RESERVED_AHEAD)
    }

    /// Set by the state writer: the reserve on disk.
    pub(crate) fn reserved(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.reserved)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn written(generations: &Generations, current: u64) -> u64 {
        let reserve = generations.reserve(current);
        generations.reserved.fetch_max(reserve, Ordering::Release);
        reserve
    }

    #[test]
    fn a_first_run_counts_from_one_and_the_next_from_its_reserve() {
        let first = Generations::after(Earlier::Never, NOW);
        assert_eq!(written(&first, 0), 1000);
        assert_eq!((first.next(0), first.next(1)), (1, 2));
        let reserve = written(&first, 2);
        let second = Generations::after(Earlier::Reserved(reserve), NOW);
        written(&second, 2);
        assert_eq!((second.next(2), second.next(1003)), (1003, 1004));
    }

    #[test]
    fn nothing_beyond_the_reserve_is_handed_out_without_a_leap() {
        let unwritten = Generations::after(Earlier::Reserved(1000), NOW);
        assert_eq!((unwritten.next(7), unwritten.next(NOW)), (NOW, NOW + 1));
        let full = Generations::after(Earlier::Never, NOW);
        written(&full, 0);
        assert_eq!((full.next(999), full.next(1000)), (1000, NOW));
        // An unknown number of changes after a known one, on a machine whose clock was reset.
        let lost = Generations::after(Earlier::Unknown(NOW), 5);
        assert!(lost.next(NOW) > NOW + 1000);
    }

    /// A run: how long after the start before, how many changes, and which of them reach the disk.
    type Run = (u64, Vec<bool>, bool);

    proptest! {
        /// Runs that crash one after the other, each with a disk that writes some states and fails for the others.
        #[test]
        fn no_number_is_handed_out_twice(
            runs in prop::collection::vec((10_000u64..60_000, prop::collection::vec(any::<bool>(), 0..2200), any::<bool>()), 1..8),
        ) {
            let (mut disk, mut now, mut seen) = ((0, Earlier::Never), NOW, HashSet::new());
            let runs: Vec<Run> = runs;
            for (pause, changes, writes_first) in runs {
                let mut current = disk.0;
                let generations = Generations::after(disk.1, now);
                if writes_first {
                    disk = (current, Earlier::Reserved(written(&generations, current)));
                } else if disk.1 == Earlier::Never {
                    // No state, but a lock: it was not the first run.
                    disk.1 = Earlier::Unknown(0);
                }
                for reaches_the_disk in changes {
                    current = generations.next(current);
                    prop_assert!(seen.insert(current), "{current} came again");
                    if reaches_the_disk {
                        disk = (current, Earlier::Reserved(written(&generations, current)));
                    }
                }
                now += pause;
            }
        }
    }
}
