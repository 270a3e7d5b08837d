//! The effect of a trial's step: give the candidate a share of the clients, and watch what uh-proxy's trial says.
//!
//! The split is a lease that is renewed here. If this process is gone, uh-proxy ends the split by itself.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use uh_protocol::request::SplitRequest;
use uh_protocol::status::{SplitStatus, TrialState, TrialStatus};
use uh_trial::{Next, Plan, Status};

use super::traffic::{ELSEWHERE_ROUNDS, READY_POLL, TRY_ANYWAY_AFTER};
use crate::config::{CanaryPlan, CanaryStep, OnNotEnoughData};
use crate::deploy::machine::{Event, FailureCause};
use crate::deploy::member::Member;
use crate::deploy::progress::{Progress, TrialProgress, Unwritten};
use crate::deploy::trial::{self, OrderFile, OurSplit, TrialOrder, TrialOutcome, TrialVerdict, same_percent};
use crate::proxy::{ProxyError, ServiceView};
use crate::time::span;
use crate::{fault, gate};

/// The split ends if it isn't renewed for this long.
const LEASE: Duration = Duration::from_secs(15);

/// How often it is renewed: twice may fail.
const RENEW_EVERY: Duration = Duration::from_secs(4);

/// How often to ask uh-proxy what its trial says.
const POLL: Duration = Duration::from_millis(200);

/// If uh-proxy doesn't answer for this long, the trial ends: a restart under systemd takes seconds.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// How long uh-proxy may take to report a trial for a new split. One that never does can't judge.
const TRIAL_WITHIN: Duration = Duration::from_secs(5);

/// The share of clients during a cross-check.
const HALF: f64 = 50.0;

/// One step of the trial while it lasts.
struct Course {
    step: CanaryStep,
    rules: Plan,
    index: usize,
    began: Instant,
    renewed: Instant,
    heard: Instant,
    /// When uh-proxy last reported a trial: it has none for a moment after a split or a restart.
    judged: Instant,
    /// The percentage of clients that the candidate has now.
    weight: f64,
    /// The candidate's requests before this step.
    before: Option<u64>,
}

impl Course {
    /// A step whose clients have just been given to the candidate: waiting for that is no part of it.
    fn begin(step: CanaryStep, rules: Plan, index: usize) -> Self {
        let now = Instant::now();
        Self {
            step,
            rules,
            index,
            began: now,
            renewed: now,
            heard: now,
            judged: now,
            weight: step.percent(),
            before: None,
        }
    }
}

