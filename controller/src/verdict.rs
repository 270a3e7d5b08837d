//! Decides whether a version fails more than allowed, with a sequential test over its requests. Pure: no I/O, no
//! clock.
//!
//! The test compares two explanations of a version's answers since it became active: that it fails at most as often
//! as allowed (`p₀`), or that it fails noticeably more often. The evidence for the second is
//!
//! ```text
//! E = mean over δ of (p₁/p₀)^bad · ((1−p₁)/(1−p₀))^good      p₁ = p₀ + δ(1−p₀),  δ ∈ {1, 2, 5, 20, 70 %}
//! ```
//!
//! While the true rate is at most p₀, E is a nonnegative supermartingale that starts at 1, so by Ville's inequality
//! it *ever* reaches 40,000 in at most 1 of 40,000 deploys, however often it is checked. So checking is free, a clear
//! failure is found as soon as there is evidence for it, and occasional errors never add up to a breach. (Lindon,
//! Sanden, Shirikian: Rapid Regression Detection in Software Deployments, KDD 2022.)
//!
//! Limitation: an outage that affects both versions at once looks like a failure of the new one. Only a control group
//! that uses the old version at the same time can tell the two apart: `cross_check` decides from one.
//!
//! `judge` applies the test tick by tick, with the other limits of `[monitor]`.

pub mod cross_check;
pub mod judge;

use uh_trial::{HistoryTest, Share};

use crate::counters::Answers;

/// From this evidence on, a version is suspicious. If it can be compared with the old one, that decides.
pub const SUSPICION: f64 = 1000.0;

/// How certain a breach must be: wrong in at most 1 of 40,000 watches of a version that fails as often as allowed.
pub const BREACH_EVIDENCE: f64 = 40_000.0;

/// A breach takes at least this many errors: a single failure mustn't move all users.
pub const MIN_ERRORS: u64 = 3;

/// How much more often than the old version the new one may fail, since the old rate is only known roughly.
const HISTORY_FACTOR: f64 = 1.5;

/// The old version's rate counts with its upper bound at three standard deviations: short histories prove little.
const HISTORY_Z: f64 = 3.0;

/// The old version's rate never allows more than this: a version that fails every other request is broken in any
/// case.
const MAX_FROM_HISTORY: f64 = 0.5;

/// `p₀` is at least this: a limit of 0 % would make the first error infinitely strong evidence.
const MIN_ALLOWED: f64 = 1e-4;

/// If more than this may fail, nothing is a breach.
const MAX_RATE: f64 = 0.99;

/// The share of requests that may fail (`p₀`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allowed(f64);

impl Allowed {
    /// The larger of the absolute limit and 1.5 times the upper Wilson bound of the old version's rate in its last
    /// activation. If the old version had no failure, only the limit counts, however short its record is.
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

    /// The natural logarithm of the evidence that a version with these answers fails more than allowed.
    #[must_use]
    pub fn ln_evidence(self, answers: Answers) -> f64 {
        let p0 = self.0;
        if p0 >= MAX_RATE {
            return f64::NEG_INFINITY;
        }
        HistoryTest::allowing(p0).ln_evidence(Share::new(answers.bad, answers.all()))
    }

    /// Whether there is enough evidence that a version fails more than allowed.
    #[must_use]
    pub fn is_exceeded_by(self, answers: Answers) -> bool {
        self.has_evidence(answers, BREACH_EVIDENCE)
    }

    /// Whether there is this much evidence that it does.
    #[must_use]
    pub fn has_evidence(self, answers: Answers, evidence: f64) -> bool {
        // At or below the allowed rate, no other explanation fits better.
        answers.bad >= MIN_ERRORS && answers.rate() > self.0 && self.ln_evidence(answers) >= evidence.ln()
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
