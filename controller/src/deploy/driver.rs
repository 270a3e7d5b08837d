//! Performs the effects that the state machine decides on, one at a time, and records every event before it acts on
//! it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::facts::OperationFacts;
use super::history::{History, HistoryEntry};
use super::journal::{Journal, JournalError, ReplayedOperation};
use super::link::WatchLink;
use super::machine::{Effect, Event, IllegalEvent, OperationKind, Outcome, Phase, step};
use super::progress::{Listener, Progress};
use super::records::Records;
use crate::config::Config;
use crate::downtime::{Downtime, TrafficSample};
use crate::fault;
use crate::proxy::{ExpectedRouting, ProxyError, ProxyService, Serving};
use crate::runtime::Runtime;

/// Runs one operation to its end.
pub(crate) struct Driver<'a> {
    pub(super) config: &'a Config,
    pub(super) runtime: &'a dyn Runtime,
    pub(super) proxy: &'a ProxyService,
    listener: Listener<'a>,
    pub(super) records: Records,
    pub(super) history: History,
    journal: Journal,
    pub(super) facts: OperationFacts,
    pub(super) kind: OperationKind,
    pub(super) results: OperationResults,
    /// What must not change in the service until the switch. A recovery never switches to a candidate, and needs
    /// none.
    pub(super) expected_routing: Option<ExpectedRouting>,
    /// The connection to the watch that runs in parallel.
    pub(super) link: Option<&'a WatchLink>,
    /// The active backend at the end, found by [`Effect::Confirm`].
    pub(super) serving: Option<Serving>,
    /// Whether a change of routing for the candidate may have reached uh-proxy.
    pub(super) may_serve: bool,
    /// uh-proxy's counters when the operation began.
    counters: Option<TrafficSample>,
    /// Why uh-proxy couldn't be asked what the operation needs to continue.
    pub(super) unanswered: Option<ProxyError>,
    began: Instant,
}

/// What is known only after the operation has started.
#[derive(Debug, Default)]
pub(super) struct OperationResults {
    /// uh-proxy's generation after our last change.
    pub(super) generation: Option<u64>,
    /// The switch, from uh-proxy's reply.
    pub(super) switched: Option<SwitchedAt>,
    /// How long each effect took, in milliseconds.
    pub(super) timings_ms: BTreeMap<String, u64>,
    pub(super) in_flight: Option<u64>,
    pub(super) finished: Option<u64>,
    pub(super) cut: Option<u64>,
    pub(super) artifact: Option<String>,
    pub(super) downtime: Option<Downtime>,
    pub(super) remarks: Vec<String>,
    /// Why it failed.
    pub(super) reason: Option<String>,
}

/// A switch that uh-proxy has acknowledged.
#[derive(Debug, Clone)]
pub(super) struct SwitchedAt {
    pub(super) generation: u64,
    /// The id of uh-proxy's process.
    pub(super) pid: u32,
    pub(super) persisted: bool,
    pub(super) at: Instant,
}

/// How an operation ended.
#[derive(Debug)]
pub(crate) struct OperationEnd {
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
    /// How long it took until traffic moved, if it did.
    pub moved_after: Option<Duration>,
    /// The active backend, read after everything was done; `None`: uh-proxy didn't answer, and nothing had been
    /// changed there.
    pub serving: Option<Serving>,
    /// What users noticed.
    pub downtime: Downtime,
    /// Why it failed.
    pub reason: Option<String>,
}

