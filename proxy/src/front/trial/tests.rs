//! Results outlive trials, a request counts once, and so does a client.

use std::sync::Weak;

use uh_switching::{Assignment, ClientKey};

use super::*;
use crate::front::admission::ClientNetwork;

const PATIENCE: Patience = Patience { slow_after: Duration::from_millis(100), overdue_after: None };

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn trial(name: &str, salt: u128) -> Arc<OpenTrial> {
    let of = (service(name), "green".parse().unwrap(), Salt::new(salt));
    Arc::new(OpenTrial::new(of, Judging::default(), History::default(), Some(PATIENCE), 2))
}

fn assigned(salt: u128, side: uh_switching::Side) -> Assigned {
    let weight = uh_switching::Weight::from_millionths(500_000).unwrap();
    Assigned { key: ClientKey::V4(1), side, by: Assignment { weight, salt: Salt::new(salt) } }
}

#[test]
fn the_result_of_a_trial_stays_until_the_next_one_and_its_memory_does_not() {
    let trials = Trials::default();
    let first = trial("app", 1);
    let memory: Weak<OpenTrial> = Arc::downgrade(&first);
    trials.replace(vec![first], |_| true);
    assert!(!trials.status(&service("app"), Some(Salt::new(1))).unwrap().ended);
    trials.replace(Vec::new(), |_| true);
    assert!(memory.upgrade().is_none());
    assert!(trials.status(&service("app"), None).unwrap().ended);
    assert_eq!(trials.read().len(), 1);
    trials.replace(vec![trial("app", 2)], |_| true);
    assert!(!trials.status(&service("app"), Some(Salt::new(2))).unwrap().ended);
    assert_eq!(trials.read().len(), 1);
    trials.replace(Vec::new(), |_| false);
    assert!(trials.status(&service("app"), None).is_none(), "the service is gone");
}

/// It may last for days, and a service may have many trials in that time.
#[test]
fn a_tunnel_does_not_keep_the_memory_of_a_trial_that_has_ended() {
    let trials = Trials::default();
    let first = trial("app", 1);
    let seen = Arc::downgrade(first.shared.seen.load().as_ref().unwrap());
    trials.replace(vec![first], |_| true);
    let who = Who::new(ClientNetwork::V4(1), ClientKey::V4(1));
    let began = Instant::now() + WARM_UP;
    let enter = || trials.enter(assigned(1, uh_switching::Side::New), who, 0, began).unwrap();
    let (mut tunnel, mut slow) = (enter(), enter());
    tunnel.ended();
    // Another service's trial begins, and this one goes on.
    let still = Arc::clone(&trials.open()[0]);
    trials.replace(vec![still, trial("other", 2)], |_| true);
    assert!(seen.upgrade().is_some());
    trials.replace(Vec::new(), |_| true);
    assert!(seen.upgrade().is_none(), "it is freed while the tunnel lasts");
    assert!(slow.was_slow(began + Duration::from_secs(60)), "there is no trial to count it");
    assert!(trials.status(&service("app"), None).unwrap().ended);
}

#[test]
fn a_request_counts_once_and_for_its_own_trial() {
    let trials = Trials::default();
    let trial = trial("app", 1);
    trials.replace(vec![Arc::clone(&trial)], |_| true);
    let (side, began) = (uh_switching::Side::New, Instant::now());
    let who = Who::new(ClientNetwork::V4(1), ClientKey::V4(1));
    assert!(trials.enter(assigned(2, side), who, 0, began).is_none(), "another split's");
    let mut part = trials.enter(assigned(1, side), who, 5, began).unwrap();
    assert!(part.was_slow(began + Duration::from_secs(20)));
    part.ended();
    let new = trial.counts().new;
    assert_eq!((new.requests, new.untimed, new.slow), (1, 1, 0), "it began in the warm-up");
    let began = began + WARM_UP;
    let mut part = trials.enter(assigned(1, side), who, 5, began).unwrap();
    assert!(!part.was_slow(began + Duration::from_millis(100)));
    assert!(part.was_slow(began + Duration::from_millis(101)));
    assert!(part.was_slow(began), "it stays slow");
    assert_eq!((trial.counts().new.slow, trial.counts().new.slow_ended), (1, 0));
    part.ended();
    part.ended();
    let new = trial.counts().new;
    assert_eq!((new.requests, new.untimed, new.slow, new.slow_ended, new.failed), (2, 1, 1, 1, 0));
    // Tried again after the split has ended.
    let part = trials.enter(assigned(1, side), who, 0, began).unwrap();
    assert!(part.goes_on(assigned(2, side)).is_none());
    let part = trials.enter(assigned(1, side), who, 0, began).unwrap();
    let mut part = part.goes_on(assigned(1, uh_switching::Side::Old)).unwrap();
    part.ended();
    assert!(!part.was_slow(began + Duration::from_secs(3600)), "a tunnel may last");
    assert_eq!((trial.counts().new.requests, trial.counts().old.requests), (2, 1));
}

/// Not from the beginning of the trial: the new version may have no clients for a while.
#[test]
fn the_warm_up_begins_with_the_first_request_on_the_new_side() {
    let trials = Trials::default();
    let trial = trial("app", 1);
    trials.replace(vec![Arc::clone(&trial)], |_| true);
    let began = Instant::now();
    let who = Who::new(ClientNetwork::V4(1), ClientKey::V4(1));
    let slow = |side, second| {
        let at = began + Duration::from_secs(second);
        let mut part = trials.enter(assigned(1, side), who, 0, at).unwrap();
        part.was_slow(at + Duration::from_secs(1));
        part.ended();
        let counts = trial.counts();
        counts.old.slow + counts.new.slow
    };
    assert_eq!(slow(uh_switching::Side::Old, 60), 0);
    assert_eq!(slow(uh_switching::Side::New, 60), 0);
    assert_eq!(slow(uh_switching::Side::Old, 69), 0);
    assert_eq!(slow(uh_switching::Side::New, 69), 0);
    assert_eq!(slow(uh_switching::Side::Old, 70), 1);
    assert_eq!(slow(uh_switching::Side::New, 70), 2);
}

#[test]
fn a_client_is_new_if_neither_its_address_nor_its_cookie_was_seen() {
    let seen = Seen::default();
    let (v4, v6) = (ClientNetwork::V4(7), ClientNetwork::V6(7));
    assert!(Who::new(v4, ClientKey::V4(7)).is_new_to(&seen));
    assert!(Who::new(v6, ClientKey::V6(7)).is_new_to(&seen), "another network");
    assert!(!Who::new(v4, ClientKey::Cookie(1 << 100)).is_new_to(&seen), "it has a cookie now");
    assert!(!Who::new(ClientNetwork::V4(8), ClientKey::Cookie(1 << 100)).is_new_to(&seen), "it has moved");
    assert!(Who::new(ClientNetwork::V4(9), ClientKey::Cookie(1 << 101)).is_new_to(&seen));
}
