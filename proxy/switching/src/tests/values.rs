//! Changes of the routing as values: any changes, in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use super::{Conf, at, conf, name};
use crate::backend::Health;
use crate::change::{Change, OneSplit, Step};
use crate::record::RoutingRecord;
use crate::refusal::Refusal;
use crate::snapshot::{Maintenance, Snapshot};
use crate::split::{Judging, Salt, Side, Term, Weight};

const SERVICES: [&str; 2] = ["app", "web"];

fn named(text: &str) -> Conf {
    Conf { name: text.parse().unwrap(), ..conf() }
}

fn services() -> Vec<Arc<Conf>> {
    SERVICES.map(|name| Arc::new(named(name))).to_vec()
}

fn first() -> Snapshot<Conf> {
    Snapshot::first(&services(), &BTreeMap::new(), 7)
}

fn some_service() -> impl Strategy<Value = String> {
    // One of them doesn't exist.
    prop_oneof![8 => Just("app"), 8 => Just("web"), 1 => Just("none")].prop_map(str::to_owned)
}

fn some_backend() -> impl Strategy<Value = uh_protocol::BackendName> {
    prop_oneof![8 => Just("blue"), 8 => Just("green"), 8 => Just("red"), 1 => Just("grey")].prop_map(name)
}

fn some_health() -> impl Strategy<Value = Health> {
    prop_oneof![
        Just(Health::Unknown),
        Just(Health::Healthy),
        Just(Health::Unhealthy),
        Just(Health::NotProbed)
    ]
}

fn step() -> impl Strategy<Value = Step<Conf>> {
    let (service, backend) = (some_service, some_backend);
    let time = |s: u8| Timestamp::from_second(i64::from(s)).unwrap();
    prop_oneof![
        1 => (service(), backend(), prop::option::of(backend()), any::<bool>(), some_health(), any::<u8>())
            .prop_map(move |(service, to, expect_active, force, health, at)| {
                Step::Switch { service, to, expect_active, force, health, at: time(at) }
            }),
        1 => (service(), backend(), 1u16..5, prop::option::of("[12]"), any::<bool>()).prop_map(
            |(service, backend, port, version, force)| {
                Step::Register { service, backend, endpoints: vec![at(port)], version, force }
            }
        ),
        1 => (service(), backend(), any::<bool>()).prop_map(|(service, backend, force)| Step::Unset {
            service,
            backend,
            force
        }),
        1 => (service(), backend()).prop_map(|(service, backend)| Step::Withdraw { service, backend }),
        2 => (service(), backend(), 1u32..4, 0u128..3, 1u64..3, some_health(), any::<u8>(), any::<bool>()).prop_map(
            move |(service, to, weight, salt, length, health, at, active)| {
                let term = Term::Lease(Duration::from_secs(length));
                let (weight, salt) = (Weight::from_millionths(weight).unwrap(), Salt::new(salt));
                let judging =
                    Judging { suspect: if active { Side::Old } else { Side::New }, ..Judging::default() };
                let (until, at) = (term.until(time(at)), time(at));
                Step::Split { service, to, weight, salt, term, judging, until, health, at }
            }
        ),
        1 => (service(), prop::option::of(backend()), prop::option::of((0u128..3, prop::option::of(any::<u8>()))))
            .prop_map(move |(service, to, only)| {
                let only = only.map(|(salt, until)| OneSplit { salt: Salt::new(salt), until: until.map(time) });
                Step::EndSplit { service, to, only }
            }),
        1 => (service(), prop::option::of(("[ab]", any::<u8>()))).prop_map(move |(service, words)| {
            let maintenance =
                |(message, since)| Maintenance { message, retry_after_s: 1, since: time(since) };
            Step::Maintain { service, wanted: words.map(maintenance) }
        }),
        1 => (1usize..4, 1usize..3, any::<bool>()).prop_map(|(backends, services, probed)| {
            let conf = |name: &&str| {
                let mut conf = Conf { probed: probed.then_some(0), ..named(name) };
                conf.backends.truncate(backends);
                Arc::new(conf)
            };
            Step::Reload { services: SERVICES[..services].iter().map(conf).collect(), known: BTreeMap::new() }
        }),
    ]
}

fn change() -> impl Strategy<Value = Change<Conf>> {
    (prop::option::weighted(0.2, 7u64..12), prop::collection::vec(step(), 1..4))
        .prop_map(|(expect_generation, steps)| Change { expect_generation, steps })
}

