//! What deploys and rollbacks have in common: the journal, recovery of interrupted operations, and interruption.

use uh_protocol::BackendName;

use super::exit::{Exit, Failed, journal_failed};
use super::session::Session;
use crate::deploy::driver::{Driver, DriverError, Ended, doing};
use crate::deploy::facts::Facts;
use crate::deploy::journal::{self, Story};
use crate::deploy::link::Link;
use crate::deploy::machine::{Kind, Outcome};
use crate::deploy::records::Records;
use crate::front::{Front, Serving, Standing, View};
use crate::runtime;

/// Runs an operation to its end. The lock is held, and any interrupted operation was recovered before.
pub(super) async fn carry_out(
    session: &Session,
    front: &Front,
    kind: Kind,
    facts: Facts,
    standing: Standing,
    link: Option<&Link>,
) -> Result<Ended, Failed> {
    let (journal, story) = session.journal()?;
    if let Some(story) = story.filter(Story::is_unfinished) {
        // Starting a second operation would make the end of the first one unreadable.
        let message = format!(
            "operation {} was interrupted while {} and is unfinished; nothing was changed. Run `uh-deploy recover`",
            story.facts.operation,
            doing(story.phase)
        );
        return Err(Failed::new(Exit::Attention, message));
    }
    let (operation, to) = (facts.operation.clone(), facts.to.clone());
    let driver = Driver::new(&session.config, &*session.runtime, front, &session.report, journal, facts);
    let mut driver = driver.linked(link);
    let name = tokio::select! {
        ended = driver.run(kind, standing) => {
            return match ended {
                Ok(outcome) => {
                    readmit(session, front).await;
                    Ok(look_again(session, front, driver.ended(outcome), &to).await)
                }
                Err(e) => Err(stopped(&e, front).await),
            };
        }
        interrupt = session.interrupts.take() => interrupt.name,
    };
    drop(driver);
    session.report.say(&format!(
        "{name} received, rolling back (press Ctrl-C again to quit now, then run `uh-deploy recover`)"
    ));
    match recover_if_needed(session, front).await? {
        Some((story, ended)) if story.facts.operation == operation => Ok(ended),
        _ => Err(Failed::new(Exit::Failed, "interrupted before anything was done")),
    }
}

/// Hooks may have taken a while since the final look, so the last lines of the output come from a fresh one.
async fn look_again(session: &Session, front: &Front, mut ended: Ended, to: &BackendName) -> Ended {
    let Ok(serving) = front.serving().await else { return ended };
    if matches!(ended.outcome, Outcome::Deployed | Outcome::RolledBack) && !serving.is(to) {
        ended.outcome = Outcome::Superseded;
        session.report.event("superseded", serde_json::json!({"active": serving.active()}));
    }
    ended.serving = Some(serving);
    ended
}

/// Puts backends back into service that were withdrawn but not stopped.
pub(super) async fn readmit(session: &Session, front: &Front) {
    let done = crate::deploy::readmit::readmit(&session.config, &*session.runtime, front, &session.report);
    if let Err(e) = done.await {
        session.report.warn(&format!(
            "a standby may still be withdrawn ({}); run `uh-deploy recover`",
            crate::chain(&e)
        ));
    }
}

/// Finishes or undoes an interrupted operation, if there is one. The lock is held.
pub(super) async fn recover_if_needed(
    session: &Session,
    front: &Front,
) -> Result<Option<(Story, Ended)>, Failed> {
    let (journal, story) = session.journal()?;
    let Some(story) = story.filter(Story::is_unfinished) else { return Ok(None) };
    let facts = &story.facts;
    session.report.say(&format!(
        "Found operation {} ({} to {}), interrupted while {} (started {} by {})",
        facts.operation,
        facts.version_or_unknown(),
        facts.to,
        doing(story.phase),
        facts.began_at,
        facts.who
    ));
    demand_runtime(session, facts)?;
    let report = &session.report;
    let mut driver = Driver::new(&session.config, &*session.runtime, front, report, journal, facts.clone());
    let outcome = match driver.recover(&story).await {
        Ok(outcome) => outcome,
        Err(e) => return Err(stopped(&e, front).await),
    };
    readmit(session, front).await;
    let ended = driver.ended(outcome);
    let serves = who_serves(&ended);
    report.say(&match outcome {
        Outcome::Deployed | Outcome::RolledBack => format!("Finished: {serves}"),
        Outcome::Failed(_) => format!("Undone: the candidate was removed; {serves}"),
        Outcome::Returned => format!("Undone: traffic was moved back; {serves}"),
        Outcome::Superseded => format!("Superseded by a newer change: {serves}"),
        Outcome::Attention => {
            let reason = ended.reason.iter().map(|reason| format!(" ({reason})")).collect::<String>();
            format!("Manual intervention required: {serves}{reason}")
        }
    });
    Ok(Some((story, ended)))
}

