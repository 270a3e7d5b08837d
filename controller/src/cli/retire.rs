//! `uh-deploy retire`: stops standbys whose warm window is over. Meant to be run by a timer.

use std::time::Duration;

use uh_protocol::BackendName;

use super::args::RetireArgs;
use super::exit::{CliError, Exit};
use super::monitor::resume;
use super::session::Session;
use super::{Done, alive, operation, wording};
use crate::assets::AssetsDir;
use crate::deploy::history::HistoryEntry;
use crate::deploy::machine::Outcome;
use crate::fault;
use crate::proxy::{OutOfService, ProxyService, ServiceView, WithdrawalProgress};
use crate::runtime::{InstanceId, State};
use crate::time::span;

pub(super) async fn retire(session: &Session, args: &RetireArgs) -> Done {
    let proxy = {
        let _lock = session.lock("retire")?;
        let proxy = session.proxy().await?;
        let recovered = operation::recover_if_needed(session, &proxy).await?;
        if recovered.is_some_and(|(_, ended)| ended.outcome == Outcome::Attention) {
            return Ok(Exit::Attention);
        }
        proxy
    };
    // Before stopping anything that a watch may have to roll back to, and without the lock, since it may take long.
    if let Some(exit @ (Exit::RolledBack | Exit::Breach | Exit::Attention)) =
        resume::finish(session, &proxy).await?
    {
        return Ok(exit);
    }
    let _lock = session.lock("retire")?;
    fault::point("retire.begun");
    let wanted = resume::needs(session);
    let report = &session.report;
    let view = proxy.view().await?;
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
                    "{instance} keeps running: {watched} is being watched and may have to be rolled back"
                ));
                continue;
            }
            demand_active_lives(session, &proxy).await?;
            stopped += usize::from(stop(session, &proxy, &backend.name, &instance, &state).await?);
        }
    }
    if stopped == 0 {
        report.say("Nothing to retire.");
    }
    Ok(Exit::Done)
}

/// A standby is the target of a rollback, so none is stopped while the active backend doesn't answer.
async fn demand_active_lives(session: &Session, proxy: &ProxyService) -> Result<(), CliError> {
    let serving = proxy.serving().await?;
    if !alive::was_deployed(session, &serving) {
        return Ok(());
    }
    let Some(why) = alive::why_dead(session, &serving).await else { return Ok(()) };
    let message = format!(
        "{} is active but doesn't answer ({why}), so no standby was stopped. Start it with `uh-deploy start`, or roll back with `uh-deploy rollback`",
        serving.name()
    );
    Err(CliError::new(Exit::Attention, message))
}

/// How much longer standbys are kept; `None`: their warm window is over.
fn warm_for(session: &Session, view: &ServiceView) -> Option<Duration> {
    let warm = session.config.deploy.warm;
    let last_switch = view.service.last_switch.as_deref().and_then(|at| at.parse::<jiff::Timestamp>().ok());
    let standby_for =
        last_switch.and_then(|at| Duration::try_from(jiff::Timestamp::now().duration_since(at)).ok());
    let Some(standby_for) = standby_for else { return Some(warm) };
    (standby_for < warm).then(|| warm.saturating_sub(standby_for))
}

/// Removes the files that uh-proxy served for a backend that doesn't run any more. A rollback copies them again.
pub(super) fn remove_files(session: &Session, backend: &BackendName) {
    let Some(files) = &session.config.files else { return };
    let to = files.to_of(backend);
    match AssetsDir::new(&to).remove() {
        Ok(true) => session.report.say(&format!("{} was removed", to.display())),
        Ok(false) => {}
        Err(error) => {
            session.report.warn(&format!("{} wasn't removed: {}", to.display(), crate::chain(&error)));
        }
    }
}

/// Withdraws the backend, so that nothing can switch to it any more, and stops its instance. Returns whether it was
/// stopped: a backend that has become active meanwhile isn't.
async fn stop(
    session: &Session,
    proxy: &ProxyService,
    backend: &BackendName,
    instance: &InstanceId,
    state: &State,
) -> Result<bool, CliError> {
    let (report, deploy) = (&session.report, &session.config.deploy);
    let out = async {
        let listener = |progress: WithdrawalProgress<'_>| wording::withdrawal(report, progress);
        let out = OutOfService::withdraw_standby(proxy, backend, &listener).await?;
        fault::point("retire.withdrawn");
        out.drain(proxy, deploy.drain_timeout, &listener).await?;
        Ok(out)
    };
    let out = match out.await {
        Ok(out) => out,
        Err(crate::proxy::ProxyError::Overtaken(_)) => {
            report.say(&format!("{instance} has become active and keeps running"));
            return Ok(false);
        }
        Err(e) => return Err(e.into()),
    };
    if let Err(e) = out.stop(&*session.runtime, instance, deploy.stop_timeout).await {
        operation::readmit(session, proxy).await;
        return Err(e.into());
    }
    fault::point("retire.stopped");
    remove_files(session, backend);
    if !state.is_running() {
        // It had already exited. Stopping it also prevents a pending restart.
        return Ok(false);
    }
    report.say(&format!("{instance} was stopped; a rollback would start it again"));
    session.remember(HistoryEntry {
        command: "retire".to_owned(),
        service: Some(proxy.service.clone()),
        to: Some(backend.clone()),
        outcome: "done".to_owned(),
        remarks: vec![format!("stopped {instance}")],
        ..HistoryEntry::default()
    });
    Ok(true)
}
