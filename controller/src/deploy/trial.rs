//! The trial of a candidate: what it found, and the orders of operators that a running deploy obeys.
//!
//! uh-proxy counts, judges, and ends the split of a bad version by itself. What is here says it in words, for the
//! terminal, the history, hooks and the webhook.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use uh_protocol::BackendName;
use uh_protocol::status::{SplitStatus, TrialFigures, TrialRoute, TrialState, TrialStatus};

use super::facts::OperationFacts;
use crate::config::CanaryStep;
use crate::files;
use crate::names::named;
use crate::redact::Foreign;

/// How many routes are named in text.
const SHOWN_ROUTES: usize = 5;

/// How much of a line of the app's log is kept. The history is read as a whole, so an entry must stay small.
const LOG_LINE_CHARS: usize = 1000;

/// What a trial ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialOutcome {
    /// All steps are over, and the new version wasn't found worse.
    Pass,
    /// The new version is worse.
    Fail,
    /// There were too few requests to decide, or an operator ended it.
    NotEnoughData,
}

/// The end of a trial, with its evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialVerdict {
    /// What it ends with.
    pub verdict: TrialOutcome,
    /// Why, in full.
    pub reason: String,
    /// The percentage of clients that the new version had at the end.
    pub weight: f64,
    /// By how many points more of the new version's requests failed than of the old one's. Negative: fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excess_points: Option<f64>,
    /// What uh-proxy has counted; `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<TrialStatus>,
    /// The last lines of the log of a version that failed, without secrets and with control characters escaped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

impl TrialVerdict {
    /// From what uh-proxy has counted. `reason`: `None` for what the figures say.
    #[must_use]
    pub(crate) fn new(
        verdict: TrialOutcome,
        facts: &OperationFacts,
        weight: f64,
        figures: Option<TrialStatus>,
        reason: Option<String>,
    ) -> Self {
        let figures = figures.map(redacted);
        let reason = reason.unwrap_or_else(|| why(facts, figures.as_ref()));
        let excess_points = figures.as_ref().and_then(|figures| excess(&figures.failures));
        Self { verdict, reason, weight, excess_points, figures, log: Vec::new() }
    }

    /// The same, with the last lines of the app's log.
    #[must_use]
    pub(crate) fn with_log(self, log: &[Foreign]) -> Self {
        let log = log.iter().map(|line| line.shortened(LOG_LINE_CHARS).to_string()).collect();
        Self { log, ..self }
    }

    /// The evidence as lines of text, without the reason and the log.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let Some(figures) = &self.figures else { return Vec::new() };
        let mut lines = vec![line("failed", &figures.failures)];
        if let (Some(slow), Some(after)) = (&figures.slowness, figures.slow_after_ms) {
            lines.push(line(&format!("slower than {after} ms"), slow));
        }
        let routes: Vec<String> = figures.routes.iter().take(SHOWN_ROUTES).map(route).collect();
        if !routes.is_empty() {
            lines.push(format!("routes: {}", routes.join(", ")));
        }
        if !figures.request_ids.is_empty() {
            lines.push(format!("request ids: {}", figures.request_ids.join(", ")));
        }
        lines
    }
}

/// Paths and request ids come from clients.
fn redacted(figures: TrialStatus) -> TrialStatus {
    let clean = |text: &str| Foreign::new(text).to_string();
    let route = |route: &TrialRoute| TrialRoute { template: clean(&route.template), ..route.clone() };
    TrialStatus {
        routes: figures.routes.iter().map(route).collect(),
        request_ids: figures.request_ids.iter().map(|id| clean(id)).collect(),
        ..figures
    }
}

/// What is worse about the new version.
fn why(facts: &OperationFacts, figures: Option<&TrialStatus>) -> String {
    let new = named(&facts.to, facts.version.as_deref());
    let old = named(&facts.from, facts.from_version.as_deref());
    let Some(figures) = figures else { return format!("{new} is worse than {old}") };
    let slow = figures.slowness.as_ref().filter(|slow| slow.ln_same_moment() > figures.failures.ln_coin);
    let (what, of) = match slow {
        Some(slow) => ("is slow", slow),
        None => ("fails", &figures.failures),
    };
    format!(
        "{new} {what} more often than {old}: {} of {} requests ({}) to {} of {} ({})",
        of.new_bad,
        of.new_requests,
        percent(of.new_bad, of.new_requests),
        of.old_bad,
        of.old_requests,
        percent(of.old_bad, of.old_requests)
    )
}

fn line(what: &str, of: &TrialFigures) -> String {
    let excess = excess(of).map_or_else(String::new, |points| format!(" ({points:+.1} points)"));
    format!(
        "{what}: new {} of {} requests ({}) by {} clients, old {} of {} ({}) by {}{excess}; not worse by more than {:.1} points",
        of.new_bad,
        of.new_requests,
        percent(of.new_bad, of.new_requests),
        of.new_clients,
        of.old_bad,
        of.old_requests,
        percent(of.old_bad, of.old_requests),
        of.old_clients,
        of.not_worse_by_points
    )
}

fn route(route: &TrialRoute) -> String {
    format!("{} ({} clients on new, {} on old)", route.template, route.new_clients, route.old_clients)
}

