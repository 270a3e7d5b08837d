//! Judges a watch tick by tick: errors by the sequential test, latency and health by consecutive bad ticks.

use serde::{Deserialize, Serialize};

use super::{Allowed, BREACH_EVIDENCE, SUSPICION};
use crate::config::Monitor;
use crate::counters::{Answers, Counters};

/// The condition of a backend, in addition to its counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Fine, or not known to be otherwise.
    Well,
    /// uh-proxy's probes fail.
    Unhealthy(String),
    /// Its instance has exited.
    Ended(String),
}

impl Condition {
    /// The reason of a breach, if probes fail with this error.
    #[must_use]
    pub(crate) fn unhealthy(error: &str) -> String {
        format!("unhealthy: {error}")
    }
}

/// The verdict of a watch without a breach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WatchVerdict {
    /// Enough data, and nothing is wrong.
    Ok,
    /// Too little data, for this reason.
    NotEnoughData(String),
}

impl WatchVerdict {
    /// Its name in JSON and in the history.
    #[must_use]
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotEnoughData(_) => "not enough data",
        }
    }
}

/// What a judge remembers from one tick to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JudgeState {
    bad_in_a_row: u32,
    last_reason: Option<String>,
    /// What was counted until the last cross-check. The evidence begins again after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settled: Option<Box<Counters>>,
    /// How many cross-checks there were. After each of them the evidence could err once more, so it must be larger.
    #[serde(default, skip_serializing_if = "is_zero")]
    cross_checks: u32,
}

impl JudgeState {
    /// The same without what cross-checks left.
    #[must_use]
    pub(crate) fn without_cross_checks(&self) -> Self {
        Self {
            bad_in_a_row: self.bad_in_a_row,
            last_reason: self.last_reason.clone(),
            settled: None,
            cross_checks: 0,
        }
    }
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What a tick has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It leaves no doubt.
    Certain(String),
    /// The counters say so, and an outage of both versions might be the cause.
    Counted(Suspicion),
}

/// A version seems to be worse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suspicion {
    /// Why it seems worse.
    pub reason: String,
    /// Whether that is enough for a breach if nothing can be compared.
    pub enough: bool,
    /// Whether it is because of latency.
    pub slow: bool,
}

/// Judges tick by tick.
#[derive(Debug)]
pub struct Judge<'a> {
    limits: &'a Monitor,
    allowed: Allowed,
    memory: JudgeState,
}

impl<'a> Judge<'a> {
    /// Judges by these limits and the old version's answers in its last activation.
    #[must_use]
    pub fn new(limits: &'a Monitor, before: Option<Answers>) -> Self {
        Self::resume(limits, before, JudgeState::default())
    }

    /// Continues from an earlier tick.
    #[must_use]
    pub(crate) fn resume(limits: &'a Monitor, before: Option<Answers>, memory: JudgeState) -> Self {
        Self { limits, allowed: Allowed::new(limits.max_error_rate, before), memory }
    }

    /// What to remember.
    #[must_use]
    pub(crate) fn memory(&self) -> &JudgeState {
        &self.memory
    }

    /// The share of requests that may fail.
    #[must_use]
    pub(crate) fn allowed(&self) -> Allowed {
        self.allowed
    }

    /// Judges one more tick, given its counters and those of the whole watch. `Some`: a breach, if nothing can be compared.
    pub(crate) fn tick(
        &mut self,
        tick: &Counters,
        total: &Counters,
        condition: &Condition,
    ) -> Option<Finding> {
        // Nothing will restart it soon, and every moment counts.
        if let Condition::Ended(how) = condition {
            return Some(Finding::Certain(how.clone()));
        }
        let total = &self.unsettled(total);
        if let Some(reason) = self.fails_too_often(total) {
            return Some(Finding::Counted(Suspicion { reason, enough: true, slow: false }));
        }
        let (reason, slow) = match condition {
            Condition::Unhealthy(why) => (Some(Condition::unhealthy(why)), false),
            _ => (self.too_slow(tick, total), true),
        };
        self.memory.bad_in_a_row = if reason.is_some() { self.memory.bad_in_a_row + 1 } else { 0 };
        self.memory.last_reason.clone_from(&reason);
        let reason = reason.filter(|_| self.memory.bad_in_a_row >= self.limits.breach_after)?;
        Some(if slow {
            Finding::Counted(Suspicion { reason, enough: true, slow })
        } else {
            Finding::Certain(reason)
        })
    }

    /// `Some`: all these requests together are enough evidence that it fails more of them than it may.
    #[must_use]
    pub fn fails_too_often(&self, counted: &Counters) -> Option<String> {
        self.has_evidence(counted.answers(), BREACH_EVIDENCE)
    }

