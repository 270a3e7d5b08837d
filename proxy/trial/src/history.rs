//! The history test: does the new version fail more often than the old one did before?
//!
//! ```text
//! E₂ = mean over δ of (p₁/p₀)^bad · ((1−p₁)/(1−p₀))^good      p₁ = p₀ + δ(1−p₀),  δ ∈ {1, 2, 5, 20, 70 %}
//! ```
//!
//! `p₀` is the upper bound of the old version's rate, three standard deviations up. While the new version fails no more
//! often than that, E₂ is a nonnegative supermartingale. It needs no control group, so it is fast. But an outage that
//! hits both versions fools it: it never decides alone.

use crate::evidence::ln_mean_exp;
use crate::share::Share;

/// The excess rates that the test looks for, as shares of the range above `p₀`.
pub const EXCESSES: [f64; 5] = [0.01, 0.02, 0.05, 0.2, 0.7];

/// How far above the old version's measured rate `p₀` is, in standard deviations: a short history proves little.
pub const Z: f64 = 3.0;

/// `p₀` is at most this, also without any history.
const MAX_BEFORE: f64 = 0.5;

/// No explanation assumes that everything fails: one success would be infinitely strong evidence against it.
const MAX_RATE: f64 = 0.99;

/// What the old version's history allows, and the evidence that a number of requests is worse.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HistoryTest {
    p0: f64,
}

impl HistoryTest {
    /// With the old version's requests of the last minutes.
    #[must_use]
    pub fn new(history: Share) -> Self {
        // Above 0 for any number of requests, so its logarithm is finite.
        Self { p0: history.interval(Z).1.clamp(f64::MIN_POSITIVE, MAX_BEFORE) }
    }

    /// With a `p₀` that was chosen otherwise, from 0 to 1.
    #[must_use]
    pub fn allowing(p0: f64) -> Self {
        Self { p0: p0.clamp(f64::MIN_POSITIVE, MAX_RATE) }
    }

    /// `p₀`, from 0 to 1.
    #[must_use]
    pub fn allowed(self) -> f64 {
        self.p0
    }

    /// The natural logarithm of E₂ for these requests of the new version; 0 for none.
    #[must_use]
    pub fn ln_evidence(self, requests: Share) -> f64 {
        let (bad, good) = (requests.bad() as f64, (requests.all() - requests.bad()) as f64);
        let logs = EXCESSES.map(|excess| {
            let p1 = (self.p0 + excess * (1.0 - self.p0)).min(MAX_RATE);
            bad * (p1.ln() - self.p0.ln()) + good * ((-p1).ln_1p() - (-self.p0).ln_1p())
        });
        ln_mean_exp(&logs)
    }
}
