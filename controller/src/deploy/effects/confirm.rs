//! The final look at uh-proxy. That an operation has switched doesn't mean that its target still serves at the end:
//! traffic may have been switched again, and a restarted uh-proxy may have lost the switch.

use crate::deploy::machine::{Event, Outcome};
use crate::deploy::member::Member;
use crate::proxy::ServiceView;
use crate::time::same_switch;

impl Member<'_> {
    /// `None`: uh-proxy doesn't answer, so the active backend is unknown. The journal stays as it is, for `recover`
    /// to continue.
    pub(super) async fn confirm(&mut self, outcome: Outcome) -> Option<Event> {
        let untouched = matches!(outcome, Outcome::Failed(_)) && !self.may_serve;
        let serving = if untouched { self.proxy.serving().await } else { self.proxy.serving_soon().await };
        let serving = match serving {
            Ok(serving) => serving,
            Err(error) if error.is_unanswered() && untouched => {
                self.results.remarks.push("uh-proxy didn't answer at the end".to_owned());
                return Some(Event::Confirmed);
            }
            Err(error) if error.is_unanswered() => {
                self.unanswered = Some(error);
                return None;
            }
            Err(error) => return Some(self.refused(&error)),
        };
        let event = self.judge(outcome, serving.view());
        let sentence = serving.sentence();
        match event {
            Event::Superseded => {
                let why = format!("superseded: traffic was switched again; {sentence}");
                self.results.reason = Some(why);
            }
            Event::Lost => {
                let why = format!(
                    "uh-proxy was restarted before the switch to {} was on disk, so the switch is lost; {sentence}",
                    self.facts.to
                );
                self.results.reason = Some(why);
            }
            _ => {}
        }
        self.serving = Some(serving);
        Some(event)
    }

    fn judge(&self, outcome: Outcome, view: &ServiceView) -> Event {
        let facts = &self.facts;
        let holds = match outcome {
            // Another deploy may have started another instance of this backend.
            Outcome::Deployed => view.is_active(&facts.to) && view.has_endpoints(&facts.to, &facts.endpoints),
            Outcome::RolledBack => view.is_active(&facts.to),
            Outcome::Returned => view.is_active(&facts.from),
            Outcome::Failed(_) | Outcome::Superseded | Outcome::Attention | Outcome::Held => true,
        };
        let moved = matches!(outcome, Outcome::Deployed | Outcome::RolledBack);
        match (holds, moved && self.was_forgotten(view)) {
            (true, _) => Event::Confirmed,
            (false, true) => Event::Lost,
            (false, false) => Event::Superseded,
        }
    }

    /// Whether uh-proxy's state is as if the switch had never happened.
    fn was_forgotten(&self, view: &ServiceView) -> bool {
        let Some(switched) = &self.results.switched else {
            // In a recovery: registering and switching each increased the generation, but so do other services, and
            // the registration may be on disk. The time of the last switch belongs to this service alone.
            let now = view.service.last_switch.as_deref();
            return view.generation <= self.facts.generation
                || same_switch(now, self.facts.last_switch.as_deref());
        };
        let proxy = &view.status.proxy;
        // One second of tolerance: uptimes are whole seconds.
        let restarted = proxy.pid != switched.pid || proxy.uptime_s + 1 < switched.at.elapsed().as_secs();
        view.generation < switched.generation || (restarted && !switched.persisted)
    }
}