    /// `Some`: all requests since the last cross-check together make it suspicious.
    #[must_use]
    pub fn suspects(&self, total: &Counters) -> Option<Suspicion> {
        let total = self.unsettled(total);
        let reason = self.has_evidence(total.answers(), SUSPICION)?;
        Some(Suspicion { reason, enough: self.fails_too_often(&total).is_some(), slow: false })
    }

    /// `Some`: these requests are this much evidence that it fails too often.
    #[must_use]
    pub(super) fn has_evidence(&self, answers: Answers, evidence: f64) -> Option<String> {
        let runs = f64::from(self.memory.cross_checks) + 1.0;
        self.allowed.has_evidence(answers, evidence * runs).then(|| self.too_many(answers))
    }

    /// A cross-check hasn't confirmed the suspicion. `total`: all requests until now.
    pub fn settle(&mut self, total: &Counters) {
        let cross_checks = self.memory.cross_checks.saturating_add(1);
        self.memory =
            JudgeState { settled: Some(Box::new(total.clone())), cross_checks, ..JudgeState::default() };
    }

    /// What was counted since the last cross-check.
    fn unsettled(&self, total: &Counters) -> Counters {
        self.memory.settled.as_ref().map_or_else(|| total.clone(), |settled| total.since(settled))
    }

    /// The limits.
    pub(super) fn limits(&self) -> &'a Monitor {
        self.limits
    }

    /// The verdict, if there was no breach.
    #[must_use]
    pub(crate) fn verdict(&self, total: &Counters) -> WatchVerdict {
        let (all, least) = (total.answers(), self.limits.min_requests);
        let answers = self.unsettled(total).answers();
        let why = if all.all() < least {
            let gone = total.clients_gone();
            let gone = if gone > 0 {
                format!(", and {gone} clients left before they were answered")
            } else {
                String::new()
            };
            format!("{} requests were answered, and at least {least} are needed{gone}", all.all())
        } else if answers.bad > 0 && answers.rate() > self.allowed.share() {
            format!("{}, but too few to be sure", self.too_many(answers))
        } else if let Some(reason) = &self.memory.last_reason {
            let (bad, needed) = (self.memory.bad_in_a_row, self.limits.breach_after);
            format!("{reason}, in {bad} of the {needed} intervals in a row that are needed for a breach")
        } else {
            return WatchVerdict::Ok;
        };
        WatchVerdict::NotEnoughData(why)
    }

    fn too_many(&self, answers: Answers) -> String {
        let allowed = self.allowed.share();
        let whose = if allowed > self.limits.max_error_rate {
            ", the limit based on the old version's error rate"
        } else {
            ""
        };
        format!(
            "{} of {} requests failed: {}, more than {}{whose}",
            answers.bad,
            answers.all(),
            percent(answers.rate()),
            percent(allowed),
        )
    }

    /// A tick with few requests says little; then the whole watch is judged.
    fn too_slow(&self, tick: &Counters, total: &Counters) -> Option<String> {
        let enough = |counters: &&Counters| counters.requests() >= self.limits.min_requests;
        let counters = [tick, total].into_iter().find(enough)?;
        let (p95, max) = (counters.p95()?, self.limits.max_p95);
        (p95 > max).then(|| format!("p95 is {}ms, more than {}ms", p95.as_millis(), max.as_millis()))
    }
}

