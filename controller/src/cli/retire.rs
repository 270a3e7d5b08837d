//! `uh-deploy retire`: stops standbys whose warm window is over. Made to be run by a timer.

use std::time::Duration;

use uh_protocol::BackendName;

use super::args::RetireArgs;
use super::exit::{Exit, Failed};
use super::monitor::resume;
use super::session::Session;
use super::{Done, alive, operation};
use crate::deploy::history::Line;
use crate::deploy::machine::Outcome;
use crate::fault;
use crate::front::{Front, OutOfService, View};
use crate::runtime::{InstanceId, State};
use crate::time::span;

pub(super) async fn retire(session: &Session, args: &RetireArgs) -> Done {
    let front = {
        let _lock = session.lock("retire")?;
        let front = session.front().await?;
        let recovered = operation::recover_if_needed(session, &front).await?;
        if recovered.is_some_and(|(_, ended)| ended.outcome == Outcome::Attention) {
            return Ok(Exit::Attention);
        }
        front
    };
    // Before anything is stopped that it may have to roll back to; and without the lock, for it may take its time.
    if let Some(exit @ (Exit::RolledBack | Exit::Breach | Exit::Attention)) =
        resume::finish(session, &front).await?
    {
        return Ok(exit);
    }
    let _lock = session.lock("retire")?;
    fault::point("retire.begun");
    let wanted = resume::needs(session);
    let report = &session.report;
    let view = front.view().await?;
    let mut stopped = 0;
    for backend in &session.config.backends {
        if view.is_active(&backend.name) {
            continue;
        }
        for instance in session.runtime.find(&backend.name).await? {
            let state = session.runtime.state(&instance).await?;
            if state == State::Absent {
                continue;
            }
            if let Some(left) = warm_for(session, &view).filter(|_| !args.now) {
                if state.is_running() {
                    report.say(&format!("{instance} stays warm for another {}", span(left)));
                }
                continue;
            }
            if let Some((_, watched)) =
                wanted.as_ref().filter(|(needed, _)| !args.now && *needed == backend.name)
            {
                report.say(&format!(
                    "{instance} stays: {watched} is being watched, and may have to be rolled back"
                ));
                continue;
            }
            demand_active_lives(session, &front).await?;
            stopped += usize::from(stop(session, &front, &backend.name, &instance, &state).await?);
        }
    }
    if stopped == 0 {
        report.say("Nothing to retire.");
    }
    Ok(Exit::Done)
}

/// A standby is what users are brought back to: while the active backend serves nobody, none is stopped.
async fn demand_active_lives(session: &Session, front: &Front) -> Result<(), Failed> {
    let serving = front.serving().await?;
    if !alive::was_deployed(session, &serving) {
        return Ok(());
    }
    let Some(why) = alive::why_dead(session, &serving).await else { return Ok(()) };
    let message = format!(
        "{} is active, but does not answer ({why}): no standby was stopped. Start it with `uh-deploy start`, or go back with `uh-deploy rollback`",
        serving.name()
    );
    Err(Failed::new(Exit::Attention, message))
}

/// How long standbys are still kept; `None`: not any more.
fn warm_for(session: &Session, view: &View) -> Option<Duration> {
    let warm = session.config.deploy.warm;
    let last_switch = view.service.last_switch.as_deref().and_then(|at| at.parse::<jiff::Timestamp>().ok());
    let standby_for =
        last_switch.and_then(|at| Duration::try_from(jiff::Timestamp::now().duration_since(at)).ok());
    let Some(standby_for) = standby_for else { return Some(warm) };
    (standby_for < warm).then(|| warm.saturating_sub(standby_for))
}

/// Takes the backend out of service, so that nobody can switch to it from here on, and stops its instance. Whether it
/// was stopped: what has become active meanwhile is not.
async fn stop(
    session: &Session,
    front: &Front,
    backend: &BackendName,
    instance: &InstanceId,
    state: &State,
) -> Result<bool, Failed> {
    let (report, deploy) = (&session.report, &session.config.deploy);
    let out = async {
        let out = OutOfService::withdraw_standby(front, backend, report).await?;
        fault::point("retire.withdrawn");
        out.drain(front, deploy.drain_timeout, report).await?;
        Ok(out)
    };
    let out = match out.await {
        Ok(out) => out,
        Err(crate::front::FrontError::Overtaken(_)) => {
            report.say(&format!("{instance} is active now: it stays"));
            return Ok(false);
        }
        Err(e) => return Err(e.into()),
    };
    if let Err(e) = out.stop(&*session.runtime, instance, deploy.stop_timeout).await {
        operation::readmit(session, front).await;
        return Err(e.into());
    }
    fault::point("retire.stopped");
    if !state.is_running() {
        // It had ended; stopped, it can't come back either, should it be between two restarts.
        return Ok(false);
    }
    report.say(&format!("{instance} is stopped; a rollback would start it again as it was"));
    session.remember(Line {
        command: "retire".to_owned(),
        service: Some(front.service.clone()),
        to: Some(backend.clone()),
        outcome: "done".to_owned(),
        remarks: vec![format!("stopped {instance}")],
        ..Line::default()
    });
    Ok(true)
}
