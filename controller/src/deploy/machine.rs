//! The state machine of an operation: pure, total, and the same for a live run, a replay and a recovery.
//!
//! ```text
//! deploy     Idle → Building → Starting → Probing → Switching → Draining → Confirming → Recording → Done
//! rollback   Idle → Checking ───────────────────→ Switching → Settling → Confirming → Recording → Done
//!                       └ gone → Starting → Probing ┘
//! trial      Probing → Trying(0) → Trying(1) → … → Switching; each can become Held, which ends the command
//! failure    before traffic moved:  → Undoing → Confirming → Recording → Done(Failed)
//!            the candidate died:    Draining, Settling → Returning → Undoing → Confirming → Recording → Done(Returned)
//! ```
//!
//! No operation is recorded before `Confirming`, which looks at uh-proxy once more: that an operation has switched
//! doesn't mean that its target still serves at the end.
//!
//! An interruption is an event like any other: before traffic has moved, it leads to undoing; afterwards, the same
//! effects are performed again. That is why every effect must be safe to perform twice.

use serde::{Deserialize, Serialize};

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Start a new version next to the old one, then switch.
    Deploy,
    /// Switch to what served before.
    Rollback,
}

/// Whether this operation started the target instance, and may therefore stop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceOrigin {
    /// This operation started it, or may have.
    Ours,
    /// It was already running.
    Found,
}

/// The kind of operation, and the origin of its target instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationTarget {
    /// What is being done.
    pub kind: OperationKind,
    /// The origin of the target instance.
    pub origin: InstanceOrigin,
}

/// Why an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCause {
    /// A hook vetoed it, or there is nothing to roll back to.
    Declined,
    /// The build failed.
    Build,
    /// The candidate couldn't be started.
    Start,
    /// The candidate failed its health checks.
    Unhealthy,
    /// uh-proxy refused, or didn't answer.
    Refused,
    /// The routing was changed by another command.
    Overtaken,
    /// uh-deploy was stopped or killed.
    Interrupted,
    /// The candidate died after the switch.
    Died,
    /// The candidate's trial found it worse than the active version, or it ended or became unhealthy during it.
    Worse,
    /// Its trial could not decide, and the configuration says to abort then.
    Undecided,
    /// An operator aborted its trial.
    Aborted,
}

impl FailureCause {
    /// Whether a candidate that turns out to be active may be so by this operation's own switch.
    fn may_be_ours(self) -> bool {
        !matches!(self, Self::Died | Self::Overtaken | Self::Worse | Self::Undecided | Self::Aborted)
    }
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The new version serves.
    Deployed,
    /// What served before serves again, as requested.
    RolledBack,
    /// Nothing has changed: the old version serves, and the candidate was removed.
    Failed(FailureCause),
    /// The new version served and died; the old one serves again.
    Returned,
    /// Traffic was switched, and has been switched again since.
    Superseded,
    /// Manual intervention is required.
    Attention,
    /// The trial waits for an operator. The operation hasn't ended.
    Held,
}

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing has begun.
    Idle,
    /// The candidate is being built.
    Building,
    /// The target of a rollback is being checked.
    Checking,
    /// The candidate is being started.
    Starting(OperationKind),
    /// The candidate is in the health gate.
    Probing(OperationKind),
    /// Some clients get the candidate: this step of its trial, by its index.
    Trying(u8),
    /// Its trial was stopped at this step, and an operator decides.
    Held(u8),
    /// Traffic is being moved to it.
    Switching(OperationTarget),
    /// Traffic has moved; the old backend drains, and the candidate is watched.
    Draining(OperationTarget),
    /// A rollback has moved traffic; its target is watched.
    Settling(OperationTarget),
    /// Traffic is being moved back.
    Returning(OperationTarget),
    /// What this operation started is being stopped.
    Undoing(OperationTarget, FailureCause),
    /// uh-proxy is asked once more which backend serves. If it agrees, this is the outcome.
    Confirming(Outcome),
    /// The outcome is being recorded.
    Recording(Outcome),
    /// Nothing is left to do.
    Done(Outcome),
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The operation has started.
    Begun(OperationKind),
    /// The candidate is built and frozen.
    Built,
    /// The target of a rollback is alive.
    Alive,
    /// The target of a rollback isn't running.
    Gone,
    /// The candidate runs.
    Started,
    /// The candidate is healthy and reports the right identity.
    Proven,
    /// The step of the trial with this index may begin. The first one also means that the candidate is proven.
    Step(u8),
    /// The trial has passed, or an operator ended it.
    Passed,
    /// The trial has to wait for an operator.
    Held,
    /// Traffic goes to the candidate.
    Switched,
    /// The old backend has drained, or the time limit for that is over.
    Drained,
    /// The target of a rollback has kept running for the settle time.
    Settled,
    /// The candidate exited after the switch.
    Died,
    /// Traffic goes to the old backend again.
    Returned,
    /// What this operation started was stopped.
    Undone,
    /// The candidate turned out to be active, so it isn't stopped.
    Serves,
    /// uh-proxy confirms that the right backend serves.
    Confirmed,
    /// Traffic has been switched again since.
    Superseded,
    /// uh-proxy has lost the switch: it was restarted before the switch was on disk.
    Lost,
    /// The outcome is recorded.
    Recorded,
    /// An effect failed.
    Failed(FailureCause),
    /// uh-deploy continues after it was stopped or killed.
    Interrupted,
}

