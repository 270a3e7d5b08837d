//! Simulates trials, request by request, with the rule that decides in uh-proxy. Deterministic for a seed.

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;
use uh_trial::plan::Next;
use uh_trial::{Counts, History, Kind, Plan, Seen, Share, Side, SideCounts, Status, Trial, Weight};

/// How often the trial is looked at. Everything happens at such moments.
const TICK: Duration = Duration::from_millis(100);

/// How long the old version was active before, in seconds.
const HISTORY_SECONDS: f64 = 600.0;

/// No trial lasts longer.
const LONGEST: Duration = Duration::from_secs(7200);

/// When an outage begins, at random within this.
const OUTAGE_WITHIN: f64 = 60.0;

/// Both versions' requests fail for a while.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outage {
    pub(crate) seconds: f64,
    /// The share of requests.
    pub(crate) fails: f64,
}

/// How many ticks a slow request takes that isn't caused by a pause.
const SLOW_TICKS: usize = 4;

/// Processes do nothing for a while, and all of their requests are slow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pauses {
    /// The mean time between two, in seconds.
    pub(crate) every: f64,
    /// The mean length, in seconds. Both have exponential distributions.
    pub(crate) lasts: f64,
    /// Both versions pause at the same moment: uh-proxy pauses, or the machine.
    pub(crate) together: bool,
}

/// The parameters of a trial.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    /// Requests per second, arriving randomly.
    pub(crate) rate: f64,
    /// The share of requests that the old and the new version fail.
    pub(crate) fails: (f64, f64),
    /// The share that takes longer than the slow bound.
    pub(crate) slow: (f64, f64),
    /// The old version's share of failures before the trial.
    pub(crate) before: f64,
    /// The new version fails as the old one until then, in seconds.
    pub(crate) turns_bad_after: f64,
    pub(crate) outage: Option<Outage>,
    /// The history has none.
    pub(crate) pauses: Option<Pauses>,
    /// How often a client whose request failed repeats it on average, with the same result.
    pub(crate) repeats: f64,
    /// Requests come from this many clients; 0: each from another.
    pub(crate) clients: u64,
    /// Of these, so many always fail.
    pub(crate) always_fail: u64,
    pub(crate) warm_up: Duration,
}

impl World {
    /// Both versions alike, nothing slow.
    pub(crate) fn healthy(rate: f64, fails: f64) -> Self {
        Self {
            rate,
            fails: (fails, fails),
            slow: (0.0, 0.0),
            before: fails,
            turns_bad_after: 0.0,
            outage: None,
            pauses: None,
            repeats: 0.0,
            clients: 0,
            always_fail: 0,
            warm_up: uh_trial::trial::WARM_UP,
        }
    }
}

/// The results of many trials.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcomes {
    pub(crate) trials: u32,
    /// When each was stopped, in seconds, ascending.
    pub(crate) stopped_after: Vec<f64>,
    /// How many requests on the new version were bad until then, ascending.
    pub(crate) bad: Vec<u64>,
    pub(crate) suspicions: u64,
}

impl Outcomes {
    pub(crate) fn stopped(&self) -> usize {
        self.stopped_after.len()
    }

    /// After how many seconds this share of those that were stopped had been stopped.
    pub(crate) fn at(&self, share: f64) -> f64 {
        let last = self.stopped_after.len().saturating_sub(1);
        self.stopped_after.get((last as f64 * share) as usize).copied().unwrap_or(f64::NAN)
    }

    /// The median of bad requests.
    pub(crate) fn bad(&self) -> u64 {
        self.bad.get(self.bad.len().saturating_sub(1) / 2).copied().unwrap_or(0)
    }
}

/// Runs this many trials with the default plan.
pub(crate) fn simulate(world: World, trials: u32, seed: u64) -> Outcomes {
    let mut outcomes = Outcomes { trials, ..Outcomes::default() };
    let mut rng = Rng::with_seed(seed);
    for _ in 0..trials {
        let mut course = Course::new(world, &mut rng);
        if let Some(after) = course.run() {
            outcomes.stopped_after.push(after);
            outcomes.bad.push(course.counts.new.failed + course.counts.new.slow);
        }
        outcomes.suspicions += course.suspicions;
    }
    outcomes.stopped_after.sort_by(f64::total_cmp);
    outcomes.bad.sort_unstable();
    outcomes
}

/// One trial.
struct Course<'a> {
    world: World,
    rng: &'a mut Rng,
    trial: Trial,
    counts: Counts,
    /// Only where clients come again.
    seen: Option<[Seen; 2]>,
    salt: u64,
    weight: Weight,
    outage_at: f64,
    /// When the new version has got its first request.
    first_on_new: Option<Duration>,
    /// By side: for how many more ticks it pauses.
    paused: [usize; 2],
    /// By tick and side: slow requests that end then.
    ending: VecDeque<[u64; 2]>,
    suspicions: u64,
}

impl<'a> Course<'a> {
    fn new(world: World, rng: &'a mut Rng) -> Self {
        let requests = poisson(rng, world.rate * HISTORY_SECONDS);
        let bad = |rng: &mut Rng, share: f64| poisson(rng, requests as f64 * share);
        let history = History {
            failures: Share::new(bad(rng, world.before), requests),
            slowness: Share::new(bad(rng, world.slow.0), requests),
        };
        Self {
            trial: Trial::new(history),
            counts: Counts::default(),
            seen: (world.clients > 0).then(Default::default),
            salt: rng.u64(..),
            weight: Weight::NONE,
            outage_at: world.outage.map_or(f64::INFINITY, |_| rng.f64() * OUTAGE_WITHIN),
            first_on_new: None,
            paused: [0; 2],
            ending: VecDeque::new(),
            suspicions: 0,
            world,
            rng,
        }
    }

