//! Splits: who gets which requests, what ends one, what a split protects its backend from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{Board, Conf, HealthOnly, SALT, at, board, conf, name, order, pick_for, switch};
use crate::Switchboard;
use crate::backend::Health;
use crate::board::{RegisterOrder, SplitEnd, SplitOrder, SplitOutcome};
use crate::change::OneSplit;
use crate::drain::Holding;
use crate::record::RoutingRecord;
use crate::refusal::Refusal;
use crate::snapshot::Snapshot;
use crate::split::{Assignment, ClientKey, Judging, Salt, Side, Term, Weight};

fn wanted(to: &str, percent: f64) -> SplitOrder {
    SplitOrder {
        to: name(to),
        weight: Weight::from_percent(percent).unwrap().unwrap(),
        salt: SALT,
        term: Term::Hold(Duration::from_secs(3600)),
        judging: Judging::default(),
        expect_generation: None,
    }
}

fn split(board: &Board, to: &str, percent: f64) -> Result<SplitOutcome, Refusal> {
    board.split("app", &wanted(to, percent), Timestamp::UNIX_EPOCH)
}

fn off(board: &Board) -> SplitOutcome {
    board.end_split("app", &SplitEnd::default()).unwrap()
}

/// All backends are healthy.
fn healthy(board: Board) -> Board {
    for backend in &board.live().services[0].backends {
        *backend.endpoints[0].lock() = Health::Healthy;
    }
    board
}

/// A client that is on this side with 50 %, by this salt.
fn client(side: Side, salt: Salt) -> ClientKey {
    let by = Assignment { weight: Weight::from_percent(50.0).unwrap().unwrap(), salt };
    (0..).map(ClientKey::V4).find(|key| by.side(*key) == side).unwrap()
}

fn backend(board: &Board, client: ClientKey) -> String {
    pick_for(board, 0, client).owner().backend.name().to_string()
}

#[test]
fn each_client_stays_on_its_side_until_the_split_ends() {
    let board = healthy(board(1));
    let (old, new) = (client(Side::Old, SALT), client(Side::New, SALT));
    assert!(split(&board, "green", 50.0).unwrap().moved);
    let (kept, leaving) = (pick_for(&board, 0, old), pick_for(&board, 0, new));
    assert_eq!((backend(&board, old), backend(&board, new)), ("blue".to_owned(), "green".to_owned()));
    let state = &board.snapshot().services[0];
    assert!(state.is_active(&name("blue")) && state.previous.is_none() && state.last_switch.is_none());
    // More clients, in the same activations, whose idle connections stay.
    assert!(split(&board, "green", 100.0).unwrap().moved);
    assert_eq!(backend(&board, old), "green");
    assert!(!kept.is_retired() && !leaving.is_retired());
    let ended = off(&board);
    assert_eq!(ended.holding, Holding { requests: 1, tunnels: 0 });
    assert!(leaving.is_retired() && !kept.is_retired());
    assert_eq!((backend(&board, old), backend(&board, new)), ("blue".to_owned(), "blue".to_owned()));
    assert!(!off(&board).changed);
    let drain = board.drain("app", &name("green")).unwrap();
    assert!(!drain.is_drained());
    drop(leaving);
    assert!(drain.is_drained());
}

#[test]
fn a_renewal_leaves_the_generation_as_it_is_and_a_split_its_salt() {
    let board = healthy(board(1));
    let first = split(&board, "green", 10.0).unwrap();
    let later = SplitOrder { salt: Salt::new(5), ..wanted("green", 10.0) };
    let renewed = board.split("app", &later, Timestamp::from_second(9).unwrap()).unwrap();
    assert!(renewed.changed && !renewed.moved);
    assert_eq!(renewed.generation, first.generation);
    let (before, now) = (renewed.before.unwrap(), renewed.now.unwrap());
    assert_eq!((now.assignment.salt, now.began), (SALT, before.began));
    assert!(now.until > before.until);
    assert!(!board.split("app", &later, Timestamp::from_second(9).unwrap()).unwrap().changed);
    let stale =
        SplitEnd { only: Some(OneSplit { salt: SALT, until: Some(before.until) }), ..SplitEnd::default() };
    assert!(!board.end_split("app", &stale).unwrap().changed, "it has been renewed");
    let current =
        SplitEnd { only: Some(OneSplit { salt: SALT, until: Some(now.until) }), ..SplitEnd::default() };
    assert!(board.end_split("app", &current).unwrap().moved);
    assert_eq!(
        board.split("app", &later, Timestamp::UNIX_EPOCH).unwrap().now.unwrap().assignment.salt,
        Salt::new(5)
    );
}

