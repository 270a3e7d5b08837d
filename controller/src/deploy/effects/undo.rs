//! The effect that ends a deploy which did not come to a switch: nothing of the candidate is left.

use crate::deploy::driver::Driver;
use crate::deploy::machine::{Course, Event, Failure, Origin};
use crate::fault;
use crate::front::{FrontError, OutOfService};
use crate::runtime;

/// How often undoing starts over because the routing changes under it.
const UNDO_ROUNDS: u32 = 5;

/// What undoing has found.
enum Found {
    /// The candidate gets traffic.
    Serves,
    /// It gets none, and can't.
    Out(OutOfService),
}

impl Driver<'_> {
    /// After this the candidate gets no traffic and is gone; or it turns out that it does get traffic. A switch that
    /// was sent and never answered may still be under way: after the candidate is withdrawn, it is refused.
    ///
    /// `None`: the front door does not answer, and nobody else knows. Then nothing is stopped, and the journal is left
    /// as it is, for `recover` to go on from. But where no change of routing was ever sent for the candidate, which was
    /// withdrawn before its start, there is nothing to ask.
    pub(super) async fn undo(&mut self, course: Course) -> Option<Event> {
        match self.try_to_undo(course).await {
            Ok(event) => Some(event),
            Err(error) if error.is_unanswered() && !self.may_serve => {
                let generation = self.tally.generation.unwrap_or(self.facts.generation);
                let out = OutOfService::since_before_its_start(&self.facts.to, generation);
                Some(self.undo_out_of_service(course, &out).await)
            }
            Err(error) if error.is_unanswered() => {
                self.unanswered = Some(error);
                None
            }
            Err(error) => Some(self.refused(&error)),
        }
    }

    async fn try_to_undo(&mut self, course: Course) -> Result<Event, FrontError> {
        if course.origin == Origin::Found {
            if self.front.view_soon().await?.is_active(&self.facts.to) {
                return Ok(Event::Serves);
            }
            // It may have been found dead, and its record be proposed for a new start.
            return Ok(self.forget_candidate());
        }
        if matches!(self.runtime.state(&self.facts.instance).await, Ok(runtime::State::Absent)) {
            // Stop it anyway: a killed controller may have been about to start it.
            let out = OutOfService::since_before_its_start(&self.facts.to, self.facts.generation);
            return Ok(self.undo_out_of_service(course, &out).await);
        }
        match self.take_candidate_out().await? {
            Found::Serves => Ok(Event::Serves),
            Found::Out(out) => Ok(self.undo_out_of_service(course, &out).await),
        }
    }

    async fn undo_out_of_service(&mut self, course: Course, out: &OutOfService) -> Event {
        fault::point("effect.undo.withdrawn");
        if course.origin == Origin::Found {
            return self.forget_candidate();
        }
        let instance = self.facts.instance.clone();
        let runs = self.runtime.state(&instance).await.is_ok_and(|state| state.is_running());
        if self.facts.keep_failed && runs {
            self.tally.remarks.push(format!("{instance} was left running, out of service (--keep-failed)"));
            return self.forget_candidate();
        }
        let timeout = self.config.deploy.stop_timeout;
        if let Err(e) = out.stop(self.runtime, &instance, timeout).await {
            return self.runtime_failed(Failure::Start, &e);
        }
        fault::point("effect.undo.stopped");
        self.forget_candidate()
    }

    fn forget_candidate(&mut self) -> Event {
        match self.records.withdraw(&self.facts.operation) {
            Ok(()) => Event::Undone,
            Err(e) => self.fail(Failure::Start, format!("cannot remove the candidate's record: {e}")),
        }
    }

    async fn take_candidate_out(&self) -> Result<Found, FrontError> {
        let facts = &self.facts;
        for _ in 0..UNDO_ROUNDS {
            let view = self.front.view_soon().await?;
            if let Some(out) = OutOfService::elsewhere(&view, &facts.to, &facts.endpoints) {
                return Ok(Found::Out(out));
            }
            if view.is_active(&facts.to) {
                return Ok(Found::Serves);
            }
            match OutOfService::withdraw(self.front, &facts.to, view.generation, self.report).await {
                Ok(out) => {
                    out.drain(self.front, self.config.deploy.drain_timeout, self.report).await?;
                    return Ok(Found::Out(out));
                }
                Err(e) if e.is_overtaken() => {}
                Err(e) => return Err(e),
            }
        }
        Err(FrontError::Overtaken("the routing changes faster than it can be read".to_owned()))
    }
}