/// Why an operation couldn't continue. The journal says what may be left to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// The journal can't be written, and nothing may be done that it doesn't record.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The same for the first entry: nothing was done.
    #[error(transparent)]
    NotBegun(JournalError),
    /// uh-proxy doesn't answer, and only it knows whether the candidate may be stopped.
    #[error(transparent)]
    Unanswered(#[from] ProxyError),
    /// A bug in uh-deploy.
    #[error("internal error: {0}")]
    Illegal(#[from] IllegalEvent),
    /// A bug in uh-deploy.
    #[error("internal error: there is no next step after {0:?}")]
    Stuck(Phase),
}

impl<'a> Driver<'a> {
    /// A driver for a new operation, or for one to recover.
    #[must_use]
    pub(crate) fn new(
        config: &'a Config,
        runtime: &'a dyn Runtime,
        proxy: &'a ProxyService,
        listener: Listener<'a>,
        journal: Journal,
        facts: OperationFacts,
    ) -> Self {
        let state_dir = &config.deploy.state_dir;
        Self {
            config,
            runtime,
            proxy,
            listener,
            records: Records::new(state_dir),
            history: History::new(state_dir),
            journal,
            facts,
            kind: OperationKind::Deploy,
            results: OperationResults::default(),
            expected_routing: None,
            link: None,
            serving: None,
            may_serve: false,
            counters: None,
            unanswered: None,
            began: Instant::now(),
        }
    }

    /// The same, with a watch in parallel.
    #[must_use]
    pub(crate) fn linked(self, link: Option<&'a WatchLink>) -> Self {
        Self { link, ..self }
    }

    /// Runs a new operation. `expected_routing`: what must not change until the switch.
    ///
    /// # Errors
    /// The journal can't be written, or uh-proxy doesn't answer and the changes can't be undone without it.
    pub(crate) async fn run(
        &mut self,
        kind: OperationKind,
        expected_routing: ExpectedRouting,
    ) -> Result<Outcome, DriverError> {
        self.kind = kind;
        self.expected_routing = Some(expected_routing);
        self.counters = self.sample().await.ok();
        self.follow(Phase::Idle, Event::Begun(kind)).await
    }

    /// Finishes an interrupted operation if traffic has moved, and undoes it otherwise.
    ///
    /// # Errors
    /// The journal can't be written, or uh-proxy doesn't answer.
    pub(crate) async fn recover(&mut self, replayed: &ReplayedOperation) -> Result<Outcome, DriverError> {
        if let Phase::Done(outcome) = replayed.phase {
            return Ok(outcome);
        }
        self.kind = replayed.kind;
        self.may_serve = replayed.may_serve;
        self.results.remarks.push("recovered after an interruption".to_owned());
        self.results.reason =
            replayed.note.clone().or_else(|| Some(format!("interrupted while {}", doing(replayed.phase))));
        self.follow(replayed.phase, Event::Interrupted).await
    }

    /// How it ended, for the report.
    #[must_use]
    pub(crate) fn ended(self, outcome: Outcome) -> OperationEnd {
        OperationEnd {
            outcome,
            took: self.began.elapsed(),
            moved_after: self.results.switched.as_ref().map(|switched| switched.at - self.began),
            serving: self.serving,
            downtime: self.results.downtime.unwrap_or_else(|| Downtime::unknown("the operation ended early")),
            reason: self.results.reason,
        }
    }

    /// Reports what happens.
    pub(super) fn tell(&self, progress: Progress<'_>) {
        (self.listener)(progress);
    }

    /// The listener itself, for closures that must not borrow the driver.
    pub(super) fn listener(&self) -> Listener<'a> {
        self.listener
    }

    async fn sample(&self) -> Result<TrafficSample, ProxyError> {
        let proxy = self.proxy.view().await?.status.proxy;
        let metrics = self.proxy.client.metrics().await?;
        Ok(TrafficSample::read(&metrics, self.proxy.service.as_str(), proxy.pid, proxy.uptime_s))
    }

    /// Measures what users noticed since the operation began.
    pub(super) async fn measure_downtime(&mut self) {
        let downtime = match (&self.counters, self.sample().await) {
            (Some(before), Ok(after)) => Downtime::between(before, &after, self.began.elapsed().as_secs()),
            (None, _) => Downtime::unknown("uh-proxy's counters couldn't be read at the start"),
            (_, Err(e)) => Downtime::unknown(crate::chain(&e)),
        };
        self.results.downtime = Some(downtime);
    }

    async fn follow(&mut self, mut phase: Phase, mut event: Event) -> Result<Outcome, DriverError> {
        loop {
            let begins = matches!(event, Event::Begun(_));
            let (next, effects) = step(phase, event)?;
            let note = matches!(event, Event::Failed(_) | Event::Died)
                .then(|| self.results.reason.clone())
                .flatten();
            let facts = begins.then_some(&self.facts);
            let written = self.journal.write(&self.facts.operation, event, facts, note);
            written.map_err(|e| if begins { DriverError::NotBegun(e) } else { e.into() })?;
            phase = next;
            if let Phase::Done(outcome) = phase {
                return Ok(outcome);
            }
            event = match self.perform(&effects).await {
                Some(event) => event,
                None => return Err(self.unanswered.take().map_or(DriverError::Stuck(phase), Into::into)),
            };
        }
    }

    async fn perform(&mut self, effects: &[Effect]) -> Option<Event> {
        for effect in effects {
            let name = effect.name();
            fault::point(&format!("effect.{name}.before"));
            let start = Instant::now();
            let event = self.effect(*effect).await;
            let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            *self.results.timings_ms.entry(name.to_owned()).or_default() += took;
            fault::point(&format!("effect.{name}.after"));
            if event.is_some() {
                return event;
            }
        }
        None
    }

    /// The entry for the history, hooks and webhook.
    pub(super) fn line(&self, outcome: Outcome) -> HistoryEntry {
        let command = match self.kind {
            OperationKind::Deploy => "deploy",
            OperationKind::Rollback => "rollback",
        };
        let mut remarks = self.results.remarks.clone();
        if self.facts.skip_health {
            remarks.push("health gate skipped".to_owned());
        }
        remarks.extend(self.facts.why.iter().map(|why| format!("requested by {why}")));
        let failed = !matches!(outcome, Outcome::Deployed | Outcome::RolledBack);
        let breach = self.facts.breach.clone();
        let failure = self.results.reason.clone().filter(|_| failed);
        let reason = failure.or_else(|| breach.as_ref().map(|breach| breach.reason.clone()));
        HistoryEntry {
            at: crate::time::iso_millis(jiff::Timestamp::now()),
            operation: Some(self.facts.operation.clone()),
            command: command.to_owned(),
            who: self.facts.who.clone(),
            service: Some(self.facts.service.clone()),
            from: Some(self.facts.from.clone()),
            from_version: self.facts.from_version.clone(),
            to: Some(self.facts.to.clone()),
            version: self.facts.version.clone(),
            artifact: self.results.artifact.clone(),
            outcome: outcome_name(outcome).to_owned(),
            reason,
            breach,
            remarks,
            timings_ms: self.results.timings_ms.clone(),
            in_flight: self.results.in_flight,
            finished: self.results.finished,
            cut: self.results.cut,
            serves: self.serving.as_ref().map(|serving| serving.active().clone()),
            serves_version: self.serving.as_ref().and_then(Serving::version),
            downtime: self.results.downtime.clone(),
        }
    }
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Deployed => "deployed",
        Outcome::RolledBack => "rolled_back",
        Outcome::Superseded | Outcome::Failed(super::machine::FailureCause::Overtaken) => "superseded",
        Outcome::Failed(_) => "failed",
        Outcome::Returned => "returned",
        Outcome::Attention => "attention",
    }
}

/// What an operation was doing, for messages.
#[must_use]
pub(crate) fn doing(phase: Phase) -> &'static str {
    match phase {
        Phase::Idle => "starting",
        Phase::Building => "building",
        Phase::Checking => "checking the rollback target",
        Phase::Starting(_) => "starting the candidate",
        Phase::Probing(_) => "waiting for health checks",
        Phase::Switching(_) => "switching traffic",
        Phase::Draining(_) => "draining the old backend",
        Phase::Settling(_) => "watching the rollback target",
        Phase::Returning(_) => "moving traffic back",
        Phase::Undoing(..) => "undoing its changes",
        Phase::Confirming(_) => "checking which backend serves",
        Phase::Recording(_) => "writing the history",
        Phase::Done(_) => "done",
    }
}
