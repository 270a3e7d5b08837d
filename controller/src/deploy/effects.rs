//! The effects, one function for each. Each can safely be performed twice, because after a crash it is unknown how
//! far the first attempt got.

mod assets;
mod candidate;
mod confirm;
mod drain;
mod hold;
pub(super) mod traffic;
mod trial;
mod undo;

use serde_json::Value;

use super::facts::OperationFacts;
use super::machine::{Effect, Event, FailureCause, OperationKind, Outcome};
use super::member::Member;
use super::progress::{DeployStage, Progress, RollbackStage};
use crate::command::CommandFailed;
use crate::gate::Diagnosis;
use crate::notice::{self, Hook};
use crate::proxy::ProxyError;
use crate::runtime::{self, RuntimeError};
use crate::{chain, fault};

impl Member<'_> {
    pub(super) async fn effect(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Build => Some(self.build().await),
            Effect::Check => Some(self.check().await),
            Effect::Clear => self.clear().await,
            Effect::Publish => self.publish().await,
            Effect::Start => Some(self.start().await),
            Effect::Prove => Some(self.prove().await),
            Effect::Register => self.register().await,
            Effect::Readmit => self.readmit().await,
            Effect::Try(step) => Some(self.try_step(step).await),
            Effect::Hold(step) => self.hold(step).await,
            Effect::Switch => Some(self.switch().await),
            Effect::Commit => self.commit(),
            Effect::Drain => Some(self.drain().await),
            Effect::Settle => Some(self.settle().await),
            Effect::SwitchBack => self.switch_back().await,
            Effect::Undo(target) => self.undo(target).await,
            Effect::Confirm(outcome) => self.confirm(outcome).await,
            Effect::Record(outcome) => Some(self.record(outcome).await),
        }
    }

    pub(super) fn fail(&mut self, failure: FailureCause, reason: impl Into<String>) -> Event {
        self.results.reason = Some(reason.into());
        Event::Failed(failure)
    }

    /// Fails, and reports the reason, which no diagnosis does.
    fn fail_aloud(&mut self, failure: FailureCause, reason: impl Into<String>) -> Event {
        let reason = reason.into();
        self.tell(Progress::Failed { reason: &reason, log: &[] });
        self.fail(failure, reason)
    }

    fn turned_away(&mut self, diagnosis: &Diagnosis) -> Event {
        self.tell(Progress::TurnedAway(diagnosis));
        self.fail(FailureCause::Unhealthy, diagnosis.headline.clone())
    }

    pub(super) fn refused(&mut self, error: &ProxyError) -> Event {
        let failure = if error.is_overtaken() { FailureCause::Overtaken } else { FailureCause::Refused };
        let superseded = if error.is_overtaken() { "superseded by a newer change: " } else { "" };
        self.fail_aloud(failure, format!("{superseded}{}", chain(error)))
    }

    fn runtime_failed(&mut self, failure: FailureCause, error: &RuntimeError) -> Event {
        self.tell(Progress::RuntimeFailed(error));
        self.fail(failure, chain(error))
    }

    fn candidate(&self) -> runtime::Candidate {
        runtime::Candidate {
            service: self.facts.service.clone(),
            backend: self.facts.to.clone(),
            version: self.facts.version_or_unknown().to_owned(),
            endpoints: self.facts.endpoints.clone(),
        }
    }

    /// Enables restarts of the instance, which is now its backend's.
    async fn keep_running(&mut self) {
        let kept = match self.records.of(&self.facts.to) {
            Ok(Some(record)) => self.runtime.keep_running(&record.instance).await.map_err(|e| chain(&e)),
            Ok(None) => Ok(()),
            Err(e) => Err(e.to_string()),
        };
        if let Err(reason) = kept {
            self.tell(Progress::NotKeptRunning { backend: &self.facts.to, reason: &reason });
            self.results.remarks.push(format!("it won't be restarted when it exits: {reason}"));
        }
    }

    /// A failed operation may still leave its candidate active. Users get that instance, so it is restarted when it
    /// exits, and started after a reboot.
    async fn adopt(&mut self) {
        let Ok(view) = self.proxy.view().await else { return };
        let OperationFacts { to, endpoints, operation, version, .. } = &self.facts;
        if !view.is_active(to) || !view.has_endpoints(to, endpoints) {
            return;
        }
        // At the same endpoints, it may be what was there before the candidate, which was never registered then.
        let is_candidate = version.is_none() || view.version(to) == *version;
        if is_candidate && let Err(e) = self.records.commit(operation) {
            self.tell(Progress::RecordUnwritten { backend: to, error: &e });
        }
        self.keep_running().await;
        let Ok(Some(record)) = self.records.of(&self.facts.to) else { return };
        if self.runtime.state(&record.instance).await.is_ok_and(|state| !state.is_running()) {
            let why =
                format!("{} is active but isn't running; start it with `uh-deploy start`", record.instance);
            self.remark(why);
        }
    }

    /// Reports a warning that the history keeps.
    fn remark(&mut self, why: String) {
        self.tell(Progress::Remark(&why));
        self.results.remarks.push(why);
    }

    async fn hook(&self, hook: Hook, event: &Value) -> Result<(), CommandFailed> {
        notice::hook(self.config, hook, event, &|progress| self.tell(Progress::Hook(progress))).await
    }

    async fn record(&mut self, outcome: Outcome) -> Event {
        match outcome {
            Outcome::Deployed | Outcome::RolledBack => self.keep_running().await,
            Outcome::Superseded | Outcome::Attention => self.adopt().await,
            Outcome::Failed(_) | Outcome::Returned | Outcome::Held => {}
        }
        self.measure_downtime().await;
        match (self.kind, outcome) {
            (OperationKind::Deploy, Outcome::Deployed) => self.tell(Progress::Deploying(DeployStage::Record)),
            (OperationKind::Rollback, Outcome::RolledBack) => {
                self.tell(Progress::RollingBack { stage: RollbackStage::Record, to: &self.facts.to });
            }
            _ => {}
        }
        if let Some(serving) = self.serving.as_ref().filter(|_| outcome != Outcome::Attention) {
            match (self.kind, outcome) {
                (OperationKind::Deploy, Outcome::Deployed) => self.tell(Progress::Deployed(serving)),
                (OperationKind::Rollback, Outcome::RolledBack) => {
                    let undone = (&self.facts.from, self.facts.from_version.as_deref());
                    self.tell(Progress::RolledBack { serving, undone });
                }
                _ => {}
            }
            let warnings = serving.warnings();
            warnings.iter().for_each(|warning| self.tell(Progress::Remark(warning)));
            self.results.remarks.extend(warnings);
        }
        let line = self.line(outcome);
        if let Err(e) = self.history.append(&line) {
            self.tell(Progress::HistoryUnwritten(&e));
        }
        fault::point("effect.record.written");
        let hook = match outcome {
            Outcome::Deployed => None,
            Outcome::RolledBack | Outcome::Returned => Some(Hook::OnRollback),
            Outcome::Failed(_) | Outcome::Superseded | Outcome::Attention | Outcome::Held => {
                Some(Hook::OnFailure)
            }
        };
        let event = serde_json::json!({"outcome": line});
        if let Some(hook) = hook
            && let Err(e) = self.hook(hook, &event).await
        {
            self.tell(Progress::HookFailed { hook, reason: &e.reason });
        }
        if let Err(e) = notice::webhook(&self.config.notice, &event).await {
            self.tell(Progress::WebhookFailed(&e));
        }
        self.tell(Progress::Outcome(&line));
        Event::Recorded
    }
}
