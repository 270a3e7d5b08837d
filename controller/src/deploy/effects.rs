//! The effects, one function for each. Each can safely be performed twice, because after a crash it is unknown how
//! far the first attempt got.

mod candidate;
mod confirm;
mod traffic;
mod undo;

use uh_protocol::Address;

use super::driver::Driver;
use super::facts::OperationFacts;
use super::machine::{Effect, Event, FailureCause, OperationKind, Outcome};
use crate::gate::Diagnosis;
use crate::names::named;
use crate::notice::{self, Hook};
use crate::proxy::ProxyError;
use crate::runtime::{self, RuntimeError};
use crate::{chain, fault};

impl Driver<'_> {
    pub(super) async fn effect(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Build => Some(self.build().await),
            Effect::Check => Some(self.check().await),
            Effect::Clear => self.clear().await,
            Effect::Start => Some(self.start().await),
            Effect::Prove => Some(self.prove().await),
            Effect::Register => self.register().await,
            Effect::Readmit => self.readmit().await,
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

    fn fail(&mut self, failure: FailureCause, reason: impl Into<String>) -> Event {
        self.report.end_progress();
        self.results.reason = Some(reason.into());
        Event::Failed(failure)
    }

    /// Fails, and prints the reason, which no diagnosis does.
    fn fail_aloud(&mut self, failure: FailureCause, reason: impl Into<String>) -> Event {
        let reason = reason.into();
        self.report.say(&format!("❌ {reason}"));
        self.fail(failure, reason)
    }

    fn turned_away(&mut self, diagnosis: &Diagnosis) -> Event {
        diagnosis.show(self.report);
        self.fail(FailureCause::Unhealthy, diagnosis.headline.clone())
    }

    fn refused(&mut self, error: &ProxyError) -> Event {
        let failure = if error.is_overtaken() { FailureCause::Overtaken } else { FailureCause::Refused };
        let superseded = if error.is_overtaken() { "superseded by a newer change: " } else { "" };
        self.fail_aloud(failure, format!("{superseded}{}", chain(error)))
    }

    fn runtime_failed(&mut self, failure: FailureCause, error: &RuntimeError) -> Event {
        let event = self.fail_aloud(failure, chain(error));
        error.log().iter().for_each(|line| self.report.line(&format!("  {line}")));
        if let RuntimeError::PortTaken { .. } = error {
            self.report.line(
                "what to try: stop the process that uses the port, or give the backend another endpoint",
            );
        }
        event
    }

    fn noun(&self) -> &'static str {
        if self.runtime.kind() == "process" { "process" } else { "container" }
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
            self.report.warn(&format!("{} won't be restarted when it exits: {reason}", self.facts.to));
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
            self.report.warn(&format!("can't write the record of {to}: {e}"));
        }
        self.keep_running().await;
        let Ok(Some(record)) = self.records.of(&self.facts.to) else { return };
        if self.runtime.state(&record.instance).await.is_ok_and(|state| !state.is_running()) {
            let why =
                format!("{} is active but isn't running; start it with `uh-deploy start`", record.instance);
            self.report.warn(&why);
            self.results.remarks.push(why);
        }
    }

    async fn record(&mut self, outcome: Outcome) -> Event {
        match outcome {
            Outcome::Deployed | Outcome::RolledBack => self.keep_running().await,
            Outcome::Superseded | Outcome::Attention => self.adopt().await,
            Outcome::Failed(_) | Outcome::Returned => {}
        }
        self.measure_downtime().await;
        match (self.kind, outcome) {
            (OperationKind::Deploy, Outcome::Deployed) => self.report.step(7, 7, "Updating deployment state"),
            (OperationKind::Rollback, Outcome::RolledBack) => self.report.step(4, 4, "Updating state"),
            _ => {}
        }
        if let Some(serving) = self.serving.as_ref().filter(|_| outcome != Outcome::Attention) {
            match (self.kind, outcome) {
                (OperationKind::Deploy, Outcome::Deployed) => {
                    self.report.fact("Active", serving.active().as_str());
                    self.report.fact("Version", serving.version().as_deref().unwrap_or("unknown"));
                }
                (OperationKind::Rollback, Outcome::RolledBack) => {
                    self.report.fact("Active", &serving.name());
                    self.report
                        .fact("Previous", &named(&self.facts.from, self.facts.from_version.as_deref()));
                }
                _ => {}
            }
            let warnings = serving.warnings();
            warnings.iter().for_each(|warning| self.report.warn(warning));
            self.results.remarks.extend(warnings);
        }
        let line = self.line(outcome);
        if let Err(e) = self.history.append(&line) {
            self.report.warn(&format!("can't write the history: {e}"));
        }
        fault::point("effect.record.written");
        let hook = match outcome {
            Outcome::Deployed => None,
            Outcome::RolledBack | Outcome::Returned => Some(Hook::OnRollback),
            Outcome::Failed(_) | Outcome::Superseded | Outcome::Attention => Some(Hook::OnFailure),
        };
        let event = serde_json::json!({"outcome": line});
        if let Some(hook) = hook
            && let Err(e) = notice::hook(self.config, hook, &event, self.report).await
        {
            self.report.warn(&format!("the hook {} failed ({}); the outcome stands", hook.name(), e.reason));
        }
        if let Err(e) = notice::webhook(&self.config.notice, &event).await {
            self.report.warn(&e);
        }
        self.report.event("outcome", &line);
        Event::Recorded
    }
}

fn port_text(endpoint: &Address) -> String {
    endpoint.port().map_or_else(|| endpoint.to_string(), |port| port.to_string())
}
