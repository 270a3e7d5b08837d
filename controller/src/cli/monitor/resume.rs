//! Continues watches whose process is gone: a closed terminal, a cancelled CI job, a rebooted machine.

use std::path::Path;

use uh_protocol::BackendName;

use super::{Watcher, conclude, moved_on};
use crate::cli::exit::{CliError, Exit};
use crate::cli::monitor::watcher::WatchEnd;
use crate::cli::release::membership;
use crate::cli::session::Session;
use crate::deploy::facts::OperationFacts;
use crate::deploy::history::HistoryEntry;
use crate::deploy::journal::{self, ReplayedOperation};
use crate::deploy::machine::{Outcome, Phase};
use crate::deploy::watch::{self, Watch, WatchFile, WatchPlan};
use crate::names::named;
use crate::proxy::ProxyService;
use crate::time::span;

/// Continues a watch whose process is gone, for the remaining time. `None`: there is none. The lock isn't held, so
/// that a manual rollback is possible meanwhile.
pub(in crate::cli) async fn finish(
    session: &Session,
    proxy: &ProxyService,
) -> Result<Option<Exit>, CliError> {
    go_on(session, proxy, true).await
}

/// The same, but asks uh-proxy only if there is a watch to continue.
pub(in crate::cli) async fn if_needed(session: &Session) -> Result<Option<Exit>, CliError> {
    let state_dir = &session.config.deploy.state_dir;
    let newest = watch::look(state_dir).map_err(|e| unusable(&e))?;
    let open = newest.as_ref().is_some_and(|watch| !watch.has_ended() && !watch.plan.of_release);
    let lost = lost(session, newest.as_ref())?.is_some();
    if !open && !lost {
        return Ok(None);
    }
    let proxy = session.proxy().await.map_err(|failed| {
        let message = format!(
            "{}. A watch is unfinished and can only continue once uh-proxy answers; then run `uh-deploy recover` again",
            failed.message()
        );
        CliError::new(Exit::Attention, message)
    })?;
    finish(session, &proxy).await
}

/// Finishes a watch whose process is gone before another one starts. With automatic rollback, it continues for the
/// remaining time; otherwise it is judged by what was counted so far. `Some`: the version was bad, and the caller
/// must stop with this exit code. The lock isn't held.
pub(in crate::cli) async fn before_another(
    session: &Session,
    proxy: &ProxyService,
) -> Result<Option<Exit>, CliError> {
    let newest = watch::look(&session.config.deploy.state_dir).map_err(|e| unusable(&e))?;
    let planned = lost(session, newest.as_ref())?.map(|(_, plan)| plan);
    let open = newest.filter(|watch| !watch.has_ended()).map(|watch| watch.plan);
    let promised = open.or(planned).is_some_and(|plan| plan.auto_rollback);
    let ended = go_on(session, proxy, promised).await?;
    Ok(ended.filter(|exit| !matches!(exit, Exit::Done | Exit::Superseded | Exit::NotEnoughData)))
}

/// Closes a watch whose process is gone, because another operation supersedes it. The lock is held.
pub(in crate::cli) fn supersede(session: &Session, by: &str) -> Result<(), CliError> {
    let Some((file, mut watch)) = orphan(session)? else { return Ok(()) };
    let reason = format!("{by} ended a watch whose process was gone: not enough data");
    session.report.say(&reason);
    watch.verdict = Some("superseded".to_owned());
    session.remember(HistoryEntry {
        command: "watch".to_owned(),
        service: Some(watch.service.clone()),
        to: Some(watch.backend.clone()),
        version: watch.version.clone(),
        outcome: "not enough data".to_owned(),
        reason: Some(reason),
        ..HistoryEntry::default()
    });
    file.save(&watch).map_err(|e| unusable(&e))
}

/// The backend that an open watch may have to roll back to, and the watched backend.
pub(in crate::cli) fn needs(session: &Session) -> Option<(BackendName, BackendName)> {
    let watch = watch::look(&session.config.deploy.state_dir).ok().flatten()?;
    let wanted =
        !watch.has_ended() && watch.plan.auto_rollback && !watch.left(jiff::Timestamp::now()).is_zero();
    watch.before.filter(|_| wanted).map(|before| (before.backend, watch.backend))
}

