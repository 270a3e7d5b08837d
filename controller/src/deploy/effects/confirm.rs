//! The final look. What an operation remembers of its own switch says nothing about who serves at its end: somebody may
//! have switched since, and a front door that was restarted may have forgotten it.

use crate::deploy::activation::same_switch;
use crate::deploy::driver::Driver;
use crate::deploy::machine::{Event, Outcome};
use crate::front::View;

impl Driver<'_> {
    /// `None`: the front door does not answer, and nobody else knows who serves. The journal is left as it is, for
    /// `recover` to go on from.
    pub(super) async fn confirm(&mut self, outcome: Outcome) -> Option<Event> {
        let untouched = matches!(outcome, Outcome::Failed(_)) && !self.may_serve;
        let serving = if untouched { self.front.serving().await } else { self.front.serving_soon().await };
        let serving = match serving {
            Ok(serving) => serving,
            Err(error) if error.is_unanswered() && untouched => {
                self.tally.remarks.push("the front door did not answer at the end".to_owned());
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
                let why = format!("superseded: somebody has switched since; {sentence}");
                self.tally.reason = Some(why);
            }
            Event::Lost => {
                let why = format!(
                    "uh-proxy was restarted before the switch to {} was on disk, and has forgotten it; {sentence}",
                    self.facts.to
                );
                self.tally.reason = Some(why);
            }
            _ => {}
        }
        self.serving = Some(serving);
        Some(event)
    }

    fn judge(&self, outcome: Outcome, view: &View) -> Event {
        let facts = &self.facts;
        let holds = match outcome {
            // Another deploy may have given this backend another instance.
            Outcome::Deployed => view.is_active(&facts.to) && view.has_endpoints(&facts.to, &facts.endpoints),
            Outcome::RolledBack => view.is_active(&facts.to),
            Outcome::Returned => view.is_active(&facts.from),
            Outcome::Failed(_) | Outcome::Superseded | Outcome::Attention => true,
        };
        let moved = matches!(outcome, Outcome::Deployed | Outcome::RolledBack);
        match (holds, moved && self.was_forgotten(view)) {
            (true, _) => Event::Confirmed,
            (false, true) => Event::Lost,
            (false, false) => Event::Superseded,
        }
    }

    /// Whether the front door is as if the switch had never been.
    fn was_forgotten(&self, view: &View) -> bool {
        let Some(switched) = &self.tally.switched else {
            // Recovered: registering and switching each made a generation; but others make some too, and what was
            // registered may be on disk. The time of the last switch is this service's alone.
            let now = view.service.last_switch.as_deref();
            return view.generation <= self.facts.generation
                || same_switch(now, self.facts.last_switch.as_deref());
        };
        let proxy = &view.status.proxy;
        // A second of grace: uptimes are whole seconds.
        let restarted = proxy.pid != switched.pid || proxy.uptime_s + 1 < switched.at.elapsed().as_secs();
        view.generation < switched.generation || (restarted && !switched.persisted)
    }
}
