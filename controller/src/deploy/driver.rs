//! Performs what the machine says, one effect at a time, and writes every event down before it acts on it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::facts::Facts;
use super::history::{History, Line};
use super::journal::{Journal, JournalError, Story};
use super::link::Link;
use super::machine::{Effect, Event, IllegalEvent, Kind, Outcome, Phase, step};
use super::records::Records;
use crate::config::Config;
use crate::downtime::{Downtime, Sample};
use crate::fault;
use crate::front::{Front, FrontError, Serving, Standing};
use crate::report::Report;
use crate::runtime::Runtime;

/// Carries one operation to its end.
pub struct Driver<'a> {
    pub(super) config: &'a Config,
    pub(super) runtime: &'a dyn Runtime,
    pub(super) front: &'a Front,
    pub(super) report: &'a Report,
    pub(super) records: Records,
    pub(super) history: History,
    journal: Journal,
    pub(super) facts: Facts,
    pub(super) kind: Kind,
    pub(super) tally: Tally,
    /// The service as it must stay until the switch. A recovery never switches to a candidate, and needs none.
    pub(super) standing: Option<Standing>,
    /// What the watch next to this operation is told by, and what it says to it.
    pub(super) link: Option<&'a Link>,
    /// Who serves at the end, as [`Effect::Confirm`] has found.
    pub(super) serving: Option<Serving>,
    /// Whether a change of routing for the candidate may have reached the front door.
    pub(super) may_serve: bool,
    /// The front door's counters when it began.
    counters: Option<Sample>,
    /// Why the front door could not be asked what must be known to go on.
    pub(super) unanswered: Option<FrontError>,
    began: Instant,
}

/// What is known only at the end.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The front door's generation as we left it.
    pub(super) generation: Option<u64>,
    /// The switch, as the front door answered it.
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

/// A switch that the front door has answered.
#[derive(Debug, Clone)]
pub(super) struct SwitchedAt {
    pub(super) generation: u64,
    /// The front door's process.
    pub(super) pid: u32,
    pub(super) persisted: bool,
    pub(super) at: Instant,
}

/// How an operation ended.
#[derive(Debug)]
pub struct Ended {
    /// The outcome.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
    /// After so long traffic had moved, if it did.
    pub moved_after: Option<Duration>,
    /// Who serves, by a look after all that was done; `None`: the front door did not answer, and nothing was asked of it.
    pub serving: Option<Serving>,
    /// What users noticed.
    pub downtime: Downtime,
    /// Why it failed.
    pub reason: Option<String>,
}

