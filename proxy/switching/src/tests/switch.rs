//! Switches of several services against a model: all of them move in one generation, or none does, and every service
//! that stands in the way is named.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;

use super::{Board, Conf, HealthOnly, NAMES, conf, name};
use crate::backend::Health;
use crate::board::{Move, SwitchOrder};
use crate::refusal::Refusal;
use crate::{Maintenance, Switchboard};

const SERVICES: [&str; 3] = ["api", "app", "web"];

/// A name that isn't configured.
const UNKNOWN: &str = "none";

fn board() -> Board {
    let services = SERVICES.map(|name| Arc::new(Conf { name: name.parse().unwrap(), ..conf() }));
    Switchboard::new(HealthOnly, &services, &BTreeMap::new(), 0, 1)
}

#[derive(Debug, Clone)]
enum Op {
    /// Service, backend, expected backend.
    Switch {
        moves: Vec<(usize, usize, Option<usize>)>,
        expect_generation: Option<u64>,
        force: bool,
    },
    Health {
        service: usize,
        backend: usize,
        healthy: bool,
    },
    Withdraw {
        service: usize,
        backend: usize,
    },
    Maintain {
        service: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let (service, backend) = (0..SERVICES.len(), 0..NAMES.len());
    let expected = prop::option::weighted(0.2, backend.clone());
    let moves = prop::collection::vec((0..=SERVICES.len(), backend.clone(), expected), 1..4);
    prop_oneof![
        4 => (moves, prop::option::weighted(0.3, 0u64..6), any::<bool>()).prop_map(
            |(moves, expect_generation, force)| Op::Switch { moves, expect_generation, force }
        ),
        4 => (service.clone(), backend.clone(), any::<bool>())
            .prop_map(|(service, backend, healthy)| Op::Health { service, backend, healthy }),
        1 => (service.clone(), backend).prop_map(|(service, backend)| Op::Withdraw { service, backend }),
        1 => service.prop_map(|service| Op::Maintain { service }),
    ]
}

#[derive(Default)]
struct Model {
    generation: u64,
    active: [usize; 3],
    healthy: [[bool; 3]; 3],
    withdrawn: [[bool; 3]; 3],
}

impl Model {
    /// Whether this service alone would be refused.
    fn refuses(
        &self,
        (service, to, expected): (usize, usize, Option<usize>),
        generation: Option<u64>,
        force: bool,
    ) -> bool {
        let Some(active) = self.active.get(service).copied() else { return true };
        expected.is_some_and(|expected| expected != active)
            || generation.is_some_and(|generation| generation != self.generation)
            || active != to && (self.withdrawn[service][to] || !force && !self.healthy[service][to])
    }
}

fn service_name(service: usize) -> String {
    SERVICES.get(service).copied().unwrap_or(UNKNOWN).to_owned()
}

fn order(
    moves: &[(usize, usize, Option<usize>)],
    expect_generation: Option<u64>,
    force: bool,
) -> SwitchOrder {
    let wanted = |(service, to, expected): &(usize, usize, Option<usize>)| {
        let expect_active = expected.map(|expected| name(NAMES[expected]));
        (service_name(*service), Move { to: name(NAMES[*to]), expect_active })
    };
    SwitchOrder { moves: moves.iter().map(wanted).collect(), expect_generation, force }
}

proptest! {
    #[test]
    fn all_services_of_a_switch_move_in_one_generation_or_none_does(ops in prop::collection::vec(op(), 1..40)) {
        let (board, mut model) = (board(), Model::default());
        for op in ops {
            match op {
                Op::Switch { mut moves, expect_generation, force } => {
                    // One move a service, the last one that was asked for.
                    moves.reverse();
                    let mut seen = BTreeSet::new();
                    moves.retain(|(service, ..)| seen.insert(*service));
                    switch(&board, &mut model, &moves, expect_generation, force)?;
                }
                Op::Health { service, backend, healthy } => {
                    let health = if healthy { Health::Healthy } else { Health::Unhealthy };
                    *board.live().services[service].backends[backend].endpoints[0].lock() = health;
                    model.healthy[service][backend] = healthy;
                }
                Op::Withdraw { service, backend } => {
                    let done = board.withdraw(SERVICES[service], &name(NAMES[backend]), None);
                    model.generation += u64::from(done.is_ok_and(|done| done.changed));
                    model.withdrawn[service][backend] |= model.active[service] != backend;
                }
                Op::Maintain { service } => {
                    // A switch moves a service in maintenance like any other.
                    let since = Timestamp::UNIX_EPOCH;
                    let wanted = Maintenance { message: "soon".to_owned(), retry_after_s: 1, since };
                    board.set_maintenance(SERVICES[service], Some(wanted)).unwrap();
                }
            }
            let snapshot = board.snapshot();
            prop_assert_eq!(snapshot.generation, model.generation);
            for (service, active) in snapshot.services.iter().zip(model.active) {
                prop_assert_eq!(service.active.backend.as_str(), NAMES[active]);
            }
        }
    }
}

fn switch(
    board: &Board,
    model: &mut Model,
    moves: &[(usize, usize, Option<usize>)],
    expect_generation: Option<u64>,
    force: bool,
) -> Result<(), TestCaseError> {
    let order = order(moves, expect_generation, force);
    let refused: BTreeSet<String> = moves
        .iter()
        .filter(|wanted| model.refuses(**wanted, expect_generation, force))
        .map(|(service, ..)| service_name(*service))
        .collect();
    let leases: Vec<_> = board.live().services.iter().map(|service| service.active.lease(0)).collect();
    let before = board.snapshot();
    let tried: BTreeSet<String> = board
        .try_switch(&order)
        .into_iter()
        .filter_map(|(service, tried)| tried.is_err().then_some(service))
        .collect();
    prop_assert_eq!(&tried, &refused);
    match board.switch(&order, Timestamp::UNIX_EPOCH) {
        Err(refusals) => {
            prop_assert!(!refused.is_empty());
            prop_assert_eq!(refusals.into_keys().collect::<BTreeSet<_>>(), refused);
            prop_assert!(Arc::ptr_eq(&before, &board.snapshot()), "a refusal has changed something");
            prop_assert!(leases.iter().all(|lease| !lease.is_retired()));
        }
        Ok(outcome) => {
            prop_assert!(refused.is_empty());
            let moved = |service: usize| {
                moves.iter().find(|(of, ..)| *of == service).filter(|(_, to, _)| *to != model.active[service])
            };
            for (service, lease) in leases.iter().enumerate() {
                prop_assert_eq!(lease.is_retired(), moved(service).is_some(), "{}", SERVICES[service]);
            }
            for (service, to, _) in moves {
                let said = &outcome.services[SERVICES[*service]];
                prop_assert_eq!(said.from.as_str(), NAMES[model.active[*service]]);
                prop_assert_eq!(said.to.as_str(), NAMES[*to]);
                prop_assert_eq!(said.changed, model.active[*service] != *to);
                prop_assert_eq!(said.in_flight_previous, u64::from(said.changed));
            }
            let any = moves.iter().any(|(service, ..)| moved(*service).is_some());
            prop_assert_eq!(outcome.changed, any);
            model.generation += u64::from(any);
            prop_assert_eq!(outcome.generation, model.generation);
            moves.iter().for_each(|(service, to, _)| model.active[*service] = *to);
            let again =
                board.switch(&SwitchOrder { expect_generation: None, ..order }, Timestamp::UNIX_EPOCH);
            let expected =
                moves.iter().all(|(_, to, expected)| expected.is_none_or(|expected| expected == *to));
            prop_assert_eq!(
                again.map(|again| again.changed).ok(),
                expected.then_some(false),
                "a repeated call"
            );
        }
    }
    Ok(())
}

#[test]
fn every_service_that_stands_in_the_way_is_named() {
    let board = board();
    board.withdraw("web", &name("green"), None).unwrap();
    *board.live().services[0].backends[1].endpoints[0].lock() = Health::Healthy;
    let refused = board.switch(
        &order(&[(0, 1, None), (1, 1, None), (2, 1, None), (3, 1, None)], None, false),
        Timestamp::UNIX_EPOCH,
    );
    let refused = refused.unwrap_err();
    assert!(matches!(refused["app"], Refusal::Unhealthy { .. }));
    assert!(matches!(refused["web"], Refusal::Withdrawn { .. }));
    assert!(matches!(refused[UNKNOWN], Refusal::UnknownService { .. }));
    assert_eq!((refused.len(), board.snapshot().generation), (3, 1));
}
