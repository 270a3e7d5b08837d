//! Each effect, one function for each. All of them may be performed twice: after a crash nobody knows how far the first
//! time got.

use std::time::{Duration, Instant};

use uh_protocol::BackendName;
use uh_protocol::request::SwitchRequest;

use super::driver::Driver;
use super::machine::{Course, Effect, Event, Failure, Kind, Origin, Outcome};
use super::records::Record;
use crate::front::{FrontError, View};
use crate::gate::{self, Diagnosis};
use crate::notice::{self, Hook};
use crate::probe::Expected;
use crate::runtime::{self, InstanceId, RuntimeError};
use crate::{chain, fault, time};

/// How often the front door is asked whether it has found the candidate healthy.
const READY_POLL: Duration = Duration::from_millis(50);

/// After this, a switch is tried although the front door does not call the candidate healthy: it may not probe at all.
const TRY_ANYWAY_AFTER: Duration = Duration::from_secs(1);

/// How often the candidate is looked at after the switch.
const SETTLE_POLL: Duration = Duration::from_millis(50);

/// How often undoing starts over because the routing changes under it.
const UNDO_ROUNDS: u32 = 5;

impl Driver<'_> {
    pub(super) async fn effect(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Build => Some(self.build().await),
            Effect::Check => Some(self.check().await),
            Effect::Clear => self.clear().await,
            Effect::Start => Some(self.start().await),
            Effect::Prove => Some(self.prove().await),
            Effect::Register => self.register().await,
            Effect::Switch => Some(self.switch().await),
            Effect::Commit => self.commit(),
            Effect::Drain => Some(self.drain().await),
            Effect::SwitchBack => Some(self.switch_back().await),
            Effect::Undo(course) => Some(self.undo(course).await),
            Effect::Record(outcome) => Some(self.record(outcome).await),
        }
    }

    fn fail(&mut self, failure: Failure, reason: impl Into<String>) -> Event {
        let reason = self.report.clean(&reason.into());
        self.report.end_progress();
        self.tally.reason = Some(reason);
        Event::Failed(failure)
    }

    /// Fails, and says it where a diagnosis does not.
    fn fail_aloud(&mut self, failure: Failure, reason: impl Into<String>) -> Event {
        let reason = reason.into();
        self.report.say(&format!("❌ {reason}"));
        self.fail(failure, reason)
    }

    fn turned_away(&mut self, diagnosis: &Diagnosis) -> Event {
        diagnosis.show(self.report);
        self.fail(Failure::Unhealthy, diagnosis.headline.clone())
    }

    fn refused(&mut self, error: &FrontError) -> Event {
        let failure = if error.is_overtaken() { Failure::Overtaken } else { Failure::Refused };
        let superseded = if error.is_overtaken() { "superseded by a newer change: " } else { "" };
        self.fail_aloud(failure, format!("{superseded}{}", chain(error)))
    }

    fn runtime_failed(&mut self, failure: Failure, error: &RuntimeError) -> Event {
        let event = self.fail_aloud(failure, chain(error));
        error.log().iter().for_each(|line| self.report.line(&format!("  {line}")));
        if let RuntimeError::PortTaken { .. } = error {
            self.report.line("what to try: stop whoever has the port, or give the backend another endpoint");
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

    async fn build(&mut self) -> Event {
        let event = serde_json::json!({"hook": "pre_deploy", "operation": self.facts});
        if let Err(e) = notice::hook(self.config, Hook::PreDeploy, &event, self.report).await {
            let failed = self.fail_aloud(Failure::Declined, format!("pre_deploy said no: {}", e.reason));
            e.log.iter().for_each(|line| self.report.line(&format!("  {line}")));
            return failed;
        }
        let what = if self.noun() == "process" { "Building" } else { "Building image" };
        self.report.step(2, 7, what);
        let start = Instant::now();
        let report = self.report;
        let built = self.runtime.build(&self.candidate(), &|line| report.output(line)).await;
        self.report.end_progress();
        let frozen = match built {
            Ok(frozen) => frozen,
            Err(e) => return self.runtime_failed(Failure::Build, &e),
        };
        self.report.fact(if self.noun() == "process" { "Program" } else { "Image" }, &frozen.artifact);
        self.report.fact("Time", &time::span(start.elapsed()));
        self.tally.artifact = Some(frozen.artifact.clone());
        self.propose(&Record {
            instance: self.facts.instance.clone(),
            frozen,
            operation: self.facts.operation.clone(),
        })
        .unwrap_or(Event::Built)
    }

    fn propose(&mut self, record: &Record) -> Option<Event> {
        let failed = self.records.propose(record).err()?;
        Some(self.fail_aloud(Failure::Build, format!("cannot write the candidate's record: {failed}")))
    }

    async fn check(&mut self) -> Event {
        self.report.step(2, 4, "Validating rollback target");
        let record = match self.records.of(&self.facts.to) {
            Ok(record) => record,
            Err(e) => return self.fail_aloud(Failure::Declined, format!("cannot read a record: {e}")),
        };
        let (instance, endpoints) = match &record {
            Some(record) => (record.instance.clone(), record.frozen.endpoints.clone()),
            None => (self.facts.instance.clone(), self.facts.endpoints.clone()),
        };
        self.report.fact("Instance", instance.as_str());
        let facts = self.facts.clone();
        let target = gate::Candidate {
            runtime: self.runtime,
            instance: &instance,
            endpoints: &endpoints,
            expected: Expected { backend: &facts.to, version: facts.version.as_deref() },
        };
        let found = target.probe_all(&self.config.gate).await;
        if found.is_healthy() {
            self.report.fact("Status", "Running ✓");
            self.report.fact("Health", "OK ✓");
            return Event::Alive;
        }
        let Some(record) = record else {
            let why = format!(
                "{} does not answer ({}), and there is no record of it to start it again from: deploy the version you want; {} stays active",
                facts.to,
                found.summary(),
                facts.from
            );
            return self.fail_aloud(Failure::Declined, why);
        };
        match self.runtime.state(&instance).await {
            Ok(state) if state.is_running() => {
                let diagnosis = Diagnosis {
                    headline: format!(
                        "{instance} runs, but is not healthy: {}; {} stays active",
                        found.summary(),
                        facts.from
                    ),
                    probe: found.lines,
                    advice: vec![format!("if it must be: uh-proxy switch {} --force", facts.to)],
                    ..Diagnosis::default()
                };
                self.turned_away(&diagnosis)
            }
            Ok(_) => {
                self.report.fact("Status", "not running: it is started again as it was");
                self.tally
                    .remarks
                    .push("the target was not running and was started again from its record".to_owned());
                self.tally.artifact = Some(record.frozen.artifact.clone());
                let record = Record {
                    instance: facts.instance.clone(),
                    frozen: record.frozen,
                    operation: facts.operation.clone(),
                };
                self.propose(&record).unwrap_or(Event::Gone)
            }
            Err(e) => self.runtime_failed(Failure::Start, &e),
        }
    }

    /// Whether the front door sends requests to this backend; asked right before anything of it is stopped.
    async fn must_not_be_active(&mut self, backend: &BackendName) -> Result<View, Event> {
        match self.front.view().await {
            Ok(view) if view.is_active(backend) => {
                let overtaken =
                    format!("{backend} has become active meanwhile (generation {})", view.generation);
                Err(self.refused(&FrontError::Overtaken(overtaken)))
            }
            Ok(view) => Ok(view),
            Err(e) => Err(self.refused(&e)),
        }
    }

    async fn clear(&mut self) -> Option<Event> {
        let (step, of) = if self.kind == Kind::Deploy { (3, 7) } else { (2, 4) };
        if self.kind == Kind::Deploy {
            self.report.step(step, of, &format!("Starting {}", self.noun()));
        }
        let leftovers = match self.runtime.find(&self.facts.to).await {
            Ok(found) => found.into_iter().filter(|id| *id != self.facts.instance).collect::<Vec<_>>(),
            Err(e) => return Some(self.runtime_failed(Failure::Start, &e)),
        };
        for leftover in leftovers {
            if let Err(event) = self.clear_one(&leftover).await {
                return Some(event);
            }
        }
        None
    }

    async fn clear_one(&mut self, leftover: &InstanceId) -> Result<(), Event> {
        let backend = self.facts.to.clone();
        let running = self.runtime.state(leftover).await.is_ok_and(|state| state.is_running());
        let view = self.must_not_be_active(&backend).await?;
        if running {
            let held = view.backend(&backend).map_or(0, |b| b.requests_in_flight + b.tunnels);
            if held > 0 {
                self.report.line(&format!("{leftover} still holds {held} exchanges: waiting for them"));
                self.front
                    .drain(&backend, self.config.deploy.drain_timeout)
                    .await
                    .map_err(|e| self.refused(&e))?;
                self.must_not_be_active(&backend).await?;
            }
            self.report.line(&format!("Stopping {leftover}, which was kept for rolling back"));
        }
        let stopped = self.runtime.stop(leftover, self.config.deploy.stop_timeout).await;
        stopped.map_err(|e| self.runtime_failed(Failure::Start, &e))?;
        fault::point("effect.clear.stopped");
        self.runtime.remove(leftover).await.map_err(|e| self.runtime_failed(Failure::Start, &e))
    }

    async fn start(&mut self) -> Event {
        let record = match self.records.candidate(&self.facts.operation) {
            Ok(Some(record)) => record,
            Ok(None) => return self.fail_aloud(Failure::Start, "the candidate's record is gone"),
            Err(e) => {
                return self.fail_aloud(Failure::Start, format!("cannot read the candidate's record: {e}"));
            }
        };
        let (label, name) =
            (if self.noun() == "process" { "Process" } else { "Container" }, &self.facts.instance);
        self.report.fact(label, name.as_str());
        let ports: Vec<String> = self.facts.endpoints.iter().map(port_text).collect();
        self.report.fact("Port", &ports.join(", "));
        match self.runtime.start(&record.instance, &record.frozen).await {
            Ok(()) => Event::Started,
            Err(e) => self.runtime_failed(Failure::Start, &e),
        }
    }

    async fn prove(&mut self) -> Event {
        if self.kind == Kind::Deploy {
            self.report.step(4, 7, "Waiting for health checks");
        }
        if self.facts.skip_health {
            self.report
                .warn("health checks are SKIPPED (--skip-health): nobody has proven that this version works");
            return Event::Proven;
        }
        let facts = self.facts.clone();
        let candidate = gate::Candidate {
            runtime: self.runtime,
            instance: &facts.instance,
            endpoints: &facts.endpoints,
            expected: Expected { backend: &facts.to, version: facts.version.as_deref() },
        };
        let proven = candidate.prove(&self.config.gate, self.report).await;
        self.report.end_progress();
        match proven {
            Ok(()) => Event::Proven,
            Err(diagnosis) => self.turned_away(&diagnosis),
        }
    }

    async fn register(&mut self) -> Option<Event> {
        let facts = self.facts.clone();
        let registered = self
            .front
            .register(&facts.to, &facts.endpoints, facts.version.as_deref(), facts.generation)
            .await;
        match registered {
            Ok(generation) => {
                self.tally.generation = Some(generation);
                None
            }
            Err(e) => Some(self.refused(&e)),
        }
    }

    async fn switch(&mut self) -> Event {
        let facts = self.facts.clone();
        match self.kind {
            Kind::Deploy => {
                self.report.step(5, 7, "Switching traffic");
                let of = |name: &BackendName| {
                    let endpoints = self.config.backend(name).map_or(&[][..], |backend| &backend.endpoints);
                    let ports: Vec<String> = endpoints.iter().map(port_text).collect();
                    format!("{name} ({})", ports.join(", "))
                };
                self.report.fact("Old", &of(&facts.from));
                self.report.fact("New", &of(&facts.to));
            }
            Kind::Rollback => self.report.step(3, 4, &format!("Switching traffic to {}", facts.to)),
        }
        let request = SwitchRequest {
            to: facts.to.clone(),
            expect_active: Some(facts.from.clone()),
            expect_generation: Some(self.tally.generation.unwrap_or(facts.generation)),
            force: facts.skip_health,
        };
        let switched = match self.switch_when_ready(&request).await {
            Ok(switched) => switched,
            Err(event) => return event,
        };
        self.tally.in_flight = Some(switched.in_flight_previous);
        self.tally.generation = Some(switched.generation);
        if let Some(error) = &switched.persist_error {
            self.report.warn(&format!(
                "{} serves, but the front door could not write that to disk yet: {error}",
                facts.to
            ));
            self.tally.remarks.push(format!("the switch was not on disk at once: {error}"));
        }
        self.report.line("Traffic switched ✓");
        Event::Switched
    }

    /// Switches as soon as the front door has found the candidate healthy too.
    async fn switch_when_ready(
        &mut self,
        request: &SwitchRequest,
    ) -> Result<uh_protocol::request::Switched, Event> {
        let start = Instant::now();
        let deadline = start + self.config.deploy.ready_timeout;
        let mut try_at = start + if request.force { Duration::ZERO } else { TRY_ANYWAY_AFTER };
        loop {
            let view = self.front.view().await.map_err(|e| self.refused(&e))?;
            let healthy = view.backend(&request.to).is_some_and(|backend| backend.healthy == Some(true));
            if healthy || Instant::now() >= try_at {
                match self.front.switch(request).await {
                    Ok(switched) => return Ok(switched),
                    Err(e) if e.is_unhealthy() && Instant::now() < deadline => {}
                    Err(e) => return Err(self.refused(&e)),
                }
                try_at = Instant::now() + TRY_ANYWAY_AFTER;
            }
            let instance = self.facts.instance.clone();
            let ended = self.runtime.state(&instance).await.ok().as_ref().and_then(gate::end_of);
            if let Some(ending) = ended {
                let why = format!("{instance} ended before traffic was moved to it: {ending}");
                return Err(self.fail_aloud(Failure::Unhealthy, why));
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    fn commit(&mut self) -> Option<Event> {
        if let Err(e) = self.records.commit(&self.facts.operation) {
            // Traffic has moved, and that is what counts; only a roll back to this one needs the record.
            self.report.warn(&format!("the record of {} could not be written: {e}", self.facts.to));
            self.tally.remarks.push(format!("the record could not be written: {e}"));
        }
        None
    }

    async fn drain(&mut self) -> Event {
        self.report.step(6, 7, "Draining old environment");
        self.report.fact(
            "Active connections",
            &self.tally.in_flight.map_or("unknown".to_owned(), |n| n.to_string()),
        );
        self.report.output("Waiting for drain...");
        let event = serde_json::json!({"hook": "post_switch", "operation": self.facts});
        let (config, front, report, from) = (self.config, self.front, self.report, self.facts.from.clone());
        let old = async {
            let hook = notice::hook(config, Hook::PostSwitch, &event, report).await;
            (hook, front.drain(&from, config.deploy.drain_timeout).await)
        };
        tokio::pin!(old);
        let settled = Instant::now() + self.config.deploy.settle;
        let mut drained = None;
        let died = loop {
            tokio::select! {
                result = &mut old, if drained.is_none() => drained = Some(result),
                () = tokio::time::sleep(SETTLE_POLL) => {}
            }
            if !self.config.deploy.settle.is_zero()
                && let Ok(state) = self.runtime.state(&self.facts.instance).await
                && let Some(end) = gate::end_of(&state)
            {
                break Some(end);
            }
            if drained.is_some() && Instant::now() >= settled {
                break None;
            }
        };
        self.report.end_progress();
        if let Some(end) = died {
            let why = format!("{} died after traffic was moved to it: {end}", self.facts.instance);
            self.report.say(&format!("❌ {why}"));
            self.tally.reason = Some(why);
            return Event::Died;
        }
        if let Some((hook, drained)) = drained {
            if let Err(e) = hook {
                self.report.warn(&format!("post_switch failed, which changes nothing: {}", e.reason));
                self.tally.remarks.push(format!("post_switch failed: {}", self.report.clean(&e.reason)));
            }
            self.tell_drained(drained);
        }
        Event::Drained
    }

    fn tell_drained(&mut self, drained: Result<uh_protocol::request::Drained, FrontError>) {
        match drained {
            Ok(drained) => {
                self.tally.finished = Some(drained.finished);
                self.tally.cut = Some(drained.cut);
                if drained.drained {
                    self.report.line("Connections drained ✓");
                } else {
                    let left = drained.remaining.total();
                    let after = time::span(self.config.deploy.drain_timeout);
                    self.report.warn(&format!(
                        "{left} exchanges are still open on {} after {after}; they go on, it keeps running",
                        self.facts.from
                    ));
                    self.tally.remarks.push(format!("{left} exchanges were still open after the drain"));
                }
            }
            Err(e) => {
                self.report.warn(&format!("{} could not be drained: {}", self.facts.from, chain(&e)));
                self.tally.remarks.push("the old backend could not be drained".to_owned());
            }
        }
    }

    async fn switch_back(&mut self) -> Event {
        let facts = self.facts.clone();
        self.report.say(&format!("Moving traffic back to {}...", facts.from));
        let view = match self.front.view().await {
            Ok(view) => view,
            Err(e) => return self.refused(&e),
        };
        if view.is_active(&facts.from) {
            return Event::Returned;
        }
        let request = SwitchRequest {
            to: facts.from.clone(),
            expect_active: Some(facts.to.clone()),
            expect_generation: Some(view.generation),
            force: false,
        };
        match self.front.switch(&request).await {
            Ok(_) => {
                self.report.line("Traffic switched ✓");
                Event::Returned
            }
            // The reason why it had to go back is the one to keep.
            Err(e) => {
                self.report.say(&format!("❌ {} can't take over again: {}", facts.from, chain(&e)));
                Event::Failed(Failure::Refused)
            }
        }
    }

    /// After this the candidate gets no traffic and is gone; or it turns out that it does get traffic. A switch that
    /// was sent and never answered may still be under way: to withdraw the candidate is a change of routing too, so
    /// after that such a switch no longer finds the generation that it expects.
    async fn undo(&mut self, course: Course) -> Event {
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

    async fn record(&mut self, outcome: Outcome) -> Event {
        match (self.kind, outcome) {
            (Kind::Deploy, Outcome::Deployed) => {
                self.report.step(7, 7, "Updating deployment state");
                self.report.fact("Active", self.facts.to.as_str());
                self.report.fact("Version", self.facts.version_or_unknown());
            }
            (Kind::Rollback, Outcome::RolledBack) => {
                self.report.step(4, 4, "Updating state");
                self.report.fact("Active", &named(&self.facts.to, self.facts.version.as_deref()));
                self.report.fact("Previous", &named(&self.facts.from, self.facts.from_version.as_deref()));
            }
            _ => {}
        }
        let line = self.line(outcome);
        if let Err(e) = self.history.append(&line) {
            self.report.warn(&format!("the history could not be written: {e}"));
        }
        fault::point("effect.record.written");
        let hook = match outcome {
            Outcome::Deployed => None,
            Outcome::RolledBack | Outcome::Returned => Some(Hook::OnRollback),
            Outcome::Failed(_) | Outcome::Attention => Some(Hook::OnFailure),
        };
        let event = serde_json::json!({"outcome": line});
        if let Some(hook) = hook
            && let Err(e) = notice::hook(self.config, hook, &event, self.report).await
        {
            self.report.warn(&format!("a hook failed, which changes nothing: {}", e.reason));
        }
        if let Err(e) = notice::webhook(&self.config.notice, &event).await {
            self.report.warn(&e);
        }
        self.report.event("outcome", &line);
        Event::Recorded
    }
}

/// `blue (v1.0.0)`
pub(crate) fn named(backend: &BackendName, version: Option<&str>) -> String {
    version.map_or_else(|| backend.to_string(), |version| format!("{backend} (v{version})"))
}

fn port_text(endpoint: &runtime::Endpoint) -> String {
    endpoint.port().map_or_else(|| endpoint.to_string(), |port| port.to_string())
}
