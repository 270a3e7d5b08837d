//! The health gate: a candidate must answer several probes in a row well and with the right identity. If it doesn't,
//! a diagnosis shows why.

use std::cell::Cell;
use std::time::{Duration, Instant};

use uh_protocol::Address;

use crate::config::GateSettings;
use crate::probe::{Expected, ProbeResult, ProbeVerdict, probe};
use crate::redact::Foreign;
use crate::runtime::{InstanceId, LogQuery, Runtime, RuntimeError, State};

/// How often to check between probes whether the instance is still running.
const STATE_POLL: Duration = Duration::from_millis(100);

/// How long an engine may take to report an instance's state: on a busy machine some hundred milliseconds.
const STATE_WITHIN: Duration = Duration::from_secs(2);

/// How often to report that an engine doesn't answer.
const OUTAGE_REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// How long an engine may take to return the last lines of a log.
const LOG_WITHIN: Duration = Duration::from_secs(5);

/// This many restarts by the runtime are a crash loop.
const CRASH_LOOP_RESTARTS: u32 = 2;

/// Why an instance counts as ended: it exited, or the runtime keeps restarting it.
#[must_use]
pub(crate) fn end_of(state: &State) -> Option<String> {
    match state {
        State::Exited(ending) => Some(ending.to_string()),
        State::Running { restarts } if *restarts >= CRASH_LOOP_RESTARTS => {
            Some(format!("restarted {restarts} times (a crash loop)"))
        }
        State::Running { .. } | State::Absent => None,
    }
}

/// How many lines of the log are shown.
const SHOWN_LOG_LINES: usize = 50;

/// What happens at the gate.
#[derive(Debug, Clone, Copy)]
pub(crate) enum GateProgress<'a> {
    /// One of several attempts, and what was found.
    Attempt { number: u64, of: u64, found: &'a str },
    /// The engine doesn't report the instance's state.
    EngineSilent { instance: &'a InstanceId, error: &'a RuntimeError },
    /// It does again.
    EngineBack(&'a InstanceId),
}

/// Receives what happens at the gate.
pub(crate) type GateListener<'a> = &'a (dyn Fn(GateProgress<'_>) + 'a);

/// How long an engine hasn't reported the candidate's state.
#[derive(Debug, Default)]
struct EngineOutage {
    since: Cell<Option<Instant>>,
    reported_at: Cell<Option<Instant>>,
}

impl EngineOutage {
    fn notice(&self, state: &Result<State, RuntimeError>, instance: &InstanceId, listener: GateListener<'_>) {
        let Err(error) = state else {
            if self.reported_at.take().is_some() {
                listener(GateProgress::EngineBack(instance));
            }
            self.since.set(None);
            return;
        };
        let now = Instant::now();
        let since = self.since.get().unwrap_or(now);
        self.since.set(Some(since));
        if self
            .reported_at
            .get()
            .is_none_or(|reported_at| now.duration_since(reported_at) >= OUTAGE_REPORT_INTERVAL)
        {
            self.reported_at.set(Some(now));
            listener(GateProgress::EngineSilent { instance, error });
        }
    }
}

/// Why a candidate was rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    /// The reason in one line.
    pub headline: String,
    /// The last probe.
    pub probe: Vec<String>,
    /// The last lines of its log.
    pub log: Vec<Foreign>,
    /// What to try.
    pub advice: Vec<String>,
}

/// A candidate and the health gate it must pass.
pub(crate) struct HealthGate<'a> {
    pub runtime: &'a dyn Runtime,
    pub instance: &'a InstanceId,
    pub endpoints: &'a [Address],
    /// Its expected identity.
    pub expected: Expected<'a>,
}