/// An action. Every effect can safely be performed twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Run the `pre_deploy` hook, build, freeze. → `Built`
    Build,
    /// Probe the target of a rollback. → `Alive`, `Gone`
    Check,
    /// Stop and remove whatever else runs as the candidate's backend.
    Clear,
    /// Put the candidate's files where uh-proxy serves them.
    Publish,
    /// Start the candidate. → `Started`
    Start,
    /// Run the health gate. → `Proven`, or with a trial `Step(0)`
    Prove,
    /// Register the candidate's endpoints and version with uh-proxy.
    Register,
    /// Register the target of a rollback again if it was withdrawn but not stopped.
    Readmit,
    /// Give the candidate this step's share of the clients, and wait for what its trial says. → `Step`, `Passed`, `Held`
    Try(u8),
    /// Leave the split as it is until an operator decides. The command ends.
    Hold(u8),
    /// Move traffic. → `Switched`
    Switch,
    /// Make the candidate's record its backend's.
    Commit,
    /// Drain the old backend, and watch the candidate. → `Drained`, `Died`
    Drain,
    /// Watch the target of a rollback. → `Settled`, `Died`
    Settle,
    /// Move traffic back. → `Returned`
    SwitchBack,
    /// Withdraw the candidate from uh-proxy, and stop it if this operation started it. → `Undone`, `Serves`
    Undo(OperationTarget),
    /// Check once more which backend serves. → `Confirmed`, `Superseded`, `Lost`
    Confirm(Outcome),
    /// Write the outcome to the history, and notify the hook and the webhook. → `Recorded`
    Record(Outcome),
}

impl Effect {
    /// Its name, for timings and fault points.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Check => "check",
            Self::Clear => "clear",
            Self::Publish => "publish",
            Self::Start => "start",
            Self::Prove => "prove",
            Self::Register => "register",
            Self::Readmit => "readmit",
            Self::Try(_) => "try",
            Self::Hold(_) => "hold",
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

/// An event that can't happen in a phase: a damaged journal, or a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} can't happen in phase {phase:?}")]
pub(crate) struct IllegalEvent {
    phase: Phase,
    event: Event,
}

/// The next phase after an event, and its effects in order. The first effect that results in an event ends the phase.
///
/// # Errors
/// The event can't happen in this phase.
pub(crate) fn step(phase: Phase, event: Event) -> Result<(Phase, Vec<Effect>), IllegalEvent> {
    let next = match (phase, event) {
        (Phase::Idle, Event::Begun(OperationKind::Deploy)) => Phase::Building,
        (Phase::Idle, Event::Begun(OperationKind::Rollback)) => Phase::Checking,
        (Phase::Building, Event::Built) => Phase::Starting(OperationKind::Deploy),
        (Phase::Checking, Event::Gone) => Phase::Starting(OperationKind::Rollback),
        (Phase::Checking, Event::Alive) => Phase::Switching(FOUND),
        (Phase::Starting(kind), Event::Started) => Phase::Probing(kind),
        (Phase::Probing(kind), Event::Proven) => Phase::Switching(ours(kind)),
        (Phase::Probing(OperationKind::Deploy), Event::Step(0)) => Phase::Trying(0),
        (Phase::Trying(present), Event::Step(next)) if next.checked_sub(1) == Some(present) => {
            Phase::Trying(next)
        }
        (Phase::Trying(_) | Phase::Held(_), Event::Passed) => Phase::Switching(ours(OperationKind::Deploy)),
        (Phase::Trying(present), Event::Held) => Phase::Held(present),
        (Phase::Held(_), Event::Interrupted) => phase,
        (Phase::Switching(target), Event::Switched) => after_switch(target),
        (Phase::Draining(_), Event::Drained) => Phase::Confirming(Outcome::Deployed),
        (Phase::Settling(_), Event::Settled) => Phase::Confirming(Outcome::RolledBack),
        (Phase::Draining(target) | Phase::Settling(target), Event::Died) => Phase::Returning(target),
        (Phase::Returning(target), Event::Returned) => Phase::Undoing(target, FailureCause::Died),
        (Phase::Undoing(_, FailureCause::Died), Event::Undone) => Phase::Confirming(Outcome::Returned),
        (Phase::Undoing(_, failure), Event::Undone) => Phase::Confirming(Outcome::Failed(failure)),
        // An unanswered switch was carried out after all. If our candidate serves for another reason, manual intervention
        // is required.
        (Phase::Undoing(_, failure), Event::Serves) if !failure.may_be_ours() => {
            Phase::Recording(Outcome::Attention)
        }
        (Phase::Undoing(target, _), Event::Serves) => after_switch(target),
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
            undoing(phase, FailureCause::Interrupted).ok_or(IllegalEvent { phase, event })?
        }
        _ => return Err(IllegalEvent { phase, event }),
    };
    Ok((next, effects(next)))
}

