//! `uh-deploy monitor`, and the watch of `blue-green --watch`.

pub(super) mod resume;
mod watcher;

use std::pin::Pin;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;

use super::args::MonitorArgs;
use super::exit::{CliError, Exit};
use super::report::Report;
use super::session::Session;
use super::{Done, rollback, wording};
use crate::deploy::history::HistoryEntry;
use crate::deploy::link::WatchLink;
use crate::deploy::watch::{self, WatchPlan};
use crate::evidence::Breach;
use crate::notice::{self, Hook, HookProgress};
use crate::proxy::{ProxyService, ServiceView};
use crate::time::span;
use crate::verdict::judge::WatchVerdict;

pub(super) use watcher::{WatchEnd, Watcher};

/// If uh-proxy doesn't answer for this long, the watch ends: a restart under systemd takes seconds.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// How often to retry before the first tick, and for the last one.
const BEGIN_POLL: Duration = Duration::from_millis(200);

pub(super) async fn monitor(session: &Session, args: &MonitorArgs) -> Done {
    let proxy = session.proxy().await?;
    if let Some(exit) = resume::before_another(session, &proxy).await? {
        return Ok(exit);
    }
    let limits = &session.config.monitor;
    let duration = args.duration.unwrap_or(limits.duration);
    let plan = WatchPlan::new(duration, args.interval.unwrap_or(limits.interval), args.auto_rollback);
    let mut watcher = Watcher::of_active(session, &proxy, plan).await?;
    watcher.announce();
    let ended = watcher.run(duration, None).await?;
    conclude(session, &proxy, &mut watcher, ended, args.require_verdict).await
}

/// Reports and records the result of a watch, and acts on it. The lock isn't held.
pub(super) async fn conclude(
    session: &Session,
    proxy: &ProxyService,
    watcher: &mut Watcher<'_>,
    ended: WatchEnd,
    require_verdict: bool,
) -> Done {
    match ended {
        WatchEnd::Well => {
            watcher.compare();
            let verdict = watcher.verdict();
            say_verdict(session, &verdict);
            let reason = match &verdict {
                WatchVerdict::Ok => None,
                WatchVerdict::NotEnoughData(why) => Some(why.clone()),
            };
            // A `monitor` without findings isn't recorded: it may run every minute.
            if watcher.is_recorded() || reason.is_some() {
                session.remember(HistoryEntry { reason, ..watcher.line(verdict.name()) });
            }
            watcher.finish(verdict.name());
            let required = require_verdict || session.config.monitor.require_verdict;
            Ok(if required && verdict != WatchVerdict::Ok { Exit::NotEnoughData } else { Exit::Done })
        }
        WatchEnd::MovedOn(view) => {
            moved_on(session, watcher, &view);
            Ok(Exit::Superseded)
        }
        WatchEnd::Breach(reason) => breached(session, proxy, watcher, &reason).await,
    }
}

/// The active backend has changed.
pub(super) fn moved_on(session: &Session, watcher: &mut Watcher<'_>, view: &ServiceView) {
    let (watched, active) = (&watcher.watched, &view.service.active);
    let reason = if view.is_active(watched) {
        format!("stopped watching: traffic was switched to {watched} again")
    } else {
        format!("stopped watching: {active} is active now, not {watched}")
    };
    session.report.say(&reason);
    session.report.event("verdict", serde_json::json!({"verdict": "superseded", "reason": reason}));
    if watcher.is_recorded() {
        session.remember(HistoryEntry { reason: Some(reason), ..watcher.line("superseded") });
    }
    watcher.finish("superseded");
}

async fn breached(session: &Session, proxy: &ProxyService, watcher: &mut Watcher<'_>, reason: &str) -> Done {
    let (breach, line) = report_breach(session, watcher, reason);
    if watcher.plan().auto_rollback {
        let done = rollback::automatic(session, proxy, watcher, &breach).await;
        // A rollback that failed is left to the next command, because users still see errors.
        if !matches!(&done, Err(failed) if failed.exit() == Exit::Attention) {
            watcher.finish("breach");
        }
        // A completed rollback has already sent the notice; a refused one hasn't.
        if matches!(&done, Err(failed) if failed.exit() == Exit::Breach) {
            send_notice(session, &line).await;
        }
        return done;
    }
    watcher.finish("breach");
    send_notice(session, &line).await;
    Ok(suggest_rollback(&session.report))
}

/// Reports and records what a watch found, with its evidence.
pub(super) fn report_breach(
    session: &Session,
    watcher: &Watcher<'_>,
    reason: &str,
) -> (Breach, HistoryEntry) {
    let report = &session.report;
    let breach = watcher.evidence(reason.to_owned());
    report.say(&format!("[{}] ❌ {}{reason}", clock(), watcher.of_service()));
    breach.lines().iter().for_each(|line| report.say(&format!("    {line}")));
    report
        .event("breach", serde_json::json!({"backend": watcher.watched, "reason": reason, "breach": breach}));
    report.event("verdict", serde_json::json!({"verdict": "breach", "reason": reason}));
    watcher.compare();
    let line = HistoryEntry {
        reason: Some(breach.reason.clone()),
        breach: Some(breach.clone()),
        ..watcher.line("breach")
    };
    session.remember(line.clone());
    (breach, line)
}

