//! Decides a cross-check from what both versions answered at the same time, where the coin test of uh-proxy's trial can't: too
//! few clients, or too little traffic. Pure: no I/O, no clock.
//!
//! uh-proxy's trial counts each failing client once, and decides as soon as the clients' sides prove it. That takes many clients.
//! What is here counts requests, like the watch: it finds that both versions fail, that nothing can be compared, or that only
//! the new one fails although all its clients together are too few for the coin.

use std::time::Duration;

use super::judge::{Judge, percent};
use super::{BREACH_EVIDENCE, SUSPICION};
use crate::counters::Answers;

/// How long half of the clients stay on each version: as long as in a trial.
pub const LASTS: Duration = uh_trial::trial::CROSS_CHECK;

/// If all requests of at least this time are on one side, there is only one client to compare.
const ONE_SIDED_AFTER: Duration = Duration::from_secs(1);

/// If the requests of this time are too few, those of a whole cross-check will be.
const SPARSE_AFTER: Duration = Duration::from_secs(5);

/// A request that hangs counts as failed after `timeouts.overdue`, which is 30 s by default. One that takes longer is a long one.
const MAY_HANG: Duration = Duration::from_secs(35);

/// A version that fails this share of its requests while the other one doesn't is bad, however few its clients are.
const NO_DOUBT: f64 = 0.9;

/// With fewer failing clients than this, the coin test can't decide alone at 50 %: each is worth a factor of 2 at most.
const COIN_NEEDS: u64 = 16;

/// What both versions answered at the same time. Requests from before aren't among them: the old version had none then.
#[derive(Debug, Default)]
pub struct Sides {
    /// Of the version in question.
    pub suspect: Answers,
    /// Of the old one.
    pub other: Answers,
    /// The p95 of both, in that order; `None`: nothing was measured.
    pub p95: [Option<Duration>; 2],
    /// The requests of both that aren't answered yet.
    pub waiting: [u64; 2],
}

