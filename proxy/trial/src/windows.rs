//! The window test: is the new version slower at most moments, or only at a few?
//!
//! A process that pauses makes all of its requests slow at once: thirty clients, and one event. So time is cut into windows,
//! and each window is one toss. If both versions are alike, equal numbers of requests are as likely to have more slow ones
//! on one side as on the other:
//!
//! ```text
//! s = P(fewer slow ones on the old side) − P(more of them)      among as many requests as on the new side
//! E = mean over θ of Π (1 + λs)  for each window                λ = (θ−1)/(θ+1),  θ ∈ {3, 10, 30, 100}
//! ```
//!
//! The mean of `s` is 0 if the versions are alike, so E is a nonnegative martingale, whatever happens within a window. "As
//! many" is a random choice: each slow request of the side with more traffic is kept with the ratio of the traffic, so `s` is
//! computed from a binomial distribution, and nothing is drawn.
//!
//! If slow requests come in bursts on a side, E is a supermartingale only at weights up to 50 %: a part of nearly every burst
//! of the side with more traffic is kept, as if it had more bursts. Above 50 % that is the new side, and the mean of `s`
//! exceeds 0.
//!
//! Slow requests count when they *end*. A paused process answers nothing, and then everything at once: a pause of any length is
//! one window. A version that is slow answers in every window.

use std::cmp::Ordering;
use std::time::Duration;

use crate::coin::RATIOS;
use crate::evidence::ln_mean_exp;
use crate::share::{Share, Weight};

/// A window lasts at least so long: 300 ms, with a look every 100 ms. Most pauses are shorter, and what follows one is over.
pub const WINDOW: Duration = Duration::from_millis(250);

/// When the weight falls, requests that were assigned before still end for a while. Nothing counts for so long.
pub const SETTLES: Duration = Duration::from_secs(2);

/// The ratio of the traffic is the weight's, as sure as if it had been seen in so many requests, and what is counted. A
/// client of many requests makes one side's traffic larger than its weight.
const PRIOR: f64 = 200.0;

/// Of larger numbers, the first digits are enough: one side is ahead, or it is a tie.
const LARGEST: u64 = 4096;

/// Requests of both sides that have ended since the trial began, and the slow ones of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// On the new side.
    pub new: Share,
    /// On the old side.
    pub old: Share,
}

impl Ended {
    fn since(self, before: Self) -> Self {
        let since = |now: Share, before: Share| {
            Share::new(now.bad().saturating_sub(before.bad()), now.all().saturating_sub(before.all()))
        };
        Self { new: since(self.new, before.new), old: since(self.old, before.old) }
    }
}

/// The evidence of windows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WindowTest {
    /// For each of [`RATIOS`].
    logs: [f64; RATIOS.len()],
    /// The weight of the present window.
    weight: Option<Weight>,
    /// What had ended when that weight began to count, and when the window began.
    at_weight: Ended,
    at_window: Ended,
    window_began: Duration,
}

impl WindowTest {
    /// Looks at what has ended, `at` so long after the trial began. `weight`: the present one.
    pub fn look(&mut self, at: Duration, weight: Weight, ended: Ended) {
        if self.weight != Some(weight) {
            let falls = self.weight.is_some_and(|before| weight < before);
            self.weight = Some(weight);
            (self.at_weight, self.at_window) = (ended, ended);
            self.window_began = if falls { at.saturating_add(SETTLES) } else { at };
        } else if at < self.window_began {
            (self.at_weight, self.at_window) = (ended, ended);
        } else if at - self.window_began >= WINDOW {
            if weight.divides() {
                self.record(weight, ended.since(self.at_window));
            }
            (self.at_window, self.window_began) = (ended, at);
        }
    }

    /// The natural logarithm of the evidence; 0 without windows.
    #[must_use]
    pub fn ln_evidence(&self) -> f64 {
        ln_mean_exp(&self.logs)
    }

    /// A window is over.
    fn record(&mut self, weight: Weight, window: Ended) {
        // From what was known when the window began.
        let traffic = self.at_window.since(self.at_weight);
        let w = weight.share();
        let on_new = traffic.new.all() as f64 + PRIOR * w;
        let on_old = traffic.old.all() as f64 + PRIOR * (1.0 - w);
        let slower = if on_new <= on_old {
            ahead(window.new.bad(), window.old.bad(), on_new / on_old)
        } else {
            -ahead(window.old.bad(), window.new.bad(), on_old / on_new)
        };
        for (log, ratio) in self.logs.iter_mut().zip(RATIOS) {
            *log += ((ratio - 1.0) / (ratio + 1.0) * slower).ln_1p();
        }
    }
}

/// `P(X < number) − P(X > number)` for the number `X` of `others` that are kept if each is kept with this chance.
fn ahead(number: u64, others: u64, chance: f64) -> f64 {
    let scale = 1 + number.max(others) / LARGEST;
    let (number, others) = (number / scale, others / scale);
    if chance >= 1.0 || number > others {
        return match number.cmp(&others) {
            Ordering::Less => -1.0,
            Ordering::Equal => 0.0,
            Ordering::Greater => 1.0,
        };
    }
    let (kept, left_out) = (chance.ln(), (-chance).ln_1p());
    // The logarithm of P(X = x), from x = 0 on.
    let mut term = others as f64 * left_out;
    let mut below = 0.0;
    for x in 0..number {
        below += term.exp();
        term += ((others - x) as f64 / (x + 1) as f64).ln() + kept - left_out;
    }
    (2.0 * below + term.exp() - 1.0).clamp(-1.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_the_other_side_is_compared() {
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-3, "{found}");
        near(ahead(0, 0, 0.3), 0.0);
        near(ahead(1, 0, 0.3), 1.0);
        near(ahead(0, 1, 0.25), -0.25);
        near(ahead(1, 2, 0.5), 0.25 - 0.25);
        near(ahead(2, 2, 1.0), 0.0);
        near(ahead(3, 2, 1.0), 1.0);
        near(ahead(2000, 100_000, 0.01), 1.0);
        near(ahead(500, 100_000, 0.01), -1.0);
    }

    /// What makes the test a martingale, at any ratio of the traffic: if a side has as many slow requests as are kept of the
    /// other one's, it is ahead as often as behind.
    #[test]
    fn neither_of_two_equal_sides_is_ahead() {
        for (others, chance) in [(1, 0.1_f64), (7, 0.25), (20, 0.6), (40, 1.0)] {
            let mut probability = (1.0 - chance).powi(others);
            let mut mean = 0.0;
            for number in 0..=others {
                mean += probability * ahead(number as u64, others as u64, chance);
                if chance < 1.0 {
                    probability *=
                        f64::from(others - number) / f64::from(number + 1) * chance / (1.0 - chance);
                } else {
                    probability = f64::from(u8::from(number + 1 == others));
                }
            }
            assert!(mean.abs() < 1e-9, "{others} {chance}: {mean}");
        }
    }

    #[test]
    fn nothing_counts_while_requests_of_a_larger_weight_end() {
        let slow = |new, old| Ended { new: Share::new(new, new), old: Share::new(old, old) };
        let at = Duration::from_millis;
        let (most, half) = (Weight::new(0.95), Weight::HALF);
        let mut test = WindowTest::default();
        test.look(at(0), most, slow(0, 0));
        test.look(at(100), half, slow(0, 0));
        test.look(at(2000), half, slow(95, 5));
        test.look(at(2400), half, slow(95, 5));
        assert_eq!(test.ln_evidence(), 0.0);
        test.look(at(2700), half, slow(96, 5));
        assert!(test.ln_evidence() > 0.5);
    }
}
