//! What passes, and how many addresses the table remembers.

use std::collections::HashMap;
use std::thread;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000;

fn quota(per_second: u64, burst: u32) -> Quota {
    Quota::new(SECOND / per_second, burst).unwrap()
}

/// A hash as good as that of an address.
fn hash(number: u64) -> u64 {
    (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[test]
fn a_burst_passes_at_once_and_then_what_the_rate_allows() {
    let (table, quota) = (RateTable::new(8), quota(10, 20));
    let passes = |now| (0..1000).filter(|_| table.take(hash(1), now, quota) == Verdict::Pass).count();
    assert_eq!(passes(5), 21, "one, and 20 more");
    assert_eq!(table.take(hash(1), 5, quota), Verdict::WaitUs(100_000));
    assert_eq!(table.take(hash(1), 60_005, quota), Verdict::WaitUs(40_000));
    assert_eq!(passes(100_005), 1);
    assert_eq!(passes(10 * SECOND + 5), 21, "the whole burst is regained");
    assert_eq!(table.take(hash(2), 5, quota), Verdict::Pass, "another address is untouched");
}

#[test]
fn what_is_refused_costs_the_address_nothing() {
    let (table, quota) = (RateTable::new(8), quota(1, 0));
    assert_eq!(table.take(hash(1), 0, quota), Verdict::Pass);
    for now in 1..1000 {
        assert_eq!(table.take(hash(1), now * 1000, quota), Verdict::WaitUs(SECOND - now * 1000));
    }
    assert_eq!(table.take(hash(1), SECOND, quota), Verdict::Pass);
}

#[test]
fn the_earliest_makes_room_and_is_counted_if_it_still_mattered() {
    let (table, quota) = (RateTable::new(1), quota(1, 0));
    for address in 0..WAYS as u64 {
        assert_eq!(table.take(hash(address), address, quota), Verdict::Pass);
    }
    assert_eq!(table.take(hash(100), 10, quota), Verdict::Pass);
    assert_eq!(table.evicted(), 1);
    assert_eq!(table.take(hash(1), 11, quota), Verdict::WaitUs(SECOND - 10), "only the earliest was lost");
    assert_eq!(table.take(hash(0), 12, quota), Verdict::Pass);
    let later = 10 * SECOND;
    for address in 200..200 + WAYS as u64 {
        assert_eq!(table.take(hash(address), later, quota), Verdict::Pass);
    }
    assert_eq!(table.evicted(), 2, "times that have passed are no loss");
}

#[test]
fn a_time_is_right_when_the_clock_s_bits_repeat() {
    let (table, quota) = (RateTable::new(8), quota(10, 2));
    let end = TIME - 5;
    for now in [end, end + SECOND] {
        let passes = (0..10).filter(|_| table.take(hash(1), now, quota) == Verdict::Pass).count();
        assert_eq!(passes, 3);
        assert_eq!(table.take(hash(1), now + 10, quota), Verdict::WaitUs(99_990));
    }
    assert_eq!(table.take(hash(7), TIME, quota), Verdict::Pass, "an empty place isn't a time");
}

#[test]
fn a_million_addresses_fit() {
    let (table, quota) = (RateTable::default(), Quota::new(SECOND, 0).unwrap());
    assert!(SETS * size_of::<Set>() <= 64 << 20);
    let addresses = 1_000_000;
    let passed = (0..addresses).filter(|&n| table.take(hash(n), n, quota) == Verdict::Pass).count();
    assert!(addresses as usize - passed < 50, "{passed}: hardly any shares its entry with another");
    let refused = (0..addresses).filter(|&n| table.take(hash(n), addresses, quota) != Verdict::Pass).count();
    assert!(refused > 980_000, "{refused} are remembered");
    assert!(table.evicted() < 20_000, "{} were lost", table.evicted());
}

#[test]
fn all_workers_together_let_no_more_pass() {
    let (table, quota) = (RateTable::new(8), quota(1, 999));
    let passed: usize = thread::scope(|scope| {
        let work = || (0..1000).filter(|_| table.take(hash(1), 0, quota) == Verdict::Pass).count();
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert_eq!(passed, 1000);
}

proptest! {
    /// Against one exact bucket for each address.
    #[test]
    fn no_address_gets_less_than_its_bucket_holds(
        requests in prop::collection::vec((0..40u64, 0..300_000u64), 1..400),
        per_second in 1..50u64,
        burst in 0..20u32,
    ) {
        let (table, quota) = (RateTable::new(2), quota(per_second, burst));
        let mut exact: HashMap<u64, u64> = HashMap::new();
        let mut now = 0;
        for (address, pause) in requests {
            now += pause;
            let until = exact.get(&address).copied().unwrap_or(0).max(now);
            let passes = until - now <= quota.tolerance_us();
            match table.take(hash(address), now, quota) {
                Verdict::Pass => {
                    prop_assert!(passes || table.evicted() > 0);
                    exact.insert(address, until + quota.interval_us());
                }
                Verdict::WaitUs(_) => prop_assert!(!passes, "it had something left"),
            }
        }
    }
}
