//! What deploys and roll backs have in common: the journal, what was interrupted before, and being interrupted.

use uh_protocol::BackendName;

use super::exit::{Exit, Failed};
use super::session::Session;
use crate::deploy::driver::{Driver, DriverError, doing};
use crate::deploy::facts::Facts;
use crate::deploy::journal::{self, Journal, JournalError, Story};
use crate::deploy::link::Link;
use crate::deploy::machine::{Kind, Outcome};
use crate::deploy::records::Records;
use crate::front::{Front, Standing, View};
use crate::runtime;

/// Carries an operation to its end. The lock is held, and what was interrupted before is recovered. Also says how long
/// it took.
pub(super) async fn carry_out(
    session: &Session,
    front: &Front,
    kind: Kind,
    facts: Facts,
    standing: Standing,
    link: Option<&Link>,
) -> Result<(Outcome, std::time::Duration), Failed> {
    let (journal, story) = Journal::open(&session.config.deploy.state_dir).map_err(|e| journal_failed(&e))?;
    if let Some(story) = story.filter(Story::is_unfinished) {
        // A second beginning would make the first one's end unreadable.
        let message = format!(
            "{} was interrupted while {}, and is not at its end; nothing was changed. Run `uh-deploy recover`",
            story.facts.operation,
            doing(story.phase)
        );
        return Err(Failed::new(Exit::Attention, message));
    }
    let operation = facts.operation.clone();
    let driver = Driver::new(&session.config, &*session.runtime, front, &session.report, journal, facts);
    let mut driver = driver.linked(link);
    let name = tokio::select! {
        ended = driver.run(kind, standing) => {
            return match ended {
                Ok(outcome) => Ok((outcome, driver.took())),
                Err(e) => Err(stopped(&e, front).await),
            };
        }
        interrupt = session.interrupts.take() => interrupt.name,
    };
    let took = driver.took();
    drop(driver);
    session.report.say(&format!(
        "{name}: undoing what was begun (once more {name} ends at once; then run `uh-deploy recover`)"
    ));
    match recover_if_needed(session, front).await? {
        Some((story, outcome)) if story.facts.operation == operation => Ok((outcome, took)),
        _ => Err(Failed::new(Exit::Failed, "interrupted before anything was done")),
    }
}

/// Brings an interrupted operation to an end, if there is one. The lock is held.
pub(super) async fn recover_if_needed(
    session: &Session,
    front: &Front,
) -> Result<Option<(Story, Outcome)>, Failed> {
    let (journal, story) = Journal::open(&session.config.deploy.state_dir).map_err(|e| journal_failed(&e))?;
    let Some(story) = story.filter(Story::is_unfinished) else { return Ok(None) };
    let facts = &story.facts;
    session.report.say(&format!(
        "Found {} of {} to {}, interrupted while {} (begun {} by {})",
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
    let serves = serving(front).await;
    report.say(&match outcome {
        Outcome::Deployed => format!("Finished it: {serves}"),
        Outcome::RolledBack => format!("Finished it: {serves}"),
        Outcome::Failed(_) => format!("Undone: the candidate is gone; {serves}"),
        Outcome::Returned => format!("Undone: traffic is back; {serves}"),
        Outcome::Attention => format!("This needs somebody to look: {serves}"),
    });
    Ok(Some((story, outcome)))
}

/// Only the runtime that started a candidate can tell whether it runs, and stop it: another one takes it for gone.
fn demand_runtime(session: &Session, facts: &Facts) -> Result<(), Failed> {
    let records = Records::new(&session.config.deploy.state_dir);
    let committed = records.of(&facts.to).map(|record| record.filter(|r| r.operation == facts.operation));
    let found = [records.candidate(&facts.operation), committed];
    for record in found.into_iter().flatten().flatten() {
        if let Err(e) = runtime::demand_kind(session.runtime.kind(), &record.frozen) {
            let message = format!("{} is unfinished, and nothing was changed: {e}", facts.operation);
            return Err(Failed::new(Exit::Attention, message));
        }
    }
    Ok(())
}

/// Whether something is unfinished, without touching it.
pub(super) fn unfinished(session: &Session) -> Result<Option<Story>, Failed> {
    let story = journal::look(&session.config.deploy.state_dir).map_err(|e| journal_failed(&e))?;
    Ok(story.filter(Story::is_unfinished))
}

/// `green (v1.0.1) serves`
pub(super) async fn serving(front: &Front) -> String {
    match front.view().await {
        Ok(view) => {
            let active = &view.service.active;
            format!("{} serves", crate::deploy::named(active, view.version(active).as_deref()))
        }
        Err(_) => "who serves can't be told, for the front door does not answer".to_owned(),
    }
}

/// Says that an operation came to an end that needs somebody to look.
pub(super) async fn say_attention(session: &Session, front: &Front) {
    let serves = serving(front).await;
    session.report.say(&format!(
        "\n❌ This needs somebody to look: {serves}. See `uh-deploy history` and `uh-proxy status`"
    ));
}

/// The service's backends must be known on both sides.
pub(super) fn configured<'a>(
    session: &'a Session,
    view: &View,
    backend: &BackendName,
) -> Result<&'a crate::config::BackendConfig, Failed> {
    if view.backend(backend).is_none() {
        let names: Vec<&str> = view.service.backends.iter().map(|b| b.name.as_str()).collect();
        return Err(Failed::new(
            Exit::Failed,
            format!(
                "the front door has no backend {backend}, only {}; nothing was changed",
                names.join(", ")
            ),
        ));
    }
    session.config.backend(backend).ok_or_else(|| {
        Failed::new(
            Exit::Failed,
            format!("there is no [backends.{backend}] in the configuration; nothing was changed"),
        )
    })
}

fn journal_failed(error: &JournalError) -> Failed {
    Failed::new(Exit::Attention, crate::chain(error))
}

async fn stopped(error: &DriverError, front: &Front) -> Failed {
    let serves = match error {
        // A switch that was sent may be carried out yet.
        DriverError::Unanswered(_) => "whether traffic has moved can't be told".to_owned(),
        _ => serving(front).await,
    };
    let message = format!(
        "{}; stopped here: {serves}. When that is mended, run `uh-deploy recover`",
        crate::chain(error)
    );
    Failed::new(Exit::Attention, message)
}