impl HealthGate<'_> {
    /// Waits until it has passed the gate.
    ///
    /// # Errors
    /// It exited, has another identity, or didn't become healthy in time.
    pub(crate) async fn prove(
        &self,
        gate: &GateSettings,
        listener: GateListener<'_>,
    ) -> Result<(), Diagnosis> {
        let deadline = Instant::now() + gate.within;
        let attempts = (gate.within.as_millis() / gate.interval.as_millis().max(1)).max(1);
        let attempts = u64::try_from(attempts).unwrap_or(u64::MAX);
        let (mut streak, mut strangers, mut attempt) = (0, 0, 0);
        let silence = EngineOutage::default();
        loop {
            attempt += 1;
            let next = Instant::now() + gate.interval;
            let found = self.probe_all(gate).await;
            listener(GateProgress::Attempt { number: attempt, of: attempts, found: found.summary() });
            match &found.verdict {
                ProbeVerdict::Healthy => (streak, strangers) = (streak + 1, 0),
                ProbeVerdict::Unhealthy(_) => (streak, strangers) = (0, 0),
                ProbeVerdict::Stranger(_) => (streak, strangers) = (0, strangers + 1),
            }
            self.must_run_or_wait(&found, &silence, listener).await?;
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
                self.must_run_or_wait(&found, &silence, listener).await?;
            }
        }
    }

    /// Fails as soon as it isn't running any more. If the engine doesn't answer, reports that and waits until the
    /// gate's deadline.
    async fn must_run_or_wait(
        &self,
        last: &ProbeResult,
        silence: &EngineOutage,
        listener: GateListener<'_>,
    ) -> Result<(), Diagnosis> {
        // The state of a process is in a local file; only an engine can fail to answer.
        let state = if self.runtime.kind() == "process" {
            self.runtime.state(self.instance).await
        } else {
            let asked = tokio::time::timeout(STATE_WITHIN, self.runtime.state(self.instance)).await;
            asked.unwrap_or_else(|_| {
                let source = format!("no answer within {}", crate::time::span(STATE_WITHIN)).into();
                Err(RuntimeError::Unreachable { what: "the engine".to_owned(), source })
            })
        };
        silence.notice(&state, self.instance, listener);
        self.judge(state, Some(last)).await
    }

    /// Probes every endpoint. The first unhealthy one counts for all.
    pub(crate) async fn probe_all(&self, gate: &GateSettings) -> ProbeResult {
        let mut last = None;
        for endpoint in self.endpoints {
            let found = probe(endpoint, self.expected, gate).await;
            if !found.is_healthy() {
                return found;
            }
            last = Some(found);
        }
        last.unwrap_or(ProbeResult {
            verdict: ProbeVerdict::Unhealthy("it has no endpoint".to_owned()),
            took: Duration::ZERO,
            lines: Vec::new(),
        })
    }

    async fn judge(
        &self,
        state: Result<State, RuntimeError>,
        last: Option<&ProbeResult>,
    ) -> Result<(), Diagnosis> {
        let probe =
            last.filter(|found| !found.is_healthy()).map(|found| found.lines.clone()).unwrap_or_default();
        let (headline, advice) = match state {
            // An engine that doesn't answer now may answer soon; the gate's deadline limits this.
            Err(_) => return Ok(()),
            Ok(State::Running { restarts }) if restarts < CRASH_LOOP_RESTARTS => return Ok(()),
            Ok(State::Running { restarts }) => (
                format!("{} was restarted {restarts} times (a crash loop)", self.instance),
                vec!["read its log to see why it exits".to_owned()],
            ),
            Ok(State::Absent) => (format!("{} no longer exists", self.instance), Vec::new()),
            Ok(State::Exited(ending)) if ending.out_of_memory => (
                format!("{} exited: {ending}", self.instance),
                vec!["raise memory_limit, or find out why it needs more memory".to_owned()],
            ),
            Ok(State::Exited(ending)) => (
                format!("{} exited: {ending}", self.instance),
                vec![
                    "read its log".to_owned(),
                    "run the same command by hand with the same environment".to_owned(),
                ],
            ),
        };
        Err(Diagnosis { headline, probe, log: self.log().await, advice })
    }

    async fn stranger(&self, found: &ProbeResult) -> Diagnosis {
        Diagnosis {
            headline: format!("another instance answers in place of {}: {}", self.instance, found.summary()),
            probe: found.lines.clone(),
            log: self.log().await,
            advice: vec![
                format!("find out what listens on {}", self.endpoints_text()),
                "make sure the app reports DEPLOYMENT_ENV as `deployment` and APP_VERSION as `version`"
                    .to_owned(),
                "or set identity = \"ignored\" in [health]".to_owned(),
            ],
        }
    }

    async fn too_late(&self, gate: &GateSettings, found: &ProbeResult) -> Diagnosis {
        Diagnosis {
            headline: format!(
                "health check failed: {} didn't become healthy within {}: {}",
                self.instance,
                crate::time::span(gate.within),
                found.summary()
            ),
            probe: found.lines.clone(),
            log: self.log().await,
            advice: vec!["if it only needs more time, raise within in [health]".to_owned()],
        }
    }

    fn endpoints_text(&self) -> String {
        self.endpoints.first().map(ToString::to_string).unwrap_or_default()
    }

    async fn log(&self) -> Vec<Foreign> {
        last_log_lines(self.runtime, self.instance).await
    }
}

/// The last lines of an instance's log: what can be read of them within [`LOG_WITHIN`]. Without the log, the rest of a
/// failure is still shown.
pub(crate) async fn last_log_lines(runtime: &dyn Runtime, instance: &InstanceId) -> Vec<Foreign> {
    let lines = std::cell::RefCell::new(Vec::new());
    let query = LogQuery { tail: Some(SHOWN_LOG_LINES), since: None, follow: false };
    let keep = |line: &Foreign| lines.borrow_mut().push(line.clone());
    let _ = tokio::time::timeout(LOG_WITHIN, runtime.logs(instance, &query, &keep)).await;
    lines.into_inner()
}

/// A command that sends the same request as a probe.
pub(crate) fn curl(endpoint: Option<&Address>, gate: &GateSettings) -> String {
    let headers: String = gate
        .headers
        .iter()
        .map(|(name, value)| format!(" -H '{name}: {}'", value.to_str().unwrap_or_default()))
        .collect();
    match endpoint {
        Some(Address::Unix(path)) => {
            format!("curl -i{headers} --unix-socket {} http://localhost{}", path.display(), gate.path)
        }
        Some(endpoint) => format!("curl -i{headers} http://{endpoint}{}", gate.path),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests;
