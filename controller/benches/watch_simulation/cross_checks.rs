//! Simulates watches with `--auto-rollback`: a suspicion gives half of the clients back to the old version, and what both do
//! decides. Request by request, with uh-deploy's own rules and uh-proxy's own trial.

use std::time::Duration;

use uh_controller::config::Monitor;
use uh_controller::counters::{Answers, Counters};
use uh_controller::verdict::cross_check::{Decision, Sides, decide};
use uh_controller::verdict::judge::Judge;
use uh_trial::{Counts, History, Kind, Share, Side, SideCounts, Status, Trial, Weight};

use crate::simulation::{Outcomes, answers, poisson};

/// How often the watch looks for a suspicion.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often uh-proxy looks at its trial. The watch asks at every second look.
const STEP: Duration = Duration::from_millis(100);

/// One deploy that is watched for the length of `limits`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checked {
    /// Requests per second, arriving randomly.
    pub(crate) rate: f64,
    /// So many clients send them, each on one side. With few, those who fail soon have all failed before.
    pub(crate) clients: u32,
    /// The share of requests that the old version fails.
    pub(crate) old_errors: f64,
    /// The share that the new one fails.
    pub(crate) new_errors: f64,
    /// How long both fail, from a random moment of the first minute on, and which share of requests.
    pub(crate) outage: Option<(Duration, f64)>,
    /// How long the old version was active before.
    pub(crate) history: Duration,
}

/// The defaults.
fn limits() -> Monitor {
    Monitor {
        duration: Duration::from_secs(300),
        interval: Duration::from_secs(10),
        max_error_rate: 0.01,
        max_p95: Duration::from_millis(500),
        min_requests: 20,
        breach_after: 2,
        require_verdict: false,
        auto_rollback_within: Duration::from_secs(3600),
    }
}

/// Simulates this many deploys.
pub(crate) fn simulate(deploy: Checked, deploys: u32, seed: u64) -> Outcomes {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut outcomes = Outcomes { deploys, ..Outcomes::default() };
    let limits = limits();
    for _ in 0..deploys {
        if let Some((after, failed)) = Course::new(deploy, &limits, &mut random).run() {
            outcomes.found_after.push(after.as_secs_f64());
            outcomes.failed.push(failed);
        }
    }
    outcomes.found_after.sort_by(f64::total_cmp);
    outcomes.failed.sort_unstable();
    outcomes
}

/// One deploy while it is watched.
struct Course<'a> {
    deploy: Checked,
    limits: &'a Monitor,
    random: &'a mut fastrand::Rng,
    judge: Judge<'a>,
    before: Share,
    outage_at: Duration,
    now: Duration,
    /// All requests of the new version since the switch.
    seen: Answers,
}

/// When it was rolled back, and how many requests had failed by then. `None`: it wasn't.
type Found = Option<(Duration, u64)>;

/// What a check leads to.
enum End {
    Worse,
    NotWorse,
    /// Nothing can be compared, now and later.
    Alone,
    Over,
}

impl<'a> Course<'a> {
    fn new(deploy: Checked, limits: &'a Monitor, random: &'a mut fastrand::Rng) -> Self {
        let before = answers(deploy.rate * deploy.history.as_secs_f64(), deploy.old_errors, random);
        let outage_at = Duration::from_secs_f64(random.f64() * 60.0);
        Self {
            deploy,
            limits,
            judge: Judge::new(limits, Some(before)),
            before: Share::new(before.bad, before.all()),
            outage_at,
            now: Duration::ZERO,
            seen: Answers::default(),
            random,
        }
    }

    fn run(mut self) -> Found {
        let mut alone = false;
        while self.now < self.limits.duration {
            let expected = self.deploy.rate * LOOK_EVERY.as_secs_f64();
            let more = answers(expected, self.errors(Side::New), self.random);
            self.now += LOOK_EVERY;
            self.count(more);
            let Some(suspicion) = self.judge.suspects(&Counters::of(self.seen)) else { continue };
            if !alone {
                match self.check() {
                    End::Worse => return Some((self.now, self.seen.bad)),
                    End::NotWorse => {
                        self.judge.settle(&Counters::of(self.seen));
                        continue;
                    }
                    End::Over => return None,
                    End::Alone => alone = true,
                }
            }
            if suspicion.enough {
                return Some((self.now, self.seen.bad));
            }
        }
        None
    }

    fn count(&mut self, more: Answers) {
        self.seen = Answers { good: self.seen.good + more.good, bad: self.seen.bad + more.bad };
    }

    /// The share of requests that a version fails now.
    fn errors(&self, side: Side) -> f64 {
        let own = match side {
            Side::Old => self.deploy.old_errors,
            Side::New => self.deploy.new_errors,
        };
        let outage = self
            .deploy
            .outage
            .filter(|(lasts, _)| (self.outage_at..self.outage_at + *lasts).contains(&self.now));
        outage.map_or(own, |(_, share)| own.max(share))
    }

    fn check(&mut self) -> End {
        let history = History { failures: self.before, ..History::default() };
        let (mut trial, mut counts) = (Trial::new(history), Counts::default());
        let mut has_failed = vec![false; self.deploy.clients as usize];
        let (mut failing, mut elapsed) = (0, Duration::ZERO);
        // The comparison begins here: later than the check, if both have failed for long.
        let (mut since, mut start) = (Duration::ZERO, Counts::default());
        // Another one in each check, as the salt of a split is.
        let salt = self.random.u32(..);
        loop {
            for _ in 0..poisson(self.deploy.rate * STEP.as_secs_f64(), self.random) {
                let client = self.random.u32(0..self.deploy.clients);
                let side = if side_is_new(client, salt) { Side::New } else { Side::Old };
                let bad = self.random.f64() < self.errors(side);
                let of_side = if side == Side::New { &mut counts.new } else { &mut counts.old };
                of_side.requests += 1;
                of_side.failed += u64::from(bad);
                if bad && !std::mem::replace(&mut has_failed[client as usize], true) {
                    failing += 1;
                    trial.record(Kind::Failure, side, Weight::HALF);
                }
                if side == Side::New {
                    self.count(Answers { good: u64::from(!bad), bad: u64::from(bad) });
                }
            }
            (elapsed, self.now) = (elapsed + STEP, self.now + STEP);
            if matches!(trial.look(elapsed, Weight::HALF, &counts), Status::Bad { .. }) {
                return End::Worse;
            }
            let is_over = self.now >= self.limits.duration;
            let sides = Sides {
                suspect: added(counts.new, start.new),
                other: added(counts.old, start.old),
                ..Sides::default()
            };
            match decide(&self.judge, &sides, failing, false, elapsed - since) {
                Some(Decision::Worse(_)) => return End::Worse,
                Some(Decision::NotWorse(_)) => return End::NotWorse,
                Some(Decision::Incomparable(_)) => return End::Alone,
                Some(_) if is_over => return End::Over,
                Some(Decision::BothFail(_)) => (since, start) = (elapsed, counts),
                Some(Decision::Unclear(_)) | None => {}
            }
        }
    }
}

/// A coin for each client, by a hash with the salt.
fn side_is_new(client: u32, salt: u32) -> bool {
    let mixed = u64::from(client ^ salt).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 63 == 1
}

fn added(now: SideCounts, before: SideCounts) -> Answers {
    let (all, bad) = (now.requests - before.requests, now.failed - before.failed);
    Answers { good: all - bad, bad }
}