#[test]
fn every_switch_to_another_backend_ends_the_split() {
    for to in ["green", "red"] {
        let board = healthy(board(1));
        split(&board, "green", 100.0).unwrap();
        let on_new = pick_for(&board, 0, client(Side::New, SALT));
        assert!(!switch(&board, &order("blue")).unwrap().changed);
        assert_eq!(
            backend(&board, client(Side::Old, SALT)),
            "green",
            "blue was active, so nothing has changed"
        );
        let moved = &switch(&board, &order(to)).unwrap().services["app"];
        assert_eq!((moved.from.clone(), moved.split.is_some()), (name("blue"), true));
        assert_eq!(moved.in_flight_previous, 0, "what is in flight on green is none of blue's");
        assert!(board.snapshot().services[0].split.is_none() && on_new.is_retired());
        assert_eq!(backend(&board, client(Side::Old, SALT)), to);
        assert_eq!(backend(&board, client(Side::New, SALT)), to);
    }
}

#[test]
fn what_is_no_split_is_refused_and_changes_nothing() {
    let board = healthy(board(1));
    board.withdraw("app", &name("red"), None).unwrap();
    let live = board.live();
    assert!(matches!(split(&board, "blue", 10.0), Err(Refusal::SplitToActive { .. })));
    assert!(matches!(split(&board, "red", 10.0), Err(Refusal::Withdrawn { .. })));
    assert!(matches!(split(&board, "grey", 10.0), Err(Refusal::UnknownBackend { .. })));
    let other = board.split("web", &wanted("green", 10.0), Timestamp::UNIX_EPOCH);
    assert!(matches!(other, Err(Refusal::UnknownService { .. })));
    let late = SplitOrder { expect_generation: Some(99), ..wanted("green", 10.0) };
    let late = board.split("app", &late, Timestamp::UNIX_EPOCH);
    assert!(matches!(late, Err(Refusal::OtherGeneration { .. })));
    *live.services[0].backends[1].endpoints[0].lock() = Health::Unhealthy;
    assert!(matches!(split(&board, "green", 10.0), Err(Refusal::Unhealthy { .. })));
    assert!(Arc::ptr_eq(&live, &board.live()));
}

#[test]
fn an_unhealthy_backend_gets_no_more_clients_and_may_get_fewer() {
    let board = healthy(board(1));
    split(&board, "green", 50.0).unwrap();
    *board.live().services[0].backends[1].endpoints[0].lock() = Health::Unhealthy;
    assert!(matches!(split(&board, "green", 50.1), Err(Refusal::Unhealthy { .. })));
    assert!(split(&board, "green", 50.0).is_ok() && split(&board, "green", 49.9).unwrap().moved);
    assert!(off(&board).moved);
}

#[test]
fn the_backend_of_a_split_can_not_be_taken_away() {
    let board = healthy(board(1));
    split(&board, "green", 10.0).unwrap();
    let green = name("green");
    assert!(matches!(board.withdraw("app", &green, None), Err(Refusal::InSplit { .. })));
    assert!(matches!(board.drain("app", &green), Err(Refusal::InSplit { .. })));
    let other = [at(9)];
    let register = RegisterOrder { addresses: &other, version: None, expect_generation: None, force: false };
    assert!(matches!(board.set_backend("app", &green, &register), Err(Refusal::InSplit { .. })));
    let fewer = Conf { backends: conf().backends.drain(..1).collect(), ..conf() };
    let reloaded = board.reload(vec![Arc::new(fewer)], BTreeMap::new());
    assert!(matches!(reloaded, Err(Refusal::InSplit { .. })), "{reloaded:?}");
    assert!(matches!(split(&board, "red", 10.0), Err(Refusal::OtherSplit { .. })));
    let other = SplitEnd { to: Some(name("red")), ..SplitEnd::default() };
    assert!(matches!(board.end_split("app", &other), Err(Refusal::OtherSplit { .. })));
    // With force, its next exchanges go to the new endpoints.
    split(&board, "green", 100.0).unwrap();
    let on_new = pick_for(&board, 0, client(Side::New, SALT));
    assert!(board.set_backend("app", &green, &RegisterOrder { force: true, ..register }).unwrap().changed);
    assert!(on_new.is_retired());
    assert_eq!(
        pick_for(&board, 0, client(Side::New, SALT)).owner().backend.backend.addresses().next(),
        Some(&at(9))
    );
}

