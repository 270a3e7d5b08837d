//! Performs the effects that the state machine decides on, one at a time, and records every event before it acts on
//! it. An operation has one member, or several: then each effect is that of all of them.

mod together;

use std::time::Instant;

use super::journal::{Journal, JournalError, ReplayedOperation};
use super::machine::{Effect, Event, FailureCause, IllegalEvent, OperationKind, Outcome, Phase, step};
use super::member::{Member, OperationEnd};
use crate::fault;
use crate::proxy::{ExpectedRouting, ProxyError};

/// Whether the operation's trial was under way, or its verdict was known but not recorded.
fn was_trying(replayed: &ReplayedOperation) -> bool {
    match replayed.phase {
        Phase::Trying(_) => true,
        Phase::Undoing(_, cause) => cause == FailureCause::Worse,
        _ => false,
    }
}

/// Runs one operation to its end.
pub(crate) struct Driver<'a> {
    journal: Journal,
    /// At least one.
    members: Vec<Member<'a>>,
}

/// Why an operation couldn't continue. The journal says what may be left to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// The journal can't be written, and nothing may be done that it doesn't record.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The same for the first entry: nothing was done.
    #[error(transparent)]
    NotBegun(JournalError),
    /// uh-proxy doesn't answer, and only it knows whether the candidate may be stopped.
    #[error(transparent)]
    Unanswered(#[from] ProxyError),
    /// A bug in uh-deploy.
    #[error("internal error: {0}")]
    Illegal(#[from] IllegalEvent),
    /// A bug in uh-deploy.
    #[error("internal error: there is no next step after {0:?}")]
    Stuck(Phase),
}

impl<'a> Driver<'a> {
    /// A driver for a new operation, or for one to recover. `members`: at least one.
    #[must_use]
    pub(crate) fn new(journal: Journal, members: Vec<Member<'a>>) -> Self {
        Self { journal, members }
    }

    /// Runs a new operation. `expected_routing`: what must not change until the switch, for each member.
    ///
    /// # Errors
    /// The journal can't be written, or uh-proxy doesn't answer and the changes can't be undone without it.
    pub(crate) async fn run(
        &mut self,
        kind: OperationKind,
        expected_routing: Vec<ExpectedRouting>,
    ) -> Result<Outcome, DriverError> {
        for (member, expected_routing) in self.members.iter_mut().zip(expected_routing) {
            member.begin(kind, expected_routing).await;
        }
        self.follow(Phase::Idle, Event::Begun(kind)).await
    }

    /// Finishes an interrupted operation if traffic has moved, and undoes it otherwise.
    ///
    /// # Errors
    /// The journal can't be written, or uh-proxy doesn't answer.
    pub(crate) async fn recover(&mut self, replayed: &ReplayedOperation) -> Result<Outcome, DriverError> {
        if let Phase::Done(outcome) = replayed.phase {
            return Ok(outcome);
        }
        for member in &mut self.members {
            member.resume(replayed);
            if was_trying(replayed) {
                member.worse_meanwhile(replayed.step).await;
            }
        }
        self.follow(replayed.phase, Event::Interrupted).await
    }

    /// Continues an operation whose trial waits for an operator, or lost its process, by what an operator has decided.
    ///
    /// # Errors
    /// The journal can't be written, or uh-proxy doesn't answer.
    pub(crate) async fn decide(
        &mut self,
        replayed: &ReplayedOperation,
        event: Event,
        by: &str,
        expected_routing: ExpectedRouting,
    ) -> Result<Outcome, DriverError> {
        for member in &mut self.members {
            member.decided(replayed, by, expected_routing.clone());
        }
        self.follow(replayed.phase, event).await
    }

    /// How it ended, for the report, for each member.
    #[must_use]
    pub(crate) fn ended(self, outcome: Outcome) -> Vec<OperationEnd> {
        self.members.into_iter().map(|member| member.ended(outcome)).collect()
    }

    async fn follow(&mut self, mut phase: Phase, mut event: Event) -> Result<Outcome, DriverError> {
        loop {
            let (next, effects) = step(phase, event)?;
            self.write(event)?;
            phase = next;
            if let Phase::Done(outcome) = phase {
                return Ok(outcome);
            }
            event = match self.perform(&effects).await {
                Some(event) => event,
                None if matches!(phase, Phase::Held(_))
                    && self.members.iter().all(|member| member.unanswered.is_none()) =>
                {
                    return Ok(Outcome::Held);
                }
                None => {
                    let unanswered = self.members.iter_mut().find_map(|member| member.unanswered.take());
                    return Err(unanswered.map_or(DriverError::Stuck(phase), Into::into));
                }
            };
        }
    }

    fn write(&mut self, event: Event) -> Result<(), DriverError> {
        let begins = matches!(event, Event::Begun(_));
        let has_reason = matches!(event, Event::Failed(_) | Event::Died | Event::Held);
        let reasons = self.members.iter().filter_map(|member| member.results.reason.clone());
        let note = has_reason.then(|| reasons.collect::<Vec<_>>().join("; ")).filter(|note| !note.is_empty());
        let Some(first) = self.members.first() else { return Ok(()) };
        let facts: Vec<_> = self.members.iter().filter(|_| begins).map(|member| &member.facts).collect();
        let written = self.journal.write(&first.facts.operation, event, &facts, note);
        written.map_err(|e| if begins { DriverError::NotBegun(e) } else { e.into() })
    }

    async fn perform(&mut self, effects: &[Effect]) -> Option<Event> {
        for effect in effects {
            let name = effect.name();
            fault::point(&format!("effect.{name}.before"));
            let start = Instant::now();
            let event = self.effect(*effect).await;
            let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            for member in &mut self.members {
                *member.results.timings_ms.entry(name.to_owned()).or_default() += took;
            }
            fault::point(&format!("effect.{name}.after"));
            if event.is_some() {
                return event;
            }
        }
        None
    }

    async fn effect(&mut self, effect: Effect) -> Option<Event> {
        match self.members.as_mut_slice() {
            [only] => only.effect(effect).await,
            several => together::effect(several, effect).await,
        }
    }
}
