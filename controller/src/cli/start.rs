//! `uh-deploy start`: starts the active backend from its record if it isn't running, for example after a reboot.
//! Meant to be run by a boot unit.
//!
//! uh-proxy knows which backend is active; the record knows what runs as that backend. Nothing is switched or
//! stopped.

use std::time::{Duration, Instant};

use uh_protocol::BackendName;

use super::exit::{CliError, Exit};
use super::release::membership;
use super::session::Session;
use super::{Done, blue_green, operation, wording};
use crate::deploy::history::HistoryEntry;
use crate::deploy::journal::ReplayedOperation;
use crate::deploy::lock::Lock;
use crate::deploy::machine::Outcome;
use crate::deploy::records::{BackendRecord, Records};
use crate::gate;
use crate::names::named;
use crate::probe::Expected;
use crate::proxy::ProxyService;

/// How long to wait for another uh-deploy: at boot, the timer that retires standbys may be running.
const LOCK_WITHIN: Duration = Duration::from_secs(60);

/// How often to poll while waiting.
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn start(session: &Session) -> Done {
    let _lock = lock_soon(session).await?;
    let proxy = blue_green::proxy_soon(session).await?;
    let view = proxy.view().await?;
    let active = view.service.active.clone();
    let Some(record) = record_of(session, &active)? else {
        let healthy = view.backend(&active).and_then(|backend| backend.healthy) == Some(true);
        let version = named(&active, view.version(&active).as_deref());
        if healthy {
            session
                .report
                .say(&format!("{version} serves and wasn't started by uh-deploy: nothing to start"));
            return Ok(Exit::Done);
        }
        let message = format!(
            "{active} is active but unhealthy, and there is no record to start it from. Deploy a version with `uh-deploy blue-green --version VERSION`"
        );
        return Err(CliError::new(Exit::Failed, message));
    };
    let version = named(&active, Some(&record.frozen.version));
    let was_running = session.runtime.state(&record.instance).await?.is_running();
    if !was_running {
        session.report.say(&format!("{version} is active but isn't running: starting {}", record.instance));
    }
    if let Err(reason) = bring_up(session, &proxy, &record).await {
        session.report.say(&format!("❌ {version} is active but can't be started: {reason}"));
        session.report.line(&format!(
            "users get errors; see `uh-deploy logs --backend {active}`, or deploy another version"
        ));
        remember(session, &proxy, &record, "failed", Some(reason));
        return Ok(Exit::Attention);
    }
    if !was_running {
        remember(session, &proxy, &record, "done", None);
    }
    // Only now: otherwise the recovery would blame the new version for a backend that is down.
    if let Some((_, ended)) = operation::recover_or_keep(session, &proxy).await?
        && ended.outcome == Outcome::Attention
    {
        return Ok(Exit::Attention);
    }
    let serves = operation::serving(&proxy).await;
    session.report.say(&if was_running {
        format!("{serves}: nothing to start")
    } else {
        format!("✅ {serves}")
    });
    Ok(Exit::Done)
}

async fn lock_soon(session: &Session) -> Result<Lock, CliError> {
    let deadline = Instant::now() + LOCK_WITHIN;
    loop {
        match session.lock_for_release("start") {
            Err(failed) if failed.exit() == Exit::Locked && Instant::now() < deadline => {
                tokio::time::sleep(POLL).await;
            }
            other => return other,
        }
    }
}

/// What runs as the active backend: the candidate of a deploy that was interrupted after its switch, or else the
/// backend's record.
pub(super) fn record_of(session: &Session, active: &BackendName) -> Result<Option<BackendRecord>, CliError> {
    let records = Records::new(&session.config.deploy.state_dir);
    let unreadable = |e: std::io::Error| CliError::new(Exit::Attention, format!("can't read a record: {e}"));
    // Its own, or that of a release that it is a member of.
    let own = operation::unfinished(session)?;
    let interrupted = own.into_iter().chain(membership::unfinished(&session.config.deploy.state_dir)?);
    for replayed in interrupted {
        let candidate = records.candidate(&replayed.facts.operation).map_err(unreadable)?;
        if let Some(candidate) = candidate.filter(|candidate| candidate.frozen.backend == *active) {
            return Ok(Some(candidate));
        }
    }
    records.of(active).map_err(unreadable)
}

/// Starts it if it isn't running, and waits until it is healthy for uh-deploy and for uh-proxy.
async fn bring_up(session: &Session, proxy: &ProxyService, record: &BackendRecord) -> Result<(), String> {
    let (config, frozen) = (&session.config, &record.frozen);
    let runtime = &*session.runtime;
    runtime.revive(&record.instance, frozen).await.map_err(|e| crate::chain(&e))?;
    let candidate = gate::HealthGate {
        runtime,
        instance: &record.instance,
        endpoints: &frozen.endpoints,
        expected: Expected { backend: &frozen.backend, version: Some(&frozen.version) },
    };
    let report = &session.report;
    let proven = candidate.prove(&config.gate, &|progress| wording::gate(report, progress)).await;
    session.report.end_progress();
    if let Err(diagnosis) = proven {
        wording::diagnosis(report, &diagnosis);
        return Err(diagnosis.headline);
    }
    // The operation itself enables restarts of its candidate at its end. Everything else was deployed before.
    let is_candidate = |replayed: Option<ReplayedOperation>| {
        replayed.is_some_and(|replayed| replayed.facts.to == frozen.backend)
    };
    if !operation::unfinished(session).is_ok_and(is_candidate) {
        keep_running(session, record).await;
    }
    let deadline = Instant::now() + config.deploy.ready_timeout;
    loop {
        let view = proxy.view().await.map_err(|e| crate::chain(&e))?;
        let version = Some(frozen.version.as_str());
        if !view.has_endpoints(&frozen.backend, &frozen.endpoints) {
            let registered =
                proxy.register(&frozen.backend, &frozen.endpoints, version, view.generation).await;
            registered.map_err(|e| crate::chain(&e))?;
        } else if view.backend(&frozen.backend).is_none_or(|backend| backend.healthy != Some(false)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err("it answers, but uh-proxy's own probes fail".to_owned());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Enables restarts again, which starting it again has reset.
async fn keep_running(session: &Session, record: &BackendRecord) {
    if let Err(e) = session.runtime.keep_running(&record.instance).await {
        let (instance, reason) = (&record.instance, crate::chain(&e));
        session.report.warn(&format!("{instance} won't be restarted when it exits: {reason}"));
    }
}

fn remember(
    session: &Session,
    proxy: &ProxyService,
    record: &BackendRecord,
    outcome: &str,
    reason: Option<String>,
) {
    session.remember(HistoryEntry {
        command: "start".to_owned(),
        service: Some(proxy.service.clone()),
        to: Some(record.frozen.backend.clone()),
        version: Some(record.frozen.version.clone()),
        outcome: outcome.to_owned(),
        reason,
        remarks: vec![format!("started {}", record.instance)],
        ..HistoryEntry::default()
    });
}
