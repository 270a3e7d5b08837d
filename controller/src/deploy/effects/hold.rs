//! What follows a trial without a promotion: the effect that holds it for an operator, and the end of its split.

use uh_protocol::request::SplitRequest;
use uh_trial::Weight;

use super::traffic::ELSEWHERE_ROUNDS;
use crate::deploy::machine::{Event, FailureCause, Outcome};
use crate::deploy::member::Member;
use crate::deploy::progress::{Progress, TrialProgress};
use crate::deploy::trial;
use crate::fault;
use crate::names::named;
use crate::notice::{self, Hook};
use crate::proxy::ProxyError;

impl Member<'_> {
    /// Leaves the split as it is, without a lease, if it is still there. `None`: it waits for an operator, or uh-proxy
    /// doesn't answer.
    pub(super) async fn hold(&mut self, index: u8) -> Option<Event> {
        match self.try_to_hold().await {
            Ok(true) => None,
            Ok(false) if self.worse_meanwhile(Some(index)).await => Some(Event::Failed(FailureCause::Worse)),
            Ok(false) => {
                let why = format!(
                    "the split of step {} has ended meanwhile: after services.NAME.split.hold_timeout, because {} was found worse or unhealthy, or by another command",
                    u16::from(index) + 1,
                    self.facts.to
                );
                Some(self.fail_aloud(FailureCause::Undecided, why))
            }
            Err(error) if error.is_unanswered() => {
                self.unanswered = Some(error);
                None
            }
            Err(error) => Some(self.refused(&error)),
        }
    }

    /// Whether uh-proxy has ended the split because the candidate was found worse, while nobody watched: the trial was
    /// held, or uh-deploy was gone. `step`: the one that it was in. Reports the verdict.
    pub(in crate::deploy) async fn worse_meanwhile(&mut self, step: Option<u8>) -> bool {
        let Ok(view) = self.proxy.view().await else { return false };
        let before = self.trial_before.as_ref();
        let found = trial::worse(view.service.trial.as_ref(), &self.facts, before, step);
        let Some(verdict) = found else { return false };
        self.results.reason = Some(verdict.reason.clone());
        self.conclude_worse(verdict).await;
        true
    }

    async fn try_to_hold(&mut self) -> Result<bool, ProxyError> {
        let mut rounds = 0;
        loop {
            let view = self.proxy.view_soon().await?;
            let Some(split) = view.split_to(&self.facts.to).cloned() else { return Ok(false) };
            let until = if split.leased {
                let request = SplitRequest {
                    to: Some(self.facts.to.clone()),
                    weight: split.weight,
                    expect_generation: Some(view.generation),
                    ..SplitRequest::default()
                };
                match self.proxy.split(&request).await {
                    Ok(reply) => reply.split.map(|split| split.until),
                    Err(e) if e.is_overtaken() && rounds < ELSEWHERE_ROUNDS => {
                        rounds += 1;
                        continue;
                    }
                    Err(e) => return Err(e),
                }
            } else {
                Some(split.until.clone())
            };
            fault::point("effect.hold.held");
            let until = until.unwrap_or_default();
            let new = named(&self.facts.to, self.facts.version.as_deref());
            self.tell(Progress::Trial(TrialProgress::Held {
                new: &new,
                weight: split.weight,
                until: &until,
            }));
            if split.leased {
                self.record_hold().await;
            }
            return Ok(true);
        }
    }

    /// The history, the hook and the webhook learn of the hold. The operation's own entry comes with its end.
    async fn record_hold(&mut self) {
        let mut line = self.line(Outcome::Held);
        line.operation = None;
        if let Err(e) = self.history.append(&line) {
            self.tell(Progress::HistoryUnwritten(&e));
        }
        let event = serde_json::json!({"outcome": line});
        if let Err(e) = self.hook(Hook::OnFailure, &event).await {
            self.tell(Progress::HookFailed { hook: Hook::OnFailure, reason: &e.reason });
        }
        if let Err(e) = notice::webhook(&self.config.notice, &event).await {
            self.tell(Progress::WebhookFailed(&e));
        }
        self.tell(Progress::Outcome(&line));
    }

    /// Ends the split of a trial, so that its backend can be withdrawn.
    pub(super) async fn end_split(&mut self) -> Result<(), ProxyError> {
        if self.facts.canary.is_none() || !self.may_serve {
            return Ok(());
        }
        let mut rounds = 0;
        loop {
            let view = self.proxy.view_soon().await?;
            let Some(split) = view.split_to(&self.facts.to) else { return Ok(()) };
            let weight = split.weight;
            let request = SplitRequest {
                to: Some(self.facts.to.clone()),
                weight: Weight::NONE.share(),
                expect_generation: Some(view.generation),
                ..SplitRequest::default()
            };
            match self.proxy.split(&request).await {
                Ok(_) => {
                    let to = self.facts.to.clone();
                    self.tell(Progress::Trial(TrialProgress::SplitEnded { to: &to, weight }));
                    fault::point("effect.undo.split_ended");
                    return Ok(());
                }
                Err(e) if e.is_overtaken() && rounds < ELSEWHERE_ROUNDS => rounds += 1,
                Err(e) => return Err(e),
            }
        }
    }
}