    /// Runs it by the default plan. Returns when it was stopped, in seconds.
    fn run(&mut self) -> Option<f64> {
        let plan = Plan::default();
        let (mut step, mut began, mut requests) = (0, Duration::ZERO, 0);
        let mut status = Status::Undecided;
        let mut at = Duration::ZERO;
        while at < LONGEST {
            let planned = plan.steps().get(step)?.weight;
            let checking = status == Status::Suspicious;
            self.weight = if checking && planned > Weight::HALF { Weight::HALF } else { planned };
            self.tick(at);
            at += TICK;
            status = self.trial.look(at, self.weight, &self.counts);
            self.suspicions += u64::from(status == Status::Suspicious && !checking);
            match plan.next(step, at - began, self.counts.new.requests - requests, &status) {
                Next::Wait { .. } => {}
                Next::Go(next) => (step, began, requests) = (next, at, self.counts.new.requests),
                Next::Done => return None,
                Next::Stop => return Some(at.as_secs_f64()),
            }
        }
        None
    }

    /// The requests between two looks.
    fn tick(&mut self, at: Duration) {
        let seconds = at.as_secs_f64();
        let World { fails, slow, outage, turns_bad_after, .. } = self.world;
        let out =
            outage.filter(|outage| (self.outage_at..self.outage_at + outage.seconds).contains(&seconds));
        let shared = out.map_or(0.0, |outage| outage.fails);
        let new_fails = if seconds >= turns_bad_after { fails.1 } else { fails.0 };
        let fails = [fails.0, new_fails].map(|own| 1.0 - (1.0 - own) * (1.0 - shared));
        let slow = [slow.0, slow.1];
        self.pause();
        let [old_ended, new_ended] = self.ending.pop_front().unwrap_or_default();
        self.counts.old.slow_ended += old_ended;
        self.counts.new.slow_ended += new_ended;
        for _ in 0..poisson(self.rng, self.world.rate * TICK.as_secs_f64()) {
            let (client, side) = self.client();
            if side == Side::New {
                self.first_on_new.get_or_insert(at);
            }
            let timed = self.first_on_new.is_some_and(|first| at >= first + self.world.warm_up);
            let counts = match side {
                Side::Old => &mut self.counts.old,
                Side::New => &mut self.counts.new,
            };
            let place = side as usize;
            let draw = self.rng.f64();
            let fails = client < self.world.always_fail || draw < fails[place];
            let kind = if fails {
                Some(Kind::Failure)
            } else if timed && (self.paused[place] > 0 || draw > 1.0 - slow[place]) {
                Some(Kind::Slowness)
            } else {
                None
            };
            let mut requests = 1;
            if kind == Some(Kind::Failure) && self.world.repeats > 0.0 {
                while self.rng.f64() < self.world.repeats / (1.0 + self.world.repeats) {
                    requests += 1;
                }
            }
            count(counts, kind, requests, timed);
            let Some(kind) = kind else { continue };
            if kind == Kind::Slowness {
                let ticks = if self.paused[place] > 0 { self.paused[place] } else { SLOW_TICKS };
                if self.ending.len() < ticks {
                    self.ending.resize(ticks, [0; 2]);
                }
                self.ending[ticks - 1][place] += 1;
            }
            if self.seen.as_ref().is_none_or(|seen| seen[kind as usize].first(client)) {
                self.trial.record(kind, side, self.weight);
            }
        }
    }

    /// Processes begin to pause, and go on.
    fn pause(&mut self) {
        let Some(pauses) = self.world.pauses else { return };
        for place in 0..2 {
            self.paused[place] = self.paused[place].saturating_sub(1);
            let begins = self.rng.f64() < -(-TICK.as_secs_f64() / pauses.every).exp_m1();
            if begins && self.paused[place] == 0 && (place == 0 || !pauses.together) {
                let lasts = -(1.0 - self.rng.f64()).ln() * pauses.lasts;
                self.paused[place] = (lasts / TICK.as_secs_f64()).ceil().max(1.0) as usize;
            }
        }
        if pauses.together {
            self.paused[1] = self.paused[0];
        }
    }

    /// Where a request comes from, and the side that serves it. A client of many requests stays on its side, and only
    /// moves forward as the weight grows.
    fn client(&mut self) -> (u64, Side) {
        let (client, position) = if self.world.clients == 0 {
            (u64::MAX, self.rng.f64())
        } else {
            let client = self.rng.u64(..self.world.clients);
            (client, Rng::with_seed(client ^ self.salt).f64())
        };
        (client, if position < self.weight.share() { Side::New } else { Side::Old })
    }
}

fn count(counts: &mut SideCounts, kind: Option<Kind>, requests: u64, timed: bool) {
    counts.requests += requests;
    if !timed {
        counts.untimed += requests;
    }
    match kind {
        Some(Kind::Failure) => counts.failed += requests,
        Some(Kind::Slowness) => counts.slow += requests,
        None => {}
    }
}

/// A number with a Poisson distribution: exact for small means, and the rounded normal one for large.
fn poisson(rng: &mut Rng, mean: f64) -> u64 {
    if mean > 60.0 {
        let normal = (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos();
        return (mean + mean.sqrt() * normal).round().max(0.0) as u64;
    }
    let (limit, mut product, mut number) = ((-mean).exp(), rng.f64(), 0);
    while product > limit {
        product *= rng.f64();
        number += 1;
    }
    number
}
