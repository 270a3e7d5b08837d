//! `uh-deploy monitor`, and what `blue-green --watch` does after a deploy.

use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use uh_protocol::BackendName;

use super::args::MonitorArgs;
use super::exit::{Exit, Failed};
use super::session::Session;
use super::{Done, operation, rollback};
use crate::counters::{Condition, Counters, Judge, Verdict};
use crate::deploy::machine::Outcome;
use crate::deploy::named;
use crate::deploy::records::Records;
use crate::front::{Front, FrontError, View};
use crate::gate::end_of;
use crate::runtime::InstanceId;
use crate::time::span;

/// Between ticks the instance itself is looked at this often: a crash is not waited out.
const INSTANCE_POLL: Duration = Duration::from_millis(200);

/// So many ticks without an answer of the front door are too many.
const MAX_SILENT_TICKS: u32 = 3;

pub(super) async fn monitor(session: &Session, args: &MonitorArgs) -> Done {
    let front = session.front().await?;
    watch(session, &front, args, None).await
}

/// Watches the active backend, which must be `expected` if that is given.
pub(super) async fn watch(
    session: &Session,
    front: &Front,
    args: &MonitorArgs,
    expected: Option<&BackendName>,
) -> Done {
    let view = front.view().await?;
    let watched = expected.cloned().unwrap_or_else(|| view.service.active.clone());
    if !view.is_active(&watched) {
        return Ok(moved_on(session, &watched, &view));
    }
    let duration = args.duration.unwrap_or(session.config.monitor.duration);
    let interval = args.interval.unwrap_or(session.config.monitor.interval);
    let name = named(&watched, view.version(&watched).as_deref());
    session.report.say(&format!("Monitoring {name} for {}, every {}...", span(duration), span(interval)));
    let mut watcher = Watcher::start(session, front, watched, &view).await?;
    match watcher.run(duration, interval).await? {
        Ended::Well => {
            watcher.compare().await;
            watcher.say_verdict();
            Ok(Exit::Done)
        }
        Ended::MovedOn(view) => Ok(moved_on(session, &watcher.watched, &view)),
        Ended::Breach(reason) => {
            session.report.say(&format!("[{}] ❌ {reason}", clock()));
            session.report.event("breach", serde_json::json!({"backend": watcher.watched, "reason": reason}));
            watcher.compare().await;
            if args.auto_rollback {
                return auto_rollback(session, front, &watcher.watched, &reason).await;
            }
            session.report.say("⚠  WARNING: Deployment issues detected!");
            session.report.say("Consider rollback with: uh-deploy rollback");
            Ok(Exit::Breach)
        }
    }
}

fn moved_on(session: &Session, watched: &BackendName, view: &View) -> Exit {
    session
        .report
        .say(&format!("{watched} is not active any more, {} is: watching ends", view.service.active));
    Exit::Superseded
}

async fn auto_rollback(session: &Session, front: &Front, watched: &BackendName, reason: &str) -> Done {
    session.report.say(&format!("Rolling back by itself, because of {watched}: {reason}"));
    let outcome = roll_back_from(session, front, watched).await;
    match outcome {
        Ok(Outcome::RolledBack) => Ok(Exit::RolledBack),
        Ok(_) => Err(Failed::new(
            Exit::Attention,
            format!("{watched} is bad ({reason}), and could not be rolled back: look at it now"),
        )),
        Err(failed) if failed.exit() == Exit::Superseded => Err(failed),
        Err(failed) => {
            let message =
                format!("{watched} is bad ({reason}), and could not be rolled back: {}", failed.message());
            Err(Failed::new(Exit::Attention, message))
        }
    }
}

/// What was interrupted before comes first; who is active after that is looked at anew.
async fn roll_back_from(session: &Session, front: &Front, watched: &BackendName) -> Result<Outcome, Failed> {
    let _lock = session.lock(&format!("automatic rollback from {watched}"))?;
    if let Some((_, Outcome::Attention)) = operation::recover_if_needed(session, front).await? {
        return Ok(Outcome::Attention);
    }
    rollback::roll_back(session, front, None, Some(watched), Some("monitor")).await
}

enum Ended {
    Well,
    Breach(String),
    MovedOn(Box<View>),
}

/// Watches one backend.
struct Watcher<'a> {
    session: &'a Session,
    front: &'a Front,
    watched: BackendName,
    previous: Option<BackendName>,
    instance: Option<InstanceId>,
    baseline: Counters,
    last: Counters,
    judge: Judge<'a>,
}

impl<'a> Watcher<'a> {
    async fn start(
        session: &'a Session,
        front: &'a Front,
        watched: BackendName,
        view: &View,
    ) -> Result<Self, Failed> {
        let record = Records::new(&session.config.deploy.state_dir).of(&watched).ok().flatten();
        let baseline = counters(front, &watched).await?;
        Ok(Self {
            session,
            front,
            previous: view.service.previous.clone(),
            instance: record.map(|record| record.instance),
            last: baseline.clone(),
            baseline,
            judge: Judge::new(&session.config.monitor),
            watched,
        })
    }

