//! The time up to which each address has used its rate, in a table of fixed size that all workers share without a lock.
//!
//! An entry is one word, a tag and a time, so it is read and replaced as a whole. It can be in one of the eight places
//! of one set, which is one cache line. A new address takes the place whose time is the earliest. Nothing else of the
//! table is looked at.
//!
//! A time that has passed says the same as no entry: the address may make all the requests of its burst. So an address
//! costs nothing once it has been quiet for a while, and an entry that is lost never denies anything.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Quota;

/// Places for one address: a cache line.
const WAYS: usize = 8;

/// Sets. With a million addresses that all use their rate, less than one in a hundred is lost; 16 MiB.
const SETS: usize = 1 << 18;

/// The bits of an entry that say whose it is. Together with the set, an address is known by 38 bits of a secret hash: the
/// chance to share an entry with one of a million others is one in 200,000.
const TAG_BITS: u32 = 20;

/// The bits that hold its time, in microseconds since the start. They repeat after 203 days.
const TIME_BITS: u32 = u64::BITS - TAG_BITS;
const TIME: u64 = (1 << TIME_BITS) - 1;

/// The furthest that a valid entry's time can be ahead: a whole burst, and one request.
const MOST_AHEAD_US: u64 = 2 * Quota::MOST_US;

/// How often an update is tried again after another worker was faster. After that, the request passes.
const TRIES: usize = 64;

/// Whether a request may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may.
    Pass,
    /// It would in so many microseconds.
    WaitUs(u64),
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

/// The table.
#[derive(Debug)]
pub(super) struct RateTable {
    sets: Box<[Set]>,
    evicted: AtomicU64,
}

impl Default for RateTable {
    fn default() -> Self {
        Self::new(SETS)
    }
}

impl RateTable {
    /// `sets` is a power of two.
    fn new(sets: usize) -> Self {
        Self { sets: (0..sets).map(|_| Set::default()).collect(), evicted: AtomicU64::new(0) }
    }

    /// Counts a request of the address with this hash, at a time in microseconds, if it may pass.
    pub(super) fn take(&self, hash: u64, now_us: u64, quota: Quota) -> Verdict {
        let place = (hash >> TAG_BITS) as usize & (self.sets.len() - 1);
        let Some(Set(set)) = self.sets.get(place) else { return Verdict::Pass };
        let tag = (hash & ((1 << TAG_BITS) - 1)).max(1);
        for _ in 0..TRIES {
            let found = find(set, tag, now_us);
            // No request sets a time further ahead than that.
            let valid = found.own && found.ahead <= quota.tolerance_us() + quota.interval_us();
            let ahead = if valid { found.ahead } else { 0 };
            if ahead > quota.tolerance_us() {
                return Verdict::WaitUs(ahead - quota.tolerance_us());
            }
            let until = now_us.wrapping_add(ahead + quota.interval_us()) & TIME;
            let entry = tag << TIME_BITS | until;
            let order = Ordering::Relaxed;
            if found.slot.compare_exchange(found.entry, entry, order, order).is_ok() {
                if !found.own && found.ahead > 0 {
                    self.evicted.fetch_add(1, order);
                }
                return Verdict::Pass;
            }
        }
        Verdict::Pass
    }

    /// Entries that were lost while they still counted.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

/// An address's place in its set: its own, or the one that it may take.
struct Found<'a> {
    slot: &'a AtomicU64,
    entry: u64,
    /// How far its time is ahead, in microseconds; 0: it has passed.
    ahead: u64,
    own: bool,
}

fn find(set: &[AtomicU64; WAYS], tag: u64, now_us: u64) -> Found<'_> {
    let look = |slot| {
        let entry = AtomicU64::load(slot, Ordering::Relaxed);
        Found { slot, entry, ahead: ahead(entry, now_us), own: entry >> TIME_BITS == tag }
    };
    let mut best = look(&set[0]);
    for slot in &set[1..] {
        if best.own {
            break;
        }
        let other = look(slot);
        if other.own || other.ahead < best.ahead {
            best = other;
        }
    }
    best
}

/// How far an entry's time is ahead. A time that no quota could have set is one that has passed long ago.
fn ahead(entry: u64, now_us: u64) -> u64 {
    let ahead = entry.wrapping_sub(now_us) & TIME;
    if entry == 0 || ahead > MOST_AHEAD_US { 0 } else { ahead }
}

#[cfg(test)]
mod tests;
