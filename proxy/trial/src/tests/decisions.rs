//! When a trial decides, and when it must not.

use std::time::Duration;

use crate::trial::CROSS_CHECK;
use crate::*;

const TICK: Duration = Duration::from_millis(100);

/// 600 s of 100 requests/s with 0.3 % failures, and 5 % slow ones.
const HISTORY: fn() -> History =
    || History { failures: Share::new(180, 60_000), slowness: Share::new(3000, 60_000) };

fn weight(percent: u32) -> Weight {
    Weight::new(f64::from(percent) / 100.0)
}

/// A trial with what happened so far, and its time.
struct Course {
    trial: Trial,
    counts: Counts,
    at: Duration,
}

impl Course {
    fn new() -> Self {
        Self { trial: Trial::new(HISTORY()), counts: Counts::default(), at: Duration::ZERO }
    }

    fn good(mut self, new: u64, old: u64) -> Self {
        self.counts.new.requests += new;
        self.counts.old.requests += old;
        self
    }

    /// So many clients of a side fail, each once.
    fn bad(mut self, kind: Kind, side: Side, clients: u64, w: Weight) -> Self {
        let counts = if side == Side::New { &mut self.counts.new } else { &mut self.counts.old };
        counts.requests += clients;
        if kind == Kind::Failure {
            counts.failed += clients;
        } else {
            counts.slow += clients;
            counts.slow_ended += clients;
        }
        (0..clients).for_each(|_| self.trial.record(kind, side, w));
        self
    }

    fn look(&mut self, w: Weight) -> Status {
        self.at += TICK;
        self.trial.look(self.at, w, &self.counts)
    }
}

#[track_caller]
fn is_bad(status: Status, kind: Kind, by: By) {
    assert!(matches!(status, Status::Bad { kind: k, by: b, .. } if k == kind && b == by), "{status:?}");
}

#[test]
fn a_version_that_always_fails_is_bad_at_the_second_look() {
    let w = weight(10);
    let mut course = Course::new().bad(Kind::Failure, Side::New, 4, w).good(0, 36);
    assert_eq!(course.look(w), Status::Undecided);
    is_bad(course.look(w), Kind::Failure, By::History);
    // And stays bad, whatever comes.
    let mut course = course.good(100_000, 0);
    is_bad(course.look(Weight::NONE), Kind::Failure, By::History);
}

#[test]
fn two_failing_clients_never_decide() {
    let w = weight(1);
    let mut course = Course::new().bad(Kind::Failure, Side::New, 2, w).good(0, 1_000);
    for _ in 0..10 {
        assert_eq!(course.look(w), Status::Undecided);
    }
}

#[test]
fn evidence_must_still_be_there_at_the_second_look() {
    let w = weight(10);
    let mut course = Course::new().bad(Kind::Failure, Side::New, 4, w).good(0, 36);
    assert_eq!(course.look(w), Status::Undecided);
    let mut course = course.bad(Kind::Failure, Side::Old, 30, w);
    assert_eq!(course.look(w), Status::Undecided);
}

/// Half of all requests fail on both sides for a while: the history is certain of a fault, and the coin isn't.
#[test]
fn an_outage_of_both_versions_is_no_fault_of_the_new_one() {
    let w = Weight::HALF;
    let mut course = Course::new();
    for _ in 0..100 {
        course = course.bad(Kind::Failure, Side::New, 5, w).bad(Kind::Failure, Side::Old, 5, w).good(5, 5);
        assert_eq!(course.look(w), Status::Undecided);
    }
    let figures = course.trial.figures(Kind::Failure, &course.counts);
    assert!(figures.ln_history > 1000.0 && figures.ln_coin < 0.0, "{figures:?}");
}

#[test]
fn what_is_not_material_is_not_bad() {
    // 0.4 % against 0.05 %: certain, but below half a point.
    let w = Weight::HALF;
    let mut course = Course::new().bad(Kind::Failure, Side::New, 400, w).bad(Kind::Failure, Side::Old, 50, w);
    course = course.good(99_600, 99_950);
    assert_eq!(course.look(w), Status::Undecided);
    assert_eq!(course.look(w), Status::Undecided);
    let figures = course.trial.figures(Kind::Failure, &course.counts);
    assert!(figures.ln_coin > 100.0, "{figures:?}");
    // And 5.2 % against 4 % isn't 1.5 times as much.
    let mut course =
        Course::new().bad(Kind::Failure, Side::New, 5200, w).bad(Kind::Failure, Side::Old, 4000, w);
    course = course.good(94_800, 96_000);
    course.look(w);
    assert_eq!(course.look(w), Status::Undecided);
}

#[test]
fn one_client_that_retries_is_one_event() {
    let w = weight(10);
    let mut course = Course::new().bad(Kind::Failure, Side::New, 1, w).good(50, 450);
    course.counts.new.requests += 10_000;
    course.counts.new.failed += 10_000;
    course.look(w);
    assert_eq!(course.look(w), Status::Undecided);
}

/// A second after another, with so many new clients that are slow on each side.
fn seconds(mut course: Course, number: u32, (new, old): (u64, u64)) -> (Course, Status) {
    let w = Weight::HALF;
    let mut status = Status::Undecided;
    for tick in 0..number * 10 {
        if tick % 10 == 0 {
            course = course.bad(Kind::Slowness, Side::New, new, w).bad(Kind::Slowness, Side::Old, old, w);
            course = course.good(50 - new, 50 - old);
        }
        status = course.look(w);
    }
    (course, status)
}

