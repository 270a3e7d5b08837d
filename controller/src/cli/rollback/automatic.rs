//! The rollback that a watch requests. If it gives up, users keep seeing errors; if it does the wrong thing, no
//! operator is there to notice.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use uh_protocol::BackendName;

use super::undo::{Undo, UndoRequest, was_rolled_back};
use super::{NoRollback, find_undo, history, record, roll_back};
use crate::cli::exit::{CliError, Exit};
use crate::cli::monitor::Watcher;
use crate::cli::session::Session;
use crate::cli::{Done, alive, operation};
use crate::counters::Answers;
use crate::deploy::activation;
use crate::deploy::machine::Outcome;
use crate::deploy::member::OperationEnd;
use crate::evidence::Breach;
use crate::names::named;
use crate::proxy::{ProxyService, Serving};
use crate::time::{same_switch, span};
use crate::verdict::judge::Judge;

/// How long to check the restored version, to see whether the rollback helped.
const LOOK: Duration = Duration::from_secs(3);

/// How often.
const LOOK_POLL: Duration = Duration::from_millis(100);

/// Rolls back from the watched backend because of `breach`, if it is still active by the same switch and was deployed
/// recently. Waits for the lock, and for a uh-proxy that restarts.
///
/// # Errors
/// [`Exit::Breach`]: the rollback was refused, and another attempt would be too. [`Exit::Attention`]: it failed and
/// has to be tried again.
pub(in crate::cli) async fn automatic(
    session: &Session,
    proxy: &ProxyService,
    watcher: &Watcher<'_>,
    breach: &Breach,
) -> Done {
    let (reason, watched) = (&breach.reason, &watcher.watched);
    session.report.say(&format!("Rolling back automatically from {watched}: {reason}"));
    let ended = roll_back_from(session, proxy, watcher, breach).await;
    if let Ok(OperationEnd { outcome: Outcome::RolledBack, serving, .. }) = &ended {
        return Ok(after(session, proxy, watcher.answers_before(serving.as_ref())).await);
    }
    let ended = ended.map(|ended| (ended.outcome, operation::who_serves(&ended)));
    not_rolled_back(&format!("{watched} is failing ({reason})"), ended)
}

/// The result of a watch whose rollback isn't complete. `failing`: what it found; `ended`: how the rollback ended, and who
/// serves.
pub(in crate::cli) fn not_rolled_back(failing: &str, ended: Result<(Outcome, String), CliError>) -> Done {
    match ended {
        Ok((Outcome::Superseded, _)) => Ok(Exit::Superseded),
        Ok((_, serves)) => Err(CliError::new(
            Exit::Attention,
            format!("{failing} and couldn't be rolled back: {serves}. Manual intervention required"),
        )),
        Err(failed) if matches!(failed.exit(), Exit::Superseded | Exit::Breach) => Err(failed),
        Err(failed) => {
            let message = format!("{failing} and couldn't be rolled back: {}", failed.message());
            Err(CliError::new(Exit::Attention, message))
        }
    }
}

/// Recovers an interrupted operation first, then checks again which backend is active.
async fn roll_back_from(
    session: &Session,
    proxy: &ProxyService,
    watcher: &Watcher<'_>,
    breach: &Breach,
) -> Result<OperationEnd, CliError> {
    let watched = &watcher.watched;
    let _lock = session.lock_patiently(&format!("automatic rollback from {watched}")).await?;
    if let Some((_, ended)) = operation::recover_if_needed(session, proxy).await?
        && ended.outcome == Outcome::Attention
    {
        return Ok(ended);
    }
    let (serving, undo) = undo_of_watched(session, proxy, watcher).await?;
    roll_back(session, proxy, &serving, &undo.to, false, Some(breach)).await.map_err(for_good)
}

/// The change that a watch may undo.
///
/// # Errors
/// [`Exit::Superseded`]: another command has moved traffic since the switch that was watched. [`Exit::Breach`]: there is
/// nothing to return to, or the deploy is too old to be the cause.
pub(super) async fn undo_of_watched(
    session: &Session,
    proxy: &ProxyService,
    watcher: &Watcher<'_>,
) -> Result<(Serving, Undo), CliError> {
    let watched = &watcher.watched;
    let serving = proxy.serving_soon().await?;
    if serving.is(watched) && !is_same(watcher, &serving) {
        let message = format!(
            "traffic was switched to {watched} again since the breach, so nothing was rolled back; {}",
            serving.sentence()
        );
        return Err(CliError::new(Exit::Superseded, message));
    }
    if !serving.is(watched) {
        let message =
            format!("{watched} is no longer active, so nothing was rolled back; {}", serving.sentence());
        return Err(CliError::new(Exit::Superseded, message));
    }
    let undo = find_undo(session, &serving, UndoRequest::Active).map_err(for_good)?;
    let within = session.config.monitor.auto_rollback_within;
    let age = undo.at.and_then(|at| Duration::try_from(Timestamp::now().duration_since(at)).ok());
    if age.is_none_or(|age| age > within) {
        let age = age.map_or_else(|| "at an unknown time".to_owned(), |age| format!("{} ago", span(age)));
        let message = format!(
            "{} was deployed {age}, and monitor.auto_rollback_within is {}: the deploy is unlikely to be the cause, so nothing was rolled back. To roll back anyway, run `uh-deploy rollback --to {}`",
            serving.name(),
            span(within),
            undo.to
        );
        return Err(CliError::new(Exit::Breach, message));
    }
    Ok((serving, undo))
}