/// The difference of both rates in points; `None`: a side has no requests.
fn excess(of: &TrialFigures) -> Option<f64> {
    Some(share(of.new_bad, of.new_requests)? - share(of.old_bad, of.old_requests)?)
}

#[allow(clippy::cast_precision_loss, reason = "counts of requests are far below 2^53")]
fn share(bad: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| 100.0 * bad as f64 / all as f64)
}

fn percent(bad: u64, all: u64) -> String {
    share(bad, all).map_or_else(|| "–".to_owned(), |share| format!("{share:.1} %"))
}

/// What an operator can order while a trial is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TrialOrder {
    /// Switch everybody to the new version now.
    Promote,
    /// Leave the split as it is.
    Hold,
    /// Send everybody back to the old version.
    Abort,
}

/// An order for the deploy that runs the trial, in a file next to the journal. It holds the lock, so nobody else can act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrderFile {
    /// For which operation. Another one ignores it.
    pub operation: String,
    pub order: TrialOrder,
    /// User and host.
    pub who: String,
}

impl OrderFile {
    /// Gives the order.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn write(&self, state_dir: &Path) -> io::Result<()> {
        files::replace(&path(state_dir), serde_json::to_string(self)?.as_bytes())
    }

    /// The order for this operation, if there is one: only one process gets it. What can't be read is none.
    #[must_use]
    pub(crate) fn take(state_dir: &Path, operation: &str) -> Option<Self> {
        let path = path(state_dir);
        let text = files::read(&path).ok()??;
        let order: Self = serde_json::from_slice(&text).ok()?;
        if order.operation != operation {
            return None;
        }
        match fs::remove_file(&path) {
            // Who gave the order has taken it back, or the deploy has obeyed it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            // It is obeyed once. If it can't be removed, it is obeyed once more after the same operation, which has ended.
            _ => Some(order),
        }
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("trial-order.json")
}

/// The trial of this backend. `before`: what uh-proxy reported before the split, which is an earlier trial: a new one is
/// opened a moment after its split.
#[must_use]
pub(crate) fn of<'a>(
    trial: Option<&'a TrialStatus>,
    backend: &BackendName,
    before: Option<&TrialStatus>,
) -> Option<&'a TrialStatus> {
    trial.filter(|trial| trial.backend == *backend && before != Some(*trial))
}

/// The verdict on the operation's candidate if uh-proxy has found it worse and ended the split; `None`: it hasn't, as far
/// as it knows. `before`: as for [`of`]; `step`: the one of its trial that it was in, whose share of the clients it had.
#[must_use]
pub(crate) fn worse(
    trial: Option<&TrialStatus>,
    facts: &OperationFacts,
    before: Option<&TrialStatus>,
    step: Option<u8>,
) -> Option<TrialVerdict> {
    let figures = of(trial, &facts.to, before).filter(|figures| figures.state == TrialState::Bad)?;
    if facts.earlier_trial == Some(EarlierTrial::new(figures)) {
        return None;
    }
    let step = facts.canary.as_ref().zip(step).and_then(|(plan, step)| plan.steps.get(usize::from(step)));
    let weight = step.map_or(0.0, CanaryStep::percent);
    Some(TrialVerdict::new(TrialOutcome::Fail, facts, weight, Some(figures.clone()), None))
}

/// The share of clients that this process has given the candidate, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct OurSplit {
    /// The last one that uh-proxy has acknowledged.
    pub given: Option<f64>,
    /// One that was sent after that and not answered: uh-proxy may have carried it out.
    pub unanswered: Option<f64>,
}

impl OurSplit {
    /// Whether uh-proxy may have a split of this process.
    #[must_use]
    pub(crate) fn may_be_there(&self) -> bool {
        self.given.is_some() || self.unanswered.is_some()
    }

    /// Whether this is the split that this process has made.
    #[must_use]
    pub(crate) fn is(&self, split: Option<&SplitStatus>, to: &BackendName) -> bool {
        let ours = |weight: f64| {
            [self.given, self.unanswered].into_iter().flatten().any(|ours| same_percent(ours, weight))
        };
        split.is_some_and(|split| split.to == *to && ours(split.weight))
    }
}

/// Percentages have four decimals.
#[must_use]
pub(crate) fn same_percent(one: f64, other: f64) -> bool {
    (one - other).abs() < 0.000_05
}

/// An earlier trial, for recognizing it after a crash. No fractions: they may not survive the journal unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierTrial {
    backend: BackendName,
    new_requests: u64,
    new_bad: u64,
    old_requests: u64,
    old_bad: u64,
    request_ids: Vec<String>,
}

impl EarlierTrial {
    /// This trial, which has ended.
    #[must_use]
    pub(crate) fn new(trial: &TrialStatus) -> Self {
        let TrialFigures { new_requests, new_bad, old_requests, old_bad, .. } = trial.failures;
        let request_ids = redacted(trial.clone()).request_ids;
        Self { backend: trial.backend.clone(), new_requests, new_bad, old_requests, old_bad, request_ids }
    }
}

#[cfg(test)]
mod tests;
