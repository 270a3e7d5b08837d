//! Watches that have lost their watcher: a terminal that was closed, a CI job that ended, a machine that was restarted.

use uh_protocol::BackendName;

use super::{Watcher, conclude, moved_on};
use crate::cli::exit::{Exit, Failed};
use crate::cli::monitor::watcher::Ended;
use crate::cli::session::Session;
use crate::deploy::facts::Facts;
use crate::deploy::history::Line;
use crate::deploy::journal;
use crate::deploy::machine::{Outcome, Phase};
use crate::deploy::named;
use crate::deploy::watch::{self, Plan, Watch, WatchFile};
use crate::front::Front;
use crate::time::span;

/// Continues a watch that has lost its watcher for what is left of it. `None`: there is none. The lock is not held, so
/// that others can roll back meanwhile.
pub(in crate::cli) async fn finish(session: &Session, front: &Front) -> Result<Option<Exit>, Failed> {
    go_on(session, front, true).await
}

/// The same; uh-proxy is asked only if there is a watch to continue.
pub(in crate::cli) async fn if_needed(session: &Session) -> Result<Option<Exit>, Failed> {
    let state_dir = &session.config.deploy.state_dir;
    let newest = watch::look(state_dir).map_err(|e| unusable(&e))?;
    let open = newest.as_ref().is_some_and(|watch| !watch.has_ended());
    let lost = lost(session, newest.as_ref())?.is_some();
    if !open && !lost {
        return Ok(None);
    }
    let front = session.front().await.map_err(|failed| {
        let message = format!(
            "{}. A watch is left, and can only be continued with uh-proxy's answer; then run recover again",
            failed.message()
        );
        Failed::new(Exit::Attention, message)
    })?;
    finish(session, &front).await
}

/// A watch that has lost its watcher comes to its end before another one begins. One that may still have to roll back
/// keeps its promise, and is continued for what is left of it; any other is judged by what was counted until now.
/// `Some`: it was bad, and what came of that; whoever asked has to stop. The lock is not held.
pub(in crate::cli) async fn before_another(session: &Session, front: &Front) -> Result<Option<Exit>, Failed> {
    let newest = watch::look(&session.config.deploy.state_dir).map_err(|e| unusable(&e))?;
    let planned = lost(session, newest.as_ref())?.map(|(_, plan)| plan);
    let open = newest.filter(|watch| !watch.has_ended()).map(|watch| watch.plan);
    let promised = open.or(planned).is_some_and(|plan| plan.auto_rollback);
    let ended = go_on(session, front, promised).await?;
    Ok(ended.filter(|exit| !matches!(exit, Exit::Done | Exit::Superseded | Exit::NotEnoughData)))
}

/// Ends a watch that has lost its watcher, because another operation takes its place. The lock is held.
pub(in crate::cli) fn supersede(session: &Session, by: &str) -> Result<(), Failed> {
    let Some((file, mut watch)) = orphan(session)? else { return Ok(()) };
    let reason = format!("{by} ended the watch, which had lost its watcher: not enough data");
    session.report.say(&reason);
    watch.verdict = Some("superseded".to_owned());
    session.remember(Line {
        command: "watch".to_owned(),
        service: Some(watch.service.clone()),
        to: Some(watch.backend.clone()),
        version: watch.version.clone(),
        outcome: "not enough data".to_owned(),
        reason: Some(reason),
        ..Line::default()
    });
    file.save(&watch).map_err(|e| unusable(&e))
}

/// A backend that a watch under way may have to roll back to, and what is watched.
pub(in crate::cli) fn needs(session: &Session) -> Option<(BackendName, BackendName)> {
    let watch = watch::look(&session.config.deploy.state_dir).ok().flatten()?;
    let wanted =
        !watch.has_ended() && watch.plan.auto_rollback && !watch.left(jiff::Timestamp::now()).is_zero();
    watch.before.filter(|_| wanted).map(|before| (before.backend, watch.backend))
}

async fn go_on(session: &Session, front: &Front, to_its_end: bool) -> Result<Option<Exit>, Failed> {
    let mut watcher = match orphan(session)? {
        Some((file, watch)) => {
            say(session, &watch, to_its_end);
            Watcher::of_record(session, front, file, watch)
        }
        None => match never_begun(session, front).await? {
            Some(watcher) => watcher,
            None => return Ok(None),
        },
    };
    // Whatever happened meanwhile is judged at once.
    let ended = match watcher.look().await? {
        Some(ended) => ended,
        None => {
            let left = watcher.left(jiff::Timestamp::now());
            if to_its_end && !left.is_zero() { watcher.run(left, None).await? } else { Ended::Well }
        }
    };
    if let Ended::MovedOn(view) = &ended {
        moved_on(session, &mut watcher, view);
        return Ok(Some(Exit::Done));
    }
    conclude(session, front, &mut watcher, ended, false).await.map(Some)
}

fn say(session: &Session, watch: &Watch, to_its_end: bool) {
    let name = named(&watch.backend, watch.version.as_deref());
    let left = watch.left(jiff::Timestamp::now());
    let what = if to_its_end && !left.is_zero() {
        format!("continuing it for the {} that are left", span(left))
    } else {
        "judging what was counted until now".to_owned()
    };
    session.report.say(&format!("The watch of {name}, begun {}, lost its watcher: {what}", watch.began_at));
}

/// A watch that isn't over and that nobody has.
fn orphan(session: &Session) -> Result<Option<(WatchFile, Watch)>, Failed> {
    let state_dir = &session.config.deploy.state_dir;
    let open = || watch::look(state_dir).map(|watch| watch.filter(|watch| !watch.has_ended()));
    if open().map_err(|e| unusable(&e))?.is_none() {
        return Ok(None);
    }
    let Some(file) = WatchFile::claim(state_dir).map_err(|e| unusable(&e))? else { return Ok(None) };
    // It may have ended while we asked.
    Ok(open().map_err(|e| unusable(&e))?.map(|watch| (file, watch)))
}

/// A deploy that was killed after its switch and before its watch had a file, and the watch that was planned.
fn lost(session: &Session, newest: Option<&Watch>) -> Result<Option<(Facts, Plan)>, Failed> {
    let story = journal::look(&session.config.deploy.state_dir);
    let story = story.map_err(|e| Failed::new(Exit::Attention, crate::chain(&e)))?;
    let deployed = story.filter(|story| story.phase == Phase::Done(Outcome::Deployed));
    let Some(facts) = deployed.map(|story| story.facts) else { return Ok(None) };
    let known = newest.is_some_and(|watch| watch.operation == facts.operation);
    Ok(facts.watch.clone().filter(|_| !known).map(|plan| (facts, plan)))
}

async fn never_begun<'a>(session: &'a Session, front: &'a Front) -> Result<Option<Watcher<'a>>, Failed> {
    let newest = watch::look(&session.config.deploy.state_dir).map_err(|e| unusable(&e))?;
    let Some((facts, plan)) = lost(session, newest.as_ref())? else { return Ok(None) };
    if !front.view().await?.is_active(&facts.to) {
        return Ok(None);
    }
    let watcher = Watcher::of_deploy(session, front, &facts.operation, plan).await?;
    session.report.say("The watch of the last deploy was lost before it began: it begins now");
    Ok(Some(watcher))
}

fn unusable(error: &std::io::Error) -> Failed {
    let message = format!("the watch can't be continued: {error}. Fix that, or move the file away");
    Failed::new(Exit::Attention, message)
}