/// Why an operation could not be carried on. The journal says what may be left; who serves, only the front door.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The journal can't be written: nothing may be done that it does not know of.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The same, at its first line: nothing was done.
    #[error(transparent)]
    NotBegun(JournalError),
    /// The front door does not answer, and only it knows whether the candidate may be stopped.
    #[error(transparent)]
    Unanswered(#[from] FrontError),
    /// A fault of ours.
    #[error("internal fault: {0}")]
    Illegal(#[from] IllegalEvent),
    /// A fault of ours.
    #[error("internal fault: nothing follows from {0:?}")]
    Stuck(Phase),
}

impl<'a> Driver<'a> {
    /// A driver for an operation that is about to begin, or one to be recovered.
    #[must_use]
    pub fn new(
        config: &'a Config,
        runtime: &'a dyn Runtime,
        front: &'a Front,
        report: &'a Report,
        journal: Journal,
        facts: Facts,
    ) -> Self {
        let state_dir = &config.deploy.state_dir;
        Self {
            config,
            runtime,
            front,
            report,
            records: Records::new(state_dir),
            history: History::new(state_dir),
            journal,
            facts,
            kind: Kind::Deploy,
            tally: Tally::default(),
            standing: None,
            link: None,
            serving: None,
            may_serve: false,
            counters: None,
            unanswered: None,
            began: Instant::now(),
        }
    }

    /// The same, with a watch next to it.
    #[must_use]
    pub fn linked(self, link: Option<&'a Link>) -> Self {
        Self { link, ..self }
    }

    /// Carries out a new operation. `standing`: as it was when the facts were read.
    ///
    /// # Errors
    /// The journal can't be written, or the front door does not answer and what was begun can't be undone without it.
    pub async fn run(&mut self, kind: Kind, standing: Standing) -> Result<Outcome, DriverError> {
        self.kind = kind;
        self.standing = Some(standing);
        self.counters = self.sample().await.ok();
        self.follow(Phase::Idle, Event::Begun(kind)).await
    }

    /// Carries an interrupted operation to an end: forward if traffic has moved, else back.
    ///
    /// # Errors
    /// The journal can't be written, or the front door does not answer.
    pub async fn recover(&mut self, story: &Story) -> Result<Outcome, DriverError> {
        if let Phase::Done(outcome) = story.phase {
            return Ok(outcome);
        }
        self.kind = story.kind;
        self.may_serve = story.may_serve;
        self.tally.remarks.push("recovered after an interruption".to_owned());
        self.tally.reason =
            story.note.clone().or_else(|| Some(format!("interrupted while {}", doing(story.phase))));
        self.follow(story.phase, Event::Interrupted).await
    }

    /// How it ended, for whoever reports it.
    #[must_use]
    pub fn ended(self, outcome: Outcome) -> Ended {
        Ended {
            outcome,
            took: self.began.elapsed(),
            moved_after: self.tally.switched.as_ref().map(|switched| switched.at - self.began),
            serving: self.serving,
            downtime: self.tally.downtime.unwrap_or_else(|| Downtime::unknown("it did not come to that")),
            reason: self.tally.reason,
        }
    }

    async fn sample(&self) -> Result<Sample, FrontError> {
        let proxy = self.front.view().await?.status.proxy;
        let metrics = self.front.client.metrics().await?;
        Ok(Sample::read(&metrics, self.front.service.as_str(), proxy.pid, proxy.uptime_s))
    }

    /// What users have noticed since it began.
    pub(super) async fn measure_downtime(&mut self) {
        let downtime = match (&self.counters, self.sample().await) {
            (Some(before), Ok(after)) => Downtime::between(before, &after, self.began.elapsed().as_secs()),
            (None, _) => Downtime::unknown("uh-proxy's counters were not read at the start"),
            (_, Err(e)) => Downtime::unknown(crate::chain(&e)),
        };
        self.tally.downtime = Some(downtime);
    }

    async fn follow(&mut self, mut phase: Phase, mut event: Event) -> Result<Outcome, DriverError> {
        loop {
            let begins = matches!(event, Event::Begun(_));
            let (next, effects) = step(phase, event)?;
            let note =
                matches!(event, Event::Failed(_) | Event::Died).then(|| self.tally.reason.clone()).flatten();
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
            *self.tally.timings_ms.entry(name.to_owned()).or_default() += took;
            fault::point(&format!("effect.{name}.after"));
            if event.is_some() {
                return event;
            }
        }
        None
    }

    /// The line for the history, and for hooks and the webhook.
    pub(super) fn line(&self, outcome: Outcome) -> Line {
        let command = match self.kind {
            Kind::Deploy => "deploy",
            Kind::Rollback => "rollback",
        };
        let mut remarks = self.tally.remarks.clone();
        if self.facts.skip_health {
            remarks.push("health gate skipped".to_owned());
        }
        remarks.extend(self.facts.why.iter().map(|why| format!("asked for by {why}")));
        let failed = !matches!(outcome, Outcome::Deployed | Outcome::RolledBack);
        let breach = self.facts.breach.clone();
        let failure = self.tally.reason.clone().filter(|_| failed);
        let reason = failure.or_else(|| breach.as_ref().map(|breach| breach.reason.clone()));
        Line {
            at: crate::time::iso_millis(jiff::Timestamp::now()),
            operation: Some(self.facts.operation.clone()),
            command: command.to_owned(),
            who: self.facts.who.clone(),
            service: Some(self.facts.service.clone()),
            from: Some(self.facts.from.clone()),
            from_version: self.facts.from_version.clone(),
            to: Some(self.facts.to.clone()),
            version: self.facts.version.clone(),
            artifact: self.tally.artifact.clone(),
            outcome: outcome_name(outcome).to_owned(),
            reason,
            breach,
            remarks,
            timings_ms: self.tally.timings_ms.clone(),
            in_flight: self.tally.in_flight,
            finished: self.tally.finished,
            cut: self.tally.cut,
            serves: self.serving.as_ref().map(|serving| serving.active().clone()),
            serves_version: self.serving.as_ref().and_then(Serving::version),
            downtime: self.tally.downtime.clone(),
        }
    }
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Deployed => "deployed",
        Outcome::RolledBack => "rolled_back",
        Outcome::Superseded | Outcome::Failed(super::machine::Failure::Overtaken) => "superseded",
        Outcome::Failed(_) => "failed",
        Outcome::Returned => "returned",
        Outcome::Attention => "attention",
    }
}

/// What an operation was doing, for people.
#[must_use]
pub fn doing(phase: Phase) -> &'static str {
    match phase {
        Phase::Idle => "beginning",
        Phase::Building => "building",
        Phase::Checking => "checking the target",
        Phase::Starting(_) => "starting the candidate",
        Phase::Probing(_) => "waiting for health checks",
        Phase::Switching(_) => "switching traffic",
        Phase::Draining(_) => "draining the old backend",
        Phase::Settling(_) => "watching the target of a rollback",
        Phase::Returning(_) => "moving traffic back",
        Phase::Undoing(..) => "undoing",
        Phase::Confirming(_) => "looking who serves",
        Phase::Recording(_) => "writing the history",
        Phase::Done(_) => "done",
    }
}
