//! Effects on traffic: register the candidate, switch to it, make its record its backend's, switch back.

use std::time::{Duration, Instant};

use uh_protocol::BackendName;
use uh_protocol::request::{SwitchRequest, Switched};

use crate::deploy::activation::{ActivationFile, Handover};
use crate::deploy::machine::{Event, FailureCause, OperationKind};
use crate::deploy::member::{Member, SwitchedAt};
use crate::deploy::progress::{DeployStage, Progress, RollbackStage, Unwritten};
use crate::gate;
use crate::proxy::{ProxyError, Registration, ServiceView};
use crate::{chain, fault};

/// How often to ask uh-proxy whether it has found the candidate healthy.
pub(in crate::deploy) const READY_POLL: Duration = Duration::from_millis(50);

/// After this, a switch is tried even if uh-proxy doesn't report the candidate as healthy: it may not probe at all.
pub(in crate::deploy) const TRY_ANYWAY_AFTER: Duration = Duration::from_secs(1);

/// How long to wait for the state of the candidate, far shorter than the lease of a split. Engines may take 30 s.
const STATE_WITHIN: Duration = Duration::from_secs(2);

/// How often a change is retried because other services of uh-proxy have changed: they share its generation.
pub(in crate::deploy) const ELSEWHERE_ROUNDS: u32 = 20;

