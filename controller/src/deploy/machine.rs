//! What follows from what: pure, total, and the same for a live run, a replay and a recovery.
//!
//! ```text
//! deploy     Idle → Building → Starting → Probing → Switching → Draining → Confirming → Recording → Done
//! rollback   Idle → Checking ───────────────────→ Switching → Settling → Confirming → Recording → Done
//!                       └ gone → Starting → Probing ┘
//! failure    before traffic moved:  → Undoing → Confirming → Recording → Done(Failed)
//!            the candidate died:    Draining, Settling → Returning → Undoing → Confirming → Recording → Done(Returned)
//! ```
//!
//! No operation is recorded before `Confirming`, which looks at the front door once more: what an operation remembers
//! of its own switch says nothing about who serves at its end.
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
    /// Traffic was moved, and somebody else has moved it since.
    Superseded,
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
    /// Traffic has moved by a rollback; its target is watched.
    Settling(Course),
    /// Traffic is being moved back.
    Returning(Course),
    /// What this operation started is being stopped.
    Undoing(Course, Failure),
    /// The front door is asked once more who serves: this is the outcome if it says so too.
    Confirming(Outcome),
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
    /// The target of a rollback has kept running for as long as it had to.
    Settled,
    /// The candidate ended after the switch.
    Died,
    /// Traffic goes to the old backend again.
    Returned,
    /// What this operation started is gone.
    Undone,
    /// The candidate can't be stopped: it gets traffic.
    Serves,
    /// The front door says that whoever should serve does.
    Confirmed,
    /// Somebody else has moved traffic since.
    Superseded,
    /// The front door has forgotten the switch: it was restarted before that was on disk.
    Lost,
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
    /// Register the target of a rollback again if it was withdrawn and not stopped.
    Readmit,
    /// Move traffic. → `Switched`
    Switch,
    /// Take the candidate's record as its backend's.
    Commit,
    /// Wait for the old backend's exchanges, and watch the candidate. → `Drained`, `Died`
    Drain,
    /// Watch the target of a rollback. → `Settled`, `Died`
    Settle,
    /// Move traffic back. → `Returned`
    SwitchBack,
    /// Withdraw the candidate from the front door, and stop it if it is ours. → `Undone`, `Serves`
    Undo(Course),
    /// Look once more who serves. → `Confirmed`, `Superseded`, `Lost`
    Confirm(Outcome),
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
            Self::Readmit => "readmit",
            Self::Switch => "switch",
            Self::Commit => "commit",
            Self::Drain => "drain",
            Self::Settle => "settle",
            Self::SwitchBack => "switch_back",
            Self::Undo(_) => "undo",
            Self::Confirm(_) => "confirm",
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
        (Phase::Draining(_), Event::Drained) => Phase::Confirming(Outcome::Deployed),
        (Phase::Settling(_), Event::Settled) => Phase::Confirming(Outcome::RolledBack),
        (Phase::Draining(course) | Phase::Settling(course), Event::Died) => Phase::Returning(course),
        (Phase::Returning(course), Event::Returned) => Phase::Undoing(course, Failure::Died),
        (Phase::Undoing(_, Failure::Died), Event::Undone) => Phase::Confirming(Outcome::Returned),
        (Phase::Undoing(_, failure), Event::Undone) => Phase::Confirming(Outcome::Failed(failure)),
        // A switch that nobody answered was carried out after all. Overtaken, and yet our candidate serves: whoever
        // overtook us has to look.
        (Phase::Undoing(_, Failure::Died | Failure::Overtaken), Event::Serves) => {
            Phase::Recording(Outcome::Attention)
        }
        (Phase::Undoing(course, _), Event::Serves) => after_switch(course),
        (Phase::Confirming(outcome), Event::Confirmed) => Phase::Recording(outcome),
        (Phase::Confirming(_), Event::Superseded) => Phase::Recording(Outcome::Superseded),
        (Phase::Confirming(_), Event::Lost) => Phase::Recording(Outcome::Attention),
        (Phase::Recording(outcome), Event::Recorded) => Phase::Done(outcome),
        (Phase::Undoing(..) | Phase::Returning(_) | Phase::Confirming(_), Event::Failed(_)) => {
            Phase::Recording(Outcome::Attention)
        }
        (_, Event::Failed(failure)) => undoing(phase, failure).ok_or(IllegalEvent { phase, event })?,
        (Phase::Draining(_) | Phase::Settling(_) | Phase::Returning(_), Event::Interrupted) => phase,
        (Phase::Undoing(..) | Phase::Confirming(_) | Phase::Recording(_), Event::Interrupted) => phase,
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

/// A rollback is an emergency: it waits for nobody's exchanges, but its target must stay alive as a candidate must.
fn after_switch(course: Course) -> Phase {
    match course.kind {
        Kind::Deploy => Phase::Draining(course),
        Kind::Rollback => Phase::Settling(course),
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
        Phase::Switching(Course { origin: Origin::Found, .. }) => vec![Effect::Readmit, Effect::Switch],
        Phase::Draining(_) => vec![Effect::Drain],
        Phase::Settling(_) => vec![Effect::Settle],
        Phase::Returning(_) => vec![Effect::SwitchBack],
        Phase::Undoing(course, _) => vec![Effect::Undo(course)],
        // Only what has stayed alive is taken as its backend's.
        Phase::Confirming(outcome @ (Outcome::Deployed | Outcome::RolledBack)) => {
            vec![Effect::Commit, Effect::Confirm(outcome)]
        }
        Phase::Confirming(outcome) => vec![Effect::Confirm(outcome)],
        Phase::Recording(outcome) => vec![Effect::Record(outcome)],
    }
}

#[cfg(test)]
mod tests;
