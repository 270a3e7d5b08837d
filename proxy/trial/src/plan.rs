//! The steps of a trial: how many clients get the new version, and when the next step may begin.

use std::time::Duration;

use thiserror::Error;

use crate::share::Weight;
use crate::trial::Status;

/// The most steps of a plan.
pub const MAX_STEPS: usize = 16;

/// One step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The share of clients that get the new version.
    pub weight: Weight,
    /// It lasts at least so long.
    pub at_least: Duration,
    /// And until the new version has answered so many requests in it.
    pub requests: u64,
}

/// Why steps are no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PlanError {
    /// There is none, or more than [`MAX_STEPS`].
    #[error("a plan has 1 to {MAX_STEPS} steps")]
    Number,
    /// A weight of nobody or everybody leaves nothing to compare.
    #[error("step {0}: its weight must be above 0 % and below 100 %")]
    Weight(usize),
    /// Weights must grow.
    #[error("step {0}: its weight must be larger than that of the step before")]
    Falls(usize),
}

/// Steps of growing weight. After the last one, everybody gets the new version.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    steps: Vec<Step>,
}

/// What follows from the state of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It isn't over: so much time and so many requests are missing, or a suspicion must be settled first.
    Wait {
        /// Time until it may be over.
        time: Duration,
        /// Requests until it may be over.
        requests: u64,
    },
    /// The step with this index may begin.
    Go(usize),
    /// It was the last one: the new version may get everybody.
    Done,
    /// The new version is worse: it may get nobody.
    Stop,
}

impl Default for Plan {
    /// 10 % for 2 s and 20 requests, 40 % for 10 s and 120, 50 % for 30 s and 400, 95 % for 5 minutes. The last 5 % are
    /// the control group of the watch.
    fn default() -> Self {
        let step = |percent: u32, seconds: u64, requests: u64| Step {
            weight: Weight::new(f64::from(percent) / 100.0),
            at_least: Duration::from_secs(seconds),
            requests,
        };
        Self { steps: vec![step(10, 2, 20), step(40, 10, 120), step(50, 30, 400), step(95, 300, 1)] }
    }
}

impl Plan {
    /// From these steps.
    ///
    /// # Errors
    /// If there are none or too many, or if weights don't grow or leave nothing to compare.
    pub fn new(steps: Vec<Step>) -> Result<Self, PlanError> {
        if steps.is_empty() || steps.len() > MAX_STEPS {
            return Err(PlanError::Number);
        }
        for (place, step) in steps.iter().enumerate() {
            if !step.weight.divides() {
                return Err(PlanError::Weight(place + 1));
            }
            if place > 0 && step.weight <= steps[place - 1].weight {
                return Err(PlanError::Falls(place + 1));
            }
        }
        Ok(Self { steps })
    }

    /// The steps in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether the next step may begin. `step`: the index of the present one; `time` and `requests` on the new version
    /// since it began.
    #[must_use]
    pub fn next(&self, step: usize, time: Duration, requests: u64, status: &Status) -> Next {
        let Some(present) = self.steps.get(step) else { return Next::Done };
        let missing = (present.at_least.saturating_sub(time), present.requests.saturating_sub(requests));
        match status {
            Status::Bad { .. } => Next::Stop,
            Status::Suspicious => Next::Wait { time: missing.0, requests: missing.1 },
            Status::Undecided if missing != (Duration::ZERO, 0) => {
                Next::Wait { time: missing.0, requests: missing.1 }
            }
            Status::Undecided if step + 1 < self.steps.len() => Next::Go(step + 1),
            Status::Undecided => Next::Done,
        }
    }
}
