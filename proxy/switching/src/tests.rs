//! The switchboard against a model, and against threads that try to break it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use proptest::prelude::*;
use uh_protocol::{Address, BackendName, ServiceName};

use crate::backend::{EndpointId, Health};
use crate::board::{Move, Refusals, RegisterOrder, SplitEnd, SplitOrder, SwitchOrder, SwitchOutcome};
use crate::change::{Change, Step};
use crate::drain::Holding;
use crate::lease::Lease;
use crate::live::{ActivationInfo, Fittings, Registered};
use crate::refusal::Refusal;
use crate::service::{BackendDefinition, Service};
use crate::split::{Assignment, ClientKey, Judging, Salt, Side, Term, Weight};
use crate::{Entry, Maintenance, Switchboard};

mod split;
mod switch;
mod values;

const NAMES: [&str; 3] = ["blue", "green", "red"];

/// Of every split.
const SALT: Salt = Salt::new(11);

fn name(text: &str) -> BackendName {
    text.parse().unwrap()
}

/// The service configuration in these tests.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Conf {
    name: ServiceName,
    active: BackendName,
    backends: Vec<BackendDefinition>,
    /// Its health checks, if any.
    probed: Option<u8>,
    asks_previous: bool,
}

impl Service for Conf {
    fn name(&self) -> &ServiceName {
        &self.name
    }

    fn hosts(&self) -> &[String] {
        &[]
    }

    fn path_prefix(&self) -> &str {
        "/"
    }

    fn backends(&self) -> &[BackendDefinition] {
        &self.backends
    }

    fn first_active(&self) -> &BackendName {
        &self.active
    }

    fn asks_previous(&self) -> bool {
        self.asks_previous
    }

    fn is_probed(&self) -> bool {
        self.probed.is_some()
    }

    fn is_probed_like(&self, other: &Self) -> bool {
        self.probed == other.probed
    }

    fn is_same(&self, other: &Self) -> bool {
        *self == Self { active: self.active.clone(), ..other.clone() }
    }
}

/// Blue, green and red at ports 1, 2 and 3.
fn conf() -> Conf {
    let backend = |(index, text): (usize, &&str)| BackendDefinition {
        name: name(text),
        endpoints: vec![at(1 + u16::try_from(index).unwrap())],
        version: None,
    };
    Conf {
        name: "app".parse().unwrap(),
        active: name("blue"),
        backends: NAMES.iter().enumerate().map(backend).collect(),
        probed: Some(0),
        asks_previous: false,
    }
}

fn at(port: u16) -> Address {
    Address::Socket(([127, 0, 0, 1], port).into())
}

/// Only keeps the health of endpoints.
struct HealthOnly;

type Board = Switchboard<HealthOnly>;

impl Fittings for HealthOnly {
    type Service = Conf;
    type Endpoint = Mutex<Health>;
    type Meters = ();
    type Lane = ();

    fn endpoint(&self, service: &Conf, _id: &EndpointId) -> Mutex<Health> {
        Mutex::new(if service.is_probed() { Health::Unknown } else { Health::NotProbed })
    }

    fn meters(&self, _service: &ServiceName, _backend: &BackendName) {}

    fn lane(&self, _backend: &Arc<Registered<Mutex<Health>>>) {}

    fn health(&self, endpoint: &Mutex<Health>) -> Health {
        *endpoint.lock()
    }

    fn version(&self, _endpoint: &Mutex<Health>) -> Option<String> {
        None
    }

    fn clock(&self) -> Instant {
        Instant::now()
    }
}

fn board(workers: usize) -> Board {
    Switchboard::new(HealthOnly, &[Arc::new(conf())], &BTreeMap::new(), 0, workers)
}

fn order(to: &str) -> SwitchOrder {
    SwitchOrder { force: true, ..SwitchOrder::one("app", name(to)) }
}

fn switch(board: &Board, order: &SwitchOrder) -> Result<SwitchOutcome, Refusals> {
    board.switch(order, Timestamp::UNIX_EPOCH)
}

fn pick(board: &Board, worker: usize) -> Lease<ActivationInfo<HealthOnly>, ()> {
    pick_for(board, worker, ANYBODY)
}

