//! What deploys and rollbacks have in common: the journal, recovery of interrupted operations, and interruption.

use uh_protocol::BackendName;

use super::canary;
use super::exit::{CliError, Exit, journal_failed};
use super::report::Report;
use super::session::Session;
use super::wording;
use crate::deploy::driver::{Driver, DriverError};
use crate::deploy::facts::OperationFacts;
use crate::deploy::journal::{self, ReplayedOperation};
use crate::deploy::link::WatchLink;
use crate::deploy::machine::{OperationKind, Outcome, doing};
use crate::deploy::member::{Member, OperationEnd};
use crate::deploy::progress::Progress;
use crate::deploy::readmit;
use crate::deploy::records::Records;
use crate::proxy::{ExpectedRouting, ProxyService, ServiceView, Serving};
use crate::runtime;

/// Runs an operation to its end. The lock is held, and any interrupted operation was recovered before.
pub(super) async fn carry_out(
    session: &Session,
    proxy: &ProxyService,
    kind: OperationKind,
    facts: OperationFacts,
    expected_routing: ExpectedRouting,
    link: Option<&WatchLink>,
) -> Result<OperationEnd, CliError> {
    let (journal, replayed) = session.journal()?;
    demand_finished(replayed)?;
    let (operation, to) = (facts.operation.clone(), facts.to.clone());
    let listener = |progress: Progress<'_>| wording::progress(session, progress);
    let member = Member::new(&session.config, &*session.runtime, proxy, &listener, facts).linked(link);
    let mut driver = Driver::new(journal, vec![member]);
    let name = tokio::select! {
        ended = driver.run(kind, vec![expected_routing]) => {
            return match ended {
                Ok(outcome) => {
                    readmit(session, proxy).await;
                    Ok(look_again(session, proxy, only(driver, outcome)?, &to).await)
                }
                Err(e) => Err(stopped(&e, proxy).await),
            };
        }
        interrupt = session.interrupts.take() => interrupt.name,
    };
    drop(driver);
    say_undoing(&session.report, name);
    match recover_or_keep(session, proxy).await? {
        Some((replayed, ended)) if replayed.facts.operation == operation => Ok(ended),
        _ => Err(CliError::new(Exit::Failed, "interrupted before anything was done")),
    }
}

/// Reports that a signal undoes the operation.
pub(super) fn say_undoing(report: &Report, signal: &str) {
    report.say(&format!(
        "{signal} received, rolling back (press Ctrl-C again to quit now, then run `uh-deploy recover`)"
    ));
}

/// Starting a second operation would make the end of the first one unreadable.
pub(super) fn demand_finished(replayed: Option<ReplayedOperation>) -> Result<(), CliError> {
    let Some(replayed) = replayed.filter(ReplayedOperation::is_unfinished) else { return Ok(()) };
    let message = format!(
        "operation {} was interrupted while {} and is unfinished; nothing was changed. Run `uh-deploy recover`",
        replayed.facts.operation,
        doing(replayed.phase)
    );
    Err(CliError::new(Exit::Attention, message))
}

/// The end of the only member.
pub(super) fn only(driver: Driver<'_>, outcome: Outcome) -> Result<OperationEnd, CliError> {
    let ended = driver.ended(outcome).pop();
    ended.ok_or_else(|| CliError::new(Exit::Attention, "internal error: the operation has no member"))
}

/// Hooks may have taken a while since the final look, so the last lines of the output come from a fresh one.
pub(super) async fn look_again(
    session: &Session,
    proxy: &ProxyService,
    mut ended: OperationEnd,
    to: &BackendName,
) -> OperationEnd {
    let Ok(serving) = proxy.serving().await else { return ended };
    if matches!(ended.outcome, Outcome::Deployed | Outcome::RolledBack) && !serving.is(to) {
        ended.outcome = Outcome::Superseded;
        session.report.event("superseded", serde_json::json!({"active": serving.active()}));
    }
    ended.serving = Some(serving);
    ended
}

/// Puts backends back into service that were withdrawn but not stopped.
pub(super) async fn readmit(session: &Session, proxy: &ProxyService) {
    let listener = |progress: Progress<'_>| wording::progress(session, progress);
    if let Err(e) = readmit::readmit(&session.config, &*session.runtime, proxy, &listener).await {
        session.report.warn(&format!(
            "a standby may still be withdrawn ({}); run `uh-deploy recover`",
            crate::chain(&e)
        ));
    }
}

/// Finishes or undoes an interrupted operation, if there is one. The lock is held.
///
/// # Errors
/// It can't be recovered, or it is a trial that waits for an operator: then nothing else may be changed.
pub(super) async fn recover_if_needed(
    session: &Session,
    proxy: &ProxyService,
) -> Result<Option<(ReplayedOperation, OperationEnd)>, CliError> {
    let recovered = recover_or_keep(session, proxy).await?;
    match &recovered {
        Some((replayed, ended)) if ended.outcome == Outcome::Held => Err(canary::is_held(&replayed.facts)),
        _ => Ok(recovered),
    }
}

/// The same, but a trial that waits for an operator is fine.
pub(super) async fn recover_or_keep(
    session: &Session,
    proxy: &ProxyService,
) -> Result<Option<(ReplayedOperation, OperationEnd)>, CliError> {
    let (journal, replayed) = session.journal()?;
    let Some(replayed) = replayed.filter(ReplayedOperation::is_unfinished) else { return Ok(None) };
    let facts = &replayed.facts;
    say_found(&session.report, &replayed);
    demand_runtime(session, facts)?;
    let listener = |progress: Progress<'_>| wording::progress(session, progress);
    let member = Member::new(&session.config, &*session.runtime, proxy, &listener, facts.clone());
    let mut driver = Driver::new(journal, vec![member]);
    let outcome = match driver.recover(&replayed).await {
        Ok(outcome) => outcome,
        Err(e) => return Err(stopped(&e, proxy).await),
    };
    readmit(session, proxy).await;
    let ended = only(driver, outcome)?;
    session.report.say(&recovered(&ended));
    Ok(Some((replayed, ended)))
}

