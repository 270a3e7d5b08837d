//! `[canary]`: the steps in which a new version gets clients, and what follows if they don't decide.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uh_protocol::request::MAX_WARM_UP_MS;
use uh_settings::Section;
use uh_settings::units::{DAY, HOUR, SECOND};
use uh_trial::Weight;
use uh_trial::plan::{Plan, PlanError, Step};
use uh_trial::trial::WARM_UP;

use crate::time::span;

/// The weight of the watch: 5 % of the clients stay on the old version, as the control group.
const WATCH_WEIGHT_PPM: u32 = 950_000;

/// The shortest watch. A suspicion above 50 % sends half of the clients back for 20 s before it is settled.
const MIN_WATCH: Duration = Duration::from_secs(30);

/// The longest time that a step or a watch may be set to.
const MAX_TIME: Duration = DAY;

/// How many requests a step needs if it doesn't say.
const REQUESTS: u32 = 100;

/// The trial of a new version. It is part of a deploy's facts, so it is in the journal before the deploy starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryPlan {
    /// At least one, of growing weight. The watch is the last one.
    pub steps: Vec<CanaryStep>,
    /// How much longer than its `at_least` a step may take to get its requests, in milliseconds.
    pub step_timeout_ms: u64,
    /// What to do if a step doesn't get them.
    pub on_not_enough_data: OnNotEnoughData,
    /// For how long slowness isn't judged, in milliseconds; `None`: as long as uh-proxy does without being told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up_ms: Option<u64>,
}

/// One step of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryStep {
    /// The share of clients that get the new version, in millionths.
    pub weight_ppm: u32,
    /// It lasts at least this long, in milliseconds.
    pub at_least_ms: u64,
    /// And until the new version has answered this many requests in it.
    pub requests: u64,
}

/// What to do if there is not enough data to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNotEnoughData {
    /// Switch everybody to the new version.
    Promote,
    /// Leave the split as it is, and let an operator decide.
    Hold,
    /// Send everybody back to the old version.
    Abort,
}

impl CanaryStep {
    /// The share of clients in percent.
    #[must_use]
    pub fn percent(&self) -> f64 {
        f64::from(self.weight_ppm) / 10_000.0
    }

    /// The share of clients.
    #[must_use]
    pub fn weight(&self) -> Weight {
        Weight::new(f64::from(self.weight_ppm) / 1_000_000.0)
    }

    /// It lasts at least this long.
    #[must_use]
    pub fn at_least(&self) -> Duration {
        Duration::from_millis(self.at_least_ms)
    }
}

impl CanaryPlan {
    /// How much longer than its least time a step may take.
    #[must_use]
    pub fn step_timeout(&self) -> Duration {
        Duration::from_millis(self.step_timeout_ms)
    }

    /// The same as rules of when the next step may begin.
    ///
    /// # Errors
    /// There are no steps, or their weights don't grow: the plan isn't from a configuration.
    pub fn rules(&self) -> Result<Plan, PlanError> {
        let step = |step: &CanaryStep| Step {
            weight: step.weight(),
            at_least: step.at_least(),
            requests: step.requests,
        };
        Plan::new(self.steps.iter().map(step).collect())
    }
}

pub(super) fn canary(root: &mut Section) -> Option<CanaryPlan> {
    if !root.has("canary") {
        return None;
    }
    let mut section = root.section("canary");
    let mut steps = if section.has("steps") { steps(&mut section) } else { default_steps() };
    let none = steps.is_empty();
    if none {
        section.mistake("steps", "expected at least one step; leave the key out for the default steps");
    }
    let watch = section.duration_or_off("watch", Some(300 * SECOND), (Duration::ZERO, MAX_TIME));
    if let Some(watch) = watch {
        if watch < MIN_WATCH {
            let reason = "too short to decide: a suspicion above 50 % takes 20s to settle. Use at least 30s, or \"off\"";
            section.mistake("watch", reason);
        }
        if steps.last().is_some_and(|last| last.weight_ppm >= WATCH_WEIGHT_PPM) {
            let reason =
                "the last step must be below 95%, which is the weight of the watch; or set watch to \"off\"";
            section.mistake("steps", reason);
        }
        steps.push(CanaryStep { weight_ppm: WATCH_WEIGHT_PPM, at_least_ms: millis(watch), requests: 1 });
    }
    let choices = [
        ("promote", OnNotEnoughData::Promote),
        ("hold", OnNotEnoughData::Hold),
        ("abort", OnNotEnoughData::Abort),
    ];
    let warm_up_ms = warm_up(&mut section, &steps);
    let plan = CanaryPlan {
        steps,
        step_timeout_ms: millis(section.duration("step_timeout", 900 * SECOND, (SECOND, MAX_TIME))),
        on_not_enough_data: section.choice("on_not_enough_data", OnNotEnoughData::Hold, &choices),
        warm_up_ms,
    };
    let last_is_the_watch = watch.is_some();
    match plan.rules() {
        Ok(_) => {}
        // Reported above.
        Err(_) if none => {}
        // In words about the watch.
        Err(PlanError::Falls(at)) if last_is_the_watch && at == plan.steps.len() => {}
        Err(error) => section.mistake("steps", error.to_string()),
    }
    Some(plan)
}