/// Only the runtime that started a candidate can check and stop it: to another one it seems gone.
fn demand_runtime(session: &Session, facts: &Facts) -> Result<(), Failed> {
    let records = Records::new(&session.config.deploy.state_dir);
    let committed = records.of(&facts.to).map(|record| record.filter(|r| r.operation == facts.operation));
    let found = [records.candidate(&facts.operation), committed];
    for record in found.into_iter().flatten().flatten() {
        if let Err(e) = runtime::demand_kind(session.runtime.kind(), &record.frozen) {
            let message =
                format!("operation {} can't be recovered; nothing was changed: {e}", facts.operation);
            return Err(Failed::new(Exit::Attention, message));
        }
    }
    Ok(())
}

/// Which backend serves, according to the operation's final look.
pub(super) fn who_serves(ended: &Ended) -> String {
    ended.serving.as_ref().map_or_else(|| UNKNOWN.to_owned(), Serving::sentence)
}

/// If uh-proxy doesn't answer, nothing is reported from memory.
const UNKNOWN: &str = "can't determine the active backend: uh-proxy isn't responding";

/// The unfinished operation, if there is one. Changes nothing.
pub(super) fn unfinished(session: &Session) -> Result<Option<Story>, Failed> {
    let story = journal::look(&session.config.deploy.state_dir).map_err(|e| journal_failed(&e))?;
    Ok(story.filter(Story::is_unfinished))
}

/// `green (v1.0.1) serves`
pub(super) async fn serving(front: &Front) -> String {
    front.serving().await.map_or_else(|_| UNKNOWN.to_owned(), |serving| serving.sentence())
}

/// Reports that an operation needs manual intervention.
pub(super) async fn say_attention(session: &Session, front: &Front, ended: &Ended) {
    let serves = match &ended.serving {
        Some(serving) => serving.sentence(),
        None => serving(front).await,
    };
    let reason = ended.reason.iter().map(|reason| format!(" ({reason})")).collect::<String>();
    session.report.say(&format!(
        "\n❌ Manual intervention required: {serves}{reason}. See `uh-deploy history` and `uh-proxy status`"
    ));
}

/// The configuration of a backend. Both uh-proxy and the configuration must know it.
pub(super) fn configured<'a>(
    session: &'a Session,
    view: &View,
    backend: &BackendName,
) -> Result<&'a crate::config::BackendConfig, Failed> {
    if view.backend(backend).is_none() {
        let names: Vec<&str> = view.service.backends.iter().map(|b| b.name.as_str()).collect();
        return Err(Failed::new(
            Exit::Failed,
            format!("uh-proxy has no backend {backend}, only {}; nothing was changed", names.join(", ")),
        ));
    }
    session.config.backend(backend).ok_or_else(|| {
        Failed::new(
            Exit::Failed,
            format!("the configuration has no [backends.{backend}]; nothing was changed"),
        )
    })
}

async fn stopped(error: &DriverError, front: &Front) -> Failed {
    if let DriverError::NotBegun(error) = error {
        let message = format!("{}; nothing was changed: {}", crate::chain(error), serving(front).await);
        return Failed::new(Exit::Failed, message);
    }
    let serves = match error {
        // A switch that was sent may still be carried out.
        DriverError::Unanswered(_) => "can't determine whether traffic has moved".to_owned(),
        _ => serving(front).await,
    };
    let message = format!(
        "{}; the operation stopped here: {serves}. Fix the cause, then run `uh-deploy recover`",
        crate::chain(error)
    );
    Failed::new(Exit::Attention, message)
}
