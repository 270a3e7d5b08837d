//! `POST /v1/services/{s}/switch`: check → probe → check again and swap → persist → reply, and one audit line.

use std::collections::BTreeMap;

use uh_protocol::Problem;
use uh_protocol::request::{SwitchRequest, Switched};
use uh_switching::board::{Move, Refusals, SwitchOrder};

use super::audit::{Audit, Changed, Did, Wait};
use super::control::{Control, internal};
use super::moves::{forced_past_health, splits_ended};
use super::socket::Peer;
use crate::fault;
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
        let SwitchRequest { to, expect_active, expect_generation, force } = request;
        let audit = Audit { to: Some(&to), force: Some(force), ..Audit::new(peer, "switch", service) };
        let wanted = Move { to: to.clone(), expect_active };
        let moves = BTreeMap::from([(service.to_owned(), wanted)]);
        let switch = self.move_traffic(SwitchOrder { moves, expect_generation, force }).await;
        let refuse = |refused: Refusals| match refused.into_values().next() {
            Some(refusal) => self.refuse(audit, &refusal),
            None => internal("the switch was refused without a reason"),
        };
        let switch = switch.map_err(refuse)?;
        let outcome = &switch.outcome;
        let Some((service, moved)) = outcome.services.first_key_value() else {
            return Err(internal("the switch has no result"));
        };
        let warnings = self.warnings(&switch, service.as_str(), moved);
        let split_ended = splits_ended(outcome);
        let did = Did {
            changed: Changed::Whether(moved.changed),
            generation: Some(outcome.generation),
            from: Some(&moved.from),
            forced_past_health: Some(forced_past_health(force, outcome)),
            swap_took: Some(outcome.swap_took),
            in_flight_previous: Some(moved.in_flight_previous),
            split_ended: split_ended.as_deref(),
            ..Did::default()
        };
        let persisted = self.settle(Wait::after(moved.changed), audit, did).await;
        fault::point("persisted");
        self.count(outcome);
        for warning in &warnings {
            tracing::warn!(target: "audit", action = "switch", %service, %to, warning);
        }
        Ok(Switched {
            service: service.clone(),
            from: moved.from.clone(),
            changed: moved.changed,
            generation: outcome.generation,
            switched_at: moved.switched_at.map(iso_millis),
            in_flight_previous: moved.in_flight_previous,
            persisted: persisted.is_ok(),
            persist_error: persisted.error(),
            probe: switch.reported(service.as_str(), moved),
            warnings,
            to,
        })
    }
}
