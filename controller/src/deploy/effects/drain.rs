//! Effects after the switch: drain the old backend, and watch whether the new one stays alive.

use std::time::{Duration, Instant};

use uh_protocol::request::Drained;

use crate::deploy::link::WatchLink;
use crate::deploy::machine::{Event, OperationKind};
use crate::deploy::member::Member;
use crate::deploy::progress::{DeployStage, Progress};
use crate::gate;
use crate::notice::{self, Hook, HookProgress};
use crate::proxy::ProxyError;
use crate::runtime::{InstanceId, State};

/// How often to check the candidate after the switch.
const SETTLE_POLL: Duration = Duration::from_millis(50);

impl Member<'_> {
    pub(super) async fn drain(&mut self) -> Event {
        self.tell(Progress::Deploying(DeployStage::Drain));
        self.tell(Progress::Draining { in_flight: self.results.in_flight });
        let event = serde_json::json!({"hook": "post_switch", "operation": self.facts});
        let (config, proxy, listener, from) =
            (self.config, self.proxy, self.listener(), self.facts.from.clone());
        let old = async {
            let tell = |progress: HookProgress<'_>| listener(Progress::Hook(progress));
            let hook = notice::hook(config, Hook::PostSwitch, &event, &tell).await;
            (hook, proxy.drain(&from, config.deploy.drain_timeout).await)
        };
        tokio::pin!(old);
        let settled = Instant::now() + self.config.deploy.settle;
        let mut drained = None;
        let mut hurried = false;
        let died = loop {
            tokio::select! {
                result = &mut old, if drained.is_none() => drained = Some(result),
                () = tokio::time::sleep(SETTLE_POLL) => {}
                () = WatchLink::hurried(self.link) => hurried = true,
            }
            if !self.config.deploy.settle.is_zero()
                && let Ok(state) = self.runtime.state(&self.facts.instance).await
                && let Some(end) = gate::end_of(&state)
            {
                break Some(end);
            }
            if hurried || (drained.is_some() && Instant::now() >= settled) {
                break None;
            }
        };
        self.tell(Progress::DrainOver);
        let died = match died {
            None => self.end_at_last(&self.facts.instance).await,
            died => died,
        };
        if let Some(end) = died {
            return self.died(&self.facts.instance.clone(), &end);
        }
        if drained.is_none() {
            let what =
                "the new version fails: skipping post_switch and the wait for the old version to drain";
            self.remark(what.to_owned());
        }
        if let Some((hook, drained)) = drained {
            if let Err(e) = hook {
                self.tell(Progress::HookFailed { hook: Hook::PostSwitch, reason: &e.reason });
                self.results.remarks.push(format!("post_switch failed: {}", e.reason));
            }
            self.report_drained(drained);
        }
        Event::Drained
    }

    /// The target of a rollback must stay alive, like a candidate. A rollback doesn't wait for exchanges.
    pub(super) async fn settle(&mut self) -> Event {
        let instance = match self.watched_instance() {
            Ok(instance) => instance,
            Err(e) => {
                self.tell(Progress::Unwatched(&e));
                return Event::Settled;
            }
        };
        let settled = Instant::now() + self.config.deploy.settle;
        // Restarts before the switch don't count.
        let mut before = None;
        while Instant::now() < settled {
            let end = match self.runtime.state(&instance).await {
                Ok(State::Exited(ending)) => Some(ending.to_string()),
                Ok(State::Running { restarts }) if restarts > *before.get_or_insert(restarts) => {
                    Some("it was restarted".to_owned())
                }
                Ok(State::Running { .. } | State::Absent) | Err(_) => None,
            };
            if let Some(end) = end {
                return self.died(&instance, &end);
            }
            tokio::time::sleep(SETTLE_POLL.min(self.config.deploy.settle)).await;
        }
        if let Some(end) = self.end_at_last(&instance).await {
            return self.died(&instance, &end);
        }
        Event::Settled
    }

    fn died(&mut self, instance: &InstanceId, end: &str) -> Event {
        let why = format!("{instance} died after traffic was switched to it: {end}");
        self.tell(Progress::Failed { reason: &why, log: &[] });
        self.results.reason = Some(why);
        Event::Died
    }

    /// Enables restarts of the instance. `Some`: it has already exited, or has no supervisor to restart it, so it
    /// can't be relied on. A rollback accepts both: its target is still better than the bad version, and may not be
    /// an instance of uh-deploy.
    async fn end_at_last(&self, instance: &InstanceId) -> Option<String> {
        let is_candidate = self.kind == OperationKind::Deploy;
        // Repeated by the `record` effect, which reports a failure.
        let _ = self.runtime.keep_running(instance).await;
        match self.runtime.state(instance).await.ok()? {
            State::Absent => is_candidate.then(|| "it is gone".to_owned()),
            State::Exited(ending) => Some(ending.to_string()),
            State::Running { .. } => {
                let alone = is_candidate && self.runtime.is_alone(instance).await.unwrap_or(false);
                alone.then(|| "its supervisor is gone, so nothing would restart it".to_owned())
            }
        }
    }

    /// The instance started by this operation, or the one that was found running.
    fn watched_instance(&self) -> std::io::Result<InstanceId> {
        let own = self.records.candidate(&self.facts.operation)?;
        let record = if own.is_some() { own } else { self.records.of(&self.facts.to)? };
        Ok(record.map_or_else(|| self.facts.instance.clone(), |record| record.instance))
    }

    fn report_drained(&mut self, drained: Result<Drained, ProxyError>) {
        match drained {
            Ok(drained) => {
                self.results.finished = Some(drained.finished);
                self.results.cut = Some(drained.cut);
                if drained.drained {
                    self.tell(Progress::Drained);
                } else {
                    let left = drained.remaining.total();
                    let (backend, after) = (&self.facts.from, self.config.deploy.drain_timeout);
                    self.tell(Progress::StillInFlight { left, backend, after });
                    self.results
                        .remarks
                        .push(format!("{left} requests were still in flight after the drain"));
                }
            }
            Err(e) => {
                self.tell(Progress::NotDrained { backend: &self.facts.from, error: &e });
                self.results.remarks.push("the old backend couldn't be drained".to_owned());
            }
        }
    }
}
