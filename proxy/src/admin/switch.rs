//! `POST /v1/services/{s}/switch`: check → probe → check again and swap → persist → reply, and one audit line.

use std::time::Duration;

use jiff::Timestamp;
use uh_protocol::request::{SwitchProbe, SwitchProbeResult, SwitchRequest, Switched};
use uh_protocol::{BackendName, Problem, ServiceName};
use uh_switching::board::SwitchOrder;
use uh_switching::{Health, Refusal};

use super::audit::{Audit, Changed, Did, Wait};
use super::control::{Control, internal};
use super::socket::Peer;
use super::status::partly_healthy;
use crate::fault;
use crate::health::fresh::{Fresh, SwitchVerdict, probe_now};
use crate::observe::metrics::SwitchResult;
use crate::state::time::iso_millis;

impl Control {
    /// Makes another backend active.
    ///
    /// # Errors
    /// If refused; nothing has changed then.
    pub(crate) async fn switch(
        &self,
        service: &str,
        request: SwitchRequest,
        peer: Peer,
    ) -> Result<Switched, Problem> {
        let mut order = SwitchOrder {
            to: request.to.clone(),
            expect_active: request.expect_active,
            expect_generation: request.expect_generation,
            force: request.force,
        };
        let fresh = self.fresh_probe(service, &mut order).await;
        let audit = Audit {
            to: Some(&request.to),
            force: Some(request.force),
            ..Audit::new(peer, "switch", service)
        };
        let refuse = |refusal: Refusal| {
            let problem = self.refuse(audit, &refusal);
            self.count_refusal(service, &request.to);
            problem
        };
        let fresh = fresh.map_err(refuse)?;
        fault::point("before_swap");
        let result = self.board.switch(service, &order, Timestamp::now());
        fault::point("swapped");
        let outcome = result.map_err(refuse)?;
        let warnings = if outcome.changed {
            self.warnings(service, &order.to, &fresh, outcome.health)
        } else {
            Vec::new()
        };
        let service: ServiceName = service.parse().map_err(|_| internal("the service name isn't valid"))?;
        let did = Did {
            changed: Changed::Whether(outcome.changed),
            generation: Some(outcome.generation),
            from: Some(&outcome.from),
            forced_past_health: Some(order.force && !outcome.health.is_good()),
            swap_took: Some(outcome.swap_took),
            in_flight_previous: Some(outcome.in_flight_previous),
            ..Did::default()
        };
        let persisted = self.settle(Wait::after(outcome.changed), audit, did).await;
        fault::point("persisted");
        let result = if outcome.changed { SwitchResult::Switched } else { SwitchResult::Unchanged };
        self.metrics.switched(&service, &outcome.from, &order.to, result, outcome.swap_took);
        for warning in &warnings {
            tracing::warn!(target: "audit", action = "switch", %service, to = %order.to, warning);
        }
        Ok(Switched {
            service,
            from: outcome.from,
            to: order.to,
            changed: outcome.changed,
            generation: outcome.generation,
            switched_at: outcome.switched_at.map(iso_millis),
            in_flight_previous: outcome.in_flight_previous,
            persisted: persisted.is_ok(),
            persist_error: persisted.error(),
            probe: outcome.changed.then(|| reported(&fresh)),
            warnings,
        })
    }

    /// Probes the backend once more before traffic moves to it. The result can only refuse the switch; everything else
    /// is decided by the switch itself, under its lock.
    async fn fresh_probe(&self, service: &str, order: &mut SwitchOrder) -> Result<Fresh, Refusal> {
        let Some(target) = self.board.target(service, order)? else { return Ok(Fresh::skipped()) };
        if order.force {
            return Ok(Fresh::skipped());
        }
        let fresh = probe_now(&target.service, &target.backend).await;
        if fresh.verdict != SwitchVerdict::Bad {
            return Ok(fresh);
        }
        // If another caller has changed something meanwhile, that is the better reason.
        if self.board.target(service, order)?.is_none() {
            // Another caller has switched to it. That's fine, but this switch must not repeat it if that switch is
            // undone.
            order.expect_active = Some(order.to.clone());
            return Ok(fresh);
        }
        let active = self.board.snapshot().service(service).map(|state| state.active.backend.clone());
        Err(Refusal::FailedProbe {
            backend: order.to.clone(),
            active: active.unwrap_or_else(|| target.service.active.clone()),
            error: fresh.bad.iter().map(|(_, error)| error.as_str()).collect::<Vec<_>>().join("; "),
        })
    }

    /// Warnings about a switch that was done.
    fn warnings(&self, service: &str, to: &BackendName, fresh: &Fresh, health: Health) -> Vec<String> {
        let mut warnings = Vec::new();
        if fresh.verdict == SwitchVerdict::NoAnswer {
            let limit = fresh.limit.as_millis();
            warnings.push(format!(
                "{to} didn't answer a probe within {limit} ms right before the switch; earlier probes found it {health}"
            ));
        }
        let live = self.board.live();
        let target = live.service(service).and_then(|service| service.backend(to));
        warnings.extend(target.and_then(|target| partly_healthy(target, &fresh.bad)));
        warnings
    }

    fn count_refusal(&self, service: &str, to: &BackendName) {
        let snapshot = self.board.snapshot();
        if let Some(state) = snapshot.service(service).filter(|state| state.backend(to).is_some()) {
            let from = &state.active.backend;
            self.metrics.switched(&state.config.name, from, to, SwitchResult::Refused, Duration::ZERO);
        }
    }
}

fn reported(fresh: &Fresh) -> SwitchProbe {
    let result = match fresh.verdict {
        SwitchVerdict::Good => SwitchProbeResult::Good,
        SwitchVerdict::NoAnswer => SwitchProbeResult::NoAnswer,
        SwitchVerdict::Skipped => SwitchProbeResult::Skipped,
        // A bad probe refuses the switch, unless another caller has made it meanwhile.
        SwitchVerdict::Bad => SwitchProbeResult::Other,
    };
    SwitchProbe { result, took_ms: u64::try_from(fresh.took.as_millis()).unwrap_or(u64::MAX) }
}
