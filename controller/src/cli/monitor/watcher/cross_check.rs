//! The cross-check of a suspicion: half of the clients go back to the old version, and what happens to both at the same time
//! decides. An outage of both looks like a fault of the new one until then.
//!
//! The split is a lease that is renewed here. If this process is gone, uh-proxy ends the split, and everybody is on the active
//! version again.

mod found;

use std::time::{Duration, Instant};

use uh_protocol::BackendName;
use uh_protocol::request::SplitRequest;
use uh_protocol::status::{Suspect, TrialStatus};

use self::found::{failing_clients, is_of, worse};
use super::super::clock;
use super::{WatchEnd, Watcher};
use crate::cli::rollback;
use crate::counters::Reading;
use crate::deploy::activation;
use crate::deploy::trial::EarlierTrial;
use crate::deploy::watch::CrossCheck;
use crate::fault;
use crate::names::named;
use crate::proxy::{ProxyError, ServiceView};
use crate::time::iso_millis;
use crate::verdict::cross_check::{Decision, LASTS, Sides, decide};
use crate::verdict::judge::Suspicion;

/// The share of clients that go back.
const HALF: f64 = 50.0;

/// The split ends if it isn't renewed for this long.
const LEASE: Duration = Duration::from_secs(15);

/// How often it is renewed: twice may fail.
const RENEW_EVERY: Duration = Duration::from_secs(4);

/// How often to ask what uh-proxy's trial says.
const POLL: Duration = Duration::from_millis(200);

/// How long uh-proxy may not answer before the check is left and the watch waits for it.
const SILENT_FOR: Duration = Duration::from_secs(5);

/// Why there is nothing to compare with.
enum Obstacle {
    /// It may pass.
    Now(String),
    /// Nobody should try again in this watch.
    Always(String),
}

/// A check while it lasts.
struct Course {
    with: BackendName,
    suspicion: Suspicion,
    began: Instant,
    renewed: Instant,
    heard: Instant,
    /// The counters of both when it began, or when it went on because both failed.
    start: [Reading; 2],
}

/// What a look at a check has found.
enum Step {
    GoesOn,
    Ended(WatchEnd),
    NotWorse(String),
    Impossible(Obstacle),
}