/// For tests without a split.
const ANYBODY: ClientKey = ClientKey::V4(0);

fn pick_for(board: &Board, worker: usize, client: ClientKey) -> Lease<ActivationInfo<HealthOnly>, ()> {
    board.pick(b"", b"/", worker, |_| client).unwrap().0
}

#[test]
fn a_switch_moves_the_next_pick_and_leaves_the_old_exchange() {
    let board = board(2);
    let old = pick(&board, 0);
    let outcome = switch(&board, &order("green")).unwrap();
    assert_eq!(
        (outcome.generation, outcome.services["app"].in_flight_previous, outcome.changed),
        (1, 1, true)
    );
    assert_eq!(*pick(&board, 1).owner().backend.name(), name("green"));
    assert_eq!(*old.owner().backend.name(), name("blue"));
    assert!(old.is_retired());
    let drain = board.drain("app", &name("blue")).unwrap();
    assert!(!drain.is_drained());
    drop(old);
    assert!(drain.is_drained());
}

#[test]
fn a_tunnel_is_counted_as_one() {
    let board = board(1);
    let mut lease = pick(&board, 0);
    lease.becomes_tunnel();
    lease.becomes_tunnel();
    assert_eq!(board.holding(&conf().name, &name("blue")), Holding { requests: 0, tunnels: 1 });
    drop(lease);
    assert_eq!(board.holding(&conf().name, &name("blue")), Holding::default());
}

#[test]
fn an_unproven_backend_is_refused_unless_forced() {
    let board = board(1);
    let polite = SwitchOrder { force: false, ..order("green") };
    assert!(matches!(switch(&board, &polite).unwrap_err()["app"], Refusal::Unhealthy { .. }));
    *board.live().services[0].backends[1].endpoints[0].lock() = Health::Healthy;
    assert!(switch(&board, &polite).unwrap().changed);
}

#[test]
fn registering_the_active_backend_again_begins_a_new_activation() {
    let board = board(1);
    let old = pick(&board, 0);
    let address = ["127.0.0.1:9".parse().unwrap()];
    let register = |force| {
        let order = RegisterOrder { addresses: &address, version: Some("2"), expect_generation: None, force };
        board.set_backend("app", &name("blue"), &order).map(|done| done.changed)
    };
    assert_eq!(register(false), Err(Refusal::ActiveMoved { backend: name("blue") }));
    assert!(!old.is_retired());
    assert!(register(true).unwrap() && old.is_retired());
    let new = pick(&board, 0);
    assert_eq!(new.owner().backend.version(), Some("2"));
    assert!(!register(false).unwrap() && !new.is_retired());
    assert!(matches!(board.drain("app", &name("blue")), Err(Refusal::Active { .. })));
}

#[test]
fn a_refused_change_leaves_the_routing_in_force_as_it_is() {
    let board = board(1);
    let (live, lease) = (board.live(), pick(&board, 0));
    let switch = |to: &str, force| Step::Switch {
        service: "app".to_owned(),
        to: name(to),
        expect_active: None,
        force,
        health: Health::Unknown,
        at: Timestamp::UNIX_EPOCH,
    };
    let steps = vec![switch("green", true), switch("red", false)];
    let refused = board.apply(|_| Change { expect_generation: None, steps });
    assert!(matches!(refused.map(|_| ()), Err(Refusal::Unhealthy { .. })));
    assert!(Arc::ptr_eq(&live, &board.live()) && !lease.is_retired());
}

#[test]
fn maintenance_answers_new_requests_and_ends_no_activation() {
    let board = board(1);
    let lease = pick(&board, 0);
    let wanted = Maintenance { message: "soon".to_owned(), retry_after_s: 5, since: Timestamp::UNIX_EPOCH };
    assert!(board.set_maintenance("app", Some(wanted.clone())).unwrap().1);
    assert!(!board.set_maintenance("app", Some(wanted)).unwrap().1);
    assert!(matches!(board.enter(b"", b"/", 0, |_| ANYBODY), Entry::Closed(..)));
    assert!(board.pick(b"", b"/", 0, |_| ANYBODY).is_some(), "a request that has entered before goes on");
    assert!(board.set_maintenance("app", None).unwrap().1);
    assert!(matches!(board.enter(b"", b"/", 0, |_| ANYBODY), Entry::Open(..)));
    assert!(!lease.is_retired());
    assert_eq!(board.snapshot().generation, 0);
}

