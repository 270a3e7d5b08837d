//! What holds for any input.

use std::time::Duration;

use proptest::prelude::*;

use crate::*;

fn shares() -> impl Strategy<Value = Share> {
    (counts(), counts()).prop_map(|(bad, all)| Share::new(bad, all))
}

/// From nothing to everything.
fn counts() -> impl Strategy<Value = u64> {
    prop_oneof![0..20_u64, 0..100_000_u64, any::<u64>(), Just(u64::MAX)]
}

fn weights() -> impl Strategy<Value = Weight> {
    prop_oneof![any::<f64>(), 0.0..1.0, Just(f64::NAN), Just(1e-300), Just(1.0 - 1e-16)].prop_map(Weight::new)
}

fn sides() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Old), Just(Side::New)]
}

proptest! {
    #[test]
    fn the_coin_is_finite(events in proptest::collection::vec((sides(), weights()), 0..2000)) {
        let mut coin = CoinTest::default();
        for (side, weight) in &events {
            coin.record(*side, *weight);
        }
        prop_assert!(coin.ln_evidence().is_finite());
        prop_assert_eq!(coin.clients(Side::Old) + coin.clients(Side::New), events.len() as u64);
    }

    /// The next event multiplies the evidence by 1 on average, whatever the weight and whatever came before.
    #[test]
    fn under_the_coin_the_evidence_is_a_martingale(
        events in proptest::collection::vec((sides(), 0.01..0.99), 0..40),
        weight in 0.001..0.999,
    ) {
        let mut before = CoinTest::default();
        for (side, weight) in &events {
            before.record(*side, Weight::new(*weight));
        }
        let after = |side| {
            let mut coin = before.clone();
            coin.record(side, Weight::new(weight));
            (coin.ln_evidence() - before.ln_evidence()).exp()
        };
        let mean = weight * after(Side::New) + (1.0 - weight) * after(Side::Old);
        prop_assert!((mean - 1.0).abs() < 1e-9, "{}", mean);
    }

    /// With a rate of p₀ the next request multiplies the evidence by 1 on average, below by less.
    #[test]
    fn at_the_allowed_rate_the_history_is_a_martingale(history in shares(), bad in 0..20_u64, good in 0..500_u64) {
        let test = HistoryTest::new(history);
        prop_assume!(test.allowed() > 1e-9);
        let with = |bad, good| test.ln_evidence(Share::new(bad, bad + good));
        let now = with(bad, good);
        let mean = |p: f64| p * (with(bad + 1, good) - now).exp() + (1.0 - p) * (with(bad, good + 1) - now).exp();
        prop_assert!((mean(test.allowed()) - 1.0).abs() < 1e-6, "{}", mean(test.allowed()));
        prop_assert!(mean(test.allowed() / 2.0) <= 1.0 + 1e-9);
    }

    #[test]
    fn the_history_is_finite(history in shares(), requests in shares()) {
        prop_assert!(HistoryTest::new(history).ln_evidence(requests).is_finite());
    }

    #[test]
    fn intervals_hold_the_rate(share in shares()) {
        let (low, high) = share.interval(3.0);
        prop_assert!(0.0 <= low && low <= share.rate() && share.rate() <= high && high <= 1.0, "{:?}", (low, high));
    }

    #[test]
    fn what_is_excluded_is_a_share(new in shares(), old in shares()) {
        prop_assert!((0.0..=1.0).contains(&excluded(new, old)));
    }

    #[test]
    fn a_trial_survives_anything(
        history in (shares(), shares()),
        steps in proptest::collection::vec(
            (sides(), weights(), any::<bool>(), proptest::array::uniform6(counts()), any::<u64>()), 0..60),
    ) {
        let mut trial = Trial::new(History { failures: history.0, slowness: history.1 });
        let mut bad = false;
        for (side, weight, failed, [a, b, c, d, e, f], at) in steps {
            let kind = if failed { Kind::Failure } else { Kind::Slowness };
            trial.record(kind, side, weight);
            let counts = Counts {
                old: SideCounts { requests: a, failed: b, untimed: d, slow: c, slow_ended: e },
                new: SideCounts { requests: d, failed: e, untimed: b, slow: f, slow_ended: c },
            };
            let status = trial.look(Duration::from_millis(at), weight, &counts);
            let is_bad = matches!(status, Status::Bad { .. });
            prop_assert!(is_bad || !bad, "bad is final");
            bad = is_bad;
            for kind in Kind::ALL {
                prop_assert!((0.0..=1.0).contains(&trial.excluded(kind, &counts)));
                let figures = trial.figures(kind, &counts);
                let logs = [Some(figures.ln_coin), Some(figures.ln_history), figures.ln_windows];
                prop_assert!(logs.into_iter().flatten().all(f64::is_finite));
            }
        }
    }

    #[test]
    fn templates_are_short_and_plain(path in proptest::collection::vec(any::<u8>(), 0..300)) {
        let template = routes::template(&path);
        prop_assert!(template.starts_with('/') && template.len() <= 64);
        prop_assert!(template.bytes().all(|byte| byte.is_ascii_alphabetic() || b"/-_.*".contains(&byte)));
    }
}
