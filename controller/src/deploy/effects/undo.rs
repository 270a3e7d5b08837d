//! The effect that ends a deploy which did not come to a switch: nothing of the candidate is left.

use std::time::{Duration, Instant};

use crate::deploy::driver::Driver;
use crate::deploy::machine::{Course, Event, Failure, Origin};
use crate::fault;
use crate::front::{FrontError, View};
use crate::runtime;

/// How often undoing starts over because the routing changes under it.
const UNDO_ROUNDS: u32 = 5;

/// How long a front door that does not answer is waited for: a restart takes two seconds, in a container too.
const FRONT_WITHIN: Duration = Duration::from_secs(10);

/// How often it is asked.
const FRONT_POLL: Duration = Duration::from_millis(100);

impl Driver<'_> {
    /// After this the candidate gets no traffic and is gone; or it turns out that it does get traffic. A switch that
    /// was sent and never answered may still be under way: to withdraw the candidate is a change of routing too, so
    /// after that such a switch no longer finds the generation that it expects.
    ///
    /// `None`: the front door does not answer, and nobody else knows. Then nothing is stopped, and the journal is left
    /// as it is, for `recover` to go on from.
    pub(super) async fn undo(&mut self, course: Course) -> Option<Event> {
        match self.try_to_undo(course).await {
            Ok(event) => Some(event),
            Err(error) if error.is_unanswered() => {
                self.unanswered = Some(error);
                None
            }
            Err(error) => Some(self.refused(&error)),
        }
    }

    async fn try_to_undo(&mut self, course: Course) -> Result<Event, FrontError> {
        if course.origin == Origin::Found {
            if self.view_soon().await?.is_active(&self.facts.to) {
                return Ok(Event::Serves);
            }
            // It may have been found dead, and its record be proposed for a new start.
            return Ok(self.forget_candidate());
        }
        let instance = self.facts.instance.clone();
        if !matches!(self.runtime.state(&instance).await, Ok(runtime::State::Absent))
            && let Some(event) = self.withdraw().await?
        {
            return Ok(event);
        }
        fault::point("effect.undo.withdrawn");
        let timeout = self.config.deploy.stop_timeout;
        if let Err(e) = self.runtime.stop(&instance, timeout).await {
            return Ok(self.runtime_failed(Failure::Start, &e));
        }
        fault::point("effect.undo.stopped");
        Ok(self.forget_candidate())
    }

    fn forget_candidate(&mut self) -> Event {
        match self.records.withdraw(&self.facts.operation) {
            Ok(()) => Event::Undone,
            Err(e) => self.fail(Failure::Start, format!("cannot remove the candidate's record: {e}")),
        }
    }

    /// A front door that is being restarted is waited for.
    pub(super) async fn view_soon(&self) -> Result<View, FrontError> {
        let deadline = Instant::now() + FRONT_WITHIN;
        loop {
            match self.front.view().await {
                Err(error) if error.is_unanswered() && Instant::now() < deadline => {
                    tokio::time::sleep(FRONT_POLL).await;
                }
                other => return other,
            }
        }
    }

    async fn withdraw(&self) -> Result<Option<Event>, FrontError> {
        let facts = &self.facts;
        for _ in 0..UNDO_ROUNDS {
            let view = self.view_soon().await?;
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