/// Why a version can't be compared with the one before it.
pub(in crate::cli) enum Obstacle {
    /// It may pass.
    Now(String),
    /// Nobody should try again in this watch.
    Always(String),
}

/// Why a watch couldn't roll back to this backend. Then it mustn't give clients to it either. `None`: it could.
pub(in crate::cli) async fn obstacle(
    session: &Session,
    proxy: &ProxyService,
    watcher: &Watcher<'_>,
    to: &BackendName,
) -> Option<Obstacle> {
    let now = |failed: &CliError| Some(Obstacle::Now(failed.message().to_owned()));
    match undo_of_watched(session, proxy, watcher).await {
        Ok((_, undo)) if undo.to == *to => {
            let version = match record(session, to) {
                Ok(record) => record.map(|record| record.frozen.version),
                Err(failed) => return now(&failed),
            };
            let lines = match history(session) {
                Ok(lines) => lines,
                Err(failed) => return now(&failed),
            };
            let was_bad = was_rolled_back(&lines, to, version.as_deref());
            let why = || format!("{} was rolled back before", named(to, version.as_deref()));
            was_bad.then(|| Obstacle::Now(why()))
        }
        Ok((_, undo)) => Some(Obstacle::Now(format!("a rollback would go to {}, not to {to}", undo.to))),
        // Such as a deploy that is too old. The message names its age.
        Err(refused) if refused.exit() == Exit::Breach => {
            Some(Obstacle::Always(refused.message().to_owned()))
        }
        Err(failed) => now(&failed),
    }
}

/// After a refusal, the result is the breach. Any other failure may pass.
pub(super) fn for_good(no: NoRollback) -> CliError {
    match no {
        NoRollback::Refused(why) => CliError::new(Exit::Breach, why),
        NoRollback::Failed(failed) => failed,
    }
}

/// Whether it is still active by the watched switch, not by a later one.
fn is_same(watcher: &Watcher<'_>, serving: &Serving) -> bool {
    same_switch(serving.view().service.last_switch.as_deref(), watcher.last_switch())
}

/// Reports if the rollback hasn't helped: then the cause is elsewhere.
pub(in crate::cli) async fn after(session: &Session, proxy: &ProxyService, before: Option<Answers>) -> Exit {
    let Ok(serving) = proxy.serving_soon().await else {
        session.report.warn("can't check whether the rollback helped: uh-proxy doesn't answer");
        return Exit::RolledBack;
    };
    let Some(why) = still_bad(session, proxy, &serving, before).await else { return Exit::RolledBack };
    session.report.event("no_help", serde_json::json!({"active": serving.active(), "reason": why}));
    session.report.say(&format!(
        "❌ The rollback did not help: {} has errors too ({why}), so the cause is elsewhere. Manual intervention required",
        serving.name()
    ));
    Exit::RolledBack
}

/// Why the version that serves again is bad too. Its errors are judged by the same test as those of a watch, against what
/// it failed before it was replaced: a version that is as it was is no reason to say that going back hasn't helped.
async fn still_bad(
    session: &Session,
    proxy: &ProxyService,
    serving: &Serving,
    before: Option<Answers>,
) -> Option<String> {
    if let Some(why) = alive::why_dead(session, serving).await {
        return Some(why);
    }
    let backend = serving.active();
    let (_, start) = activation::read(proxy, backend).await.ok()?;
    let judge = Judge::new(&session.config.monitor, before);
    let deadline = Instant::now() + LOOK;
    // A sequential test: each look is as good as the last one.
    while Instant::now() < deadline {
        tokio::time::sleep(LOOK_POLL).await;
        let (_, now) = activation::read(proxy, backend).await.ok()?;
        if let Some(why) = judge.fails_too_often(&now.since(&start)) {
            return Some(why);
        }
    }
    None
}