#[test]
fn a_reload_ends_the_activations_of_those_services_alone_that_are_different() {
    let board = board(1);
    let lease = pick(&board, 0);
    let endpoint = || Arc::clone(&board.live().services[0].backends[1].endpoints[0]);
    let kept = endpoint();
    let reload = |conf: Conf| board.reload(vec![Arc::new(conf)], BTreeMap::new()).unwrap();
    assert!(!reload(Conf { active: name("red"), ..conf() }).changed, "it is for the first start alone");
    assert!(!lease.is_retired());
    let mut fewer = conf();
    fewer.backends.pop();
    assert!(reload(fewer.clone()).changed && lease.is_retired());
    assert!(Arc::ptr_eq(&kept, &endpoint()), "what the probes found is forgotten");
    assert!(reload(Conf { probed: Some(1), ..fewer }).changed);
    assert!(!Arc::ptr_eq(&kept, &endpoint()), "what other probes found is kept");
}

#[tokio::test]
async fn a_drain_waits_for_the_last_exchange() {
    let board = board(2);
    let leases = [pick(&board, 0), pick(&board, 1)];
    switch(&board, &order("green")).unwrap();
    let drain = board.drain("app", &name("blue")).unwrap();
    let release = thread::spawn(move || drop(leases));
    tokio::time::timeout(Duration::from_secs(10), drain.wait()).await.unwrap();
    assert!(drain.is_drained());
    release.join().unwrap();
}

fn pick_previous(board: &Board) -> Option<Lease<ActivationInfo<HealthOnly>, ()>> {
    let active = board.snapshot().services[0].active.backend.clone();
    board.pick_previous(b"", b"/", 0, &active)
}

#[test]
fn the_previous_backend_is_asked_as_long_as_it_stands_by() {
    let asking = Arc::new(Conf { asks_previous: true, ..conf() });
    let board = Switchboard::new(HealthOnly, &[asking], &BTreeMap::new(), 0, 1);
    assert!(pick_previous(&board).is_none(), "there is none yet");
    let switched = pick(&board, 0);
    switch(&board, &order("green")).unwrap();
    let drain = board.drain("app", &name("blue")).unwrap();
    let asked = pick_previous(&board).unwrap();
    assert_eq!(*asked.owner().backend.name(), name("blue"));
    assert_eq!(board.holding(&"app".parse().unwrap(), &name("blue")).requests, 2);
    drop(switched);
    assert!(drain.is_drained(), "what is asked of the previous backend holds up no deploy");
    assert!(board.drain("app", &name("blue")).unwrap().is_drained());
    // Withdrawn, it gets no more, and what it still answers is waited for.
    board.withdraw("app", &name("blue"), None).unwrap();
    assert!(pick_previous(&board).is_none() && asked.is_retired());
    let drain = board.drain("app", &name("blue")).unwrap();
    assert!(!drain.is_drained());
    drop(asked);
    assert!(drain.is_drained());
}

#[test]
fn what_is_registered_after_a_switch_is_not_what_was_active_before_it() {
    let asking = Arc::new(Conf { asks_previous: true, ..conf() });
    let board = Switchboard::new(HealthOnly, &[asking], &BTreeMap::new(), 0, 1);
    switch(&board, &order("green")).unwrap();
    let order_next =
        RegisterOrder { addresses: &[at(9)], version: None, expect_generation: None, force: false };
    board.set_backend("app", &name("blue"), &order_next).unwrap();
    assert!(pick_previous(&board).is_none(), "this is the next version");
    switch(&board, &order("blue")).unwrap();
    assert_eq!(*pick_previous(&board).unwrap().owner().backend.name(), name("green"));
    // A rollback.
    switch(&board, &order("green")).unwrap();
    assert_eq!(*pick_previous(&board).unwrap().owner().backend.name(), name("blue"));
}

