//! One service in an operation: what its effects need, and what they have found out. An operation has one, or several
//! that move together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uh_protocol::ServiceName;
use uh_protocol::status::TrialStatus;

use super::facts::OperationFacts;
use super::history::{History, HistoryEntry};
use super::journal::ReplayedOperation;
use super::link::WatchLink;
use super::machine::{FailureCause, OperationKind, Outcome, doing};
use super::progress::{Listener, Progress};
use super::records::Records;
use super::trial::{OurSplit, TrialVerdict};
use crate::config::Config;
use crate::downtime::{Downtime, TrafficSample};
use crate::proxy::{ExpectedRouting, ProxyError, ProxyService, Serving};
use crate::runtime::Runtime;

/// One service in an operation, with what its effects need and find out.
pub(crate) struct Member<'a> {
    pub(super) config: &'a Config,
    pub(super) runtime: &'a dyn Runtime,
    pub(super) proxy: &'a ProxyService,
    listener: Listener<'a>,
    pub(super) records: Records,
    pub(super) history: History,
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
    /// The share of clients that this process has given the candidate.
    pub(super) split: OurSplit,
    /// The trial that uh-proxy reported before that: an earlier one.
    pub(super) trial_before: Option<TrialStatus>,
    /// What uh-proxy has reported last about the candidate's trial.
    pub(super) figures: Option<TrialStatus>,
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
    /// What the trial found.
    pub(super) trial: Option<TrialVerdict>,
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
    /// What the trial found.
    pub trial: Option<TrialVerdict>,
    /// Why it failed.
    pub reason: Option<String>,
}

impl<'a> Member<'a> {
    /// A service in a new operation, or in one to recover.
    #[must_use]
    pub(crate) fn new(
        config: &'a Config,
        runtime: &'a dyn Runtime,
        proxy: &'a ProxyService,
        listener: Listener<'a>,
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
            facts,
            kind: OperationKind::Deploy,
            results: OperationResults::default(),
            expected_routing: None,
            link: None,
            serving: None,
            may_serve: false,
            split: OurSplit::default(),
            trial_before: None,
            figures: None,
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

    /// Prepares for a new operation. `expected_routing`: what must not change until the switch.
    pub(super) async fn begin(&mut self, kind: OperationKind, expected_routing: ExpectedRouting) {
        self.kind = kind;
        self.expected_routing = Some(expected_routing);
        self.counters = self.sample().await.ok();
    }

    /// Prepares for the recovery of an operation.
    pub(super) fn resume(&mut self, replayed: &ReplayedOperation) {
        self.kind = replayed.kind;
        self.may_serve = replayed.may_serve;
        self.results.remarks.push("recovered after an interruption".to_owned());
        self.results.reason =
            replayed.note.clone().or_else(|| Some(format!("interrupted while {}", doing(replayed.phase))));
    }

    /// Prepares for an operator's decision about a trial. `by`: who decided, in words.
    pub(super) fn decided(
        &mut self,
        replayed: &ReplayedOperation,
        by: &str,
        expected_routing: ExpectedRouting,
    ) {
        self.kind = replayed.kind;
        self.may_serve = replayed.may_serve;
        self.expected_routing = Some(expected_routing);
        self.results.remarks.push(by.to_owned());
        self.results.reason = Some(by.to_owned());
    }

    /// Whether this operation starts what it switches to, instead of having found it running.
    pub(super) fn starts_its_target(&self) -> bool {
        let operation = &self.facts.operation;
        let ours =
            self.records.of(&self.facts.to).map(|record| record.filter(|of| of.operation == *operation));
        // What can't be read may be ours.
        [self.records.candidate(operation), ours].into_iter().any(|found| !matches!(found, Ok(None)))
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
            trial: self.results.trial,
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
        if !self.facts.together_with.is_empty() {
            let others: Vec<&str> = self.facts.together_with.iter().map(ServiceName::as_str).collect();
            remarks.push(format!("together with {}", others.join(", ")));
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
            trial: self.results.trial.clone(),
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
        Outcome::Superseded | Outcome::Failed(FailureCause::Overtaken) => "superseded",
        Outcome::Failed(_) => "failed",
        Outcome::Returned => "returned",
        Outcome::Attention => "attention",
        Outcome::Held => "held",
    }
}