impl Member<'_> {
    pub(super) async fn register(&mut self) -> Option<Event> {
        match self.try_to_register().await {
            Ok(registered) => {
                self.results.generation = Some(registered.generation);
                self.may_serve = true;
                if let Some(error) = &registered.persist_error {
                    self.unwritten(Unwritten::Registration, &self.facts.to, error);
                    self.results
                        .remarks
                        .push(format!("the registration wasn't written to disk immediately: {error}"));
                }
                let (endpoints, version) = (&self.facts.endpoints, self.facts.version.as_deref());
                self.expected_routing = self
                    .expected_routing
                    .take()
                    .map(|expected_routing| expected_routing.with_registered(endpoints, version));
                None
            }
            Err(e) => {
                self.may_serve |= !e.is_unsent();
                Some(self.lost(&e).await)
            }
        }
    }

    /// Registers the target of a rollback again if it was withdrawn but not stopped.
    pub(in crate::deploy) async fn readmit(&mut self) -> Option<Event> {
        match self.proxy.view_soon().await {
            Ok(view) if view.is_withdrawn(&self.facts.to) => self.register().await,
            Ok(_) => None,
            Err(e) => Some(self.refused(&e)),
        }
    }

    async fn try_to_register(&self) -> Result<Registration, ProxyError> {
        let facts = &self.facts;
        let mut generation = self.results.generation.unwrap_or(facts.generation);
        let mut rounds = 0;
        loop {
            let version = facts.version.as_deref();
            match self.proxy.register(&facts.to, &facts.endpoints, version, generation).await {
                Err(e) if e.is_overtaken() && rounds < ELSEWHERE_ROUNDS => {
                    generation = self.moved_elsewhere(e).await?;
                }
                Ok(registered) => {
                    self.demand_our_split(registered.split.as_ref())?;
                    return Ok(registered);
                }
                Err(e) => return Err(e),
            }
            rounds += 1;
        }
    }

    /// The current generation, if only other services have changed. The end of a split is a change too: a candidate that
    /// uh-proxy has found worse must not get everybody.
    ///
    /// # Errors
    /// This service has changed, or uh-proxy doesn't answer.
    pub(in crate::deploy) async fn moved_elsewhere(&self, overtaken: ProxyError) -> Result<u64, ProxyError> {
        let view = self.proxy.view().await?;
        let now = view.expected_routing(&self.facts.to);
        let version = self.facts.version.as_deref();
        let same = self
            .expected_routing
            .as_ref()
            .is_some_and(|expected_routing| expected_routing.holds(now, version));
        // If it isn't active, it is in use by a split. That doesn't pass by itself.
        if !same || overtaken.is_in_use() {
            return Err(overtaken);
        }
        self.demand_our_split(view.service.split.as_ref())?;
        Ok(view.generation)
    }

    pub(super) async fn switch(&mut self) -> Event {
        self.tell_of_switch();
        let facts = self.facts.clone();
        let request = SwitchRequest {
            to: facts.to.clone(),
            expect_active: Some(facts.from.clone()),
            expect_generation: Some(self.results.generation.unwrap_or(facts.generation)),
            force: facts.skip_health,
        };
        let handover = self.hand_over(&facts.to).await;
        match self.switch_when_ready(request).await {
            Ok((switched, pid)) => self.has_switched(handover, &switched, pid),
            Err(event) => event,
        }
    }

    /// Reports that traffic is about to move.
    pub(in crate::deploy) fn tell_of_switch(&self) {
        match self.kind {
            OperationKind::Deploy => {
                self.tell(Progress::Deploying(DeployStage::Switch));
                let config = self.config;
                let endpoints =
                    |name| config.backend(name).map_or(&[][..], |backend| backend.endpoints.as_slice());
                let (from, to) = (&self.facts.from, &self.facts.to);
                self.tell(Progress::Moving { from: (from, endpoints(from)), to: (to, endpoints(to)) });
            }
            OperationKind::Rollback => {
                self.tell(Progress::RollingBack { stage: RollbackStage::Switch, to: &self.facts.to });
            }
        }
    }

    /// Keeps what uh-proxy replied to a switch. `pid`: of its process.
    pub(in crate::deploy) fn has_switched(
        &mut self,
        handover: Option<Handover>,
        switched: &Switched,
        pid: u32,
    ) -> Event {
        self.begin_activation(handover, switched.switched_at.clone());
        if let Some(link) = self.link {
            link.switched();
        }
        self.results.switched = Some(SwitchedAt {
            generation: switched.generation,
            pid,
            persisted: switched.persisted,
            at: Instant::now(),
        });
        self.results.in_flight = Some(switched.in_flight_previous);
        self.results.generation = Some(switched.generation);
        if let Some(error) = &switched.persist_error {
            self.unwritten(Unwritten::Switch, &self.facts.to, error);
            self.results.remarks.push(format!("the switch wasn't written to disk immediately: {error}"));
        }
        self.tell(Progress::Switched);
        Event::Switched
    }

    pub(in crate::deploy) fn unwritten(&self, what: Unwritten, backend: &BackendName, error: &str) {
        self.tell(Progress::Unwritten { what, backend, error });
    }

    /// Reads the counters before the switch, with which the new activation is compared later.
    pub(in crate::deploy) async fn hand_over(&mut self, to: &BackendName) -> Option<Handover> {
        match ActivationFile::new(&self.config.deploy.state_dir).hand_over(self.proxy, to).await {
            Ok(handover) => Some(handover),
            Err(e) => {
                self.results
                    .remarks
                    .push(format!("can't read the counters from before the switch: {}", chain(&e)));
                None
            }
        }
    }

    pub(in crate::deploy) fn begin_activation(&mut self, handover: Option<Handover>, since: Option<String>) {
        let Some((handover, since)) = handover.zip(since) else { return };
        if let Err(e) = ActivationFile::new(&self.config.deploy.state_dir).begin(handover, since) {
            self.tell(Progress::CountersLost(&e));
        }
    }

    /// Switches as soon as uh-proxy has found the candidate healthy too.
    async fn switch_when_ready(&mut self, mut request: SwitchRequest) -> Result<(Switched, u32), Event> {
        let start = Instant::now();
        let deadline = start + self.config.deploy.ready_timeout;
        let mut rounds = 0;
        let mut try_at = start + if request.force { Duration::ZERO } else { TRY_ANYWAY_AFTER };
        loop {
            let view = self.view_for_switch().await.map_err(|e| self.refused(&e))?;
            if self.split.given.is_some()
                && let Some(event) = self.ended_by_proxy(&view).await
            {
                return Err(event);
            }
            let healthy = view.backend(&request.to).is_some_and(|backend| backend.healthy == Some(true));
            if healthy || Instant::now() >= try_at {
                let sent = self.proxy.switch(&request).await;
                self.may_serve |= !sent.as_ref().is_err_and(ProxyError::is_unsent);
                match sent {
                    Ok(switched) => return Ok((switched, view.status.proxy.pid)),
                    Err(e) if e.is_overtaken() && rounds < ELSEWHERE_ROUNDS => {
                        rounds += 1;
                        match self.moved_elsewhere(e).await {
                            Ok(generation) => request.expect_generation = Some(generation),
                            Err(e) => return Err(self.lost(&e).await),
                        }
                        continue;
                    }
                    Err(e) if e.is_unhealthy() && Instant::now() < deadline => {}
                    // Nothing was sent: uh-proxy is restarting. A deploy gives up, a rollback must not.
                    Err(e)
                        if e.is_unsent()
                            && self.kind == OperationKind::Rollback
                            && Instant::now() < deadline => {}
                    Err(e) => return Err(self.refused(&e)),
                }
                try_at = Instant::now() + TRY_ANYWAY_AFTER;
            }
            if let Some(event) = self.ended_early().await {
                return Err(event);
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    pub(in crate::deploy) async fn view_for_switch(&self) -> Result<ServiceView, ProxyError> {
        match self.kind {
            OperationKind::Deploy => self.proxy.view().await,
            OperationKind::Rollback => self.proxy.view_soon().await,
        }
    }

    /// Fails if the candidate has exited before traffic was switched to it.
    pub(in crate::deploy) async fn ended_early(&mut self) -> Option<Event> {
        if self.split.given.is_some() {
            return self.ended_in_trial().await;
        }
        let ending = self.ending().await?;
        let why = format!("{} exited before traffic was switched to it: {ending}", self.facts.instance);
        Some(self.fail_aloud(FailureCause::Unhealthy, why))
    }

    /// How the candidate ended, if it has. Unknown if its engine is slow: a split must be renewed meanwhile.
    pub(super) async fn ending(&self) -> Option<String> {
        let state = tokio::time::timeout(STATE_WITHIN, self.runtime.state(&self.facts.instance)).await;
        gate::end_of(&state.ok()?.ok()?)
    }

    pub(super) fn commit(&mut self) -> Option<Event> {
        if let Err(e) = self.records.commit(&self.facts.operation) {
            // Traffic has moved, which is what counts. Only `start` and a rollback to this version need the record.
            let why = format!(
                "can't write the record of {} ({e}): `uh-deploy start`, or a rollback to it, would start the previous version",
                self.facts.to
            );
            self.remark(why);
        }
        None
    }

    /// `None`: uh-proxy doesn't answer, so it is unknown which backend serves. The journal stays as it is, for
    /// `recover` to continue from.
    pub(super) async fn switch_back(&mut self) -> Option<Event> {
        let from = self.facts.from.clone();
        self.tell(Progress::Returning(&from));
        let handover = self.hand_over(&from).await;
        match self.try_to_switch_back().await {
            Ok(switched_at) => {
                self.begin_activation(handover, switched_at);
                self.tell(Progress::Switched);
                Some(Event::Returned)
            }
            Err(error) if error.is_unanswered() => {
                self.unanswered = Some(error);
                None
            }
            // The reason why it had to go back is the one to keep.
            Err(e) => {
                self.tell(Progress::NotReturned { to: &from, error: &e });
                Some(Event::Failed(FailureCause::Refused))
            }
        }
    }

    /// Switches back. Waits for a uh-proxy that restarts, and for its first probe of the old backend. Returns the
    /// time of the switch; `None`: the old backend was already active.
    async fn try_to_switch_back(&mut self) -> Result<Option<String>, ProxyError> {
        let facts = self.facts.clone();
        let deadline = Instant::now() + self.config.deploy.ready_timeout;
        loop {
            let view = self.proxy.view_soon().await?;
            if view.is_active(&facts.from) {
                return Ok(None);
            }
            if !view.is_active(&facts.to) {
                let message = format!("another command made {} active", view.service.active);
                return Err(ProxyError::Overtaken(message));
            }
            fault::point("switch_back.looked");
            let request = SwitchRequest {
                to: facts.from.clone(),
                expect_active: Some(facts.to.clone()),
                expect_generation: Some(view.generation),
                force: false,
            };
            match self.proxy.switch(&request).await {
                Ok(switched) => {
                    if let Some(error) = &switched.persist_error {
                        self.unwritten(Unwritten::Return, &facts.from, error);
                    }
                    return Ok(switched.switched_at);
                }
                // It may have been carried out anyway: check again.
                Err(e) if e.is_unanswered() && Instant::now() < deadline => {}
                // Not probed yet, a failed probe, or another service has changed.
                Err(e) if (e.is_unhealthy() || e.is_overtaken()) && Instant::now() < deadline => {}
                Err(e) => return Err(e),
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }
}
