//! What follows from what: pure, total, and the same for a live run, a replay and a recovery.
//!
//! ```text
//! deploy     Idle → Building → Starting → Probing → Switching → Draining → Recording → Done
//! roll back  Idle → Checking ───────────────────→ Switching ─────────────→ Recording → Done
//!                       └ gone → Starting → Probing ┘
//! failure    before traffic moved:  → Undoing → Recording → Done(Failed)
//!            the candidate died:    Draining → Returning → Undoing → Recording → Done(Returned)
//! ```
//!
//! An interruption is an event like any other: before traffic moved it undoes, afterwards the same effects are
//! performed again. That is why every effect must be fit to be performed twice.

use serde::{Deserialize, Serialize};

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A new version beside the old one, then a switch.
    Deploy,
    /// A switch to what served before.
    Rollback,
}

/// Whether the instance that is to serve was started by this operation, and so is this operation's to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// This operation started it, or may have.
    Ours,
    /// It ran before.
    Found,
}

/// What kind of operation it is, and whose the candidate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Course {
    /// What is being done.
    pub kind: Kind,
    /// Whose the candidate is.
    pub origin: Origin,
}

/// Why it did not come to a good end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// A hook said no, or there is nothing to roll back to.
    Declined,
    /// It could not be built.
    Build,
    /// It could not be started.
    Start,
    /// It was not proven healthy.
    Unhealthy,
    /// The front door refused, or did not answer.
    Refused,
    /// Somebody else changed the routing meanwhile.
    Overtaken,
    /// The controller was stopped or killed.
    Interrupted,
    /// It died after it had got traffic.
    Died,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The new version serves.
    Deployed,
    /// What served before serves again, because it was asked for.
    RolledBack,
    /// Nothing has changed: the old version serves, the candidate is gone.
    Failed(Failure),
    /// The new version served and died; the old one serves again.
    Returned,
    /// Somebody must look.
    Attention,
}

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing has begun.
    Idle,
    /// What the candidate runs is being made.
    Building,
    /// The target of a roll back is being looked at.
    Checking,
    /// The candidate is being started.
    Starting(Kind),
    /// The candidate has to prove itself.
    Probing(Kind),
    /// Traffic is being moved to it.
    Switching(Course),
    /// Traffic has moved; the old backend's exchanges are waited for, and the candidate is watched.
    Draining(Course),
    /// Traffic is being moved back.
    Returning(Course),
    /// What this operation started is being stopped.
    Undoing(Course, Failure),
    /// The outcome is being written down.
    Recording(Outcome),
    /// Nothing is left to do.
    Done(Outcome),
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The operation has begun.
    Begun(Kind),
    /// What the candidate runs is there, and frozen.
    Built,
    /// The target of a roll back is alive.
    Alive,
    /// The target of a roll back is not running.
    Gone,
    /// The candidate runs.
    Started,
    /// The candidate is healthy, and is who it should be.
    Proven,
    /// Traffic goes to the candidate.
    Switched,
    /// The old backend's exchanges are over, or were waited for long enough.
    Drained,
    /// The candidate ended after the switch.
    Died,
    /// Traffic goes to the old backend again.
    Returned,
    /// What this operation started is gone.
    Undone,
    /// The candidate can't be stopped: it gets traffic.
    Serves,
    /// The outcome is written down.
    Recorded,
    /// An effect failed.
    Failed(Failure),
    /// The controller is back after it was stopped or killed.
    Interrupted,
}

/// What is to be done. Every effect may be performed twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Ask the hook, build, freeze. → `Built`
    Build,
    /// Probe the target of a roll back once. → `Alive`, `Gone`
    Check,
    /// Stop and remove what else runs as the candidate's backend.
    Clear,
    /// Start the candidate. → `Started`
    Start,
    /// Wait until it has proven itself. → `Proven`
    Prove,
    /// Register the candidate's endpoints and version with the front door.
    Register,
    /// Move traffic. → `Switched`
    Switch,
    /// Take the candidate's record as its backend's.
    Commit,
    /// Wait for the old backend's exchanges, and watch the candidate. → `Drained`, `Died`
    Drain,
    /// Move traffic back. → `Returned`
    SwitchBack,
    /// Withdraw the candidate from the front door, and stop it if it is ours. → `Undone`, `Serves`
    Undo(Course),
    /// Write the outcome to the history, and tell whoever wants to know. → `Recorded`
    Record(Outcome),
}