#[test]
fn a_service_that_does_not_ask_the_previous_backend_keeps_nothing_for_it() {
    let board = board(1);
    switch(&board, &order("green")).unwrap();
    assert!(pick_previous(&board).is_none());
}

/// Threads pick as fast as they can while another one switches and drains. Detects a pick that returns a drained
/// backend, and an exchange still alive when its drain is reported.
#[test]
fn no_pick_slips_behind_a_drain() {
    const PICKERS: usize = 3;
    const SWITCHES: usize = 1_000;
    const PICKS: u64 = 300_000;
    let board = board(PICKERS);
    let closed: HashMap<&str, AtomicBool> = NAMES.map(|name| (name, AtomicBool::new(false))).into();
    let alive: HashMap<&str, AtomicI64> = NAMES.map(|name| (name, AtomicI64::new(0))).into();
    let (stop, picks) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for worker in 0..PICKERS {
            let (board, closed, alive, stop, picks) = (&board, &closed, &alive, &stop, &picks);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let lease = pick(board, worker);
                    let backend = lease.owner().backend.name().as_str();
                    assert!(
                        !closed[backend].load(Ordering::SeqCst),
                        "picked {backend} after its drain was reported"
                    );
                    alive[backend].fetch_add(1, Ordering::SeqCst);
                    picks.fetch_add(1, Ordering::Relaxed);
                    alive[backend].fetch_sub(1, Ordering::SeqCst);
                    drop(lease);
                }
            });
        }
        let mut active = "blue";
        let end = Instant::now() + Duration::from_secs(60);
        for step in 1.. {
            if (step > SWITCHES && picks.load(Ordering::Relaxed) >= PICKS) || Instant::now() > end {
                break;
            }
            let next = NAMES[step % NAMES.len()];
            if next == active {
                continue;
            }
            closed[next].store(false, Ordering::SeqCst);
            switch(&board, &order(next)).unwrap();
            let drain = board.drain("app", &name(active)).unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            while !drain.is_drained() {
                assert!(Instant::now() < deadline, "{active} never drained");
                thread::yield_now();
            }
            assert_eq!(
                alive[active].load(Ordering::SeqCst),
                0,
                "{active} was reported drained with an exchange alive"
            );
            closed[active].store(true, Ordering::SeqCst);
            active = next;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(picks.load(Ordering::Relaxed) >= PICKS, "the pickers hardly ran");
    for backend in NAMES {
        assert_eq!(board.holding(&conf().name, &name(backend)), Holding::default());
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Switch { to: usize, expect_active: Option<usize>, expect_generation: Option<u64>, force: bool },
    Health { backend: usize, healthy: bool },
    Pick { worker: usize, client: u32 },
    Release { nth: usize },
    Tunnel { nth: usize },
    Drain { backend: usize },
    Register { backend: usize, port: u16 },
    Unset { backend: usize },
    Withdraw { backend: usize, expect_generation: Option<u64> },
    Split { to: usize, percent: u32, expect_generation: Option<u64> },
    EndSplit { to: Option<usize> },
}

fn op() -> impl Strategy<Value = Op> {
    let backend = 0..NAMES.len();
    prop_oneof![
        (backend.clone(), prop::option::of(backend.clone()), prop::option::of(0u64..6), any::<bool>())
            .prop_map(|(to, expect_active, expect_generation, force)| Op::Switch {
                to,
                expect_active,
                expect_generation,
                force
            }),
        (backend.clone(), any::<bool>()).prop_map(|(backend, healthy)| Op::Health { backend, healthy }),
        (0usize..4, 0u32..16).prop_map(|(worker, client)| Op::Pick { worker, client }),
        (0usize..8).prop_map(|nth| Op::Release { nth }),
        (0usize..8).prop_map(|nth| Op::Tunnel { nth }),
        backend.clone().prop_map(|backend| Op::Drain { backend }),
        (backend.clone(), 1u16..4).prop_map(|(backend, port)| Op::Register { backend, port }),
        backend.clone().prop_map(|backend| Op::Unset { backend }),
        (backend.clone(), prop::option::of(0u64..6))
            .prop_map(|(backend, expect_generation)| Op::Withdraw { backend, expect_generation }),
        (backend.clone(), 1u32..=100, prop::option::weighted(0.2, 0u64..6))
            .prop_map(|(to, percent, expect_generation)| Op::Split { to, percent, expect_generation }),
        prop::option::of(backend).prop_map(|to| Op::EndSplit { to }),
    ]
}

#[derive(Default)]
struct Model {
    active: usize,
    generation: u64,
    healthy: [Option<bool>; 3],
    ports: [u16; 3],
    withdrawn: [bool; 3],
    /// Backend, percent.
    split: Option<(usize, u32)>,
    /// Backend, tunnel, lease.
    held: Vec<(usize, bool, Lease<ActivationInfo<HealthOnly>, ()>)>,
}

proptest! {
    #[test]
    fn the_board_does_what_the_model_does(ops in prop::collection::vec(op(), 1..60)) {
        let board = board(3);
        let mut model = Model { ports: [1, 2, 3], ..Model::default() };
        for op in ops {
            apply(&board, &mut model, op)?;
            check(&board, &model)?;
        }
    }
}

fn apply(board: &Board, model: &mut Model, op: Op) -> Result<(), TestCaseError> {
    match op {
        Op::Switch { to, expect_active, expect_generation, force } => {
            let expected = expect_active.map(|backend| name(NAMES[backend]));
            let wanted = Move { to: name(NAMES[to]), expect_active: expected };
            let moves = BTreeMap::from([("app".to_owned(), wanted)]);
            let order = SwitchOrder { moves, expect_generation, force };
            let expected = expect_active.is_none_or(|backend| backend == model.active)
                && expect_generation.is_none_or(|generation| generation == model.generation)
                && (to == model.active || !model.withdrawn[to] && (force || model.healthy[to] == Some(true)));
            let result = switch(board, &order);
            prop_assert_eq!(result.is_ok(), expected, "{:?}", result);
            if let Ok(outcome) = result {
                prop_assert_eq!(outcome.changed, to != model.active);
                let held = model.held.iter().filter(|(backend, ..)| *backend == model.active).count() as u64;
                // Of its current activation only: earlier ones of the same backend may hold more.
                prop_assert!(outcome.services["app"].in_flight_previous <= held);
                model.generation += u64::from(outcome.changed);
                model.active = to;
                model.split.take_if(|_| outcome.changed);
            }
        }
        Op::Health { backend, healthy } => {
            let health = if healthy { Health::Healthy } else { Health::Unhealthy };
            *board.live().services[0].backends[backend].endpoints[0].lock() = health;
            model.healthy[backend] = Some(healthy);
        }
        Op::Pick { worker, client } => {
            let client = ClientKey::V4(client);
            let (lease, assigned) = board.pick(b"", b"/", worker, |_| client).unwrap();
            let is_new = |(_, percent): &(usize, u32)| {
                let weight = Weight::from_percent(f64::from(*percent)).unwrap().unwrap();
                Assignment { weight, salt: SALT }.side(client) == Side::New
            };
            let expected = model.split.filter(is_new).map_or(model.active, |(to, _)| to);
            prop_assert_eq!(lease.owner().backend.name().as_str(), NAMES[expected]);
            prop_assert_eq!(assigned.map(|assigned| assigned.key), model.split.map(|_| client));
            model.held.push((expected, false, lease));
        }
        Op::Release { nth } => {
            if nth < model.held.len() {
                model.held.swap_remove(nth);
            }
        }
        Op::Tunnel { nth } => {
            if let Some((_, tunnel, lease)) = model.held.get_mut(nth) {
                lease.becomes_tunnel();
                *tunnel = true;
            }
        }
        Op::Drain { backend } => {
            let drain = board.drain("app", &name(NAMES[backend]));
            prop_assert_eq!(drain.is_err(), model.serves(backend));
            if let Ok(drain) = drain {
                let held = model.held.iter().any(|(of, ..)| *of == backend);
                prop_assert_eq!(drain.is_drained(), !held);
            }
        }
        Op::Register { backend, port } => {
            let address = [at(port)];
            let order =
                RegisterOrder { addresses: &address, version: None, expect_generation: None, force: true };
            let changed = board.set_backend("app", &name(NAMES[backend]), &order).unwrap().changed;
            registered(model, backend, port, changed)?;
        }
        Op::Unset { backend } => {
            let changed = board.unset_backend("app", &name(NAMES[backend]), None, true).unwrap().changed;
            registered(model, backend, 1 + u16::try_from(backend).unwrap(), changed)?;
        }
        Op::Withdraw { backend, expect_generation } => {
            let result = board.withdraw("app", &name(NAMES[backend]), expect_generation);
            let expected = expect_generation.is_none_or(|generation| generation == model.generation)
                && !model.serves(backend);
            prop_assert_eq!(result.is_ok(), expected, "{:?}", result);
            if let Ok(done) = result {
                let held = model.held.iter().filter(|(of, ..)| *of == backend).count() as u64;
                prop_assert_eq!(done.holding.requests + done.holding.tunnels, held);
                prop_assert_eq!(done.changed, !model.withdrawn[backend]);
                model.generation += u64::from(done.changed);
                model.withdrawn[backend] = true;
                prop_assert_eq!(done.generation, model.generation);
            }
        }
        Op::Split { to, percent, expect_generation } => {
            let weight = Weight::from_percent(f64::from(percent)).unwrap().unwrap();
            let term = Term::Hold(Duration::from_secs(60));
            let (target, judging) = (name(NAMES[to]), Judging::default());
            let order = SplitOrder { to: target, weight, salt: SALT, term, judging, expect_generation };
            let result = board.split("app", &order, Timestamp::UNIX_EPOCH);
            let grows = model.split.is_none_or(|(_, now)| now < percent);
            let expected = expect_generation.is_none_or(|generation| generation == model.generation)
                && to != model.active
                && !model.withdrawn[to]
                && model.split.is_none_or(|(now, _)| now == to)
                && (!grows || model.healthy[to] == Some(true));
            prop_assert_eq!(result.is_ok(), expected, "{:?}", result);
            if let Ok(outcome) = result {
                prop_assert_eq!(outcome.moved, model.split != Some((to, percent)));
                model.generation += u64::from(outcome.moved);
                model.split = Some((to, percent));
            }
        }
        Op::EndSplit { to } => {
            let end = SplitEnd { to: to.map(|to| name(NAMES[to])), ..SplitEnd::default() };
            let result = board.end_split("app", &end);
            let expected = model.split.is_none_or(|(now, _)| to.is_none_or(|to| to == now));
            prop_assert_eq!(result.is_ok(), expected, "{:?}", result);
            if let Ok(outcome) = result {
                prop_assert_eq!(outcome.moved, model.split.is_some());
                model.generation += u64::from(outcome.moved);
                model.split = None;
            }
        }
    }
    Ok(())
}

impl Model {
    /// Whether it gets new requests.
    fn serves(&self, backend: usize) -> bool {
        backend == self.active || self.split.is_some_and(|(to, _)| to == backend)
    }
}

fn registered(model: &mut Model, backend: usize, port: u16, changed: bool) -> Result<(), TestCaseError> {
    prop_assert_eq!(changed, model.ports[backend] != port || model.withdrawn[backend]);
    if changed {
        model.ports[backend] = port;
        model.healthy[backend] = None;
        model.withdrawn[backend] = false;
        model.generation += 1;
    }
    Ok(())
}

fn check(board: &Board, model: &Model) -> Result<(), TestCaseError> {
    let snapshot = board.snapshot();
    let state = &snapshot.services[0];
    prop_assert_eq!(snapshot.generation, model.generation);
    prop_assert_eq!(state.active.backend.as_str(), NAMES[model.active]);
    let split = state.split.as_ref();
    prop_assert_eq!(split.map(|split| split.new.backend.as_str()), model.split.map(|(to, _)| NAMES[to]));
    for (index, backend) in NAMES.iter().enumerate() {
        let held = |wanted| {
            model.held.iter().filter(|(of, tunnel, _)| *of == index && *tunnel == wanted).count() as u64
        };
        let holding = board.holding(&state.config.name, &name(backend));
        prop_assert_eq!(holding, Holding { requests: held(false), tunnels: held(true) });
        prop_assert_eq!(state.is_withdrawn(&name(backend)), model.withdrawn[index]);
    }
    Ok(())
}
