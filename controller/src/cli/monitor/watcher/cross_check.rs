//! The cross-check of a suspicion: half of the clients go back to the old version, and what happens to both at the same time
//! decides. An outage of both looks like a fault of the new one until then.
//!
//! The split is a lease that is renewed here. If this process is gone, uh-proxy ends the split, and everybody is on the active
//! version again.

mod compared;
mod found;
mod probes;
mod said;
mod saved;

use std::time::{Duration, Instant};

use uh_protocol::BackendName;
use uh_protocol::request::SplitRequest;
use uh_protocol::status::{Suspect, TrialStatus};

use self::compared::{Baseline, open_requests};
use self::found::{failing_clients, is_of, lost, worse};
use self::probes::Probes;
use super::{WatchEnd, Watcher};
use crate::cli::rollback::{self, Obstacle};
use crate::counters::Reading;
use crate::deploy::activation;
use crate::fault;
use crate::names::named;
use crate::proxy::{ProxyError, ServiceView};
use crate::verdict::cross_check::{Decision, decide};
use crate::verdict::judge::Suspicion;

/// The share of clients that go back.
const HALF: f64 = 50.0;

/// The split ends if it isn't renewed for this long.
const LEASE: Duration = Duration::from_secs(15);

/// How often it is renewed: twice may fail.
const RENEW_EVERY: Duration = Duration::from_secs(4);

/// How often to ask what uh-proxy's trial says.
const POLL: Duration = Duration::from_millis(200);

/// How often to try to end it if other commands change the routing at the same time.
const ROUNDS: u32 = 3;

/// How long uh-proxy may not answer before the check is left and the watch waits for it.
const SILENT_FOR: Duration = Duration::from_secs(5);

/// A check while it lasts.
struct Course {
    with: BackendName,
    suspicion: Suspicion,
    began: Instant,
    renewed: Instant,
    heard: Instant,
    /// What is counted from.
    start: Baseline,
    probes: Probes,
}

/// What a look at a check has found.
enum Step {
    GoesOn,
    Ended(WatchEnd),
    /// At this generation.
    NotWorse(String, u64),
    /// It isn't, at this generation, and the watch is over.
    Undecided(String, u64),
    /// At what was read last.
    Impossible(Obstacle, Box<ServiceView>, Reading),
    /// Its split isn't there any more, for this reason.
    Lost(String),
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
        let with = match self.old_version(&view) {
            Ok(with) => match rollback::obstacle(self.session, self.proxy, self, &with).await {
                None => Ok(with),
                Some(obstacle) => Err(obstacle),
            },
            Err(obstacle) => Err(obstacle),
        };
        let with = match with {
            Ok(with) => with,
            Err(obstacle) => return Ok(self.goes_alone(obstacle, suspicion, &view, now)),
        };
        self.keep_check(&view, &with, &suspicion);
        match self.proxy.split(&request(&with, HALF, Some(view.generation))).await {
            Ok(_) => {}
            Err(e) if e.is_unanswered() => {
                self.forget_check();
                return Err(e);
            }
            // Another service has changed, or another command was faster. The next look knows more.
            Err(e) if e.is_overtaken() && view.service.split.is_none() => {
                self.forget_check();
                return Ok(None);
            }
            Err(e) => {
                let obstacle = Obstacle::Now(crate::chain(&e));
                return Ok(self.goes_alone(obstacle, suspicion, &view, now));
            }
        }
        self.say_begun(&with, &suspicion);
        fault::point("watch.cross_check");
        let ended = self.follow_check(&view, with, stale(suspicion), end).await;
        if ended.is_err() {
            self.forget_check();
        }
        ended
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
        let names = [&self.watched, &with];
        let (at_start, readings) = activation::read_all(self.proxy, names).await?;
        // One that a process which is gone has begun may go on.
        let trial = at_start.service.trial.as_ref();
        let trial = trial.filter(|trial| is_of(trial, &self.watched, before.as_ref()));
        let start = Baseline::at_the_start(trial, readings, open_requests(&at_start, names));
        let now = Instant::now();
        let probes = Probes::new(now + self.plan.interval());
        let mut course = Course { with, suspicion, began: now, renewed: now, heard: now, start, probes };
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
                Step::NotWorse(why, generation) => {
                    self.end_check(&course.with, generation).await;
                    self.say_settled("✓ Not confirmed", "not_confirmed", &why);
                    return Ok(None);
                }
                Step::Undecided(why, generation) => {
                    self.end_check(&course.with, generation).await;
                    self.say_settled("⚠ Undecided at the end of the watch", "undecided", &why);
                    return Ok(Some(WatchEnd::Well));
                }
                Step::Impossible(obstacle, view, now) => {
                    self.end_check(&course.with, view.generation).await;
                    return Ok(self.goes_alone(obstacle, course.suspicion, &view, now));
                }
                // It may be somebody else's by now. The next look begins another one.
                Step::Lost(why) => {
                    self.forget_check();
                    self.say_lost(&why);
                    return Ok(None);
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
        if let Some(why) = lost(&view, &course.with) {
            return Ok(Step::Lost(why));
        }
        if let Some(reason) = self.judge_probes(&mut course.probes, &view) {
            let [now, _] = readings;
            self.count(&view, now, None);
            return Ok(Step::Ended(WatchEnd::Breach(reason)));
        }
        let failing = trial.map_or(0, |trial| failing_clients(trial, course.suspicion.slow));
        let open = open_requests(&view, [&self.watched, &course.with]);
        let sides = course.start.sides(trial, &readings, open);
        let (elapsed, is_over) = (course.began.elapsed(), Instant::now() >= end);
        let decision = match decide(&self.judge, &sides, failing, course.suspicion.slow, elapsed) {
            Some(Decision::BothFail(_)) if !is_over => {
                course.began = Instant::now();
                course.start.go_on(trial, readings, open);
                return self.renew_check(course, &view).await;
            }
            None => return self.renew_check(course, &view).await,
            Some(Decision::Unclear(_)) if !is_over => return self.renew_check(course, &view).await,
            Some(decision) => decision,
        };
        let [now, _] = readings;
        if let Decision::Incomparable(why) = decision {
            return Ok(Step::Impossible(Obstacle::Always(why), Box::new(view), now));
        }
        self.count(&view, now, None);
        Ok(match decision {
            Decision::Worse(why) => {
                Step::Ended(WatchEnd::Breach(format!("{}; {why}", course.suspicion.reason)))
            }
            Decision::Unclear(why) | Decision::Incomparable(why) => Step::Undecided(why, view.generation),
            Decision::BothFail(why) | Decision::NotWorse(why) => {
                self.judge.settle(&self.seen);
                Step::NotWorse(why, view.generation)
            }
        })
    }