const FOUND: OperationTarget =
    OperationTarget { kind: OperationKind::Rollback, origin: InstanceOrigin::Found };

fn ours(kind: OperationKind) -> OperationTarget {
    OperationTarget { kind, origin: InstanceOrigin::Ours }
}

/// A rollback is an emergency: it doesn't wait for exchanges, but its target must stay alive like a candidate.
fn after_switch(target: OperationTarget) -> Phase {
    match target.kind {
        OperationKind::Deploy => Phase::Draining(target),
        OperationKind::Rollback => Phase::Settling(target),
    }
}

fn undoing(phase: Phase, failure: FailureCause) -> Option<Phase> {
    let target = match phase {
        Phase::Building | Phase::Trying(_) | Phase::Held(_) => ours(OperationKind::Deploy),
        Phase::Checking => FOUND,
        Phase::Starting(kind) | Phase::Probing(kind) => ours(kind),
        Phase::Switching(target) => target,
        _ => return None,
    };
    Some(Phase::Undoing(target, failure))
}

fn effects(phase: Phase) -> Vec<Effect> {
    match phase {
        Phase::Idle | Phase::Done(_) => vec![],
        Phase::Building => vec![Effect::Build],
        Phase::Checking => vec![Effect::Check],
        Phase::Starting(_) => vec![Effect::Clear, Effect::Publish, Effect::Start],
        Phase::Probing(_) => vec![Effect::Prove],
        Phase::Trying(0) => vec![Effect::Register, Effect::Try(0)],
        Phase::Trying(step) => vec![Effect::Try(step)],
        Phase::Held(step) => vec![Effect::Hold(step)],
        Phase::Switching(OperationTarget { origin: InstanceOrigin::Ours, .. }) => {
            vec![Effect::Register, Effect::Switch]
        }
        Phase::Switching(OperationTarget { origin: InstanceOrigin::Found, .. }) => {
            vec![Effect::Readmit, Effect::Switch]
        }
        Phase::Draining(_) => vec![Effect::Drain],
        Phase::Settling(_) => vec![Effect::Settle],
        Phase::Returning(_) => vec![Effect::SwitchBack],
        Phase::Undoing(target, _) => vec![Effect::Undo(target)],
        // Only an instance that has stayed alive becomes its backend's record.
        Phase::Confirming(outcome @ (Outcome::Deployed | Outcome::RolledBack)) => {
            vec![Effect::Commit, Effect::Confirm(outcome)]
        }
        Phase::Confirming(outcome) => vec![Effect::Confirm(outcome)],
        Phase::Recording(outcome) => vec![Effect::Record(outcome)],
    }
}

/// What an operation was doing, for messages.
#[must_use]
pub(crate) fn doing(phase: Phase) -> &'static str {
    match phase {
        Phase::Idle => "starting",
        Phase::Building => "building",
        Phase::Checking => "checking the rollback target",
        Phase::Starting(_) => "starting the candidate",
        Phase::Probing(_) => "waiting for health checks",
        Phase::Trying(_) => "trying the candidate on some clients",
        Phase::Held(_) => "holding the trial of the candidate",
        Phase::Switching(_) => "switching traffic",
        Phase::Draining(_) => "draining the old backend",
        Phase::Settling(_) => "watching the rollback target",
        Phase::Returning(_) => "moving traffic back",
        Phase::Undoing(..) => "undoing its changes",
        Phase::Confirming(_) => "checking which backend serves",
        Phase::Recording(_) => "writing the history",
        Phase::Done(_) => "done",
    }
}

#[cfg(test)]
mod tests;
