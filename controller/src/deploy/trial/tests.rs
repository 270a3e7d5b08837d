//! What a trial found, in words, and orders.

use uh_protocol::status::Suspect;

use super::*;
use crate::config::{CanaryPlan, OnNotEnoughData};

fn figures(new: (u64, u64), old: (u64, u64)) -> TrialFigures {
    TrialFigures {
        new_requests: new.1,
        new_bad: new.0,
        new_clients: new.0,
        old_requests: old.1,
        old_bad: old.0,
        old_clients: old.0,
        before_percent: 0.1,
        ln_coin: 0.0,
        ln_windows: None,
        ln_history: 0.0,
        not_worse_by_points: 7.25,
    }
}

fn status(ended: bool, new: (u64, u64)) -> TrialStatus {
    TrialStatus {
        backend: "green".parse().unwrap(),
        state: TrialState::Bad,
        ended,
        suspect: Suspect::Split,
        slow_after_ms: Some(250),
        failures: figures(new, (9, 9000)),
        slowness: Some(figures((1, 994), (0, 0))),
        routes: vec![TrialRoute { template: "/pay/*".to_owned(), new_clients: 40, old_clients: 1 }],
        request_ids: vec!["a1".to_owned(), "b2".to_owned()],
    }
}

#[test]
fn an_earlier_trial_of_the_same_backend_is_not_taken_for_this_one() {
    let (green, blue) = ("green".parse().unwrap(), "blue".parse().unwrap());
    let (earlier, now) = (status(true, (57, 994)), status(true, (12, 30)));
    assert_eq!(of(Some(&earlier), &green, Some(&earlier)), None);
    // Even if it has ended before the first look at it.
    assert_eq!(of(Some(&now), &green, Some(&earlier)), Some(&now));
    assert_eq!(of(Some(&now), &green, None), Some(&now));
    assert_eq!(of(Some(&now), &blue, None), None);
}

#[test]
fn only_a_bad_trial_of_this_operation_is_a_verdict() {
    let bad = status(true, (57, 994));
    let mut facts = crate::deploy::journal::tests::facts("one");
    let verdict = worse(Some(&bad), &facts, None, None).unwrap();
    assert_eq!(verdict.verdict, TrialOutcome::Fail);
    assert!(verdict.reason.contains("57 of 994"), "{}", verdict.reason);
    assert_eq!(worse(None, &facts, None, None), None);
    assert_eq!(worse(Some(&bad), &facts, Some(&bad), None), None);
    let suspicious = TrialStatus { state: TrialState::Suspicious, ..bad.clone() };
    assert_eq!(worse(Some(&suspicious), &facts, None, None), None);
    let step = |weight_ppm| CanaryStep { weight_ppm, at_least_ms: 0, requests: 1 };
    facts.canary = Some(CanaryPlan {
        steps: vec![step(100_000), step(400_000)],
        step_timeout_ms: 0,
        on_not_enough_data: OnNotEnoughData::Hold,
        warm_up_ms: None,
    });
    for (step, weight) in [(None, 0.0), (Some(1), 40.0), (Some(2), 0.0)] {
        assert_eq!(worse(Some(&bad), &facts, None, step).unwrap().weight, weight);
    }
    facts.earlier_trial = Some(EarlierTrial::new(&bad));
    assert_eq!(worse(Some(&bad), &facts, None, None), None);
}

#[test]
fn a_split_is_ours_by_its_backend_and_weight() {
    let split = |to: &str, weight| {
        let (since, until) = (String::new(), String::new());
        let suspect = Suspect::Split;
        SplitStatus { to: to.parse().unwrap(), weight, since, until, leased: true, suspect }
    };
    let green = "green".parse().unwrap();
    let ours = OurSplit { given: Some(10.0), unanswered: None };
    assert!(ours.is(Some(&split("green", 10.000_01)), &green));
    for other in [None, Some(split("green", 40.0)), Some(split("blue", 10.0))] {
        assert!(!ours.is(other.as_ref(), &green), "{other:?}");
    }
    // Whether an unanswered change was carried out is unknown.
    let growing = OurSplit { unanswered: Some(40.0), ..ours };
    assert!(growing.is(Some(&split("green", 10.0)), &green));
    assert!(growing.is(Some(&split("green", 40.0)), &green));
    assert!(growing.may_be_there() && !OurSplit::default().may_be_there());
}

#[test]
fn a_verdict_names_the_figures_the_excess_and_its_bound() {
    let status = status(true, (57, 994));
    let facts = crate::deploy::journal::tests::facts("one");
    let verdict = TrialVerdict::new(TrialOutcome::Fail, &facts, 40.0, Some(status), None);
    assert_eq!(
        verdict.reason,
        "green (v2) fails more often than blue (v1): 57 of 994 requests (5.7 %) to 9 of 9000 (0.1 %)"
    );
    let lines = verdict.lines();
    assert!(lines[0].contains("(+5.6 points); not worse by more than 7.2 points"), "{lines:?}");
    assert!(lines[1].starts_with("slower than 250 ms: new 1 of 994"), "{lines:?}");
    assert_eq!(lines[2], "routes: /pay/* (40 clients on new, 1 on old)");
    assert_eq!(lines[3], "request ids: a1, b2");
}

#[test]
fn an_order_is_obeyed_once_and_only_by_its_operation() {
    let dir = tempfile::tempdir().unwrap();
    let order = OrderFile { operation: "one".to_owned(), order: TrialOrder::Hold, who: "me@here".to_owned() };
    order.write(dir.path()).unwrap();
    assert_eq!(OrderFile::take(dir.path(), "two"), None);
    assert_eq!(OrderFile::take(dir.path(), "one"), Some(order));
    assert_eq!(OrderFile::take(dir.path(), "one"), None);
}
