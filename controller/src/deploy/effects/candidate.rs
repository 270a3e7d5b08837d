//! Effects on the candidate: build it, or check a rollback's target; clear what runs as its backend; start it; prove
//! it.

use std::time::{Duration, Instant};

use uh_protocol::Address;

use super::traffic::ELSEWHERE_ROUNDS;
use crate::deploy::machine::{Event, FailureCause, OperationKind};
use crate::deploy::member::Member;
use crate::deploy::progress::{DeployStage, Progress, RollbackStage};
use crate::deploy::records::BackendRecord;
use crate::gate::{self, Diagnosis};
use crate::notice::Hook;
use crate::probe::Expected;
use crate::proxy::{OutOfService, ProxyError, WithdrawalProgress};
use crate::runtime::{InstanceId, RuntimeError, ports};
use crate::{fault, redact};

/// How often the target of a rollback is probed: one slow answer must not leave the bad version serving.
const CHECKS: u32 = 5;

/// The time between two probes.
const CHECK_PAUSE: Duration = Duration::from_millis(200);

impl Member<'_> {
    pub(super) async fn build(&mut self) -> Event {
        let event = serde_json::json!({"hook": "pre_deploy", "operation": self.facts});
        if let Err(e) = self.hook(Hook::PreDeploy, &event).await {
            let reason = format!("pre_deploy vetoed the deploy: {}", e.reason);
            self.tell(Progress::Failed { reason: &reason, log: &e.log });
            return self.fail(FailureCause::Declined, reason);
        }
        // The hook may have fetched new secrets, and the build may be the first to print them.
        redact::remember(redact::of_config(self.config));
        self.tell(Progress::Deploying(DeployStage::Build));
        let start = Instant::now();
        let listener = self.listener();
        let built =
            self.runtime.build(&self.candidate(), &|line| listener(Progress::BuildOutput(line))).await;
        let frozen = match built {
            Ok(frozen) => frozen,
            Err(e) => return self.runtime_failed(FailureCause::Build, &e),
        };
        self.tell(Progress::Built { artifact: &frozen.artifact, took: start.elapsed() });
        self.results.artifact = Some(frozen.artifact.clone());
        self.propose(&BackendRecord {
            instance: self.facts.instance.clone(),
            frozen,
            files: self.frozen_files(),
            operation: self.facts.operation.clone(),
        })
        .unwrap_or(Event::Built)
    }

    fn propose(&mut self, record: &BackendRecord) -> Option<Event> {
        let proposed = self.records.propose(record);
        // The candidate may log values that are only in its record.
        redact::remember(redact::of_config(self.config));
        let failed = proposed.err()?;
        Some(self.fail_aloud(FailureCause::Build, format!("can't write the candidate's record: {failed}")))
    }

    pub(super) async fn check(&mut self) -> Event {
        self.tell(Progress::RollingBack { stage: RollbackStage::Check, to: &self.facts.to });
        let record = match self.records.of(&self.facts.to) {
            Ok(record) => record,
            Err(e) => return self.fail_aloud(FailureCause::Declined, e.to_string()),
        };
        let (instance, endpoints) = match &record {
            Some(record) => (record.instance.clone(), record.frozen.endpoints.clone()),
            None => (self.facts.instance.clone(), self.facts.endpoints.clone()),
        };
        self.tell(Progress::Target(&instance));
        let facts = self.facts.clone();
        let target = gate::HealthGate {
            runtime: self.runtime,
            instance: &instance,
            endpoints: &endpoints,
            expected: Expected { backend: &facts.to, version: facts.version.as_deref() },
        };
        let mut found = target.probe_all(&self.config.gate).await;
        for _ in 1..CHECKS {
            let ended = record.is_some()
                && self.runtime.state(&instance).await.is_ok_and(|state| !state.is_running());
            if found.is_healthy() || ended {
                break;
            }
            tokio::time::sleep(CHECK_PAUSE).await;
            found = target.probe_all(&self.config.gate).await;
        }
        if found.is_healthy() {
            self.tell(Progress::TargetHealthy);
            return Event::Alive;
        }
        let Some(record) = record else {
            let why = format!(
                "{} doesn't answer ({}), and there is no record to start it from: deploy the version you want",
                facts.to,
                found.summary()
            );
            return self.fail_aloud(FailureCause::Declined, why);
        };
        match self.runtime.state(&instance).await {
            Ok(state) if state.is_running() => {
                let diagnosis = Diagnosis {
                    headline: format!("{instance} is running but unhealthy: {}", found.summary()),
                    probe: found.lines,
                    advice: vec![format!("to switch anyway: uh-proxy switch {} --force", facts.to)],
                    ..Diagnosis::default()
                };
                self.turned_away(&diagnosis)
            }
            Ok(_) => {
                // Check this before anything is stopped for it.
                if let Err(e) = self.runtime.can_start(&record.frozen) {
                    return self.runtime_failed(FailureCause::Declined, &e);
                }
                self.tell(Progress::TargetStopped);
                self.results
                    .remarks
                    .push("the target wasn't running and was started again from its record".to_owned());
                self.results.artifact = Some(record.frozen.artifact.clone());
                let record = BackendRecord {
                    instance: facts.instance.clone(),
                    frozen: record.frozen,
                    files: record.files,
                    operation: facts.operation.clone(),
                };
                self.propose(&record).unwrap_or(Event::Gone)
            }
            Err(e) => self.runtime_failed(FailureCause::Start, &e),
        }
    }

    /// The backend is withdrawn first: until the candidate is registered, nothing can switch to an instance that is
    /// stopped here, or to a candidate that isn't proven yet.
    pub(super) async fn clear(&mut self) -> Option<Event> {
        if self.kind == OperationKind::Deploy {
            self.tell(Progress::Deploying(DeployStage::Start));
        }
        let leftovers = match self.runtime.find(&self.facts.to).await {
            Ok(found) => found.into_iter().filter(|id| *id != self.facts.instance).collect::<Vec<_>>(),
            Err(e) => return Some(self.runtime_failed(FailureCause::Start, &e)),
        };
        if let Some(taken) = self.port_of_a_stranger(&leftovers).await {
            return Some(self.runtime_failed(FailureCause::Start, &taken));
        }
        let out = match self.withdraw_target().await {
            Ok(out) => out,
            Err(e) => return Some(self.refused(&e)),
        };
        self.results.generation = Some(out.generation());
        fault::point("effect.clear.withdrawn");
        for leftover in leftovers {
            if let Err(event) = self.clear_one(&out, &leftover).await {
                return Some(event);
            }
        }
        None
    }

    /// A port that stays in use whatever is stopped here, because another process holds it. Then nothing is changed, and the
    /// backend stays in service: after a manual switch, that process may be the only standby.
    async fn port_of_a_stranger(&self, leftovers: &[InstanceId]) -> Option<RuntimeError> {
        for leftover in leftovers {
            // A running instance holds the port itself, or the engine does for it.
            if !self.runtime.state(leftover).await.is_ok_and(|state| !state.is_running()) {
                return None;
            }
        }
        let ours = |by: &ports::Taken| leftovers.iter().any(|leftover| by.is_of(leftover));
        let taken = |endpoint: &Address| {
            let by = ports::taken_by(endpoint).filter(|by| !ours(by))?;
            Some(RuntimeError::PortTaken { endpoint: endpoint.to_string(), by: by.to_string() })
        };
        self.facts.endpoints.iter().find_map(taken)
    }

    /// Withdraws the target, if the routing of this service hasn't changed since the operation began.
    async fn withdraw_target(&self) -> Result<OutOfService, ProxyError> {
        let mut generation = self.facts.generation;
        for _ in 0..ELSEWHERE_ROUNDS {
            let listener = |progress: WithdrawalProgress<'_>| self.tell(Progress::Withdrawal(progress));
            match OutOfService::withdraw(self.proxy, &self.facts.to, generation, &listener).await {
                Err(e) if e.is_overtaken() => generation = self.moved_elsewhere(e).await?,
                other => return other,
            }
        }
        Err(ProxyError::Overtaken("the routing keeps changing".to_owned()))
    }

    async fn clear_one(&mut self, out: &OutOfService, leftover: &InstanceId) -> Result<(), Event> {
        let running = self.runtime.state(leftover).await.is_ok_and(|state| state.is_running());
        if running {
            let listener = self.listener();
            let timeout = self.config.deploy.drain_timeout;
            let drained =
                out.drain(self.proxy, timeout, &|progress| listener(Progress::Withdrawal(progress))).await;
            drained.map_err(|e| self.refused(&e))?;
            self.tell(Progress::Clearing(leftover));
        }
        let stopped = out.stop(self.runtime, leftover, self.config.deploy.stop_timeout).await;
        stopped.map_err(|e| self.runtime_failed(FailureCause::Start, &e))?;
        fault::point("effect.clear.stopped");
        self.runtime.remove(leftover).await.map_err(|e| self.runtime_failed(FailureCause::Start, &e))
    }

    pub(super) async fn start(&mut self) -> Event {
        let record = match self.records.candidate(&self.facts.operation) {
            Ok(Some(record)) => record,
            Ok(None) => return self.fail_aloud(FailureCause::Start, "the candidate's record is missing"),
            Err(e) => {
                return self
                    .fail_aloud(FailureCause::Start, format!("can't read the candidate's record: {e}"));
            }
        };
        let facts = &self.facts;
        self.tell(Progress::Starting { instance: &facts.instance, endpoints: &facts.endpoints });
        match self.runtime.start(&record.instance, &record.frozen).await {
            Ok(()) => Event::Started,
            Err(e) => self.runtime_failed(FailureCause::Start, &e),
        }
    }

    pub(super) async fn prove(&mut self) -> Event {
        if self.kind == OperationKind::Deploy {
            self.tell(Progress::Deploying(DeployStage::Prove));
        }
        if self.facts.skip_health {
            self.tell(Progress::GateSkipped);
            return self.proven();
        }
        let facts = self.facts.clone();
        let candidate = gate::HealthGate {
            runtime: self.runtime,
            instance: &facts.instance,
            endpoints: &facts.endpoints,
            expected: Expected { backend: &facts.to, version: facts.version.as_deref() },
        };
        let start = Instant::now();
        let listener = self.listener();
        let proven = candidate.prove(&self.config.gate, &|progress| listener(Progress::Gate(progress))).await;
        match proven {
            Ok(()) => {
                let successes = self.config.gate.successes;
                self.tell(Progress::Proven { successes, took: start.elapsed() });
                self.proven()
            }
            Err(mut diagnosis) => {
                diagnosis.advice.extend(self.ways_to_ask());
                self.turned_away(&diagnosis)
            }
        }
    }

    /// A proven candidate gets everybody, or first the clients of its trial.
    fn proven(&self) -> Event {
        if self.facts.canary.is_some() { Event::Step(0) } else { Event::Proven }
    }

    /// What an operator can try to find out why the candidate failed.
    fn ways_to_ask(&self) -> Vec<String> {
        if self.facts.keep_failed {
            let ask = gate::curl(self.facts.endpoints.first(), &self.config.gate);
            return vec![
                format!("the candidate keeps running, out of service; probe it yourself: {ask}"),
                "stop it with: uh-deploy retire --now".to_owned(),
            ];
        }
        vec![
            format!("read the whole log: uh-deploy logs --backend {}", self.facts.to),
            "deploy again with --keep-failed, which leaves a failed candidate running, out of service, for you to inspect"
                .to_owned(),
        ]
    }
}
