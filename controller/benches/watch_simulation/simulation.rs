//! Simulates watches that only report, with uh-deploy's own rule: how many healthy deploys they would find bad, and how soon
//! bad ones. Also the rule of a watch with nothing to compare. Deterministic for a seed.

use std::time::Duration;

use uh_controller::counters::Answers;
use uh_controller::verdict::Allowed;

/// The parameters of one deploy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deploy {
    /// Requests per second, arriving randomly.
    pub(crate) rate: f64,
    /// The share of requests that the old version fails.
    pub(crate) old_errors: f64,
    /// The share that the new one fails.
    pub(crate) new_errors: f64,
    /// How long the old version was active before.
    pub(crate) history: Duration,
    /// How long the new one is watched.
    pub(crate) watch: Duration,
    /// The time between two ticks.
    pub(crate) interval: Duration,
    /// `monitor.max_error_rate`.
    pub(crate) limit: f64,
}

/// A healthy deploy with the defaults: both versions fail the same share, less than the limit.
pub(crate) fn healthy(rate: f64, errors: f64, interval: Duration) -> Deploy {
    Deploy {
        rate,
        old_errors: errors,
        new_errors: errors,
        history: Duration::from_secs(600),
        watch: Duration::from_secs(300),
        interval,
        limit: 0.01,
    }
}

/// The results of many deploys.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcomes {
    /// How many deploys.
    pub(crate) deploys: u32,
    /// When each bad one was found, in seconds, ascending.
    pub(crate) found_after: Vec<f64>,
    /// How many requests had failed when each bad one was found, ascending.
    pub(crate) failed: Vec<u64>,
}

impl Outcomes {
    /// How many were found bad.
    pub(crate) fn found(&self) -> usize {
        self.found_after.len()
    }

    /// After how many seconds this share of the bad ones had been found.
    pub(crate) fn at(&self, share: f64) -> Option<f64> {
        let last = self.found_after.len().checked_sub(1)?;
        self.found_after.get((last as f64 * share) as usize).copied()
    }
}

/// Simulates this many deploys.
pub(crate) fn simulate(deploy: Deploy, deploys: u32, seed: u64) -> Outcomes {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut outcomes = Outcomes { deploys, ..Outcomes::default() };
    for _ in 0..deploys {
        if let Some((after, failed)) = one(deploy, &mut random) {
            outcomes.found_after.push(after);
            outcomes.failed.push(failed);
        }
    }
    outcomes.found_after.sort_by(f64::total_cmp);
    outcomes.failed.sort_unstable();
    outcomes
}

fn one(deploy: Deploy, random: &mut fastrand::Rng) -> Option<(f64, u64)> {
    let before = answers(deploy.rate * deploy.history.as_secs_f64(), deploy.old_errors, random);
    let allowed = Allowed::new(deploy.limit, Some(before));
    let (mut total, mut elapsed) = (Answers::default(), Duration::ZERO);
    while elapsed < deploy.watch {
        let tick = deploy.interval.min(deploy.watch - elapsed);
        elapsed += tick;
        let more = answers(deploy.rate * tick.as_secs_f64(), deploy.new_errors, random);
        total = Answers { good: total.good + more.good, bad: total.bad + more.bad };
        if allowed.is_exceeded_by(total) {
            return Some((elapsed.as_secs_f64(), total.bad));
        }
    }
    None
}

/// The number of requests in a period with this expectation.
pub(crate) fn answers(expected: f64, errors: f64, random: &mut fastrand::Rng) -> Answers {
    let all = poisson(expected, random);
    let bad = successes(all, errors, random);
    Answers { good: all - bad, bad }
}

/// Exact for small means; from 50 on by the normal distribution, which is close enough there.
pub(crate) fn poisson(mean: f64, random: &mut fastrand::Rng) -> u64 {
    if mean >= 50.0 {
        let (u, v) = (1.0 - random.f64(), random.f64());
        let normal = (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos();
        return (mean + mean.sqrt() * normal + 0.5).max(0.0) as u64;
    }
    let (limit, mut product, mut count) = ((-mean).exp(), random.f64(), 0);
    while product > limit {
        product *= random.f64();
        count += 1;
    }
    count
}

/// How many of `trials` succeed, exactly: the gaps between successes are geometric.
fn successes(trials: u64, chance: f64, random: &mut fastrand::Rng) -> u64 {
    if chance <= 0.0 {
        return 0;
    }
    if chance >= 1.0 {
        return trials;
    }
    let (mut at, mut count) = (0u64, 0);
    loop {
        let gap = ((1.0 - random.f64()).ln() / (1.0 - chance).ln()).floor();
        at = at.saturating_add(gap as u64).saturating_add(1);
        if at > trials {
            return count;
        }
        count += 1;
    }
}
