//! Decides a cross-check from what both versions answered at the same time, where the coin test of uh-proxy's trial can't: too
//! few clients, or too little traffic. Pure: no I/O, no clock.
//!
//! uh-proxy's trial counts each failing client once, and decides as soon as the clients' sides prove it. That takes many clients.
//! What is here counts requests, like the watch: it finds that both versions fail, that nothing can be compared, or that the
//! new one fails more although all its clients together are too few for the coin.

use std::time::Duration;

use uh_trial::{CoinTest, Rule, Side, Weight};

use super::judge::{Judge, percent};
use super::{BREACH_EVIDENCE, SUSPICION};
use crate::counters::Answers;

/// How long half of the clients stay on each version: as long as in a trial.
pub const LASTS: Duration = uh_trial::trial::CROSS_CHECK;

/// If all requests of at least this time are on one side, there is only one client to compare.
const ONE_SIDED_AFTER: Duration = Duration::from_secs(1);

/// This part of `min_requests` is little: a side with fewer proves nothing, and if both together have fewer, there is no traffic
/// to compare.
const LITTLE: u64 = 4;

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
    let little = least.div_ceil(LITTLE);
    let (both, fewest) = (suspect.all() + other.all(), suspect.all().min(other.all()));
    let over = elapsed >= LASTS;
    if judge.has_evidence(other, SUSPICION).is_some() && (over || fewest == 0) {
        return over.then(|| Decision::BothFail(at_the_same_time(sides)));
    }
    let enough = fewest >= least;
    if !enough && sides.may_hang(elapsed) {
        return over.then(|| Decision::Unclear(at_the_same_time(sides)));
    }
    // If several have failed, they may all be on one side by chance.
    let seems_one = over || (failing_clients <= 1 && elapsed >= ONE_SIDED_AFTER);
    if fewest == 0 && both >= least && seems_one {
        return Some(Decision::Incomparable("all requests seem to come from one client".to_owned()));
    }
    let works = other.rate() <= judge.allowed().share();
    if both >= least && fewest >= little && suspect.rate() >= NO_DOUBT && works {
        return Some(Decision::Worse(at_the_same_time(sides)));
    }
    if !over {
        return None;
    }
    // With more traffic than that, the comparison takes longer. Little traffic is no reason to blame the new version.
    if both < little && works {
        let why = format!("there were only {both} requests in {} s", elapsed.as_secs());
        return Some(Decision::Incomparable(why));
    }
    if !enough {
        return (elapsed >= 2 * LASTS).then(|| Decision::Unclear(at_the_same_time(sides)));
    }
    let few = failing_clients < COIN_NEEDS && judge.has_evidence(suspect, BREACH_EVIDENCE).is_some();
    let max = judge.limits().max_p95;
    let [p95, other_p95] = sides.p95;
    let slower = slow && p95.is_some_and(|p95| p95 > max) && other_p95.is_none_or(|p95| p95 <= max);
    Some(if (few && is_seconded(sides)) || slower {
        Decision::Worse(at_the_same_time(sides))
    } else if few || (works && suspect.rate() > judge.allowed().share()) {
        Decision::Unclear(at_the_same_time(sides))
    } else {
        Decision::NotWorse(at_the_same_time(sides))
    })
}

/// Whether the coin test agrees, over requests: more of the failed ones were on the new version than its share of all explains.
fn is_seconded(Sides { suspect, other, .. }: &Sides) -> bool {
    let weight = Weight::new(suspect.all() as f64 / (suspect.all() + other.all()).max(1) as f64);
    let mut coin = CoinTest::default();
    coin.record_many(Side::New, weight, suspect.bad);
    coin.record_many(Side::Old, weight, other.bad);
    coin.ln_evidence() >= Rule::FAILURES.seconded.ln()
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
        let found = decision((15, 15), (5, 0), 1, SECOND / 2);
        assert!(matches!(found, Some(Decision::Worse(_))), "enough together: {found:?}");
        for (new, old) in [(10, 9), (16, 4), (4, 16)] {
            assert_eq!(decision((new, new), (old, 0), 1, SECOND / 2), None, "too few requests");
        }
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
    fn one_client_is_nothing_to_compare() {
        for (new, old) in [((100, 100), (0, 0)), ((0, 0), (100, 0))] {
            let found = decision(new, old, 1, SECOND);
            assert!(matches!(found, Some(Decision::Incomparable(_))), "{found:?}");
        }
        assert_eq!(decision((100, 100), (0, 0), 1, SECOND / 2), None, "not yet");
        // Several clients are on the same side for as long as that seems to be chance.
        assert_eq!(decision((100, 100), (0, 0), 2, LASTS - SECOND), None);
        let found = decision((100, 100), (0, 0), 2, LASTS);
        assert!(matches!(found, Some(Decision::Incomparable(_))), "{found:?}");
    }

    #[test]
    fn hardly_any_traffic_is_nothing_to_compare() {
        assert_eq!(decision((4, 4), (0, 0), 4, LASTS - SECOND), None);
        let found = decision((4, 4), (0, 0), 4, LASTS);
        assert!(matches!(found, Some(Decision::Incomparable(_))), "{found:?}");
        // The old version fails, too.
        assert_eq!(decision((2, 2), (2, 1), 3, LASTS), None);
    }

    /// It isn't judged alone: in an outage, only the comparison protects it.
    #[test]
    fn little_traffic_takes_longer_and_then_is_unclear() {
        for (new, old) in [((4, 3), (3, 0)), ((80, 24), (19, 0)), ((19, 6), (80, 0))] {
            for elapsed in [5 * SECOND, LASTS, 2 * LASTS - SECOND] {
                assert_eq!(decision(new, old, 3, elapsed), None);
            }
            let found = decision(new, old, 3, 2 * LASTS);
            assert!(matches!(found, Some(Decision::Unclear(_))), "{found:?}");
        }
        // Enough later.
        let found = decision((30, 12), (30, 0), 12, 3 * LASTS);
        assert!(matches!(found, Some(Decision::Worse(_))), "{found:?}");
    }

    #[test]
    fn nothing_is_concluded_while_the_side_without_answers_may_hang() {
        let limits = limits();
        let judge = Judge::new(&limits, None);
        let of = |waiting, elapsed| {
            let sides = Sides { suspect: answers(100, 100), waiting, ..Sides::default() };
            decide(&judge, &sides, 0, false, elapsed)
        };
        for elapsed in [SECOND, LASTS - SECOND] {
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
        let found = decision((1000, 200), (1000, 11), 3, LASTS);
        assert!(matches!(found, Some(Decision::Worse(_))), "the old one fails far less: {found:?}");
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

    /// As after an outage of both that ended when the check had begun.
    #[test]
    fn a_few_failures_more_are_no_proof_while_the_old_version_fails_too() {
        for (new, old) in [((1349, 46), (671, 19)), ((902, 37), (400, 4)), ((88, 11), (20, 0))] {
            let found = decision(new, old, 12, LASTS);
            assert!(matches!(found, Some(Decision::Unclear(_))), "{found:?}");
        }
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
