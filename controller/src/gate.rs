//! The health gate: a candidate has to answer well, several times in a row, as itself. And if it does not, everything
//! that helps to see why.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::config::Gate;
use crate::probe::{Expected, Found, Verdict, probe};
use crate::redact::Foreign;
use crate::report::Report;
use crate::runtime::{Endpoint, InstanceId, LogQuery, Runtime, RuntimeError, State};

/// How often an instance is asked whether it still runs, between probes.
const STATE_POLL: Duration = Duration::from_millis(100);

/// How long an engine may take to say how an instance is: on a busy machine some hundred milliseconds.
const STATE_WITHIN: Duration = Duration::from_secs(2);

/// How often it is said that an engine does not answer.
const SILENCE_TOLD_EVERY: Duration = Duration::from_secs(5);

/// How long an engine may take to give the last lines of a log.
const LOG_WITHIN: Duration = Duration::from_secs(5);

/// So many restarts by the runtime's own means are a crash loop.
const CRASH_LOOP_RESTARTS: u32 = 2;

/// How an instance came to an end, if it did: it exited, or the runtime's own means start it again and again.
#[must_use]
pub fn end_of(state: &State) -> Option<String> {
    match state {
        State::Exited(ending) => Some(ending.to_string()),
        State::Running { restarts } if *restarts >= CRASH_LOOP_RESTARTS => {
            Some(format!("restarted {restarts} times, a crash loop"))
        }
        State::Running { .. } | State::Absent => None,
    }
}

/// How many lines of its log are shown.
const SHOWN_LOG_LINES: usize = 50;

/// How long an engine has not said how the candidate is.
#[derive(Debug, Default)]
struct Silence {
    since: Cell<Option<Instant>>,
    told: Cell<Option<Instant>>,
}

impl Silence {
    fn tell(&self, state: &Result<State, RuntimeError>, instance: &InstanceId, report: &Report) {
        let Err(error) = state else {
            if self.told.take().is_some() {
                report.line(&format!("the engine answers again about {instance}"));
            }
            self.since.set(None);
            return;
        };
        let now = Instant::now();
        let since = self.since.get().unwrap_or(now);
        self.since.set(Some(since));
        if self.told.get().is_none_or(|told| now.duration_since(told) >= SILENCE_TOLD_EVERY) {
            self.told.set(Some(now));
            report.line(&format!(
                "can't determine whether {instance} runs: {}; waiting, the active backend serves",
                crate::chain(error)
            ));
        }
    }
}

/// Why a candidate was turned away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// In one line.
    pub headline: String,
    /// The last probe.
    pub probe: Vec<String>,
    /// The last lines of its log.
    pub log: Vec<Foreign>,
    /// What to try.
    pub advice: Vec<String>,
}

impl Diagnosis {
    /// Shows it.
    pub fn show(&self, report: &Report) {
        report.end_progress();
        report.say(&format!("❌ {}", self.headline));
        fn section(report: &Report, title: &str, lines: &[impl std::fmt::Display]) {
            if !lines.is_empty() {
                report.line(title);
                lines.iter().for_each(|line| report.line(&format!("  {line}")));
            }
        }
        section(report, "last probe:", &self.probe);
        section(report, "last lines of its log:", &self.log);
        section(report, "what to try:", &self.advice);
    }
}

/// A candidate before the gate.
pub struct Candidate<'a> {
    /// What runs it.
    pub runtime: &'a dyn Runtime,
    /// Its instance.
    pub instance: &'a InstanceId,
    /// Its endpoints.
    pub endpoints: &'a [Endpoint],
    /// Who it should be.
    pub expected: Expected<'a>,
}