/// What holds for every routing.
fn check(snapshot: &Snapshot<Conf>) -> Result<(), TestCaseError> {
    for state in &snapshot.services {
        prop_assert!(
            state.backend(&state.active.backend).is_some(),
            "the active backend is none: {:?}",
            state
        );
        prop_assert!(
            !state.is_withdrawn(&state.active.backend),
            "the active backend is withdrawn: {:?}",
            state
        );
        prop_assert!(state.active.since <= snapshot.generation);
        if let Some(split) = &state.split {
            let to = &split.new.backend;
            prop_assert!(
                state.backend(to).is_some() && !state.is_active(to) && !state.is_withdrawn(to),
                "{:?}",
                state
            );
            prop_assert!(split.new.since <= snapshot.generation);
        }
        let names: Vec<_> = state.backends.iter().map(|backend| &backend.name).collect();
        prop_assert!(
            names.iter().copied().eq(state.config.backends.iter().map(|configured| &configured.name))
        );
        prop_assert!(state.withdrawn.iter().all(|name| names.contains(&name)));
        for endpoint in state.backends.iter().flat_map(|backend| &backend.endpoints) {
            prop_assert!(endpoint.since <= snapshot.generation);
        }
    }
    Ok(())
}

/// Everything except the generation.
fn routes_alike(one: &Snapshot<Conf>, other: &Snapshot<Conf>) -> bool {
    RoutingRecord { generation: 0, ..RoutingRecord::of(one) }
        == RoutingRecord { generation: 0, ..RoutingRecord::of(other) }
}

fn configured(snapshot: &Snapshot<Conf>) -> Vec<Arc<Conf>> {
    snapshot.services.iter().map(|state| Arc::clone(&state.config)).collect()
}

fn is_reload(step: &Step<Conf>) -> bool {
    matches!(step, Step::Reload { .. })
}

proptest! {
    /// A decision is a pure function of the routing and the change, and leaves the previous routing untouched, whether
    /// the change is refused or not.
    #[test]
    fn the_same_changes_make_the_same_routing(changes in prop::collection::vec(change(), 0..20)) {
        let (mut one, mut other) = (first(), first());
        for change in &changes {
            let before = one.clone();
            let result = one.after(change);
            prop_assert_eq!(&one, &before);
            prop_assert_eq!(&result, &other.after(change));
            if let Ok((after, outcome)) = result {
                prop_assert_eq!(outcome.generation, after.generation);
                prop_assert!(outcome.changed || after == before);
                prop_assert!(after.generation == before.generation || after.generation == before.generation + 1);
                (one, other) = (after.clone(), after);
            }
            check(&one)?;
        }
    }

    /// A change of several steps has the effect of the steps in order, or none, in a single generation.
    #[test]
    fn a_change_of_several_steps_is_all_of_them_or_none(
        before in prop::collection::vec(change(), 0..6),
        steps in prop::collection::vec(step(), 1..5),
    ) {
        let start = before.iter().fold(first(), |now, change| now.after(change).map_or(now, |(after, _)| after));
        let whole = start.after(&Change { expect_generation: None, steps: steps.clone() });
        let mut one_by_one = Ok(start.clone());
        for step in steps {
            one_by_one = one_by_one.and_then(|now: Snapshot<Conf>| {
                now.after(&Change::one(None, step)).map(|(after, _)| after)
            });
        }
        prop_assert_eq!(whole.is_ok(), one_by_one.is_ok());
        if let (Ok((whole, _)), Ok(one_by_one)) = (whole, one_by_one) {
            prop_assert!(routes_alike(&whole, &one_by_one));
            prop_assert!(whole.generation <= start.generation + 1);
        }
    }

    /// The record is enough to decide a change: it follows the routing step by step.
    #[test]
    fn the_record_decides_as_the_routing_does(changes in prop::collection::vec(change(), 0..20)) {
        let mut now = first();
        for change in &changes {
            if change.steps.iter().any(is_reload) {
                // A reload changes the configuration, which a record doesn't contain.
                now = now.after(change).map_or(now, |(after, _)| after);
                continue;
            }
            let record = RoutingRecord::of(&now).after(&configured(&now), change);
            match now.after(change) {
                Ok((after, outcome)) => {
                    prop_assert_eq!(record, Ok((RoutingRecord::of(&after), outcome)));
                    now = after;
                }
                Err(refusal) => prop_assert_eq!(record, Err(refusal)),
            }
        }
    }

    /// What is recorded is restored at the next start.
    #[test]
    fn a_record_read_back_is_the_same_record(changes in prop::collection::vec(change(), 0..20)) {
        let mut now = first();
        for change in &changes {
            now = now.after(change).map_or(now, |(after, _)| after);
        }
        let record = RoutingRecord::of(&now);
        let again = Snapshot::first(&configured(&now), &record.services, record.generation);
        prop_assert_eq!(RoutingRecord::of(&again), record);
        check(&again)?;
    }
}