/// uh-proxy decides if the key isn't there, so that an older one that doesn't know it isn't asked for it.
fn warm_up(section: &mut Section, steps: &[CanaryStep]) -> Option<u64> {
    if !section.has("warm_up") {
        return None;
    }
    let longest = Duration::from_millis(MAX_WARM_UP_MS);
    let warm_up = section.duration("warm_up", WARM_UP, (Duration::ZERO, longest));
    let least: Duration = steps.iter().map(CanaryStep::at_least).sum();
    if warm_up >= least && !least.is_zero() {
        let reason = format!(
            "slowness would never be judged: the steps and the watch together may be over after {}",
            span(least)
        );
        section.mistake("warm_up", reason);
    }
    Some(millis(warm_up))
}

fn steps(section: &mut Section) -> Vec<CanaryStep> {
    let tables = section.tables("steps");
    tables
        .into_iter()
        .map(|mut step| {
            if !step.has("weight") {
                step.mistake("weight", "missing: set the share of clients, as in \"10%\"");
            }
            let weight_ppm = ppm(step.share("weight", 0.5));
            let at_least_ms = millis(step.duration("at_least", 10 * SECOND, (Duration::ZERO, HOUR)));
            let requests = u64::from(step.integer("requests", REQUESTS, (1, u32::MAX)));
            CanaryStep { weight_ppm, at_least_ms, requests }
        })
        .collect()
}

/// Without the watch.
fn default_steps() -> Vec<CanaryStep> {
    let plan = Plan::default();
    let step = |step: &Step| CanaryStep {
        weight_ppm: ppm(step.weight.share()),
        at_least_ms: millis(step.at_least),
        requests: step.requests,
    };
    plan.steps().iter().map(step).filter(|step| step.weight_ppm < WATCH_WEIGHT_PPM).collect()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share is from 0 to 1")]
fn ppm(share: f64) -> u32 {
    (share * 1_000_000.0).round() as u32
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(canary: &str) -> Result<Option<CanaryPlan>, String> {
        let text = format!(
            "[backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n[backends.green]\nendpoints = [\"127.0.0.1:2\"]\n\
             [runtime.process]\ncommand = [\"x\"]\n{canary}"
        );
        let config = crate::config::parse(&text, std::path::Path::new("/"));
        config.map(|config| config.canary).map_err(|e| e.to_string())
    }

    #[test]
    fn the_default_steps_are_those_of_the_simulation() {
        assert_eq!(parse("").unwrap(), None);
        let plan = parse("[canary]\n").unwrap().unwrap();
        assert_eq!(plan.rules().unwrap(), Plan::default());
        assert_eq!(plan.on_not_enough_data, OnNotEnoughData::Hold);
        let plan = parse("[canary]\nwatch = \"off\"\n").unwrap().unwrap();
        assert_eq!(plan.steps.last().unwrap().percent(), 50.0);
    }

    #[test]
    fn the_warm_up_is_left_to_uh_proxy_unless_it_is_configured() {
        let warm_up = |canary: &str| parse(canary).unwrap().unwrap().warm_up_ms;
        assert_eq!(warm_up("[canary]\n"), None);
        assert_eq!(warm_up("[canary]\nwarm_up = \"90s\"\n"), Some(90_000));
        assert_eq!(warm_up("[canary]\nwarm_up = \"0s\"\n"), Some(0));
    }

    #[test]
    fn steps_that_cannot_be_a_trial_are_refused_with_the_reason() {
        for (canary, reason) in [
            ("steps = [{ weight = \"40%\" }, { weight = \"10%\" }]", "step 2: its weight must be larger"),
            ("steps = [{ weight = \"10%\" }, { weight = \"10%\" }]", "step 2: its weight must be larger"),
            ("steps = [{ weight = \"110%\" }]", "canary.steps[0].weight"),
            ("watch = \"off\"\nsteps = [{ weight = \"100%\" }]", "below 100 %"),
            ("watch = \"off\"\nsteps = [{ weight = \"0%\" }]", "above 0 %"),
            ("steps = [{ weight = \"96%\" }]", "must be below 95%"),
            ("steps = [{ at_least = \"1s\" }]", "canary.steps[0].weight: missing"),
            ("watch = \"off\"\nsteps = []", "expected at least one step"),
            ("steps = []", "expected at least one step"),
            ("watch = \"10s\"", "too short to decide"),
            ("on_not_enough_data = \"maybe\"", "canary.on_not_enough_data"),
            ("warm_up = \"soon\"", "canary.warm_up"),
            ("warm_up = \"11m\"", "canary.warm_up"),
            (
                "watch = \"off\"\nwarm_up = \"10s\"\nsteps = [{ weight = \"10%\", at_least = \"10s\" }]",
                "slowness would never be judged: the steps and the watch together may be over after 10",
            ),
        ] {
            let error = parse(&format!("[canary]\n{canary}\n")).unwrap_err();
            assert!(error.contains(reason), "{canary}: {error}");
        }
    }
}