impl Watcher<'_> {
    /// Whether a suspicion leads to a cross-check. What only reports moves nobody; the services of a release would have to
    /// divide their clients alike.
    pub(super) fn compares(&self) -> bool {
        self.plan.auto_rollback && !self.plan.of_release && self.alone.is_none()
    }

    /// Checks whether the old version fails too. `None`: the watch goes on. `end`: of the watch.
    pub(super) async fn cross_check(
        &mut self,
        suspicion: Suspicion,
        end: Instant,
    ) -> Result<Option<WatchEnd>, ProxyError> {
        if !self.compares() {
            return Ok(by_itself(suspicion));
        }
        let (view, now) = activation::read(self.proxy, &self.watched).await?;
        if self.has_moved_on(&view) {
            return Ok(Some(WatchEnd::MovedOn(Box::new(view))));
        }
        let answered = self.seen.clone().plus(&now.since(&self.last)).answers().all();
        let with = match self.old_version(&view, answered) {
            Ok(with) => match rollback::obstacle(self.session, self.proxy, self, &with).await {
                None => Ok(with),
                Some(why) => Err(Obstacle::Now(why)),
            },
            Err(obstacle) => Err(obstacle),
        };
        let with = match with {
            Ok(with) => with,
            Err(obstacle) => {
                if suspicion.enough {
                    self.count(&view, now, None);
                }
                return Ok(self.goes_alone(obstacle, suspicion));
            }
        };
        self.keep_check(&view, &with, &suspicion);
        match self.proxy.split(&request(&with, HALF, Some(view.generation))).await {
            Ok(_) => {}
            Err(e) if e.is_unanswered() => return Err(e),
            // Another service has changed, or another command was faster: the next look knows more.
            Err(e) if e.is_overtaken() && view.service.split.is_none() => {
                self.forget_check();
                return Ok(None);
            }
            Err(e) => return Ok(self.goes_alone(Obstacle::Now(crate::chain(&e)), suspicion)),
        }
        self.say_begun(&with, &suspicion);
        fault::point("watch.cross_check");
        self.follow_check(&view, with, suspicion, end).await
    }

    async fn follow_check(
        &mut self,
        view: &ServiceView,
        with: BackendName,
        suspicion: Suspicion,
        end: Instant,
    ) -> Result<Option<WatchEnd>, ProxyError> {
        // uh-proxy opens the trial a moment after the split.
        let before = view.service.trial.clone().filter(|trial| trial.ended);
        let (_, start) = activation::read_all(self.proxy, [&self.watched, &with]).await?;
        let now = Instant::now();
        let mut course = Course { with, suspicion, began: now, renewed: now, heard: now, start };
        loop {
            tokio::time::sleep(POLL).await;
            let step = match self.look_at_check(&mut course, before.as_ref(), end).await {
                Ok(step) => step,
                Err(e) if e.is_unanswered() && course.heard.elapsed() < SILENT_FOR => continue,
                Err(e) => return Err(e),
            };
            match step {
                Step::GoesOn => {}
                Step::Ended(end) => return Ok(Some(end)),
                Step::NotWorse(why) => {
                    self.end_check(&course.with).await;
                    self.say_settled(&why);
                    return Ok(None);
                }
                Step::Impossible(obstacle) => {
                    self.end_check(&course.with).await;
                    return Ok(self.goes_alone(obstacle, course.suspicion));
                }
            }
        }
    }

    /// One look.
    async fn look_at_check(
        &mut self,
        course: &mut Course,
        before: Option<&TrialStatus>,
        end: Instant,
    ) -> Result<Step, ProxyError> {
        if let Some(how) = self.instance_end(None).await {
            return Ok(Step::Ended(WatchEnd::Breach(how)));
        }
        let (view, readings) = activation::read_all(self.proxy, [&self.watched, &course.with]).await?;
        course.heard = Instant::now();
        if self.has_moved_on(&view) {
            return Ok(Step::Ended(WatchEnd::MovedOn(Box::new(view))));
        }
        let trial = view.service.trial.as_ref().filter(|trial| is_of(trial, &self.watched, before));
        if let Some(reason) = trial.and_then(|trial| worse(trial, &course.suspicion, &course.with)) {
            let [now, _] = readings;
            self.count(&view, now, None);
            return Ok(Step::Ended(WatchEnd::Breach(reason)));
        }
        if let Some(obstacle) = lost(&view, &course.with) {
            return Ok(Step::Impossible(obstacle));
        }
        if course.renewed.elapsed() >= RENEW_EVERY {
            match self.proxy.split(&request(&course.with, HALF, Some(view.generation))).await {
                Ok(_) => course.renewed = Instant::now(),
                // Another service has changed since the look.
                Err(e) if e.is_overtaken() => {}
                Err(e) => return Err(e),
            }
        }
        let failing = trial.map_or(0, |trial| failing_clients(trial, course.suspicion.slow));
        let [suspect, other] = &readings;
        let sides = Sides { suspect: suspect.since(&course.start[0]), other: other.since(&course.start[1]) };
        let decision = decide(&self.judge, &sides, failing, course.suspicion.slow, course.began.elapsed());
        let Some(decision) = decision else { return Ok(Step::GoesOn) };
        if matches!(decision, Decision::BothFail(_)) && Instant::now() < end {
            (course.began, course.start) = (Instant::now(), readings);
            return Ok(Step::GoesOn);
        }
        let [now, _] = readings;
        self.count(&view, now, None);
        Ok(match decision {
            Decision::Worse(why) => {
                Step::Ended(WatchEnd::Breach(format!("{}; {why}", course.suspicion.reason)))
            }
            Decision::BothFail(why) | Decision::NotWorse(why) => {
                self.judge.settle(&self.seen);
                Step::NotWorse(why)
            }
            Decision::Incomparable(why) => Step::Impossible(Obstacle::Always(why)),
        })
    }

    /// The backend of the old version, if it can get clients. `answered`: requests of the whole watch.
    fn old_version(&self, view: &ServiceView, answered: u64) -> Result<BackendName, Obstacle> {
        let Some(before) = &self.before else {
            return Err(Obstacle::Always("it isn't known what served before".to_owned()));
        };
        let name = named(&before.backend, before.version.as_deref());
        let Some(backend) = view.backend(&before.backend) else {
            return Err(Obstacle::Always(format!("uh-proxy no longer has {name}")));
        };
        if view.is_withdrawn(&before.backend) {
            return Err(Obstacle::Now(format!("{name} is out of service")));
        }
        if before.version.is_some() && view.version(&before.backend) != before.version {
            return Err(Obstacle::Always(format!("{} no longer has that version", before.backend)));
        }
        if backend.healthy == Some(false) {
            return Err(Obstacle::Now(format!("{name} isn't healthy")));
        }
        let (since, before_that) = self.began;
        let seen = answered.saturating_sub(before_that);
        let in_a_check = seen as f64 * LASTS.as_secs_f64() / since.elapsed().as_secs_f64().max(1.0);
        let least = self.session.config.monitor.min_requests;
        if seen > 0 && in_a_check / 2.0 < least as f64 {
            let why = format!("there is too little traffic, it needs {least} requests on each side");
            return Err(Obstacle::Now(why));
        }
        Ok(before.backend.clone())
    }

    /// Nothing can be compared: what was counted has to be enough.
    fn goes_alone(&mut self, obstacle: Obstacle, suspicion: Suspicion) -> Option<WatchEnd> {
        self.forget_check();
        let (why, always) = match obstacle {
            Obstacle::Now(why) => (why, false),
            Obstacle::Always(why) => (why, true),
        };
        if always {
            self.alone = Some(why.clone());
        }
        if self.not_now.as_ref() != Some(&why) {
            let report = &self.session.report;
            report.warn(&format!(
                "no cross-check with the old version: {why}. {} is judged by its own requests alone, so an outage of both would look like its fault",
                self.name
            ));
            report.event("cross_check", serde_json::json!({"state": "impossible", "reason": why}));
            self.not_now = Some(why);
        }
        by_itself(suspicion)
    }

    /// Continues the check that a process which is gone has begun. `None`: there was none, or the watch goes on.
    pub(in crate::cli) async fn resume_check(&mut self) -> Result<Option<WatchEnd>, ProxyError> {
        let Some(check) = self.record.as_ref().and_then(|record| record.watch.cross_check.clone()) else {
            return Ok(None);
        };
        let view = self.proxy.view().await?;
        if self.has_moved_on(&view) {
            return Ok(Some(WatchEnd::MovedOn(Box::new(view))));
        }
        let trial = view.service.trial.as_ref().filter(|trial| is_of(trial, &self.watched, None));
        let trial = trial.filter(|trial| check.earlier.as_ref() != Some(&EarlierTrial::new(trial)));
        let found = trial.and_then(|trial| worse(trial, &check.suspicion, &check.with));
        let report = &self.session.report;
        let split = match lost(&view, &check.with) {
            None => format!("half of the clients are still on {}", check.with),
            Some(_) => format!("its split has ended meanwhile, so all clients are on {}", self.watched),
        };
        report.say(&format!(
            "It was in a cross-check with {} (since {}): {}; {split}",
            check.with, check.began_at, check.suspicion.reason
        ));
        if let Some(reason) = found {
            report.say("uh-proxy has decided it since");
            return Ok(Some(WatchEnd::Breach(reason)));
        }
        Box::pin(self.cross_check(check.suspicion, Instant::now())).await
    }

    fn keep_check(&mut self, view: &ServiceView, with: &BackendName, suspicion: &Suspicion) {
        let Some(record) = &mut self.record else { return };
        let earlier = view.service.trial.as_ref().map(EarlierTrial::new);
        let earlier = match &record.watch.cross_check {
            Some(unfinished) => unfinished.earlier.clone(),
            None => earlier,
        };
        record.watch.cross_check = Some(Box::new(CrossCheck {
            with: with.clone(),
            began_at: iso_millis(jiff::Timestamp::now()),
            suspicion: suspicion.clone(),
            earlier,
        }));
        self.save();
    }

    fn forget_check(&mut self) {
        if let Some(record) = &mut self.record
            && record.watch.cross_check.take().is_some()
        {
            self.save();
        }
    }

    /// Everybody gets the new version again.
    async fn end_check(&mut self, with: &BackendName) {
        if let Err(e) = self.proxy.split(&request(with, 0.0, None)).await {
            self.session.report.warn(&format!(
                "can't end the split of the cross-check, so it ends by itself within {} s: {}",
                LEASE.as_secs(),
                crate::chain(&e)
            ));
        }
        self.forget_check();
    }

    fn say_begun(&self, with: &BackendName, suspicion: &Suspicion) {
        let (report, reason) = (&self.session.report, &suspicion.reason);
        let old = self.before.as_ref().and_then(|before| before.version.as_deref());
        report.say(&format!(
            "[{}] ⚠ Suspicious: {reason}. Cross-check: half of the clients go back to {} until it is certain",
            clock(),
            named(with, old)
        ));
        report.event(
            "cross_check",
            serde_json::json!({"state": "begun", "backend": self.watched, "with": with, "reason": reason}),
        );
    }

    fn say_settled(&self, why: &str) {
        let report = &self.session.report;
        report.say(&format!("[{}] ✓ Not confirmed: {why}. {} gets all clients again", clock(), self.name));
        report.event("cross_check", serde_json::json!({"state": "not_confirmed", "reason": why}));
    }
}