/// Reports the operation to recover.
pub(super) fn say_found(report: &Report, replayed: &ReplayedOperation) {
    let facts = &replayed.facts;
    let step = canary::step_of(replayed).map_or_else(String::new, |step| format!(" ({step})"));
    report.say(&format!(
        "Found operation {} ({} to {}), interrupted while {}{step} (started {} by {})",
        facts.operation,
        facts.version_or_unknown(),
        facts.to,
        doing(replayed.phase),
        facts.began_at,
        facts.who
    ));
}

/// How a recovery ended.
pub(super) fn recovered(ended: &OperationEnd) -> String {
    let serves = who_serves(ended);
    match ended.outcome {
        Outcome::Deployed | Outcome::RolledBack => format!("Finished: {serves}"),
        Outcome::Failed(_) => format!("Undone: the candidate was removed; {serves}"),
        Outcome::Returned => format!("Undone: traffic was moved back; {serves}"),
        Outcome::Superseded => format!("Superseded by a newer change: {serves}"),
        Outcome::Held => format!("Still held: {}; {serves}", canary::WAYS_ON),
        Outcome::Attention => {
            let reason = ended.reason.iter().map(|reason| format!(" ({reason})")).collect::<String>();
            format!("Manual intervention required: {serves}{reason}")
        }
    }
}

/// Only the runtime that started a candidate can check and stop it: to another one it seems gone.
pub(super) fn demand_runtime(session: &Session, facts: &OperationFacts) -> Result<(), CliError> {
    let records = Records::new(&session.config.deploy.state_dir);
    let committed = records.of(&facts.to).map(|record| record.filter(|r| r.operation == facts.operation));
    let found = [records.candidate(&facts.operation), committed];
    for record in found.into_iter().flatten().flatten() {
        if let Err(e) = runtime::demand_kind(session.runtime.kind(), &record.frozen) {
            let message =
                format!("operation {} can't be recovered; nothing was changed: {e}", facts.operation);
            return Err(CliError::new(Exit::Attention, message));
        }
    }
    Ok(())
}

/// Which backend serves, according to the operation's final look.
pub(super) fn who_serves(ended: &OperationEnd) -> String {
    ended.serving.as_ref().map_or_else(|| UNKNOWN.to_owned(), Serving::sentence)
}

/// If uh-proxy doesn't answer, nothing is reported from memory.
const UNKNOWN: &str = "can't determine the active backend: uh-proxy isn't responding";

/// The unfinished operation, if there is one. Changes nothing.
pub(super) fn unfinished(session: &Session) -> Result<Option<ReplayedOperation>, CliError> {
    let replayed = journal::look(&session.config.deploy.state_dir).map_err(|e| journal_failed(&e))?;
    Ok(replayed.filter(ReplayedOperation::is_unfinished))
}

/// `green (v1.0.1) serves`
pub(super) async fn serving(proxy: &ProxyService) -> String {
    proxy.serving().await.map_or_else(|_| UNKNOWN.to_owned(), |serving| serving.sentence())
}

/// Reports that an operation needs manual intervention.
pub(super) async fn say_attention(session: &Session, proxy: &ProxyService, ended: &OperationEnd) {
    let serves = match &ended.serving {
        Some(serving) => serving.sentence(),
        None => serving(proxy).await,
    };
    let reason = ended.reason.iter().map(|reason| format!(" ({reason})")).collect::<String>();
    session.report.say(&format!(
        "\n❌ Manual intervention required: {serves}{reason}. See `uh-deploy history` and `uh-proxy status`"
    ));
}

/// The configuration of a backend. Both uh-proxy and the configuration must know it.
pub(super) fn configured<'a>(
    session: &'a Session,
    view: &ServiceView,
    backend: &BackendName,
) -> Result<&'a crate::config::BackendConfig, CliError> {
    if view.backend(backend).is_none() {
        let names: Vec<&str> = view.service.backends.iter().map(|b| b.name.as_str()).collect();
        return Err(CliError::new(
            Exit::Failed,
            format!("uh-proxy has no backend {backend}, only {}; nothing was changed", names.join(", ")),
        ));
    }
    session.config.backend(backend).ok_or_else(|| {
        CliError::new(
            Exit::Failed,
            format!("the configuration has no [backends.{backend}]; nothing was changed"),
        )
    })
}

pub(super) async fn stopped(error: &DriverError, proxy: &ProxyService) -> CliError {
    if let DriverError::NotBegun(error) = error {
        let message = format!("{}; nothing was changed: {}", crate::chain(error), serving(proxy).await);
        return CliError::new(Exit::Failed, message).of_journal();
    }
    let serves = match error {
        // A switch that was sent may still be carried out.
        DriverError::Unanswered(_) => "can't determine whether traffic has moved".to_owned(),
        _ => serving(proxy).await,
    };
    let message = format!(
        "{}; the operation stopped here: {serves}. Fix the cause, then run `uh-deploy recover`",
        crate::chain(error)
    );
    let failed = CliError::new(Exit::Attention, message);
    if matches!(error, DriverError::Journal(_)) { failed.of_journal() } else { failed }
}