    /// The check goes on.
    async fn renew_check(&self, course: &mut Course, view: &ServiceView) -> Result<Step, ProxyError> {
        if course.renewed.elapsed() >= RENEW_EVERY {
            match self.proxy.split(&request(&course.with, HALF, Some(view.generation))).await {
                Ok(_) => course.renewed = Instant::now(),
                // Another service has changed since the look.
                Err(e) if e.is_overtaken() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Step::GoesOn)
    }

    /// The backend of the old version, if it can get clients.
    fn old_version(&self, view: &ServiceView) -> Result<BackendName, Obstacle> {
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
        Ok(before.backend.clone())
    }

    /// Nothing can be compared: what is counted now has to be enough.
    fn goes_alone(
        &mut self,
        obstacle: Obstacle,
        suspicion: Suspicion,
        view: &ServiceView,
        now: Reading,
    ) -> Option<WatchEnd> {
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
        let suspicion = if suspicion.slow {
            suspicion
        } else {
            let total = self.seen.clone().plus(&now.since(&self.last));
            self.judge.suspects(&total)?
        };
        let end = by_itself(suspicion);
        if end.is_some() {
            self.count(view, now, None);
        }
        end
    }

    /// Everybody gets the new version again, unless the split is somebody else's by now. `generation`: in which it was ours.
    async fn end_check(&mut self, with: &BackendName, mut generation: u64) {
        self.forget_check();
        let mut rounds = 1;
        loop {
            let Err(e) = self.proxy.split(&request(with, 0.0, Some(generation))).await else { return };
            // Most likely another service has changed.
            if e.is_overtaken() && rounds < ROUNDS {
                rounds += 1;
                match self.proxy.view().await {
                    Ok(view) if lost(&view, with).is_some() => return,
                    Ok(view) => generation = view.generation,
                    Err(_) => {}
                }
                continue;
            }
            self.session.report.warn(&format!(
                "can't end the split of the cross-check, so it ends by itself within {} s: {}",
                LEASE.as_secs(),
                crate::chain(&e)
            ));
            return;
        }
    }
}

/// What follows if nothing can be compared.
fn by_itself(suspicion: Suspicion) -> Option<WatchEnd> {
    suspicion.enough.then_some(WatchEnd::Breach(suspicion.reason))
}

/// A suspicion from before a check. What was slow then has to be slow again; failures are counted again anyway.
fn stale(suspicion: Suspicion) -> Suspicion {
    Suspicion { enough: false, ..suspicion }
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