impl Member<'_> {
    /// Gives the candidate this step's share of the clients, and waits for what the trial says.
    pub(super) async fn try_step(&mut self, index: u8) -> Event {
        let Some(plan) = self.facts.canary.clone() else {
            return self.fail_aloud(FailureCause::Refused, "internal error: the deploy has no trial");
        };
        let Some((step, rules)) = plan.steps.get(usize::from(index)).copied().zip(plan.rules().ok()) else {
            return self.fail_aloud(FailureCause::Refused, "internal error: the trial has no such step");
        };
        let (number, of) = (index + 1, plan.steps.len());
        let (to, weight) = (self.facts.to.clone(), step.percent());
        self.tell(Progress::Trial(TrialProgress::Step { number, of, weight, to: &to }));
        match self.split_when_ready(weight).await {
            Ok(None) => {}
            Ok(Some(event)) => return event,
            Err(e) => return self.lost(&e).await,
        }
        fault::point("effect.try.split");
        let mut course = Course::begin(step, rules, usize::from(index));
        loop {
            tokio::time::sleep(POLL).await;
            match self.look_at_trial(&plan, &mut course).await {
                Ok(None) => {}
                Ok(Some(event)) => return event,
                Err(e) if e.is_unanswered() && course.heard.elapsed() < MAX_SILENCE => {}
                Err(e) => return self.lost(&e).await,
            }
        }
    }

    /// A change was refused. If the candidate had a share of the clients: perhaps because uh-proxy has just ended the
    /// split, having found it worse.
    pub(super) async fn lost(&mut self, error: &ProxyError) -> Event {
        if error.is_overtaken()
            && self.split.given.is_some()
            && let Ok(view) = self.proxy.view().await
            && let Some(event) = self.ended_by_proxy(&view).await
        {
            return event;
        }
        self.refused(error)
    }

    /// Fails if uh-proxy has found the candidate worse, or if the split isn't ours any more.
    pub(super) async fn ended_by_proxy(&mut self, view: &ServiceView) -> Option<Event> {
        self.figures = self.our_trial(view);
        if self.figures.as_ref().is_some_and(|figures| figures.state == TrialState::Bad) {
            return Some(self.found_worse(None).await);
        }
        self.split_lost(view).await
    }

    /// One look. `Some`: the step is over.
    async fn look_at_trial(
        &mut self,
        plan: &CanaryPlan,
        course: &mut Course,
    ) -> Result<Option<Event>, ProxyError> {
        if let Some(event) = self.obey() {
            return Ok(Some(event));
        }
        if let Some(event) = self.ended_in_trial().await {
            return Ok(Some(event));
        }
        let view = self.proxy.view().await?;
        course.heard = Instant::now();
        if let Some(event) = self.ended_by_proxy(&view).await {
            return Ok(Some(event));
        }
        let Some(state) = self.figures.as_ref().map(|figures| figures.state) else {
            if course.judged.elapsed() < TRIAL_WITHIN {
                return Ok(None);
            }
            let why = "uh-proxy splits the clients, but doesn't judge the new version: update uh-proxy, or deploy with --no-canary";
            return Ok(Some(self.fail_aloud(FailureCause::Refused, why)));
        };
        course.judged = Instant::now();
        self.cross_check(state, course).await?;
        if course.renewed.elapsed() >= RENEW_EVERY {
            self.split(course.weight).await?;
            course.renewed = Instant::now();
        }
        Ok(self.next(plan, course, state))
    }

    /// What uh-proxy's trial of this deploy's candidate has found so far.
    fn our_trial(&self, view: &ServiceView) -> Option<TrialStatus> {
        trial::of(view.service.trial.as_ref(), &self.facts.to, self.trial_before.as_ref()).cloned()
    }

    /// What follows from the rules of the plan.
    fn next(&mut self, plan: &CanaryPlan, course: &mut Course, state: TrialState) -> Option<Event> {
        let all = self.figures.as_ref().map_or(0, |figures| figures.failures.new_requests);
        // A restarted uh-proxy counts from zero.
        let before = course.before.get_or_insert(all);
        *before = (*before).min(all);
        let requests = all - *before;
        let status = match state {
            TrialState::Suspicious => Status::Suspicious,
            // A bad one doesn't get here.
            TrialState::Undecided | TrialState::Bad => Status::Undecided,
        };
        match course.rules.next(course.index, course.began.elapsed(), requests, &status) {
            Next::Go(next) => {
                let next = u8::try_from(next).unwrap_or(u8::MAX);
                Some(Event::Step(next))
            }
            Next::Done => {
                let why = format!("{} isn't worse: all steps of its trial are over", self.facts.to);
                self.conclude(self.verdict(TrialOutcome::Pass, Some(why)));
                Some(Event::Passed)
            }
            Next::Stop | Next::Wait { .. } => {
                let time = course.step.at_least() + plan.step_timeout();
                // A suspicion is settled first: it must not be promoted.
                let over = state != TrialState::Suspicious && course.began.elapsed() >= time;
                over.then(|| self.undecided(plan, course, requests))
            }
        }
    }

    fn undecided(&mut self, plan: &CanaryPlan, course: &Course, requests: u64) -> Event {
        let why = format!(
            "{} got {requests} requests in {} at {} %, and this step needs {}",
            self.facts.to,
            span(course.began.elapsed()),
            course.step.percent(),
            course.step.requests
        );
        self.conclude(self.verdict(TrialOutcome::NotEnoughData, Some(why.clone())));
        match plan.on_not_enough_data {
            OnNotEnoughData::Promote => {
                self.remark(format!("not enough data: {why}; promoted, as configured"));
                Event::Passed
            }
            OnNotEnoughData::Hold => self.held(format!("not enough data: {why}")),
            OnNotEnoughData::Abort => self.fail(FailureCause::Undecided, format!("not enough data: {why}")),
        }
    }

    /// What an operator has ordered from another terminal.
    fn obey(&mut self) -> Option<Event> {
        let order = OrderFile::take(&self.config.deploy.state_dir, &self.facts.operation)?;
        let done = match order.order {
            TrialOrder::Promote => "promoted",
            TrialOrder::Hold => "held",
            TrialOrder::Abort => "aborted",
        };
        let why = format!("{done} by {} before the trial was over", order.who);
        self.conclude(self.verdict(TrialOutcome::NotEnoughData, Some(why.clone())));
        Some(match order.order {
            TrialOrder::Promote => {
                self.results.remarks.push(why);
                // Whatever happens to the split now: the operator has decided.
                self.split = OurSplit::default();
                Event::Passed
            }
            TrialOrder::Hold => self.held(why),
            TrialOrder::Abort => self.fail(FailureCause::Aborted, why),
        })
    }

    /// It waits for an operator, for this reason.
    fn held(&mut self, why: String) -> Event {
        self.results.reason = Some(why);
        Event::Held
    }

    /// A candidate that exits during its trial has failed it.
    pub(super) async fn ended_in_trial(&mut self) -> Option<Event> {
        let ending = self.ending().await?;
        let why = format!("{} exited during its trial: {ending}", self.facts.instance);
        // Its log may take a while, and uh-proxy may not have noticed yet. If this fails, the undoing ends the split.
        let _ = self.end_split().await;
        Some(self.found_worse(Some(why)).await)
    }

    async fn found_worse(&mut self, why: Option<String>) -> Event {
        let verdict = self.verdict(TrialOutcome::Fail, why);
        let reason = verdict.reason.clone();
        self.conclude_worse(verdict).await;
        self.fail(FailureCause::Worse, reason)
    }

    /// Keeps and reports the verdict on a candidate that is worse, with the end of its log.
    pub(super) async fn conclude_worse(&mut self, verdict: TrialVerdict) {
        let log = gate::last_log_lines(self.runtime, &self.facts.instance).await;
        self.conclude(verdict.with_log(&log));
    }

    fn verdict(&self, outcome: TrialOutcome, why: Option<String>) -> TrialVerdict {
        let weight = self.split.given.unwrap_or_default();
        TrialVerdict::new(outcome, &self.facts, weight, self.figures.clone(), why)
    }

    /// Keeps and reports the verdict.
    fn conclude(&mut self, verdict: TrialVerdict) {
        self.tell(Progress::Trial(TrialProgress::Verdict(&verdict)));
        self.results.trial = Some(verdict);
    }

    /// Half of the clients decide what too few on the old version can't.
    async fn cross_check(&mut self, state: TrialState, course: &mut Course) -> Result<(), ProxyError> {
        let planned = course.step.percent();
        let wanted = if state == TrialState::Suspicious { planned.min(HALF) } else { planned };
        if same_percent(wanted, course.weight) {
            return Ok(());
        }
        match self.split(wanted).await {
            Ok(()) => {}
            // One probe failed. If it is more than that, uh-proxy ends the split; until then, the next look tries again.
            Err(e) if e.is_unhealthy() => return Ok(()),
            Err(e) => return Err(e),
        }
        let progress =
            TrialProgress::CrossCheck { suspicious: state == TrialState::Suspicious, weight: wanted };
        self.tell(Progress::Trial(progress));
        (course.weight, course.renewed) = (wanted, Instant::now());
        Ok(())
    }

    /// Fails if the split isn't ours any more.
    async fn split_lost(&mut self, view: &ServiceView) -> Option<Event> {
        let to = self.facts.to.clone();
        if !view.is_active(&self.facts.from) {
            let why = format!("another command made {} active during the trial", view.service.active);
            return Some(self.fail_aloud(FailureCause::Overtaken, why));
        }
        match &view.service.split {
            Some(split) if self.split.is(Some(split), &to) => None,
            Some(split) => {
                let why = format!(
                    "another command changed the split: {} % of the clients go to {}",
                    split.weight, split.to
                );
                Some(self.fail_aloud(FailureCause::Overtaken, why))
            }
            None if view.backend(&to).is_some_and(|backend| backend.healthy == Some(false)) => {
                let why = format!("{to} became unhealthy during its trial, so uh-proxy ended the split");
                Some(self.found_worse(Some(why)).await)
            }
            None => {
                let why = "the split has ended: another command ended it, or it wasn't renewed in time";
                Some(self.fail_aloud(FailureCause::Overtaken, why))
            }
        }
    }

    /// The split waits until uh-proxy has found the candidate healthy too, and for a uh-proxy that restarts.
    async fn split_when_ready(&mut self, weight: f64) -> Result<Option<Event>, ProxyError> {
        let start = Instant::now();
        let deadline = start + self.config.deploy.ready_timeout;
        let mut heard = start;
        loop {
            match self.try_to_split(weight, start).await {
                Ok(ControlFlow::Break(event)) => return Ok(event),
                Ok(ControlFlow::Continue(())) => heard = Instant::now(),
                Err(e) if e.is_unhealthy() && Instant::now() < deadline => heard = Instant::now(),
                Err(e) if e.is_unanswered() && heard.elapsed() < MAX_SILENCE => {}
                Err(e) => return Err(e),
            }
            if let Some(event) = self.ended_early().await {
                return Ok(Some(event));
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// One attempt. `Continue`: uh-proxy hasn't found the candidate healthy yet. `Break(None)`: it has its share.
    async fn try_to_split(
        &mut self,
        weight: f64,
        start: Instant,
    ) -> Result<ControlFlow<Option<Event>>, ProxyError> {
        let view = self.proxy.view().await?;
        if !self.split.may_be_there() {
            self.trial_before.clone_from(&view.service.trial);
        }
        if self.split.given.is_some()
            && let Some(event) = self.ended_by_proxy(&view).await
        {
            return Ok(ControlFlow::Break(Some(event)));
        }
        let healthy = view.backend(&self.facts.to).is_some_and(|backend| backend.healthy == Some(true));
        if !healthy && start.elapsed() < TRY_ANYWAY_AFTER {
            return Ok(ControlFlow::Continue(()));
        }
        self.split(weight).await?;
        Ok(ControlFlow::Break(None))
    }

    /// Sets the candidate's share of the clients, or renews it.
    async fn split(&mut self, weight: f64) -> Result<(), ProxyError> {
        let mut request = SplitRequest {
            to: Some(self.facts.to.clone()),
            weight,
            ttl_ms: u64::try_from(LEASE.as_millis()).ok(),
            expect_generation: Some(self.results.generation.unwrap_or(self.facts.generation)),
            warm_up_ms: self.facts.canary.as_ref().and_then(|plan| plan.warm_up_ms),
            ..SplitRequest::default()
        };
        let mut rounds = 0;
        loop {
            match self.proxy.split(&request).await {
                Ok(reply) => {
                    self.results.generation = Some(reply.generation);
                    self.split = OurSplit { given: Some(weight), unanswered: None };
                    if let Some(error) = reply.persist_error.as_ref().filter(|_| reply.changed) {
                        self.unwritten(Unwritten::Split, &self.facts.to, error);
                    }
                    return Ok(());
                }
                Err(e) if e.is_overtaken() && rounds < ELSEWHERE_ROUNDS => {
                    request.expect_generation = Some(self.moved_elsewhere(e).await?);
                }
                Err(e) => {
                    let sent = e.is_unanswered() && !e.is_unsent();
                    self.split.unanswered = sent.then_some(weight).or(self.split.unanswered);
                    return Err(e);
                }
            }
            rounds += 1;
        }
    }

    /// A split that has ended must not begin again by a renewal, nor end in a switch. `split`: what uh-proxy has now.
    pub(super) fn demand_our_split(&self, split: Option<&SplitStatus>) -> Result<(), ProxyError> {
        if self.split.given.is_none() || self.split.is(split, &self.facts.to) {
            return Ok(());
        }
        Err(ProxyError::Overtaken("the split was ended or changed meanwhile".to_owned()))
    }
}