proptest! {
    /// Of what a service's split may become by one step.
    #[test]
    fn a_split_keeps_its_clients_and_ends_by_a_switch(
        before in prop::collection::vec(change(), 0..12),
        step in step(),
    ) {
        let start = before.iter().fold(first(), |now, change| now.after(change).map_or(now, |(after, _)| after));
        let Ok((after, outcome)) = start.after(&Change::one(None, step)) else { return Ok(()) };
        for old in &start.services {
            let Some(new) = after.service(old.config.name.as_str()) else { continue };
            match (&old.split, &new.split) {
                (Some(old), Some(new)) if old.began == new.began => {
                    prop_assert_eq!(old.assignment.salt, new.assignment.salt);
                    prop_assert_eq!(&old.new.backend, &new.new.backend);
                    let moved = old.assignment != new.assignment;
                    prop_assert!(!moved || outcome.generation > start.generation);
                }
                (None, None) => {}
                _ => prop_assert!(outcome.generation > start.generation),
            }
            if old.active.backend != new.active.backend {
                prop_assert!(new.split.is_none());
            }
        }
    }
}

#[test]
fn several_services_move_in_one_generation_or_none_does() {
    let to = |service: &str, health| Step::Switch {
        service: service.to_owned(),
        to: name("green"),
        expect_active: None,
        force: false,
        health,
        at: Timestamp::UNIX_EPOCH,
    };
    let both = |second| Change {
        expect_generation: Some(7),
        steps: vec![to("app", Health::Healthy), to("web", second)],
    };
    let (after, outcome) = first().after(&both(Health::Healthy)).unwrap();
    assert_eq!((outcome.changed, outcome.generation), (true, 8));
    assert!(after.services.iter().all(|state| state.is_active(&name("green")) && state.active.since == 8));
    let refused = first().after(&both(Health::Unhealthy)).unwrap_err();
    assert!(matches!(refused, Refusal::Unhealthy { .. }), "{refused}");
}

#[test]
fn a_leap_leaves_generations_out_once() {
    let start = Snapshot { leap: 100, ..first() };
    let withdraw = |backend: &str| {
        Change::one(None, Step::Withdraw { service: "app".to_owned(), backend: name(backend) })
    };
    let (after, _) = start.after(&withdraw("green")).unwrap();
    assert_eq!(after.generation, 108);
    let (after, outcome) = after.after(&withdraw("green")).unwrap();
    assert_eq!((after.generation, outcome.changed), (108, false));
    assert_eq!(after.after(&withdraw("red")).unwrap().0.generation, 109);
}

#[test]
fn a_record_keeps_what_is_known_of_services_that_are_not_configured() {
    let all = RoutingRecord::of(&first());
    let change = Change::one(None, Step::Withdraw { service: "app".to_owned(), backend: name("red") });
    let (after, _) = all.after(&services()[..1], &change).unwrap();
    assert_eq!(after.services.keys().map(|name| name.as_str()).collect::<Vec<_>>(), SERVICES);
    assert_eq!(after.services.values().next().unwrap().withdrawn, BTreeSet::from([name("red")]));
}

proptest! {
    /// Whatever the leader does, and however many of its changes a follower receives at once.
    #[test]
    fn a_follower_routes_as_its_leader(
        changes in prop::collection::vec((change(), any::<bool>()), 0..20),
    ) {
        let (mut leader, mut follower) = (first(), first());
        for (change, follows) in changes {
            // A follower has a configuration of its own.
            let reloads = change.steps.iter().any(|step| matches!(step, Step::Reload { .. }));
            if reloads {
                continue;
            }
            leader = leader.after(&change).map_or(leader, |(after, _)| after);
            if !follows {
                continue;
            }
            let record = RoutingRecord::of(&leader);
            let before = follower.clone();
            follower = follower.following(&record);
            prop_assert_eq!(RoutingRecord::of(&follower), record.clone());
            check(&follower)?;
            prop_assert_eq!(&follower.following(&record), &follower);
            for (old, new) in before.services.iter().zip(&follower.services) {
                // What hasn't changed goes on: its activation, and with it its counts and connections.
                let same = old.active.backend == new.active.backend
                    && old.backend(&old.active.backend) == new.backend(&old.active.backend);
                prop_assert!(!same || old.active == new.active);
            }
        }
    }
}
