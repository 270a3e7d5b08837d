//! Decides whether a version fails more than it may: a sequential test over its requests. Pure: no I/O, no clock.
//!
//! The test compares two explanations of what a version has answered since it got traffic: that it fails at most as
//! often as it may (`p₀`), or that it fails noticeably more often. The evidence for the second is
//!
//! ```text
//! E = mean over δ of (p₁/p₀)^bad · ((1−p₁)/(1−p₀))^good      p₁ = p₀ + δ(1−p₀),  δ ∈ {1, 2, 5, 20, 70 %}
//! ```
//!
//! While the true rate is at most p₀, E is a nonnegative supermartingale that starts at 1, so by Ville's inequality it
//! *ever* reaches 40,000 in at most 1 of 40,000 deploys, however often and whenever somebody looks. So a look costs
//! nothing, a clear failure is found as soon as there is evidence for it, and a rare error now and then never adds up to a
//! breach. (Lindon, Sanden, Shirikian: Rapid Regression Detection in Software Deployments, KDD 2022.)
//!
//! What it can't tell: an outage that hits both versions at once looks like a failure of the new one. Only a control
//! group that gets the old version at the same moment can tell the two apart.
//!
//! [`judge`] applies it tick by tick, with the other limits of `[monitor]`.

pub mod judge;

/// How sure a breach must be: false in at most 1 of 40,000 watches of a version that fails as often as it may.
pub const BREACH_EVIDENCE: f64 = 40_000.0;

/// A breach has at least this many errors: one user's bad moment is no reason to move everybody.
pub const MIN_ERRORS: u64 = 3;

/// How much more often than the old version the new one may fail: its rate then is no better known than to a half.
const HISTORY_FACTOR: f64 = 1.5;

/// The history counts with its upper bound at three standard deviations: short histories prove little.
const HISTORY_Z: f64 = 3.0;

/// The history never allows more than this: a version that fails every other request is broken, whatever came before.
const MAX_FROM_HISTORY: f64 = 0.5;

/// The excesses that the test looks for, as shares of what is left above p₀. Several, because nobody knows beforehand how
/// bad a bad version is; the mean of several tests is as honest as one of them.
const EXCESSES: [f64; 5] = [0.01, 0.02, 0.05, 0.2, 0.7];

/// `p₀` is at least this: a limit of 0 % would make the first error infinitely strong evidence.
const MIN_ALLOWED: f64 = 1e-4;

/// No explanation says that everything fails: then one success would be infinitely strong evidence against it.
const MAX_RATE: f64 = 0.99;

/// How many requests were answered well, and how many failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    /// Answered well.
    pub good: u64,
    /// Failed.
    pub bad: u64,
}

impl Answers {
    /// All of them.
    #[must_use]
    pub fn all(self) -> u64 {
        self.good.saturating_add(self.bad)
    }

    /// The share that failed, from 0 to 1. Nothing answered is nothing failed.
    #[must_use]
    pub fn rate(self) -> f64 {
        if self.all() == 0 { 0.0 } else { self.bad as f64 / self.all() as f64 }
    }
}

/// The share of requests that a version may fail (`p₀`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allowed(f64);

impl Allowed {
    /// The larger of the absolute limit and 1.5 times the upper Wilson bound of what the old version failed in its last
    /// activation. An old version without a single failure on record gives no reason to allow more than the limit, however
    /// short its record is.
    #[must_use]
    pub fn new(max_error_rate: f64, before: Option<Answers>) -> Self {
        let history = before.filter(|before| before.bad > 0).map_or(0.0, |before| {
            (HISTORY_FACTOR * upper_wilson_bound(before, HISTORY_Z)).min(MAX_FROM_HISTORY)
        });
        Self(max_error_rate.max(history).clamp(MIN_ALLOWED, 1.0))
    }

    /// As a share from 0 to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        self.0
    }

    /// The natural logarithm of the evidence that a version with these answers fails more than it may.
    #[must_use]
    pub fn ln_evidence(self, answers: Answers) -> f64 {
        let p0 = self.0;
        if p0 >= MAX_RATE {
            return f64::NEG_INFINITY;
        }
        let (bad, good) = (answers.bad as f64, answers.good as f64);
        let logs = EXCESSES.map(|excess| {
            let p1 = (p0 + excess * (1.0 - p0)).min(MAX_RATE);
            bad * (p1 / p0).ln() + good * ((1.0 - p1) / (1.0 - p0)).ln()
        });
        let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logs.iter().map(|log| (log - largest).exp()).sum();
        largest + (sum / EXCESSES.len() as f64).ln()
    }

    /// Whether there is enough evidence that a version fails more than it may.
    #[must_use]
    pub fn is_exceeded_by(self, answers: Answers) -> bool {
        // At or below what is allowed, no explanation that allows more fits better.
        answers.bad >= MIN_ERRORS
            && answers.rate() > self.0
            && self.ln_evidence(answers) >= BREACH_EVIDENCE.ln()
    }
}

/// The upper end of the Wilson score interval of a share, `z` standard deviations wide.
fn upper_wilson_bound(answers: Answers, z: f64) -> f64 {
    let (k, n, z2) = (answers.bad as f64, answers.all() as f64, z * z);
    let centre = (k + z2 / 2.0) / (n + z2);
    centre + z * (centre * (1.0 - centre) / (n + z2)).sqrt()
}

#[cfg(test)]
mod tests;
