//! The rollback that a watch asks for. Giving up here means that users go on seeing errors, and nobody else looks; and
//! to do the wrong thing here means that nobody looks either.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::undo::Wanted;
use super::{NoRollback, find_undo, roll_back};
use crate::cli::exit::{Exit, Failed};
use crate::cli::monitor::Watcher;
use crate::cli::session::Session;
use crate::cli::{Done, alive, operation};
use crate::deploy::activation::same_switch;
use crate::deploy::driver::Ended;
use crate::deploy::machine::Outcome;
use crate::downtime::Sample;
use crate::evidence::Breach;
use crate::front::{Front, Serving};
use crate::time::span;

/// How long the version that is brought back is looked at, to see whether going back has helped.
const LOOK: Duration = Duration::from_secs(3);

/// How often.
const LOOK_POLL: Duration = Duration::from_millis(100);

/// Rolls back from what is watched, because of `breach`, if it is still active, by the same switch, and was deployed a
/// short while ago. Whoever holds the lock is waited for, and so is a front door that restarts.
///
/// # Errors
/// [`Exit::Breach`]: it is not to be rolled back, and trying again would come to the same. [`Exit::Attention`]: it could
/// not be done now, so somebody has to try again.
pub(in crate::cli) async fn automatic(
    session: &Session,
    front: &Front,
    watcher: &Watcher<'_>,
    breach: &Breach,
) -> Done {
    let (reason, watched) = (&breach.reason, &watcher.watched);
    session.report.say(&format!("Rolling back by itself, because of {watched}: {reason}"));
    match roll_back_from(session, front, watcher, breach).await {
        Ok(Ended { outcome: Outcome::RolledBack, .. }) => Ok(after(session, front).await),
        Ok(ended) if ended.outcome == Outcome::Superseded => Ok(Exit::Superseded),
        Ok(ended) => Err(Failed::new(
            Exit::Attention,
            format!(
                "{watched} is bad ({reason}), and could not be rolled back: {}. Manual intervention required",
                operation::who_serves(&ended)
            ),
        )),
        Err(failed) if matches!(failed.exit(), Exit::Superseded | Exit::Breach) => Err(failed),
        Err(failed) => {
            let message =
                format!("{watched} is bad ({reason}), and could not be rolled back: {}", failed.message());
            Err(Failed::new(Exit::Attention, message))
        }
    }
}

/// What was interrupted before comes first; who is active after that is looked at again.
async fn roll_back_from(
    session: &Session,
    front: &Front,
    watcher: &Watcher<'_>,
    breach: &Breach,
) -> Result<Ended, Failed> {
    let watched = &watcher.watched;
    let _lock = session.lock_patiently(&format!("automatic rollback from {watched}")).await?;
    if let Some((_, ended)) = operation::recover_if_needed(session, front).await?
        && ended.outcome == Outcome::Attention
    {
        return Ok(ended);
    }
    let serving = front.serving_soon().await?;
    if serving.is(watched) && !is_same(watcher, &serving) {
        let message = format!(
            "{watched} was switched to again since: nothing was changed for what was found before; {}",
            serving.sentence()
        );
        return Err(Failed::new(Exit::Superseded, message));
    }
    if !serving.is(watched) {
        let message = format!("{watched} isn't active any more: nothing was changed; {}", serving.sentence());
        return Err(Failed::new(Exit::Superseded, message));
    }
    let undo = find_undo(session, &serving, Wanted::Active).map_err(for_good)?;
    let within = session.config.monitor.auto_rollback_within;
    let age = undo.at.and_then(|at| Duration::try_from(Timestamp::now().duration_since(at)).ok());
    if age.is_none_or(|age| age > within) {
        let age = age.map_or_else(|| "at an unknown time".to_owned(), |age| format!("{} ago", span(age)));
        let message = format!(
            "{} was put in place {age}, longer than monitor.auto_rollback_within ({}): its deploy is hardly the cause, and nothing was rolled back. Look at it; to roll back by hand, run `uh-deploy rollback --to {}`",
            serving.name(),
            span(within),
            undo.to
        );
        return Err(Failed::new(Exit::Breach, message));
    }
    roll_back(session, front, &serving, &undo.to, false, Some(breach)).await.map_err(for_good)
}

/// A refusal stands: nothing has changed, and the breach is what is left. Anything else may pass.
fn for_good(no: NoRollback) -> Failed {
    match no {
        NoRollback::Refused(why) => Failed::new(Exit::Breach, why),
        NoRollback::Failed(failed) => failed,
    }
}

/// Whether it is active by the switch that is watched, and not by a later one.
fn is_same(watcher: &Watcher<'_>, serving: &Serving) -> bool {
    same_switch(serving.view().service.last_switch.as_deref(), watcher.last_switch())
}

/// Says so when going back has not helped: then the cause is elsewhere.
async fn after(session: &Session, front: &Front) -> Exit {
    let Ok(serving) = front.serving_soon().await else {
        session.report.warn("uh-proxy does not answer, so whether the rollback helped is unknown");
        return Exit::RolledBack;
    };
    let Some(why) = still_bad(session, front, &serving).await else { return Exit::RolledBack };
    session.report.event("no_help", serde_json::json!({"active": serving.active(), "reason": why}));
    session.report.say(&format!(
        "❌ The rollback did not help: {} has errors too ({why}), so the cause is elsewhere. Manual intervention required",
        serving.name()
    ));
    Exit::RolledBack
}

async fn still_bad(session: &Session, front: &Front, serving: &Serving) -> Option<String> {
    if let Some(why) = alive::why_dead(session, serving).await {
        return Some(why);
    }
    let (service, backend) = (front.service.as_str(), serving.active().as_str());
    let sample = || async {
        let metrics = front.client.metrics().await.ok()?;
        Some(Sample::of_backend(&metrics, service, backend))
    };
    let before = sample().await?;
    let deadline = Instant::now() + LOOK;
    let limits = &session.config.monitor;
    loop {
        tokio::time::sleep(LOOK_POLL).await;
        let (requests, errors) = sample().await?.since(&before);
        if requests < limits.min_requests && Instant::now() < deadline {
            continue;
        }
        #[allow(clippy::cast_precision_loss, reason = "a share of a few thousand requests")]
        let share = errors as f64 / requests.max(1) as f64;
        let bad = requests >= limits.min_requests && share > limits.max_error_rate;
        return bad.then(|| format!("{errors} of {requests} requests failed"));
    }
}
