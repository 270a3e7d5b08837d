//! What every switch does, of one service or of several: probe → decide and swap. The result can only be all of it or
//! nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;
use uh_protocol::ServiceName;
use uh_protocol::request::{SwitchProbe, SwitchProbeResult};
use uh_switching::Refusal;
use uh_switching::board::{Moved, Refusals, SwitchOrder, SwitchOutcome, Target};

use super::control::Control;
use super::split::in_words;
use super::status::partly_healthy;
use crate::fault;
use crate::front::fittings::Fittings;
use crate::health::fresh::{Fresh, SwitchVerdict, probe_now};
use crate::observe::metrics::SwitchResult;

/// A switch that wasn't refused.
pub(super) struct Switch {
    /// What was done.
    pub outcome: SwitchOutcome,
    /// The probes right before it, by service.
    probes: BTreeMap<String, Fresh>,
}

impl Control {
    /// Makes other backends active, all in one swap. Counts a refusal.
    ///
    /// # Errors
    /// If refused for any service; nothing has changed then.
    pub(super) async fn move_traffic(&self, mut order: SwitchOrder) -> Result<Switch, Refusals> {
        let done = match self.fresh_probes(&mut order).await {
            Err(refusals) => Err(refusals),
            Ok(probes) => {
                fault::point("before_swap");
                let outcome = self.board.switch(&order, Timestamp::now());
                fault::point("swapped");
                outcome.map(|outcome| Switch { outcome, probes })
            }
        };
        if done.is_err() {
            self.count_refusal(&order);
        }
        done
    }

    /// Probes the backends once more before traffic moves to them, all at the same time. The results can only refuse
    /// the switch; everything else is decided by the switch itself, under its lock.
    async fn fresh_probes(&self, order: &mut SwitchOrder) -> Result<BTreeMap<String, Fresh>, Refusals> {
        let mut refused = Refusals::new();
        let mut targets = BTreeMap::new();
        for (service, tried) in self.board.try_switch(order) {
            match tried {
                Ok(target) => targets.extend(target.filter(|_| !order.force).map(|target| (service, target))),
                Err(refusal) => drop(refused.insert(service, refusal)),
            }
        }
        let probes = probe_all(targets).await;
        let bad = |fresh: &Fresh| fresh.verdict == SwitchVerdict::Bad;
        if probes.values().any(bad) {
            // If another caller has changed something meanwhile, that is the better reason.
            let mut now = self.board.try_switch(order);
            for (service, fresh) in probes.iter().filter(|(_, fresh)| bad(fresh)) {
                let Some(wanted) = order.moves.get_mut(service) else { continue };
                match now.remove(service) {
                    Some(Err(refusal)) => drop(refused.insert(service.clone(), refusal)),
                    Some(Ok(None)) => {
                        // Another caller has switched to it. That's fine, but this switch must not repeat it if that
                        // switch is undone.
                        wanted.expect_active = Some(wanted.to.clone());
                    }
                    Some(Ok(Some(target))) => {
                        refused.insert(service.clone(), self.failed_probe(&target, fresh));
                    }
                    None => {}
                }
            }
        }
        if refused.is_empty() { Ok(probes) } else { Err(refused) }
    }

    fn failed_probe(&self, target: &Target<Fittings>, fresh: &Fresh) -> Refusal {
        let snapshot = self.board.snapshot();
        let active = snapshot.service(target.service.name.as_str()).map(|state| state.active.backend.clone());
        Refusal::FailedProbe {
            backend: target.backend.name().clone(),
            active: active.unwrap_or_else(|| target.service.active.clone()),
            error: fresh.bad.iter().map(|(_, error)| error.as_str()).collect::<Vec<_>>().join("; "),
        }
    }

    /// Warnings about a service that was switched.
    pub(super) fn warnings(&self, switch: &Switch, service: &str, moved: &Moved) -> Vec<String> {
        let mut warnings = Vec::new();
        if !moved.changed {
            warnings.extend(moved.split.as_ref().map(|split| {
                let (to, split) = (&moved.to, in_words(split));
                format!(
                    "{to} was active already, and a split still sends {split}; to end it: uh-proxy split off"
                )
            }));
            return warnings;
        }
        let (to, fresh) = (&moved.to, switch.probe(service));
        if fresh.verdict == SwitchVerdict::NoAnswer {
            let (limit, health) = (fresh.limit.as_millis(), moved.health);
            warnings.push(format!(
                "{to} didn't answer a probe within {limit} ms right before the switch; earlier probes found it {health}"
            ));
        }
        let live = self.board.live();
        let target = live.service(service).and_then(|service| service.backend(to));
        warnings.extend(target.and_then(|target| partly_healthy(target, &fresh.bad)));
        warnings
    }

    /// Counts a switch that was done, or was not necessary.
    pub(super) fn count(&self, outcome: &SwitchOutcome) {
        for (service, moved) in &outcome.services {
            let result = if moved.changed { SwitchResult::Switched } else { SwitchResult::Unchanged };
            self.metrics.switched(service, &moved.from, &moved.to, result, outcome.swap_took);
        }
    }

    fn count_refusal(&self, order: &SwitchOrder) {
        let snapshot = self.board.snapshot();
        for (service, wanted) in &order.moves {
            let known = snapshot.service(service).filter(|state| state.backend(&wanted.to).is_some());
            if let Some(state) = known {
                let from = &state.active.backend;
                let refused = SwitchResult::Refused;
                self.metrics.switched(&state.config.name, from, &wanted.to, refused, Duration::ZERO);
            }
        }
    }
}

async fn probe_all(targets: BTreeMap<String, Target<Fittings>>) -> BTreeMap<String, Fresh> {
    let mut probes = JoinSet::new();
    for (name, target) in targets {
        probes.spawn(async move { (name, probe_now(&target.service, &target.backend).await) });
    }
    probes.join_all().await.into_iter().collect()
}

impl Switch {
    fn probe(&self, service: &str) -> Fresh {
        self.probes.get(service).cloned().unwrap_or_else(Fresh::skipped)
    }

    /// The probe of a service, for the reply.
    pub(super) fn reported(&self, service: &str, moved: &Moved) -> Option<SwitchProbe> {
        let fresh = self.probe(service);
        let result = match fresh.verdict {
            SwitchVerdict::Good => SwitchProbeResult::Good,
            SwitchVerdict::NoAnswer => SwitchProbeResult::NoAnswer,
            SwitchVerdict::Skipped => SwitchProbeResult::Skipped,
            // A bad probe refuses the switch, unless another caller has made it meanwhile.
            SwitchVerdict::Bad => SwitchProbeResult::Other,
        };
        let took_ms = u64::try_from(fresh.took.as_millis()).unwrap_or(u64::MAX);
        moved.changed.then_some(SwitchProbe { result, took_ms })
    }
}

/// Whether traffic may have moved to a backend that isn't known to be healthy, because the switch was forced.
pub(super) fn forced_past_health(force: bool, outcome: &SwitchOutcome) -> bool {
    force && outcome.services.values().any(|moved| !moved.health.is_good())
}

/// The splits that a switch has ended, for the audit log.
pub(super) fn splits_ended(outcome: &SwitchOutcome) -> Option<String> {
    let ended = |(service, moved): (&ServiceName, &Moved)| {
        let split = moved.split.as_ref().filter(|_| moved.changed)?;
        Some(format!("{service}: {}", in_words(split)))
    };
    let ended: Vec<String> = outcome.services.iter().filter_map(ended).collect();
    (!ended.is_empty()).then(|| ended.join(", "))
}
