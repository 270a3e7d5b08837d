//! What a trial will take and can find, from the present traffic. Pure.

use std::time::Duration;

use serde::Serialize;

use crate::config::{CanaryPlan, CanaryStep};

/// A trial very probably finds an excess of this many failing requests in its steps up to 50 %. From the simulation in
/// docs/trials.md.
const FAILURES_FOUND: f64 = 25.0;

/// What is smaller is no reason to stop a version.
const LEAST_POINTS: f64 = 0.5;

/// Above this weight, few clients are left to compare with.
const HALF_PPM: u32 = 500_000;

/// What a trial will take and can find.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Forecast {
    pub(super) requests_per_second: f64,
    /// How long each step will take, in seconds; `None`: longer than it may.
    pub(super) steps_s: Vec<Option<f64>>,
    /// It very probably finds a version that fails this many points more often than the old one.
    pub(super) finds_points: Option<f64>,
}

impl Forecast {
    /// With this many requests per second.
    pub(super) fn new(plan: &CanaryPlan, requests_per_second: f64) -> Self {
        let steps_s = plan.steps.iter().map(|step| time(plan, step, requests_per_second)).collect();
        let compared = plan.steps.iter().filter(|step| step.weight_ppm <= HALF_PPM);
        let compared: f64 = compared.map(|step| requests(step, requests_per_second)).sum();
        let finds_points = (requests_per_second > 0.0 && compared > 0.0)
            .then(|| (100.0 * FAILURES_FOUND / compared).max(LEAST_POINTS))
            .filter(|points| *points <= 100.0);
        Self { requests_per_second, steps_s, finds_points }
    }

    /// How long all steps will take; `None`: one of them longer than it may.
    pub(super) fn total(&self) -> Option<Duration> {
        let seconds: Option<f64> = self.steps_s.iter().copied().sum();
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }
}

fn time(plan: &CanaryPlan, step: &CanaryStep, rate: f64) -> Option<f64> {
    let least = step.at_least().as_secs_f64();
    let needed = needed(step) / (rate * step.weight().share());
    let time = least.max(needed);
    (time <= least + plan.step_timeout().as_secs_f64()).then_some(time)
}

/// The new version's requests in a step.
fn requests(step: &CanaryStep, rate: f64) -> f64 {
    (rate * step.weight().share() * step.at_least().as_secs_f64()).max(needed(step))
}

#[allow(clippy::cast_precision_loss, reason = "numbers of requests are far below 2^53")]
fn needed(step: &CanaryStep) -> f64 {
    step.requests as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OnNotEnoughData;

    fn plan() -> CanaryPlan {
        let steps =
            [(10, 2, 20), (40, 10, 120), (50, 30, 400), (95, 300, 1)].map(|(percent, seconds, requests)| {
                CanaryStep { weight_ppm: percent * 10_000, at_least_ms: seconds * 1000, requests }
            });
        let on_not_enough_data = OnNotEnoughData::Hold;
        CanaryPlan { steps: steps.to_vec(), step_timeout_ms: 900_000, on_not_enough_data, warm_up_ms: None }
    }

    #[test]
    fn more_traffic_makes_a_trial_shorter_and_finer_down_to_its_limits() {
        let at = |rate| Forecast::new(&plan(), rate);
        assert_eq!(at(100.0).total(), Some(Duration::from_secs(342)));
        assert_eq!(at(5.0).total(), Some(Duration::from_secs(40 + 60 + 160 + 300)));
        assert!((at(5.0).finds_points.unwrap() - 4.6).abs() < 0.1);
        assert!((at(100.0).finds_points.unwrap() - 1.3).abs() < 0.1);
        assert_eq!(at(1000.0).finds_points, Some(0.5));
        // 400 requests at 50 % of 0.5 per second take 1,600 s.
        assert_eq!(at(0.5).steps_s[2], None);
        assert_eq!((at(0.0).total(), at(0.0).finds_points), (None, None));
    }
}
