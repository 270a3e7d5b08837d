//! Properties of the state machine.

use proptest::prelude::*;

use super::*;

fn failures() -> Vec<FailureCause> {
    use FailureCause::*;
    vec![Declined, Build, Start, Unhealthy, Refused, Overtaken, Interrupted, Died, Worse, Undecided, Aborted]
}

fn all_events() -> Vec<Event> {
    use Event::*;
    let mut events = vec![
        Begun(OperationKind::Deploy),
        Begun(OperationKind::Rollback),
        Built,
        Alive,
        Gone,
        Started,
        Proven,
    ];
    events.extend([Switched, Drained, Settled, Died, Returned, Undone, Serves, Recorded, Interrupted]);
    events.extend([Confirmed, Superseded, Lost, Step(0), Step(1), Step(2), Passed, Held]);
    events.extend(failures().into_iter().map(Failed));
    events
}

/// Every phase that some sequence of events leads to.
fn reachable() -> Vec<Phase> {
    let mut found = vec![Phase::Idle];
    let mut at = 0;
    while at < found.len() {
        for event in all_events() {
            if let Ok((next, _)) = step(found[at], event)
                && !found.contains(&next)
            {
                found.push(next);
            }
        }
        at += 1;
    }
    found
}

#[test]
fn every_phase_but_the_last_can_continue_and_has_effects() {
    for phase in reachable() {
        let next = all_events().into_iter().any(|event| step(phase, event).is_ok());
        assert_eq!(next, !matches!(phase, Phase::Done(_)), "{phase:?}");
        if !matches!(phase, Phase::Idle | Phase::Done(_)) {
            assert!(!effects(phase).is_empty(), "{phase:?}");
            step(phase, Event::Interrupted).unwrap();
        }
    }
}

#[test]
fn a_successful_deploy_takes_these_steps() {
    use Event::*;
    let mut phase = Phase::Idle;
    let mut done = Vec::new();
    for event in
        [Begun(OperationKind::Deploy), Built, Started, Proven, Switched, Drained, Confirmed, Recorded]
    {
        let (next, effects) = step(phase, event).unwrap();
        phase = next;
        done.extend(effects.iter().map(|effect| effect.name()));
    }
    assert_eq!(phase, Phase::Done(Outcome::Deployed));
    let all = [
        "build", "clear", "publish", "start", "prove", "register", "switch", "drain", "commit", "confirm",
        "record",
    ];
    assert_eq!(done, all);
}

#[test]
fn a_trial_goes_step_by_step_and_can_be_held_and_decided() {
    use Event::*;
    let at = |phase, event| step(phase, event).map(|(next, _)| next);
    assert_eq!(at(Phase::Probing(OperationKind::Deploy), Step(0)), Ok(Phase::Trying(0)));
    assert_eq!(at(Phase::Trying(0), Step(1)), Ok(Phase::Trying(1)));
    for (phase, event) in [
        (Phase::Probing(OperationKind::Deploy), Step(1)),
        (Phase::Probing(OperationKind::Rollback), Step(0)),
        (Phase::Trying(0), Step(2)),
        (Phase::Trying(1), Step(1)),
        (Phase::Trying(1), Switched),
    ] {
        at(phase, event).unwrap_err();
    }
    let switching = Phase::Switching(ours(OperationKind::Deploy));
    assert_eq!(at(Phase::Trying(1), Held), Ok(Phase::Held(1)));
    assert_eq!(at(Phase::Held(1), Interrupted), Ok(Phase::Held(1)));
    for phase in [Phase::Trying(1), Phase::Held(1)] {
        assert_eq!(at(phase, Passed), Ok(switching));
        let undoing = Phase::Undoing(ours(OperationKind::Deploy), FailureCause::Aborted);
        assert_eq!(at(phase, Failed(FailureCause::Aborted)), Ok(undoing));
        assert_eq!(at(undoing, Serves), Ok(Phase::Recording(Outcome::Attention)));
    }
    assert!(matches!(at(Phase::Trying(1), Interrupted), Ok(Phase::Undoing(_, FailureCause::Interrupted))));
}

proptest! {
    /// Traffic only moves to an instance that was proven or found alive, and a failure before the switch never ends
    /// as a deploy unless the candidate turned out to serve.
    #[test]
    fn no_sequence_of_events_bypasses_the_gate(
        events in prop::collection::vec(prop::sample::select(all_events()), 0..40)
    ) {
        let mut phase = Phase::Idle;
        let (mut proven, mut served, mut looked) = (false, false, false);
        for event in events {
            let Ok((next, effects)) = step(phase, event) else { continue };
            proven |= matches!(event, Event::Proven | Event::Alive | Event::Step(0));
            looked |= matches!(event, Event::Confirmed | Event::Superseded);
            served |= matches!(event, Event::Switched | Event::Serves);
            if effects.iter().any(|effect| matches!(effect, Effect::Switch | Effect::Try(_))) {
                prop_assert!(proven, "switched from {phase:?} by {event:?}");
            }
            if effects.contains(&Effect::Commit) {
                prop_assert!(served, "committed from {phase:?} by {event:?}");
            }
            if let Phase::Done(Outcome::Deployed | Outcome::RolledBack) = next {
                prop_assert!(served);
            }
            if let Phase::Done(outcome) = next {
                prop_assert!(looked || outcome == Outcome::Attention, "{outcome:?} without a final look");
            }
            phase = next;
        }
    }

    /// After any events, an interruption leads to an end if its effects succeed.
    #[test]
    fn an_interruption_anywhere_comes_to_an_end(
        events in prop::collection::vec(prop::sample::select(all_events()), 1..20)
    ) {
        let mut phase = Phase::Idle;
        for event in events {
            phase = step(phase, event).map_or(phase, |(next, _)| next);
        }
        if matches!(phase, Phase::Idle | Phase::Done(_)) {
            return Ok(());
        }
        let mut at = step(phase, Event::Interrupted).unwrap();
        for _ in 0..7 {
            let event = match at.1.last() {
                None => break,
                Some(Effect::Drain) => Event::Drained,
                Some(Effect::Settle) => Event::Settled,
                Some(Effect::Confirm(_)) => Event::Confirmed,
                Some(Effect::SwitchBack) => Event::Returned,
                Some(Effect::Undo(_)) => Event::Undone,
                Some(Effect::Record(_)) => Event::Recorded,
                // Its split has ended meanwhile.
                Some(Effect::Hold(_)) => Event::Failed(FailureCause::Aborted),
                other => panic!("{other:?} after an interruption"),
            };
            at = step(at.0, event).unwrap();
        }
        prop_assert!(matches!(at.0, Phase::Done(_)), "{:?}", at.0);
    }
}
