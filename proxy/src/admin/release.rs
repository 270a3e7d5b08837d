//! `POST /v1/switch`: several services move together, or none does. One swap, one write of the state, one audit line.

use std::collections::BTreeMap;

use uh_protocol::problem::ServiceProblem;
use uh_protocol::request::{MAX_RELEASE_SERVICES, ReleaseRequest, Released, ServiceSwitched};
use uh_protocol::{Code, Problem, ServiceName};
use uh_switching::board::{Move, Moved, Refusals, SwitchOrder, SwitchOutcome};

use super::audit::{Audit, Changed, Did, Wait};
use super::control::Control;
use super::moves::{Switch, forced_past_health, splits_ended};
use super::socket::Peer;
use crate::fault;
use crate::state::time::iso_millis;

/// The code of a refusal is the first of these that any of its services has.
const BY_WEIGHT: [Code; 6] = [
    Code::Busy,
    Code::UnknownService,
    Code::UnknownBackend,
    Code::Conflict,
    Code::BackendWithdrawn,
    Code::BackendUnhealthy,
];

impl Control {
    /// Makes other backends of several services active, all at once.
    ///
    /// # Errors
    /// If refused for any of them; nothing has changed then.
    pub(crate) async fn release(&self, request: ReleaseRequest, peer: Peer) -> Result<Released, Problem> {
        let ReleaseRequest { services, expect_generation, force } = request;
        let count = services.len();
        if count == 0 || count > MAX_RELEASE_SERVICES {
            let detail = format!("services names {count} services; 1 to {MAX_RELEASE_SERVICES} are allowed");
            return Err(Problem::with_status(Code::InvalidRequest, 422, detail));
        }
        let wanted: Vec<String> = services.iter().map(|(service, to)| format!("{service} → {to}")).collect();
        let wanted = wanted.join(", ");
        let audit = Audit { wanted: Some(&wanted), force: Some(force), ..Audit::release(peer) };
        let single = |(service, to): (ServiceName, _)| (service.into(), Move { to, expect_active: None });
        let moves = services.into_iter().map(single).collect();
        let switch = self.move_traffic(SwitchOrder { moves, expect_generation, force }).await;
        let switch = switch.map_err(|refused| self.refuse_all(audit, &refused))?;
        let outcome = &switch.outcome;
        let services = self.replies(&switch);
        let moved = in_words(outcome);
        let split_ended = splits_ended(outcome);
        let did = Did {
            changed: Changed::Whether(outcome.changed),
            generation: Some(outcome.generation),
            moved: Some(&moved),
            forced_past_health: Some(forced_past_health(force, outcome)),
            swap_took: Some(outcome.swap_took),
            in_flight_previous: Some(outcome.services.values().map(|moved| moved.in_flight_previous).sum()),
            split_ended: split_ended.as_deref(),
            ..Did::default()
        };
        let persisted = self.settle(Wait::after(outcome.changed), audit, did).await;
        fault::point("persisted");
        self.count(outcome);
        for (service, switched) in &services {
            for warning in &switched.warnings {
                tracing::warn!(target: "audit", action = "switch", %service, to = %switched.to, warning);
            }
        }
        Ok(Released {
            services,
            changed: outcome.changed,
            generation: outcome.generation,
            persisted: persisted.is_ok(),
            persist_error: persisted.error(),
        })
    }

    fn replies(&self, switch: &Switch) -> BTreeMap<ServiceName, ServiceSwitched> {
        let reply = |(service, moved): (&ServiceName, &Moved)| {
            let switched = ServiceSwitched {
                from: moved.from.clone(),
                to: moved.to.clone(),
                changed: moved.changed,
                switched_at: moved.switched_at.map(iso_millis),
                in_flight_previous: moved.in_flight_previous,
                probe: switch.reported(service.as_str(), moved),
                warnings: self.warnings(switch, service.as_str(), moved),
            };
            (service.clone(), switched)
        };
        switch.outcome.services.iter().map(reply).collect()
    }

    /// Logs and explains a refusal, with the reason of each service that stands in the way.
    fn refuse_all(&self, audit: Audit<'_>, refused: &Refusals) -> Problem {
        let explain = |(name, refusal): (&String, _)| {
            let Problem { code, detail, .. } = self.explain(name, refusal, true);
            Some((name.parse().ok()?, ServiceProblem { code, detail }))
        };
        let services: BTreeMap<ServiceName, ServiceProblem> = refused.iter().filter_map(explain).collect();
        let has = |code: &Code| services.values().any(|problem| problem.code == *code);
        let code = BY_WEIGHT.into_iter().find(has).unwrap_or(Code::Internal);
        let each = services.iter().map(|(service, problem)| format!("{service}: {}", problem.detail));
        let detail = format!("no service was switched. {}", each.collect::<Vec<_>>().join(". "));
        let problem = Problem { services, ..Problem::new(code, detail) };
        audit.refused(&problem);
        problem
    }
}

/// `api: blue → green, web: green (was active)`
fn in_words(outcome: &SwitchOutcome) -> String {
    let word = |(service, moved): (&ServiceName, &Moved)| match moved.changed {
        true => format!("{service}: {} → {}", moved.from, moved.to),
        false => format!("{service}: {} (was active)", moved.to),
    };
    outcome.services.iter().map(word).collect::<Vec<_>>().join(", ")
}
