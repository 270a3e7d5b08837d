//! `uh-deploy retire`: stops standbys whose warm window is over. Made to be run by a timer.

use std::time::Duration;

use super::args::RetireArgs;
use super::exit::Exit;
use super::monitor::resume;
use super::session::Session;
use super::{Done, operation};
use crate::deploy::history::Line;
use crate::runtime::State;
use crate::time::span;

pub(super) async fn retire(session: &Session, args: &RetireArgs) -> Done {
    let front = {
        let _lock = session.lock("retire")?;
        let front = session.front().await?;
        operation::recover_if_needed(session, &front).await?;
        front
    };
    // Before anything is stopped that it may have to roll back to; and without the lock, for it may take its time.
    if let Some(exit @ (Exit::RolledBack | Exit::Breach | Exit::Attention)) =
        resume::finish(session, &front).await?
    {
        return Ok(exit);
    }
    let _lock = session.lock("retire")?;
    let wanted = resume::needs(session);
    let report = &session.report;
    let view = front.view().await?;
    let last_switch = view.service.last_switch.as_deref().and_then(|at| at.parse::<jiff::Timestamp>().ok());
    let standby_for =
        last_switch.and_then(|at| Duration::try_from(jiff::Timestamp::now().duration_since(at)).ok());
    let warm = session.config.deploy.warm;
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
            if !args.now && standby_for.is_none_or(|standby_for| standby_for < warm) {
                let left = standby_for.map_or(warm, |standby_for| warm.saturating_sub(standby_for));
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
            // What was true a moment ago may not be so now: nothing that is active is ever stopped.
            if front.view().await?.is_active(&backend.name) {
                report.say(&format!("{instance} is active now: it stays"));
                continue;
            }
            session.runtime.stop(&instance, session.config.deploy.stop_timeout).await?;
            if !state.is_running() {
                // It has ended; stopped, it can't come back either, should it be between two restarts.
                continue;
            }
            stopped += 1;
            report.say(&format!("{instance} is stopped; a roll back would start it again as it was"));
            session.remember(Line {
                command: "retire".to_owned(),
                service: Some(front.service.clone()),
                to: Some(backend.name.clone()),
                outcome: "done".to_owned(),
                remarks: vec![format!("stopped {instance}")],
                ..Line::default()
            });
        }
    }
    if stopped == 0 {
        report.say("Nothing to retire.");
    }
    Ok(Exit::Done)
}