#[test]
fn what_the_new_side_has_nothing_for_is_asked_of_the_active_backend() {
    let asking = Arc::new(Conf { asks_previous: true, ..conf() });
    let board = healthy(Switchboard::new(HealthOnly, &[asking], &BTreeMap::new(), 0, 1));
    split(&board, "green", 50.0).unwrap();
    let asked = |of: &str| {
        let lease = board.pick_previous(b"", b"/", 0, &name(of))?;
        Some(lease.owner().backend.name().to_string())
    };
    assert_eq!((asked("blue"), asked("green")), (None, Some("blue".to_owned())));
    off(&board);
    assert_eq!((asked("blue"), asked("green")), (None, None));
}

#[test]
fn a_split_goes_on_after_a_restart_unless_its_time_is_up() {
    let board = healthy(board(1));
    split(&board, "green", 12.5).unwrap();
    let record = RoutingRecord::of(&board.snapshot());
    let service = record.services.values().next().unwrap();
    let restart = |now: i64| {
        let known = record
            .services
            .iter()
            .map(|(name, record)| (name.clone(), record.clone().at(Timestamp::from_second(now).unwrap())));
        let snapshot = Snapshot::first(&[Arc::new(conf())], &known.collect(), record.generation);
        RoutingRecord::of(&snapshot).services.values().next().unwrap().split.clone()
    };
    assert_eq!(restart(3599), service.split);
    assert_eq!(restart(3600), None);
}

/// Threads of clients pick as fast as they can while splits begin, grow and end. Detects a pick on the new side after its
/// drain was reported, and a client that moves back while the split grows.
#[test]
fn no_pick_slips_behind_the_end_of_a_split() {
    const PICKERS: usize = 3;
    const CLIENTS: u32 = 8;
    const SPLITS: u64 = 1_000;
    /// The splits go through these one after the other: drained, growing, ending.
    const PHASES: u64 = 3;
    let board = healthy(board(PICKERS));
    let (stop, phase, picks) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for worker in 0..PICKERS {
            let (board, stop, phase, picks) = (&board, &stop, &phase, &picks);
            scope.spawn(move || {
                let mut seen = (0, [false; CLIENTS as usize]);
                for n in (0..CLIENTS).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let before = phase.load(Ordering::SeqCst);
                    let lease = pick_for(board, worker, ClientKey::V4(n));
                    let is_new = *lease.owner().backend.name() == name("green");
                    // What was picked while the phase changed may belong to either of them.
                    if phase.load(Ordering::SeqCst) != before {
                        continue;
                    }
                    if seen.0 != before {
                        seen = (before, [false; CLIENTS as usize]);
                    }
                    let was_new = std::mem::replace(&mut seen.1[n as usize], is_new);
                    match before % PHASES {
                        0 => assert!(!is_new, "green was picked after its drain was reported"),
                        1 => assert!(is_new || !was_new, "a client has moved back"),
                        _ => {}
                    }
                    picks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(60);
        for number in 1..=SPLITS {
            phase.fetch_add(1, Ordering::SeqCst);
            for percent in [1.0, 10.0, 50.0, 100.0] {
                let order = SplitOrder { salt: Salt::new(u128::from(number)), ..wanted("green", percent) };
                board.split("app", &order, Timestamp::UNIX_EPOCH).unwrap();
            }
            phase.fetch_add(1, Ordering::SeqCst);
            off(&board);
            let drain = board.drain("app", &name("green")).unwrap();
            while !drain.is_drained() {
                assert!(Instant::now() < end, "green never drained");
                thread::yield_now();
            }
            phase.fetch_add(1, Ordering::SeqCst);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(picks.load(Ordering::Relaxed) > 1_000, "the pickers hardly ran");
    assert_eq!(board.holding(&conf().name, &name("green")), Holding::default());
}

#[test]
fn a_split_suspects_the_same_side_until_it_ends() {
    let board = healthy(board(1));
    let of_active = |percent| SplitOrder {
        judging: Judging { suspect: Side::Old, warm_up: Some(Duration::ZERO) },
        ..wanted("green", percent)
    };
    let split = |order: &SplitOrder| board.split("app", order, Timestamp::UNIX_EPOCH);
    let begun = split(&of_active(50.0)).unwrap();
    assert!(matches!(split(&wanted("green", 60.0)), Err(Refusal::OtherSuspect { .. })));
    // The rest counts when it begins.
    let renewed = split(&SplitOrder {
        judging: Judging { warm_up: None, ..of_active(50.0).judging },
        ..of_active(50.0)
    });
    assert_eq!(renewed.unwrap().now.map(|now| now.judging), begun.now.map(|now| now.judging));
    off(&board);
    split(&wanted("green", 60.0)).unwrap();
    assert!(matches!(split(&of_active(50.0)), Err(Refusal::OtherSuspect { .. })));
}