    async fn run(&mut self, duration: Duration, interval: Duration) -> Result<Ended, Failed> {
        let end = Instant::now() + duration;
        let mut silent = 0;
        loop {
            let next = (Instant::now() + interval).min(end);
            let mut ended = None;
            while Instant::now() < next && ended.is_none() {
                let left = next.saturating_duration_since(Instant::now());
                tokio::time::sleep(left.min(INSTANCE_POLL)).await;
                ended = self.ended().await;
            }
            match self.tick(ended).await {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => silent = 0,
                Err(failed) if silent + 1 >= MAX_SILENT_TICKS => return Err(failed.into()),
                Err(failed) => {
                    silent += 1;
                    self.session.report.warn(&crate::chain(&failed));
                }
            }
            if Instant::now() >= end {
                return Ok(Ended::Well);
            }
        }
    }

    async fn ended(&self) -> Option<String> {
        let instance = self.instance.as_ref()?;
        let state = self.session.runtime.state(instance).await.ok()?;
        end_of(&state).map(|end| format!("{instance} ended: {end}"))
    }

    async fn tick(&mut self, ended: Option<String>) -> Result<Option<Ended>, FrontError> {
        let view = self.front.view().await?;
        if !view.is_active(&self.watched) {
            return Ok(Some(Ended::MovedOn(Box::new(view))));
        }
        let now = counters(self.front, &self.watched).await?;
        let (tick, total) = (now.since(&self.last), now.since(&self.baseline));
        self.last = now;
        let backend = view.backend(&self.watched);
        let condition = match (ended, backend.and_then(|backend| backend.healthy)) {
            (Some(how), _) => Condition::Ended(how),
            (None, Some(false)) => {
                let error = backend.and_then(|b| b.last_probe.as_ref()).and_then(|probe| probe.error.clone());
                Condition::Unhealthy(error.unwrap_or_default())
            }
            (None, _) => Condition::Well,
        };
        let in_flight = backend.map_or(0, |backend| backend.requests_in_flight + backend.tunnels);
        self.show(&tick, &condition, in_flight);
        Ok(self.judge.tick(&tick, &total, &condition).map(Ended::Breach))
    }

    fn show(&self, tick: &Counters, condition: &Condition, in_flight: u64) {
        let health = match condition {
            Condition::Well => "OK",
            Condition::Unhealthy(_) => "BAD",
            Condition::Ended(_) => "DOWN",
        };
        let latency = tick.p95().map_or_else(|| "-".to_owned(), |p95| format!("{}ms", p95.as_millis()));
        let report = &self.session.report;
        if report.form() == crate::report::Form::Text {
            report.say(&format!(
                "[{}] Health: {health} | Errors: {} | Latency: {latency} | Requests: {} | In flight: {in_flight}",
                clock(),
                tick.errors,
                tick.requests
            ));
        }
        report.event(
            "tick",
            serde_json::json!({
                "backend": self.watched, "health": health, "requests": tick.requests, "errors": tick.errors,
                "error_rate": tick.error_rate(), "p95_ms": tick.p95().map(|p95| p95.as_millis()), "in_flight": in_flight,
            }),
        );
    }

    /// The figures in all, beside those of the backend that served before.
    async fn compare(&self) {
        let report = &self.session.report;
        let total = self.last.since(&self.baseline);
        report.say(&format!("    {}: {}", self.watched, figures(&total)));
        let mut before = None;
        if let Some(previous) = &self.previous {
            before = counters(self.front, previous).await.ok().filter(|counters| counters.requests > 0);
            if let Some(before) = &before {
                report.say(&format!("    {previous}, before the switch: {}", figures(before)));
            }
        }
        report.event(
            "figures",
            serde_json::json!({
                "backend": self.watched, "requests": total.requests, "error_rate": total.error_rate(),
                "p95_ms": total.p95().map(|p95| p95.as_millis()),
                "before": before.map(|before| serde_json::json!({
                    "backend": self.previous, "requests": before.requests, "error_rate": before.error_rate(),
                    "p95_ms": before.p95().map(|p95| p95.as_millis()),
                })),
            }),
        );
    }

    fn say_verdict(&self) {
        let enough = self.judge.verdict() != Verdict::NotEnoughData;
        let report = &self.session.report;
        report
            .event("verdict", serde_json::json!({"verdict": if enough { "ok" } else { "not enough data" }}));
        let least = self.session.config.monitor.min_requests;
        let text = if enough {
            "No issues detected".to_owned()
        } else {
            format!("not enough data (fewer than {least} requests), and nothing else was wrong")
        };
        report.say(&format!("[{}] ✓ Monitoring complete - {text}", clock()));
    }
}

fn figures(counters: &Counters) -> String {
    let p95 = counters.p95().map_or_else(|| "-".to_owned(), |p95| format!("{}ms", p95.as_millis()));
    format!("{} requests, {:.1}% errors, p95 {p95}", counters.requests, counters.error_rate() * 100.0)
}

async fn counters(front: &Front, backend: &BackendName) -> Result<Counters, FrontError> {
    let metrics = front.client.metrics().await?;
    Ok(Counters::read(&metrics, front.service.as_str(), backend.as_str()))
}

/// The time of day here, for people.
fn clock() -> String {
    TimeZone::system().to_datetime(jiff::Timestamp::now()).strftime("%H:%M:%S").to_string()
}