async fn go_on(session: &Session, proxy: &ProxyService, to_its_end: bool) -> Result<Option<Exit>, CliError> {
    let mut watcher = match orphan(session)? {
        Some((_, watch)) if watch.plan.of_release => {
            let config = membership::config(&session.config.deploy.state_dir)?;
            session.report.warn(&format!(
                "the process that watched the release of {} is gone; run `uh-deploy recover --config {}` to continue its watch",
                named(&watch.backend, watch.version.as_deref()),
                config.display()
            ));
            return Ok(None);
        }
        Some((file, watch)) => {
            say(session, &watch, to_its_end);
            Watcher::of_record(session, proxy, file, watch)
        }
        None => match never_started(session, proxy).await? {
            Some(watcher) => watcher,
            None => return Ok(None),
        },
    };
    // Judge what happened meanwhile first.
    let ended = match watcher.resume_check().await? {
        None => watcher.look().await?,
        ended => ended,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            let left = watcher.left(jiff::Timestamp::now());
            if to_its_end && !left.is_zero() { watcher.run(left, None).await? } else { WatchEnd::Well }
        }
    };
    if let WatchEnd::MovedOn(view) = &ended {
        moved_on(session, &mut watcher, view);
        return Ok(Some(Exit::Done));
    }
    conclude(session, proxy, &mut watcher, ended, false).await.map(Some)
}

fn say(session: &Session, watch: &Watch, to_its_end: bool) {
    let name = named(&watch.backend, watch.version.as_deref());
    let left = watch.left(jiff::Timestamp::now());
    let what = if to_its_end && !left.is_zero() {
        format!("continuing its watch for the remaining {}", span(left))
    } else {
        "judging what was counted so far".to_owned()
    };
    session
        .report
        .say(&format!("The process that watched {name} (since {}) is gone: {what}", watch.began_at));
}

/// An open watch that no process holds.
pub(in crate::cli) fn orphan(session: &Session) -> Result<Option<(WatchFile, Watch)>, CliError> {
    let state_dir = &session.config.deploy.state_dir;
    let open = || watch::look(state_dir).map(|watch| watch.filter(|watch| !watch.has_ended()));
    if open().map_err(|e| unusable(&e))?.is_none() {
        return Ok(None);
    }
    let Some(file) = WatchFile::claim(state_dir).map_err(|e| unusable(&e))? else { return Ok(None) };
    // It may have ended in the meantime.
    Ok(open().map_err(|e| unusable(&e))?.map(|watch| (file, watch)))
}

/// A deploy that was killed after its switch and before its watch was saved, and the planned watch.
fn lost(session: &Session, newest: Option<&Watch>) -> Result<Option<(OperationFacts, WatchPlan)>, CliError> {
    let facts = last_deploy(&session.config.deploy.state_dir)?.map(|replayed| replayed.facts);
    Ok(facts.and_then(|facts| {
        let plan = never_began(&facts, newest)?;
        Some((facts, plan))
    }))
}

/// The last operation of a journal, if it was a deploy that succeeded.
pub(in crate::cli) fn last_deploy(state_dir: &Path) -> Result<Option<ReplayedOperation>, CliError> {
    let replayed = journal::look(state_dir);
    let replayed = replayed.map_err(|e| CliError::new(Exit::Attention, crate::chain(&e)))?;
    Ok(replayed.filter(|replayed| replayed.phase == Phase::Done(Outcome::Deployed)))
}

/// The planned watch of a deploy, if the newest saved watch isn't it.
pub(in crate::cli) fn never_began(facts: &OperationFacts, newest: Option<&Watch>) -> Option<WatchPlan> {
    facts.watch.clone().filter(|_| newest.is_none_or(|watch| watch.operation != facts.operation))
}

async fn never_started<'a>(
    session: &'a Session,
    proxy: &'a ProxyService,
) -> Result<Option<Watcher<'a>>, CliError> {
    let newest = watch::look(&session.config.deploy.state_dir).map_err(|e| unusable(&e))?;
    let Some((facts, plan)) = lost(session, newest.as_ref())? else { return Ok(None) };
    if !proxy.view().await?.is_active(&facts.to) {
        return Ok(None);
    }
    let watcher = Watcher::of_deploy(session, proxy, &facts.operation, plan).await?;
    session.report.say("The watch of the last deploy never started: starting it now");
    Ok(Some(watcher))
}

pub(in crate::cli) fn unusable(error: &std::io::Error) -> CliError {
    let message = format!("can't continue the watch: {error}. Fix the cause, or move the file away");
    CliError::new(Exit::Attention, message)
}
