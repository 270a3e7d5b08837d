//! The coin test: do more of the failing clients use the new version than its weight explains?
//!
//! With weight `w`, and a version that makes no difference, each client that fails for the first time is on the new
//! version with probability `w`. If clients of the new version fail `θ` times as often, it is
//! `q = θw / (θw + 1 − w)`. The evidence for the latter is
//!
//! ```text
//! E₁ = mean over θ of Π q/w          for each failing client on the new version
//!                       (1−q)/(1−w)  for each on the old one             θ ∈ {3, 10, 30, 100}
//! ```
//!
//! Both factors have the mean 1 under the coin: `w·q/w + (1−w)·(1−q)/(1−w) = 1`. So E₁ is a nonnegative martingale,
//! whatever weight each client was assigned with.

use crate::evidence::ln_mean_exp;
use crate::share::{Side, Weight};

/// How many times as often as clients of the old version those of a bad one may fail. Several, because it is unknown
/// how bad a bad version is.
pub const RATIOS: [f64; 4] = [3.0, 10.0, 30.0, 100.0];

/// The evidence of clients' first failures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CoinTest {
    /// For each of [`RATIOS`].
    logs: [f64; RATIOS.len()],
    old: u64,
    new: u64,
}

impl CoinTest {
    /// A client has failed for the first time. `weight` is the one that its request was assigned with. Where one side has
    /// no clients, the side says nothing.
    pub fn record(&mut self, side: Side, weight: Weight) {
        self.record_many(side, weight, 1);
    }

    /// The same for so many at once.
    pub fn record_many(&mut self, side: Side, weight: Weight, clients: u64) {
        match side {
            Side::Old => self.old = self.old.saturating_add(clients),
            Side::New => self.new = self.new.saturating_add(clients),
        }
        if !weight.divides() {
            return;
        }
        let w = weight.share();
        for (log, ratio) in self.logs.iter_mut().zip(RATIOS) {
            // q/w and (1−q)/(1−w) without dividing by either.
            let shared = (ratio * w + 1.0 - w).ln();
            *log += clients as f64 * if side == Side::New { ratio.ln() - shared } else { -shared };
        }
    }

    /// The natural logarithm of E₁; 0 without events.
    #[must_use]
    pub fn ln_evidence(&self) -> f64 {
        ln_mean_exp(&self.logs)
    }

    /// How many clients have failed on a side.
    #[must_use]
    pub fn clients(&self, side: Side) -> u64 {
        match side {
            Side::Old => self.old,
            Side::New => self.new,
        }
    }
}
