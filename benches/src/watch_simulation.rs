//! Simulates watches, request by request, against the controller's own rule: how many healthy deploys it would roll back,
//! and how soon it finds a bad one. Deterministic for a seed.

use std::time::Duration;

use uh_controller::verdict::{Allowed, Answers};

/// What one deploy is like.
#[derive(Debug, Clone, Copy)]
pub struct Deploy {
    /// Requests per second, arriving at random.
    pub rate: f64,
    /// The share of requests that the old version fails.
    pub old_errors: f64,
    /// The share that the new one fails.
    pub new_errors: f64,
    /// How long the old version was active before.
    pub history: Duration,
    /// How long the new one is watched.
    pub watch: Duration,
    /// From one tick to the next.
    pub interval: Duration,
    /// `monitor.max_error_rate`.
    pub limit: f64,
}

/// A healthy deploy with the defaults: both versions fail the same share, less than the limit.
#[must_use]
pub fn healthy(rate: f64, errors: f64, interval: Duration) -> Deploy {
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

/// What many deploys came to.
#[derive(Debug, Clone, Default)]
pub struct Outcomes {
    /// How many there were.
    pub deploys: u32,
    /// For each one that was found bad, in seconds: when. Ascending.
    pub found_after: Vec<f64>,
    /// For each one that was found bad: how many requests had failed by then. Ascending.
    pub failed: Vec<u64>,
}

impl Outcomes {
    /// How many were found bad.
    #[must_use]
    pub fn found(&self) -> usize {
        self.found_after.len()
    }

    /// When this share of those that were found bad had been found, in seconds.
    #[must_use]
    pub fn at(&self, share: f64) -> Option<f64> {
        let last = self.found_after.len().checked_sub(1)?;
        self.found_after.get((last as f64 * share) as usize).copied()
    }
}

/// Simulates so many deploys.
#[must_use]
pub fn simulate(deploy: Deploy, deploys: u32, seed: u64) -> Outcomes {
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

/// A stretch of time in which so many requests are expected.
fn answers(expected: f64, errors: f64, random: &mut fastrand::Rng) -> Answers {
    let all = poisson(expected, random);
    let bad = successes(all, errors, random);
    Answers { good: all - bad, bad }
}

/// Exact for small means; from 50 on by the normal distribution, which is close enough there.
fn poisson(mean: f64, random: &mut fastrand::Rng) -> u64 {
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

/// How many of `trials` succeed, exactly: from one success to the next the gap is geometric.
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A short form of the program's table. At a true rate of 1 in 40,000, not one of 9,600 is expected; two would be a
    /// fault of the rule.
    #[test]
    fn healthy_deploys_are_not_rolled_back() {
        let mut found = 0;
        for interval in [SECOND, 10 * SECOND] {
            for errors in [0.0005, 0.003, 0.008] {
                for rate in [1.0, 5.0, 20.0, 100.0] {
                    found += simulate(healthy(rate, errors, interval), 400, 7).found();
                }
            }
        }
        assert!(found <= 1, "{found} of 9600 healthy deploys would be rolled back");
    }

    #[test]
    fn bad_versions_are_found_in_seconds() {
        for (errors, p90) in [(1.0, 1.0), (0.2, 2.0), (0.05, 8.0)] {
            let deploy = Deploy { new_errors: errors, ..healthy(100.0, 0.003, SECOND) };
            let outcomes = simulate(deploy, 300, 7);
            assert_eq!(outcomes.found(), 300, "{errors}");
            assert!(outcomes.at(0.9).is_some_and(|after| after <= p90), "{errors}: {:?}", outcomes.at(0.9));
        }
    }

    #[test]
    fn a_version_that_is_no_worse_than_a_bad_old_one_stays() {
        for (old, new) in [(0.03, 0.012), (0.05, 0.05)] {
            let deploy = Deploy { old_errors: old, new_errors: new, ..healthy(20.0, 0.0, SECOND) };
            assert_eq!(simulate(deploy, 300, 7).found(), 0, "{old} → {new}");
        }
    }
}
