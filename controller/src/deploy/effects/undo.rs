//! The effect that ends a deploy which did not come to a switch: nothing of the candidate is left.

use crate::deploy::driver::Driver;
use crate::deploy::machine::{Course, Event, Failure, Origin};
use crate::fault;
use crate::front::FrontError;
use crate::runtime;

/// How often undoing starts over because the routing changes under it.
const UNDO_ROUNDS: u32 = 5;

impl Driver<'_> {
    /// After this the candidate gets no traffic and is gone; or it turns out that it does get traffic. A switch that
    /// was sent and never answered may still be under way: to withdraw the candidate is a change of routing too, so
    /// after that such a switch no longer finds the generation that it expects.
    pub(super) async fn undo(&mut self, course: Course) -> Event {
        if course.origin == Origin::Found {
            match self.front.view().await {
                Ok(view) if view.is_active(&self.facts.to) => return Event::Serves,
                Ok(_) => {}
                Err(e) => return self.refused(&e),
            }
            // It may have been found dead, and its record be proposed for a new start.
            return self.forget_candidate();
        }
        let instance = self.facts.instance.clone();
        if !matches!(self.runtime.state(&instance).await, Ok(runtime::State::Absent)) {
            match self.withdraw().await {
                Ok(None) => {}
                Ok(Some(event)) => return event,
                Err(e) => return self.refused(&e),
            }
        }
        fault::point("effect.undo.withdrawn");
        let timeout = self.config.deploy.stop_timeout;
        if let Err(e) = self.runtime.stop(&instance, timeout).await {
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

    async fn withdraw(&self) -> Result<Option<Event>, FrontError> {
        let facts = &self.facts;
        for _ in 0..UNDO_ROUNDS {
            let view = self.front.view().await?;
            if !view.has_endpoints(&facts.to, &facts.endpoints) {
                return Ok(None);
            }
            if view.is_active(&facts.to) {
                return Ok(Some(Event::Serves));
            }
            let registered = view.backend(&facts.to).and_then(|backend| backend.version.clone());
            if registered.is_none() || registered != facts.version {
                return Ok(None);
            }
            match self.front.register(&facts.to, &facts.endpoints, None, view.generation).await {
                Ok(_) => return Ok(None),
                Err(e) if e.is_overtaken() => {}
                Err(e) => return Err(e),
            }
        }
        Err(FrontError::Overtaken("the routing changes faster than it can be read".to_owned()))
    }
}