impl Candidate<'_> {
    /// Waits until it has proven itself.
    ///
    /// # Errors
    /// It has ended, is somebody else, or did not get healthy in time.
    pub async fn prove(&self, gate: &Gate, report: &Report) -> Result<(), Diagnosis> {
        let deadline = Instant::now() + gate.within;
        let attempts = (gate.within.as_millis() / gate.interval.as_millis().max(1)).max(1);
        let attempts = u64::try_from(attempts).unwrap_or(u64::MAX);
        let (mut streak, mut strangers, mut attempt) = (0, 0, 0);
        let silence = Silence::default();
        loop {
            attempt += 1;
            let next = Instant::now() + gate.interval;
            let found = self.probe_all(gate).await;
            report.attempt(attempt, attempts, found.summary());
            match &found.verdict {
                Verdict::Healthy => (streak, strangers) = (streak + 1, 0),
                Verdict::Unhealthy(_) => (streak, strangers) = (0, 0),
                Verdict::Stranger(_) => (streak, strangers) = (0, strangers + 1),
            }
            self.must_run_or_wait(&found, &silence, report).await?;
            if streak >= gate.successes {
                return Ok(());
            }
            if strangers >= gate.successes {
                return Err(self.stranger(&found).await);
            }
            if Instant::now() >= deadline {
                return Err(self.too_late(gate, &found).await);
            }
            while Instant::now() < next {
                let left = next.saturating_duration_since(Instant::now());
                tokio::time::sleep(left.min(STATE_POLL)).await;
                self.must_run_or_wait(&found, &silence, report).await?;
            }
        }
    }

    /// Fails as soon as it does not run any more. An engine that does not answer is waited for until the gate's own
    /// deadline, and that is said.
    async fn must_run_or_wait(
        &self,
        last: &Found,
        silence: &Silence,
        report: &Report,
    ) -> Result<(), Diagnosis> {
        // What a process has come to is in a file of ours; only an engine can keep silent.
        let state = if self.runtime.kind() == "process" {
            self.runtime.state(self.instance).await
        } else {
            let asked = tokio::time::timeout(STATE_WITHIN, self.runtime.state(self.instance)).await;
            asked.unwrap_or_else(|_| {
                let source = format!("no answer within {}", crate::time::span(STATE_WITHIN)).into();
                Err(RuntimeError::Unreachable { what: "the engine".to_owned(), source })
            })
        };
        silence.tell(&state, self.instance, report);
        self.judge(state, Some(last)).await
    }

    /// Every endpoint; the first that is not healthy counts for all.
    pub async fn probe_all(&self, gate: &Gate) -> Found {
        let mut last = None;
        for endpoint in self.endpoints {
            let found = probe(endpoint, self.expected, gate).await;
            if !found.is_healthy() {
                return found;
            }
            last = Some(found);
        }
        last.unwrap_or(Found {
            verdict: Verdict::Unhealthy("it has no endpoint".to_owned()),
            took: Duration::ZERO,
            lines: Vec::new(),
        })
    }

    /// Fails as soon as it does not run any more.
    ///
    /// # Errors
    /// It has ended, or restarts again and again.
    pub async fn must_run(&self, last: Option<&Found>) -> Result<(), Diagnosis> {
        self.judge(self.runtime.state(self.instance).await, last).await
    }

    async fn judge(&self, state: Result<State, RuntimeError>, last: Option<&Found>) -> Result<(), Diagnosis> {
        let probe =
            last.filter(|found| !found.is_healthy()).map(|found| found.lines.clone()).unwrap_or_default();
        let (headline, advice) = match state {
            // An engine that does not answer now may in a moment; the deadline ends this.
            Err(_) => return Ok(()),
            Ok(State::Running { restarts }) if restarts < CRASH_LOOP_RESTARTS => return Ok(()),
            Ok(State::Running { restarts }) => (
                format!("{} was restarted {restarts} times: a crash loop", self.instance),
                vec!["see its log for why it ends".to_owned()],
            ),
            Ok(State::Absent) => (format!("{} is gone", self.instance), Vec::new()),
            Ok(State::Exited(ending)) if ending.out_of_memory => (
                format!("{} ended: {ending}", self.instance),
                vec!["give it more memory (memory_limit), or find what it needs it for".to_owned()],
            ),
            Ok(State::Exited(ending)) => (
                format!("{} ended: {ending}", self.instance),
                vec![
                    "see its log for why".to_owned(),
                    "run the same command by hand with the same environment".to_owned(),
                ],
            ),
        };
        Err(Diagnosis { headline, probe, log: self.log().await, advice })
    }

    async fn stranger(&self, found: &Found) -> Diagnosis {
        Diagnosis {
            headline: format!("somebody else answers in place of {}: {}", self.instance, found.summary()),
            probe: found.lines.clone(),
            log: self.log().await,
            advice: vec![
                format!("see who listens at {}", self.endpoints_text()),
                "see that the app reports DEPLOYMENT_ENV as deployment, and the version that is deployed"
                    .to_owned(),
                "or set identity = \"ignored\" in [health]".to_owned(),
            ],
        }
    }

    async fn too_late(&self, gate: &Gate, found: &Found) -> Diagnosis {
        Diagnosis {
            headline: format!(
                "health check failed: {} did not get healthy within {}: {}",
                self.instance,
                crate::time::span(gate.within),
                found.summary()
            ),
            probe: found.lines.clone(),
            log: self.log().await,
            advice: vec!["if it only needs longer: within in [health]".to_owned()],
        }
    }

    fn endpoints_text(&self) -> String {
        self.endpoints.first().map(ToString::to_string).unwrap_or_default()
    }

    async fn log(&self) -> Vec<Foreign> {
        let lines = std::cell::RefCell::new(Vec::new());
        let query = LogQuery { tail: Some(SHOWN_LOG_LINES), since: None, follow: false };
        let keep = |line: &Foreign| lines.borrow_mut().push(line.clone());
        // No log is no reason to hide the rest.
        let _ = tokio::time::timeout(LOG_WITHIN, self.runtime.logs(self.instance, &query, &keep)).await;
        lines.into_inner()
    }
}

/// A command line that asks what a probe asks.
pub(crate) fn curl(endpoint: Option<&Endpoint>, gate: &Gate) -> String {
    let headers: String = gate
        .headers
        .iter()
        .map(|(name, value)| format!(" -H '{name}: {}'", value.to_str().unwrap_or_default()))
        .collect();
    match endpoint {
        Some(Endpoint::Unix(path)) => {
            format!("curl -i{headers} --unix-socket {} http://localhost{}", path.display(), gate.path)
        }
        Some(endpoint) => format!("curl -i{headers} http://{endpoint}{}", gate.path),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests;