/// What follows if nothing can be compared.
fn by_itself(suspicion: Suspicion) -> Option<WatchEnd> {
    suspicion.enough.then_some(WatchEnd::Breach(suspicion.reason))
}

/// A part of the clients goes to the old version, and the active one is the suspect. It has been serving for a while, so it has
/// warmed up.
fn request(with: &BackendName, weight: f64, expect_generation: Option<u64>) -> SplitRequest {
    let to = Some(with.clone());
    if weight == 0.0 {
        return SplitRequest { to, weight, expect_generation, ..SplitRequest::default() };
    }
    SplitRequest {
        to,
        weight,
        ttl_ms: u64::try_from(LEASE.as_millis()).ok(),
        expect_generation,
        suspect: Suspect::Active,
        warm_up_ms: Some(0),
    }
}

/// Why the split of the check isn't there any more.
fn lost(view: &ServiceView, with: &BackendName) -> Option<Obstacle> {
    if view.split_to(with).is_some_and(|split| split.suspect == Suspect::Active) {
        return None;
    }
    if view.backend(with).is_some_and(|backend| backend.healthy == Some(false)) {
        return Some(Obstacle::Now(format!("{with} has become unhealthy")));
    }
    let why = "another command ended its split, or it wasn't renewed in time";
    Some(Obstacle::Always(why.to_owned()))
}