/// `0.3%`; small shares with one more digit.
#[must_use]
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 0.095 { format!("{percent:.2}%") } else { format!("{percent:.1}%") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::counters::tests::counters;

    fn limits() -> Monitor {
        Monitor {
            duration: Duration::from_secs(300),
            interval: Duration::from_secs(10),
            max_error_rate: 0.01,
            max_p95: Duration::from_millis(50),
            min_requests: 20,
            breach_after: 2,
            require_verdict: false,
            auto_rollback_within: Duration::from_secs(3600),
        }
    }

    /// All take up to 0.1 s, so that the p95 is 95 ms.
    fn quick(limits: &mut Monitor) -> &Monitor {
        limits.max_p95 = Duration::from_millis(500);
        limits
    }

    /// The reason of a breach that a cross-check may refute.
    #[track_caller]
    fn counted(finding: Option<Finding>) -> String {
        let Some(Finding::Counted(Suspicion { reason, enough: true, .. })) = finding else {
            panic!("{finding:?}")
        };
        reason
    }

    #[test]
    fn the_evidence_begins_again_after_a_cross_check_and_must_be_larger() {
        let mut limits = limits();
        let mut judge = Judge::new(quick(&mut limits), None);
        let outage = counters(1000, 100);
        assert!(judge.suspects(&outage).unwrap().enough);
        assert!(!judge.suspects(&counters(100, 8)).unwrap().enough, "suspicious first");
        judge.settle(&outage);
        assert_eq!(judge.suspects(&outage), None);
        assert_eq!(judge.tick(&outage, &outage, &Condition::Well), None);
        assert_eq!(judge.verdict(&outage), WatchVerdict::Ok);
        let memory = serde_json::to_string(judge.memory()).unwrap();
        let resumed = Judge::resume(&limits, None, serde_json::from_str(&memory).unwrap());
        assert_eq!(resumed.suspects(&outage), None);
        assert!(resumed.suspects(&counters(1100, 200)).unwrap().enough);
        // Just enough without a cross-check before.
        let fresh = Judge::new(&limits, None);
        assert!(fresh.suspects(&counters(100, 8)).is_some());
        assert_eq!(resumed.suspects(&counters(1100, 107)), None);
    }

    #[test]
    fn the_first_tick_can_be_a_breach_of_the_error_rate() {
        let mut limits = limits();
        let limits = quick(&mut limits);
        let bad = counters(608, 608);
        let breach = counted(Judge::new(limits, None).tick(&bad, &bad, &Condition::Well));
        assert_eq!(breach, "608 of 608 requests failed: 100.0%, more than 1.0%");
    }

    #[test]
    fn an_error_in_every_tick_of_a_healthy_version_is_no_breach() {
        let mut limits = limits();
        let limits = quick(&mut limits);
        let mut judge = Judge::new(limits, None);
        for tick in 1..=30 {
            assert_eq!(judge.tick(&counters(50, 1), &counters(50 * tick, tick), &Condition::Well), None);
        }
    }

    #[test]
    fn one_error_in_two_requests_is_not_enough_to_judge() {
        let mut limits = limits();
        let limits = quick(&mut limits);
        let mut judge = Judge::new(limits, None);
        for _ in 0..5 {
            assert_eq!(judge.tick(&counters(2, 1), &counters(10, 2), &Condition::Well), None);
        }
        let WatchVerdict::NotEnoughData(why) = judge.verdict(&counters(10, 2)) else { panic!() };
        assert_eq!(why, "10 requests were answered, and at least 20 are needed");
    }

    #[test]
    fn a_rate_above_the_limit_without_proof_is_not_ok() {
        let mut limits = limits();
        let judge = Judge::new(quick(&mut limits), None);
        assert_eq!(judge.verdict(&counters(100, 1)), WatchVerdict::Ok);
        let WatchVerdict::NotEnoughData(why) = judge.verdict(&counters(100, 2)) else { panic!() };
        assert_eq!(why, "2 of 100 requests failed: 2.0%, more than 1.0%, but too few to be sure");
    }

    #[test]
    fn latency_takes_consecutive_bad_ticks_and_an_exited_instance_none() {
        let limits = limits();
        let mut judge = Judge::new(&limits, None);
        let (slow, idle) = (counters(100, 0), Counters::default());
        assert_eq!(judge.tick(&slow, &slow, &Condition::Well), None);
        let WatchVerdict::NotEnoughData(why) = judge.verdict(&slow) else { panic!() };
        assert_eq!(
            why,
            "p95 is 95ms, more than 50ms, in 1 of the 2 intervals in a row that are needed for a breach"
        );
        assert_eq!(judge.tick(&idle, &idle, &Condition::Well), None);
        assert_eq!(judge.verdict(&slow), WatchVerdict::Ok);
        assert_eq!(judge.tick(&slow, &slow, &Condition::Well), None);
        // A resumed judge remembers the bad tick.
        let mut judge = Judge::resume(&limits, None, judge.memory().clone());
        let breach = counted(judge.tick(&slow, &slow, &Condition::Well));
        assert_eq!(breach, "p95 is 95ms, more than 50ms");
        let ended = Condition::Ended("exit code 1".to_owned());
        let ended = Judge::new(&limits, None).tick(&idle, &idle, &ended);
        assert_eq!(ended, Some(Finding::Certain("exit code 1".to_owned())));
    }

    #[test]
    fn the_old_version_s_rate_is_named_if_it_raises_the_limit() {
        let mut limits = limits();
        let limits = quick(&mut limits);
        let before = Some(counters(60_000, 1800).answers());
        let now = counters(3000, 600);
        let breach = counted(Judge::new(limits, before).tick(&now, &now, &Condition::Well));
        assert!(breach.ends_with("%, the limit based on the old version's error rate"), "{breach}");
    }
}