impl Sides {
    /// Whether the side with fewer answers may only have none because its requests hang.
    fn may_hang(&self, elapsed: Duration) -> bool {
        let (suspect, other) = (self.suspect.all(), self.other.all());
        let [of_suspect, of_other] = self.waiting;
        let waits = (suspect <= other && of_suspect > 0) || (other <= suspect && of_other > 0);
        waits && elapsed < MAY_HANG
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The new version is worse.
    Worse(String),
    /// Both fail: the comparison goes on as long as they do.
    BothFail(String),
    /// The new version seems worse, without proof: the comparison goes on until the end of the watch.
    Unclear(String),
    /// The new version isn't worse.
    NotWorse(String),
    /// There is nothing to compare, for this reason.
    Incomparable(String),
}

/// Decides from what both sides answered since `elapsed`. `failing_clients`: those that uh-proxy's trial has counted on both
/// sides; `slow`: whether it is about latency. `None`: not yet.
#[must_use]
pub fn decide(
    judge: &Judge<'_>,
    sides: &Sides,
    failing_clients: u64,
    slow: bool,
    elapsed: Duration,
) -> Option<Decision> {
    let least = judge.limits().min_requests.max(1);
    let (suspect, other) = (sides.suspect, sides.other);
    let fewest = suspect.all().min(other.all());
    let over = elapsed >= LASTS;
    if judge.has_evidence(other, SUSPICION).is_some() && (over || fewest == 0) {
        return over.then(|| Decision::BothFail(at_the_same_time(sides)));
    }
    let enough = fewest >= least;
    if !enough && sides.may_hang(elapsed) {
        return over.then(|| Decision::Unclear(at_the_same_time(sides)));
    }
    if fewest == 0 && suspect.all() + other.all() >= least && elapsed >= ONE_SIDED_AFTER {
        return Some(Decision::Incomparable("all requests seem to come from one client".to_owned()));
    }
    let allowed = judge.allowed().share();
    if enough && suspect.rate() >= NO_DOUBT && other.rate() <= allowed {
        return Some(Decision::Worse(at_the_same_time(sides)));
    }
    let longer = LASTS.as_secs_f64() / elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
    let expected = fewest as f64 * longer.max(1.0);
    if elapsed >= SPARSE_AFTER && expected < least as f64 {
        let why = format!(
            "each version needs {least} requests in {} s, and got {} and {} in {} s",
            LASTS.as_secs(),
            suspect.all(),
            other.all(),
            elapsed.as_secs()
        );
        return Some(Decision::Incomparable(why));
    }
    if !over {
        return None;
    }
    let few = failing_clients < COIN_NEEDS && judge.has_evidence(suspect, BREACH_EVIDENCE).is_some();
    let max = judge.limits().max_p95;
    let [p95, other_p95] = sides.p95;
    let slower = slow && p95.is_some_and(|p95| p95 > max) && other_p95.is_none_or(|p95| p95 <= max);
    Some(if few || slower {
        Decision::Worse(at_the_same_time(sides))
    } else if suspect.rate() > allowed && other.rate() <= allowed {
        Decision::Unclear(at_the_same_time(sides))
    } else {
        Decision::NotWorse(at_the_same_time(sides))
    })
}

/// `at the same time 9 of 161 requests failed on the new version (5.6%) and 0 of 158 on the old one (0.0%)`
fn at_the_same_time(&Sides { suspect: new, other: old, p95: [new_p95, old_p95], .. }: &Sides) -> String {
    let p95 =
        |p95: Option<Duration>| p95.map_or_else(String::new, |p95| format!(", p95 {}ms", p95.as_millis()));
    format!(
        "at the same time {} of {} requests failed on the new version ({}{}) and {} of {} on the old one ({}{})",
        new.bad,
        new.all(),
        percent(new.rate()),
        p95(new_p95),
        old.bad,
        old.all(),
        percent(old.rate()),
        p95(old_p95)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Monitor;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits() -> Monitor {
        Monitor {
            duration: Duration::from_secs(300),
            interval: Duration::from_secs(10),
            max_error_rate: 0.01,
            max_p95: Duration::from_millis(500),
            min_requests: 20,
            breach_after: 2,
            require_verdict: false,
            auto_rollback_within: Duration::from_secs(3600),
        }
    }

    fn answers(all: u64, bad: u64) -> Answers {
        Answers { good: all - bad, bad }
    }

    /// What is quick on both sides.
    const QUICK: [Option<Duration>; 2] = [Some(Duration::from_millis(95)); 2];

    /// All and failed requests of both sides, and of how many clients.
    fn decision(new: (u64, u64), old: (u64, u64), clients: u64, elapsed: Duration) -> Option<Decision> {
        let limits = limits();
        let judge = Judge::new(&limits, None);
        let sides = Sides {
            suspect: answers(new.0, new.1),
            other: answers(old.0, old.1),
            p95: QUICK,
            waiting: [0, 0],
        };
        decide(&judge, &sides, clients, false, elapsed)
    }

    #[test]
    fn a_version_that_fails_everything_while_the_old_one_works_is_worse_at_once() {
        let found = decision((20, 20), (20, 0), 1, SECOND / 2);
        assert!(matches!(found, Some(Decision::Worse(_))), "{found:?}");
        assert_eq!(decision((20, 20), (20, 4), 1, SECOND / 2), None);
        assert_eq!(decision((19, 19), (20, 0), 1, SECOND / 2), None, "too few requests");
    }

    #[test]
    fn as_long_as_both_fail_it_goes_on() {
        for fails in [(1000, 300), (1000, 40)] {
            assert_eq!(decision(fails, fails, 100, LASTS - SECOND), None);
            let found = decision(fails, fails, 100, LASTS);
            assert!(matches!(found, Some(Decision::BothFail(_))), "{found:?}");
        }
        // Also if all clients are on one side.
        assert_eq!(decision((0, 0), (1000, 300), 1, 2 * SECOND), None);
    }

    #[test]
    fn one_client_and_little_traffic_are_nothing_to_compare() {
        for (new, old) in [((100, 100), (0, 0)), ((0, 0), (100, 0))] {
            let found = decision(new, old, 1, SECOND);
            assert!(matches!(found, Some(Decision::Incomparable(_))), "{found:?}");
        }
        assert_eq!(decision((100, 100), (0, 0), 1, SECOND / 2), None, "not yet");
        let found = decision((4, 4), (3, 0), 4, SPARSE_AFTER);
        assert!(matches!(found, Some(Decision::Incomparable(_))), "{found:?}");
        assert_eq!(decision((5, 4), (5, 0), 4, SPARSE_AFTER), None);
        assert_eq!(decision((4, 4), (3, 0), 4, SPARSE_AFTER - SECOND), None);
    }

    #[test]
    fn nothing_is_concluded_while_the_side_without_answers_may_hang() {
        let limits = limits();
        let judge = Judge::new(&limits, None);
        let of = |waiting, elapsed| {
            let sides = Sides { suspect: answers(100, 100), waiting, ..Sides::default() };
            decide(&judge, &sides, 0, false, elapsed)
        };
        for elapsed in [SECOND, SPARSE_AFTER, LASTS - SECOND] {
            assert_eq!(of([0, 7], elapsed), None);
            assert!(matches!(of([7, 0], elapsed), Some(Decision::Incomparable(_))), "the other side waits");
        }
        assert!(matches!(of([0, 7], LASTS), Some(Decision::Unclear(_))));
        // They are long ones.
        assert!(matches!(of([0, 7], MAY_HANG), Some(Decision::Incomparable(_))));
    }

    #[test]
    fn a_long_check_has_had_enough_traffic() {
        let found = decision((30, 1), (30, 0), 1, 3 * LASTS);
        assert!(matches!(found, Some(Decision::Unclear(_))), "{found:?}");
    }

    #[test]
    fn few_failing_clients_are_judged_by_their_requests_and_many_by_the_coin() {
        let found = decision((1000, 200), (1000, 0), 3, LASTS);
        assert!(matches!(found, Some(Decision::Worse(_))), "{found:?}");
        for elapsed in [LASTS, 5 * LASTS] {
            let found = decision((1000, 200), (1000, 0), 16, elapsed);
            assert!(matches!(found, Some(Decision::Unclear(_))), "{found:?}");
        }
        let found = decision((1000, 200), (1000, 11), 16, LASTS);
        assert!(
            matches!(found, Some(Decision::NotWorse(_))),
            "the old one fails more than allowed, too: {found:?}"
        );
        let found = decision((1000, 10), (1000, 9), 3, LASTS);
        let Some(Decision::NotWorse(why)) = found else { panic!("{found:?}") };
        assert!(
            why.starts_with(
                "at the same time 10 of 1000 requests failed on the new version (1.0%, p95 95ms) and 9 of"
            ),
            "{why}"
        );
    }

    #[test]
    fn latency_is_compared_with_the_old_version_s_at_the_same_time() {
        let limits = Monitor { max_p95: Duration::from_millis(50), ..limits() };
        let judge = Judge::new(&limits, None);
        let sides = |p95| Sides { suspect: answers(100, 0), other: answers(100, 0), p95, waiting: [0, 0] };
        let of = |sides: &Sides, slow| decide(&judge, sides, 0, slow, LASTS);
        let both = sides(QUICK);
        assert!(matches!(of(&both, true), Some(Decision::NotWorse(_))));
        // No latency is known of the old version, so nothing is slow there.
        let only = sides([QUICK[0], None]);
        assert!(matches!(of(&only, true), Some(Decision::Worse(_))));
        assert!(matches!(of(&only, false), Some(Decision::NotWorse(_))));
    }
}