#[test]
fn slowness_at_many_moments_is_bad() {
    let (course, status) = seconds(Course::new(), 11, (15, 2));
    assert_eq!(status, Status::Undecided);
    is_bad(seconds(course, 3, (15, 2)).1, Kind::Slowness, By::History);
    // Less than three points, and less than one and a half times as often.
    assert_eq!(seconds(Course::new(), 100, (4, 3)).1, Status::Undecided);
}

/// A pause of the new version's process makes 50 clients slow, and none of the old one's.
#[test]
fn slowness_at_one_moment_is_one_event() {
    let (course, _) = seconds(Course::new(), 5, (2, 2));
    let (course, status) = seconds(course, 1, (50, 0));
    assert_eq!(status, Status::Undecided);
    let figures = course.trial.figures(Kind::Slowness, &course.counts);
    assert!(figures.ln_coin > 15.0 && figures.ln_history > 15.0, "{figures:?}");
    assert!(figures.ln_windows.unwrap() < 1.0, "{figures:?}");
}

/// It answers nothing for ten seconds, and then everything.
#[test]
fn a_long_pause_is_one_event() {
    let w = Weight::HALF;
    let (mut course, _) = seconds(Course::new(), 5, (2, 2));
    for _ in 0..100 {
        course.counts.new.requests += 5;
        course.counts.new.slow += 5;
        (0..5).for_each(|_| course.trial.record(Kind::Slowness, Side::New, w));
        course = course.good(0, 5);
        assert_eq!(course.look(w), Status::Undecided);
    }
    course.counts.new.slow_ended = course.counts.new.slow;
    let (course, status) = seconds(course, 5, (2, 2));
    assert_eq!(status, Status::Undecided);
    assert!(course.trial.figures(Kind::Slowness, &course.counts).ln_windows.unwrap() < 1.0);
}

#[test]
fn a_request_whose_time_does_not_count_is_never_slow() {
    let mut course = Course::new().good(100, 100);
    (course.counts.new.untimed, course.counts.old.untimed) = (100, 100);
    course.look(Weight::HALF);
    assert_eq!(course.trial.figures(Kind::Slowness, &course.counts).new, Share::default());
    assert_eq!(course.trial.figures(Kind::Failure, &course.counts).new, Share::new(0, 100));
}

#[test]
fn above_a_half_a_suspicion_asks_for_a_control_group() {
    let w = weight(95);
    let mut course = Course::new().good(950, 50).bad(Kind::Failure, Side::New, 30, w);
    assert_eq!(course.look(w), Status::Suspicious);
    // Half of the clients go back. Old ones fail as well: it was an outage.
    let half = Weight::HALF;
    let mut course = course.bad(Kind::Failure, Side::New, 10, half).bad(Kind::Failure, Side::Old, 12, half);
    while course.at < CROSS_CHECK {
        assert_eq!(course.look(half), Status::Suspicious);
    }
    course.look(half);
    assert_eq!(course.look(w), Status::Undecided);
}

#[test]
fn a_cross_check_finds_a_bad_version() {
    let w = weight(95);
    let mut course = Course::new().good(950, 50).bad(Kind::Failure, Side::New, 30, w);
    assert_eq!(course.look(w), Status::Suspicious);
    let half = Weight::HALF;
    let mut course = course.bad(Kind::Failure, Side::New, 20, half).good(200, 220);
    course.look(half);
    let status = course.look(half);
    assert!(matches!(status, Status::Bad { kind: Kind::Failure, .. }), "{status:?}");
}

#[test]
fn a_plain_switch_is_suspicious_and_never_bad_by_its_history_alone() {
    let mut course = Course::new().good(1000, 0).bad(Kind::Failure, Side::New, 100, Weight::ALL);
    for _ in 0..50 {
        assert_eq!(course.look(Weight::ALL), Status::Suspicious);
    }
}

#[test]
fn a_step_needs_its_time_and_its_requests() {
    let plan = Plan::default();
    let second = Duration::from_secs(1);
    let undecided = Status::Undecided;
    assert_eq!(plan.next(0, second, 5, &undecided), Next::Wait { time: second, requests: 15 });
    assert_eq!(plan.next(0, 2 * second, 19, &undecided), Next::Wait { time: Duration::ZERO, requests: 1 });
    assert_eq!(plan.next(0, 2 * second, 20, &undecided), Next::Go(1));
    assert_eq!(plan.next(2, 30 * second, 400, &undecided), Next::Go(3));
    assert_eq!(plan.next(3, 300 * second, 5000, &undecided), Next::Done);
    assert_eq!(
        plan.next(3, 300 * second, 5000, &Status::Suspicious),
        Next::Wait { time: Duration::ZERO, requests: 0 }
    );
    assert_eq!(plan.next(9, second, 5, &undecided), Next::Done);
    let mut course = Course::new().bad(Kind::Failure, Side::New, 4, weight(10)).good(0, 36);
    course.look(weight(10));
    assert_eq!(plan.next(0, 9 * second, 90, &course.look(weight(10))), Next::Stop);
}

#[test]
fn steps_must_grow_and_leave_something_to_compare() {
    let step = |percent| Step { weight: weight(percent), at_least: TICK, requests: 1 };
    assert_eq!(Plan::new(Vec::new()), Err(PlanError::Number));
    assert_eq!(Plan::new(vec![step(1); 17]), Err(PlanError::Number));
    assert_eq!(Plan::new(vec![step(10), step(10)]), Err(PlanError::Falls(2)));
    assert_eq!(Plan::new(vec![step(10), step(100)]), Err(PlanError::Weight(2)));
    assert_eq!(Plan::new(vec![step(0)]), Err(PlanError::Weight(1)));
    assert_eq!(Plan::new(Plan::default().steps().to_vec()), Ok(Plan::default()));
}
