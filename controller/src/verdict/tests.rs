//! The sequential test: what is allowed, what exceeds it, and what never does.

use super::*;

fn answers(all: u64, bad: u64) -> Answers {
    Answers { good: all - bad, bad }
}

fn allowed(before: Option<Answers>) -> f64 {
    Allowed::new(0.01, before).share()
}

#[test]
fn the_limit_counts_until_the_old_version_is_known_to_be_worse() {
    for (before, share) in [
        (None, 0.01),
        (Some(answers(0, 0)), 0.01),
        (Some(answers(10, 0)), 0.01),
        (Some(answers(100_000, 50)), 0.01),
    ] {
        assert!((allowed(before) - share).abs() < 1e-9, "{before:?}");
    }
    // 3 % of many: a little more than 1.5 times as much.
    let three = allowed(Some(answers(60_000, 1800)));
    assert!((0.045..0.05).contains(&three), "{three}");
    // Of few: much more, because the true rate may be much higher.
    assert!(allowed(Some(answers(100, 3))) > 0.15);
    assert!((allowed(Some(answers(10, 10))) - 0.5).abs() < 1e-9);
    assert!((Allowed::new(0.8, Some(answers(10, 10))).share() - 0.8).abs() < 1e-9);
}

/// Computed by hand, with p₀ = 1 %.
#[test]
fn the_evidence_is_the_mean_over_the_excesses() {
    let limit = Allowed::new(0.01, None);
    assert!(limit.ln_evidence(answers(0, 0)).abs() < 1e-12);
    let one_bad = [0.0199, 0.0298, 0.0595, 0.208, 0.703].map(|p1: f64| p1 / 0.01);
    let mean = one_bad.iter().sum::<f64>() / 5.0;
    assert!((limit.ln_evidence(answers(1, 1)) - mean.ln()).abs() < 1e-9);
}

#[test]
fn two_errors_are_never_a_breach_and_three_of_three_are() {
    let limit = Allowed::new(0.01, None);
    assert!(!limit.is_exceeded_by(answers(2, 2)));
    assert!(limit.is_exceeded_by(answers(3, 3)));
    // Even with a limit of 0 %, where two errors are strong evidence.
    assert!(!Allowed::new(0.0, None).is_exceeded_by(answers(2, 2)));
    assert!(!limit.is_exceeded_by(answers(100, 3)));
    assert!(limit.is_exceeded_by(answers(608, 608)));
    // A whole minute at 100/s with the errors that are allowed.
    assert!(!limit.is_exceeded_by(answers(6000, 60)));
    assert!(limit.is_exceeded_by(answers(6000, 180)));
}

#[test]
fn errors_at_the_end_of_a_good_watch_count() {
    // 22 good seconds of 100/s, then 8 bad ones.
    assert!(Allowed::new(0.01, None).is_exceeded_by(answers(3000, 800)));
}

#[test]
fn a_version_that_is_no_worse_than_a_bad_old_one_stays() {
    let old = Some(answers(60_000, 1800));
    assert!(!Allowed::new(0.01, old).is_exceeded_by(answers(30_000, 360)));
    assert!(!Allowed::new(0.01, old).is_exceeded_by(answers(30_000, 900)));
    assert!(Allowed::new(0.01, old).is_exceeded_by(answers(3000, 300)));
}

#[test]
fn no_limit_makes_one_error_infinitely_strong_evidence() {
    for limit in [0.0, 1.0] {
        let limit = Allowed::new(limit, None);
        for counts in [answers(1, 1), answers(1, 0), answers(u64::MAX, u64::MAX / 2)] {
            assert!(!limit.ln_evidence(counts).is_nan(), "{limit:?} {counts:?}");
        }
    }
    assert!(!Allowed::new(1.0, None).is_exceeded_by(answers(1000, 1000)));
    assert!(!Allowed::new(0.0, None).is_exceeded_by(answers(10_000, 1)));
    assert!(Allowed::new(0.0, None).is_exceeded_by(answers(10_000, 30)));
}