/// Without automatic rollback, the operator decides.
pub(super) fn suggest_rollback(report: &Report) -> Exit {
    report.say("⚠  WARNING: Deployment issues detected!");
    report.say("Consider rollback with: uh-deploy rollback");
    Exit::Breach
}

/// Notifies the hook and the webhook. An automatic rollback does that itself.
pub(super) async fn send_notice(session: &Session, line: &HistoryEntry) {
    let event = serde_json::json!({"outcome": line});
    let listener = |progress: HookProgress<'_>| wording::hook(&session.report, progress);
    if let Err(e) = notice::hook(&session.config, Hook::OnFailure, &event, &listener).await {
        session.report.warn(&format!("the hook on_failure failed: {}", e.reason));
    }
    if let Err(e) = notice::webhook(&session.config.notice, &event).await {
        session.report.warn(&e);
    }
}

fn say_verdict(session: &Session, verdict: &WatchVerdict) {
    let report = &session.report;
    let (text, reason) = match verdict {
        WatchVerdict::Ok => ("No issues detected".to_owned(), None),
        WatchVerdict::NotEnoughData(why) => (format!("not enough data: {why}"), Some(why)),
    };
    report.event("verdict", serde_json::json!({"verdict": verdict.name(), "reason": reason}));
    report.say(&format!("[{}] ✓ Monitoring complete - {text}", clock()));
}

/// The watch of a deploy: starts with the switch, in parallel with the drain and the hooks.
pub(super) async fn after_switch<'a>(
    session: &'a Session,
    proxy: &'a ProxyService,
    operation: &str,
    plan: WatchPlan,
    link: &WatchLink,
) -> Result<(Watcher<'a>, WatchEnd), CliError> {
    link.wait_for_switch().await;
    let duration = plan.duration();
    let auto_rollback = plan.auto_rollback;
    let mut watcher = begin(session, proxy, operation, plan).await?;
    watcher.announce();
    let ended = watcher.run(duration, Some(link)).await?;
    if auto_rollback && matches!(ended, WatchEnd::Breach(_)) {
        link.hurry();
    }
    Ok((watcher, ended))
}

/// Runs a deploy to its end, with its watch in parallel. Returns the end of the watch too, if that came first.
pub(super) async fn in_parallel<D, W>(
    deploy: impl Future<Output = D>,
    mut watching: Pin<&mut impl Future<Output = W>>,
) -> (D, Option<W>) {
    let mut deploy = Box::pin(deploy);
    let mut watched = None;
    loop {
        tokio::select! {
            done = &mut deploy => return (done, watched),
            ended = &mut watching, if watched.is_none() => watched = Some(ended),
        }
    }
}

/// uh-proxy may be restarting. If it doesn't come back, `recover` finds the planned watch in the journal.
pub(super) async fn begin<'a>(
    session: &'a Session,
    proxy: &'a ProxyService,
    operation: &str,
    plan: WatchPlan,
) -> Result<Watcher<'a>, CliError> {
    let deadline = Instant::now() + MAX_SILENCE;
    loop {
        match Watcher::of_deploy(session, proxy, operation, plan.clone()).await {
            Ok(watcher) => return Ok(watcher),
            Err(e) if Instant::now() >= deadline => {
                let message = format!(
                    "traffic has moved, but the new version can't be watched because uh-proxy doesn't answer: {}. Check uh-proxy, then run `uh-deploy recover` to start the watch",
                    crate::chain(&e)
                );
                return Err(CliError::new(Exit::Attention, message));
            }
            Err(_) => tokio::time::sleep(BEGIN_POLL).await,
        }
    }
}

/// Closes the watch of a deploy that didn't succeed and reports that itself, so that its watch isn't continued.
pub(super) fn drop_watch(session: &Session, operation: &str) {
    if let Err(e) = watch::close(&session.config.deploy.state_dir, operation, "superseded") {
        session.report.warn(&format!("can't close the watch: {e}"));
    }
}

/// A warning if the watch is too short to judge everything.
fn too_short(duration: Duration, interval: Duration, breach_after: u32) -> Option<String> {
    let ticks = duration.as_millis().div_ceil(interval.as_millis().max(1));
    (ticks < u128::from(breach_after)).then(|| {
        format!(
            "{} is too short to judge latency and health, which takes {breach_after} intervals of {}; only errors are judged",
            span(duration),
            span(interval)
        )
    })
}

/// The local time of day.
fn clock() -> String {
    TimeZone::system().to_datetime(jiff::Timestamp::now()).strftime("%H:%M:%S").to_string()
}
