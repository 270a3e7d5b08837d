//! Switches, of one service or of several that move together: one [`Change`] with a step for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use uh_protocol::{BackendName, ServiceName};

use super::Switchboard;
use crate::backend::Health;
use crate::change::{Change, Step};
use crate::live::{Fittings, Live, Registered};
use crate::refusal::Refusal;
use crate::service::Service as _;
use crate::split::Split;

/// A requested switch: all of its services move, or none does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchOrder {
    /// What moves, by service.
    pub moves: BTreeMap<String, Move>,
    /// Refuse unless this is the current generation.
    pub expect_generation: Option<u64>,
    /// Switch even to backends that aren't known to be healthy.
    pub force: bool,
}

/// What moves in one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The backend to make active.
    pub to: BackendName,
    /// Refuse unless this backend is active.
    pub expect_active: Option<BackendName>,
}

impl SwitchOrder {
    /// A plain switch of one service.
    #[must_use]
    pub fn one(service: &str, to: BackendName) -> Self {
        let moves = BTreeMap::from([(service.to_owned(), Move { to, expect_active: None })]);
        Self { moves, expect_generation: None, force: false }
    }
}

/// The target of a switch in one service.
pub struct Target<F: Fittings> {
    /// The service.
    pub service: Arc<F::Service>,
    /// The backend.
    pub backend: Arc<Registered<F::Endpoint>>,
}

/// What a switch would do in one service: its target, or `None` if that is active already; or why it is refused.
pub type Tried<F> = Result<Option<Target<F>>, Refusal>;

/// Why a switch was refused, by service; at least one. Nothing has changed.
pub type Refusals = BTreeMap<String, Refusal>;

/// The result of a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchOutcome {
    /// Whether anything changed.
    pub changed: bool,
    /// The current generation.
    pub generation: u64,
    /// How long the swap itself took.
    pub swap_took: Duration,
    /// What happened in each service.
    pub services: BTreeMap<ServiceName, Moved>,
}

/// What happened in one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Active before.
    pub from: BackendName,
    /// Active now.
    pub to: BackendName,
    /// Whether the active backend changed.
    pub changed: bool,
    /// When the active backend last changed.
    pub switched_at: Option<Timestamp>,
    /// What was in flight on the old backend when traffic moved.
    pub in_flight_previous: u64,
    /// The health of the new active backend.
    pub health: Health,
    /// The split that there was. It has ended if the active backend changed.
    pub split: Option<Split>,
}

impl<F: Fittings> Switchboard<F> {
    /// What a switch would do in each of its services. Changes nothing; the switch itself checks everything again.
    pub fn try_switch(&self, order: &SwitchOrder) -> BTreeMap<String, Tried<F>> {
        let live = self.live();
        let tried = |(name, wanted): (&String, &Move)| {
            let (step, _) = self.step(&live, order, name, wanted, Timestamp::UNIX_EPOCH);
            let decided = live.snapshot.after(&Change::one(order.expect_generation, step));
            let target = decided.map(|(_, outcome)| {
                let service = live.service(name).filter(|_| outcome.changed)?;
                let backend = Arc::clone(service.backend(&wanted.to)?);
                Some(Target { service: Arc::clone(&service.state.config), backend })
            });
            (name.clone(), target)
        };
        order.moves.iter().map(tried).collect()
    }

    /// Makes other backends active, all in one swap.
    ///
    /// # Errors
    /// If refused for any service; nothing has changed then.
    pub fn switch(&self, order: &SwitchOrder, at: Timestamp) -> Result<SwitchOutcome, Refusals> {
        let mut refused = Refusals::new();
        let mut health = BTreeMap::new();
        let applied = self.apply(|live| {
            let mut steps = Vec::with_capacity(order.moves.len());
            for (name, wanted) in &order.moves {
                let (step, found) = self.step(live, order, name, wanted, at);
                health.insert(name.as_str(), found);
                // A step concerns its own service only, so that what it is refused for doesn't depend on the others.
                let alone = Change::one(order.expect_generation, step);
                if let Err(refusal) = live.snapshot.after(&alone) {
                    refused.insert(name.clone(), refusal);
                }
                steps.extend(alone.steps);
            }
            Change { expect_generation: order.expect_generation, steps }
        });
        let applied = applied.map_err(|refusal| {
            // No single service stands in the way.
            let of_all = || order.moves.keys().map(|name| (name.clone(), refusal.clone())).collect();
            if refused.is_empty() { of_all() } else { refused }
        })?;
        let moved = |(name, wanted): (&String, &Move)| {
            let (before, after) = applied.service(name).ok()?;
            let from = (after.config.name().clone(), before.active.backend.clone());
            let holding = applied.in_flight_before.get(&from).copied().unwrap_or_default();
            let moved = Moved {
                from: before.active.backend.clone(),
                to: wanted.to.clone(),
                changed: before.active.backend != after.active.backend,
                switched_at: after.last_switch,
                in_flight_previous: holding.requests + holding.tunnels,
                health: health.get(name.as_str()).copied().unwrap_or(Health::Unknown),
                split: before.split.clone(),
            };
            Some((after.config.name().clone(), moved))
        };
        Ok(SwitchOutcome {
            changed: applied.outcome.changed,
            generation: applied.outcome.generation,
            swap_took: applied.swap_took,
            services: order.moves.iter().filter_map(moved).collect(),
        })
    }

    fn step(
        &self,
        live: &Live<F>,
        order: &SwitchOrder,
        service: &str,
        wanted: &Move,
        at: Timestamp,
    ) -> (Step<F::Service>, Health) {
        let target = live.service(service).and_then(|service| service.backend(&wanted.to));
        let health = target.map_or(Health::Unknown, |target| self.health(target));
        let step = Step::Switch {
            service: service.to_owned(),
            to: wanted.to.clone(),
            expect_active: wanted.expect_active.clone(),
            force: order.force,
            health,
            at,
        };
        (step, health)
    }
}
