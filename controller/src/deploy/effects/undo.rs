//! The effect that undoes an operation before its switch: ends the split of its trial, withdraws and stops the candidate.

use crate::deploy::machine::{Event, FailureCause, InstanceOrigin, OperationTarget};
use crate::deploy::member::Member;
use crate::deploy::progress::Progress;
use crate::fault;
use crate::proxy::{OutOfService, ProxyError, WithdrawalProgress};
use crate::runtime;

/// How often to start over because the routing has changed meanwhile.
const UNDO_ROUNDS: u32 = 5;

/// The state of the candidate at uh-proxy.
enum CandidateStatus {
    /// The candidate is active.
    Serves,
    /// It is out of service, and nothing can switch to it.
    Out(OutOfService),
}

impl Member<'_> {
    /// Afterwards the candidate is out of service and stopped, or it turned out to be active. A switch that was sent
    /// and never answered may still be in progress: once the candidate is withdrawn, uh-proxy refuses it.
    ///
    /// `None`: uh-proxy doesn't answer. Then nothing is stopped, and the journal stays as it is, for `recover` to
    /// continue. But if no change of routing was ever sent for the candidate, which was withdrawn before its start,
    /// it is stopped without asking.
    pub(super) async fn undo(&mut self, target: OperationTarget) -> Option<Event> {
        match self.try_to_undo(target).await {
            Ok(event) => Some(event),
            Err(error) if error.is_unanswered() && !self.may_serve => {
                let generation = self.results.generation.unwrap_or(self.facts.generation);
                let out = OutOfService::since_before_its_start(&self.facts.to, generation);
                Some(self.undo_out_of_service(target, &out).await)
            }
            Err(error) if error.is_unanswered() => {
                self.unanswered = Some(error);
                None
            }
            Err(error) => Some(self.refused(&error)),
        }
    }

    async fn try_to_undo(&mut self, target: OperationTarget) -> Result<Event, ProxyError> {
        if target.origin == InstanceOrigin::Found {
            if self.proxy.view_soon().await?.is_active(&self.facts.to) {
                return Ok(Event::Serves);
            }
            // If it was found dead, its record may have been proposed for a new start.
            return Ok(self.forget_candidate());
        }
        self.end_split().await?;
        if matches!(self.runtime.state(&self.facts.instance).await, Ok(runtime::State::Absent)) {
            // Stop it anyway: a killed controller may have been about to start it.
            let out = OutOfService::since_before_its_start(&self.facts.to, self.facts.generation);
            return Ok(self.undo_out_of_service(target, &out).await);
        }
        match self.take_candidate_out().await? {
            CandidateStatus::Serves => Ok(Event::Serves),
            CandidateStatus::Out(out) => Ok(self.undo_out_of_service(target, &out).await),
        }
    }

    async fn undo_out_of_service(&mut self, target: OperationTarget, out: &OutOfService) -> Event {
        fault::point("effect.undo.withdrawn");
        if target.origin == InstanceOrigin::Found {
            return self.forget_candidate();
        }
        let instance = self.facts.instance.clone();
        let runs = self.runtime.state(&instance).await.is_ok_and(|state| state.is_running());
        if self.facts.keep_failed && runs {
            self.results.remarks.push(format!("{instance} keeps running, out of service (--keep-failed)"));
            return self.forget_candidate();
        }
        let timeout = self.config.deploy.stop_timeout;
        if let Err(e) = out.stop(self.runtime, &instance, timeout).await {
            return self.runtime_failed(FailureCause::Start, &e);
        }
        fault::point("effect.undo.stopped");
        self.unpublish().await;
        self.forget_candidate()
    }

    fn forget_candidate(&mut self) -> Event {
        match self.records.withdraw(&self.facts.operation) {
            Ok(()) => Event::Undone,
            Err(e) => self.fail(FailureCause::Start, format!("can't remove the candidate's record: {e}")),
        }
    }

    async fn take_candidate_out(&self) -> Result<CandidateStatus, ProxyError> {
        let facts = &self.facts;
        let mut last = ProxyError::Overtaken("the routing keeps changing".to_owned());
        for _ in 0..UNDO_ROUNDS {
            let view = self.proxy.view_soon().await?;
            if let Some(out) = OutOfService::elsewhere(&view, &facts.to, &facts.endpoints) {
                return Ok(CandidateStatus::Out(out));
            }
            if view.is_active(&facts.to) {
                return Ok(CandidateStatus::Serves);
            }
            let listener = |progress: WithdrawalProgress<'_>| self.tell(Progress::Withdrawal(progress));
            match OutOfService::withdraw(self.proxy, &facts.to, view.generation, &listener).await {
                Ok(out) => {
                    out.drain(self.proxy, self.config.deploy.drain_timeout, &listener).await?;
                    return Ok(CandidateStatus::Out(out));
                }
                // It isn't active, or the next look will say so. Else a split sends it a share.
                Err(e) if e.is_in_use() => last = e,
                Err(e) if e.is_overtaken() => {}
                Err(e) => return Err(e),
            }
        }
        Err(last)
    }
}