impl Effect {
    /// Its name, for messages and fault points.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Check => "check",
            Self::Clear => "clear",
            Self::Start => "start",
            Self::Prove => "prove",
            Self::Register => "register",
            Self::Switch => "switch",
            Self::Commit => "commit",
            Self::Drain => "drain",
            Self::SwitchBack => "switch_back",
            Self::Undo(_) => "undo",
            Self::Record(_) => "record",
        }
    }
}

/// An event that can't happen in a phase: a damaged journal, or a fault of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} can't happen in phase {phase:?}")]
pub struct IllegalEvent {
    phase: Phase,
    event: Event,
}

/// What follows from an event: the next phase, and what to do in it, in order. The first effect that brings an event
/// ends the phase.
///
/// # Errors
/// The event can't happen in this phase; then nothing follows.
pub fn step(phase: Phase, event: Event) -> Result<(Phase, Vec<Effect>), IllegalEvent> {
    let next = match (phase, event) {
        (Phase::Idle, Event::Begun(Kind::Deploy)) => Phase::Building,
        (Phase::Idle, Event::Begun(Kind::Rollback)) => Phase::Checking,
        (Phase::Building, Event::Built) => Phase::Starting(Kind::Deploy),
        (Phase::Checking, Event::Gone) => Phase::Starting(Kind::Rollback),
        (Phase::Checking, Event::Alive) => Phase::Switching(FOUND),
        (Phase::Starting(kind), Event::Started) => Phase::Probing(kind),
        (Phase::Probing(kind), Event::Proven) => Phase::Switching(ours(kind)),
        (Phase::Switching(course), Event::Switched) => after_switch(course),
        (Phase::Draining(_), Event::Drained) => Phase::Recording(Outcome::Deployed),
        (Phase::Draining(course), Event::Died) => Phase::Returning(course),
        (Phase::Returning(course), Event::Returned) => Phase::Undoing(course, Failure::Died),
        (Phase::Undoing(_, Failure::Died), Event::Undone) => Phase::Recording(Outcome::Returned),
        (Phase::Undoing(_, failure), Event::Undone) => Phase::Recording(Outcome::Failed(failure)),
        // A switch that nobody answered was carried out after all. Overtaken, and yet our candidate serves: whoever
        // overtook us has to look.
        (Phase::Undoing(_, Failure::Died | Failure::Overtaken), Event::Serves) => {
            Phase::Recording(Outcome::Attention)
        }
        (Phase::Undoing(course, _), Event::Serves) => after_switch(course),
        (Phase::Recording(outcome), Event::Recorded) => Phase::Done(outcome),
        (Phase::Undoing(..) | Phase::Returning(_), Event::Failed(_)) => Phase::Recording(Outcome::Attention),
        (_, Event::Failed(failure)) => undoing(phase, failure).ok_or(IllegalEvent { phase, event })?,
        (Phase::Draining(_) | Phase::Returning(_) | Phase::Undoing(..), Event::Interrupted) => phase,
        (Phase::Recording(_), Event::Interrupted) => phase,
        (_, Event::Interrupted) => {
            undoing(phase, Failure::Interrupted).ok_or(IllegalEvent { phase, event })?
        }
        _ => return Err(IllegalEvent { phase, event }),
    };
    Ok((next, effects(next)))
}

const FOUND: Course = Course { kind: Kind::Rollback, origin: Origin::Found };

fn ours(kind: Kind) -> Course {
    Course { kind, origin: Origin::Ours }
}

/// A roll back is an emergency: it is over as soon as traffic has moved.
fn after_switch(course: Course) -> Phase {
    match course.kind {
        Kind::Deploy => Phase::Draining(course),
        Kind::Rollback => Phase::Recording(Outcome::RolledBack),
    }
}

fn undoing(phase: Phase, failure: Failure) -> Option<Phase> {
    let course = match phase {
        Phase::Building => ours(Kind::Deploy),
        Phase::Checking => FOUND,
        Phase::Starting(kind) | Phase::Probing(kind) => ours(kind),
        Phase::Switching(course) => course,
        _ => return None,
    };
    Some(Phase::Undoing(course, failure))
}

fn effects(phase: Phase) -> Vec<Effect> {
    match phase {
        Phase::Idle | Phase::Done(_) => vec![],
        Phase::Building => vec![Effect::Build],
        Phase::Checking => vec![Effect::Check],
        Phase::Starting(_) => vec![Effect::Clear, Effect::Start],
        Phase::Probing(_) => vec![Effect::Prove],
        Phase::Switching(Course { origin: Origin::Ours, .. }) => vec![Effect::Register, Effect::Switch],
        Phase::Switching(Course { origin: Origin::Found, .. }) => vec![Effect::Switch],
        Phase::Draining(_) => vec![Effect::Commit, Effect::Drain],
        Phase::Returning(_) => vec![Effect::SwitchBack],
        Phase::Undoing(course, _) => vec![Effect::Undo(course)],
        Phase::Recording(outcome @ Outcome::RolledBack) => vec![Effect::Commit, Effect::Record(outcome)],
        Phase::Recording(outcome) => vec![Effect::Record(outcome)],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failures() -> Vec<Failure> {
        use Failure::*;
        vec![Declined, Build, Start, Unhealthy, Refused, Overtaken, Interrupted, Died]
    }

    fn all_events() -> Vec<Event> {
        use Event::*;
        let mut events =
            vec![Begun(Kind::Deploy), Begun(Kind::Rollback), Built, Alive, Gone, Started, Proven];
        events.extend([Switched, Drained, Died, Returned, Undone, Serves, Recorded, Interrupted]);
        events.extend(failures().into_iter().map(Failed));
        events
    }

    /// Every phase that any row of events leads to.
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
    fn every_phase_but_the_last_can_go_on_and_has_something_to_do() {
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
    fn a_deploy_that_goes_well_takes_these_steps() {
        use Event::*;
        let mut phase = Phase::Idle;
        let mut done = Vec::new();
        for event in [Begun(Kind::Deploy), Built, Started, Proven, Switched, Drained, Recorded] {
            let (next, effects) = step(phase, event).unwrap();
            phase = next;
            done.extend(effects.iter().map(|effect| effect.name()));
        }
        assert_eq!(phase, Phase::Done(Outcome::Deployed));
        let all = ["build", "clear", "start", "prove", "register", "switch", "commit", "drain", "record"];
        assert_eq!(done, all);
    }

    proptest! {
        /// Traffic is moved only to what was proven or found alive, a failure before the switch never ends as a
        /// deploy unless the candidate turned out to serve, and nothing is done twice in a row for nothing.
        #[test]
        fn no_row_of_events_leads_past_the_gate(
            events in prop::collection::vec(prop::sample::select(all_events()), 0..40)
        ) {
            let mut phase = Phase::Idle;
            let (mut proven, mut served) = (false, false);
            for event in events {
                let Ok((next, effects)) = step(phase, event) else { continue };
                proven |= matches!(event, Event::Proven | Event::Alive);
                served |= matches!(event, Event::Switched | Event::Serves);
                if effects.contains(&Effect::Switch) {
                    prop_assert!(proven, "switched from {phase:?} by {event:?}");
                }
                if effects.contains(&Effect::Commit) {
                    prop_assert!(served, "committed from {phase:?} by {event:?}");
                }
                if let Phase::Done(Outcome::Deployed | Outcome::RolledBack) = next {
                    prop_assert!(served);
                }
                phase = next;
            }
        }

        /// Whatever has happened, an interruption leads to an end by effects that go well.
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
            for _ in 0..6 {
                let event = match at.1.last() {
                    None => break,
                    Some(Effect::Drain) => Event::Drained,
                    Some(Effect::SwitchBack) => Event::Returned,
                    Some(Effect::Undo(_)) => Event::Undone,
                    Some(Effect::Record(_)) => Event::Recorded,
                    other => panic!("{other:?} after an interruption"),
                };
                at = step(at.0, event).unwrap();
            }
            prop_assert!(matches!(at.0, Phase::Done(_)), "{:?}", at.0);
        }
    }
}
