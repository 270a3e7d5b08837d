//! `uh-deploy rollback`

mod automatic;
mod undo;

use uh_protocol::BackendName;

use super::args::RollbackArgs;
use super::exit::{CliError, Exit};
use super::monitor::{Watcher, resume};
use super::session::Session;
use super::{Done, operation, wording};
use crate::deploy::facts::{OperationFacts, new_operation, who};
use crate::deploy::history::{History, HistoryEntry};
use crate::deploy::machine::{FailureCause, OperationKind, Outcome};
use crate::deploy::member::OperationEnd;
use crate::deploy::progress::RollbackStage;
use crate::deploy::records::{BackendRecord, Records};
use crate::evidence::Breach;
use crate::names::named;
use crate::proxy::{ProxyService, Serving};
use crate::runtime::InstanceId;
use crate::time::{iso_millis, same_switch, span};

pub(super) use automatic::{Obstacle, after, automatic, not_rolled_back, obstacle};
use undo::{Undo, UndoRequest};

pub(super) async fn rollback(session: &Session, args: &RollbackArgs) -> Done {
    let proxy = ProxyService::find_soon(&session.config).await?;
    // What is active while "the last change" is still the one that the operator means.
    let requested = proxy.serving_soon().await?;
    // The timers hold the lock only briefly, and giving up would leave a bad version serving.
    let _lock = match session.lock_patiently("rollback").await {
        Err(failed) if failed.exit() != Exit::Locked => return Err(by_hand(session, failed).await),
        other => other?,
    };
    if args.to.is_none() && args.of.is_none() {
        demand_unmoved(&requested, &proxy.serving_soon().await?)?;
    }
    let recovered = operation::recover_if_needed(session, &proxy).await;
    if let Some((_, OperationEnd { outcome: Outcome::Attention, .. })) = recovered? {
        return Ok(Exit::Attention);
    }
    resume::supersede(session, "a manual rollback")?;
    let serving = proxy.serving_soon().await?;
    let to = match (&args.to, &args.of) {
        (Some(to), _) => to.clone(),
        (None, of) => {
            let wanted = of.as_deref().map_or(UndoRequest::LastChange, UndoRequest::Of);
            find_undo(session, &serving, wanted)?.to
        }
    };
    let again = args.to.is_some() && args.again;
    match roll_back(session, &proxy, &serving, &to, again, None).await.map_err(CliError::from) {
        Ok(ended) if ended.outcome == Outcome::Returned => Ok(Exit::Attention),
        Ok(ended) => Ok(ended.outcome.into()),
        Err(failed) if failed.is_of_journal() => Err(by_hand(session, failed).await),
        Err(failed) => Err(failed),
    }
}

/// The holder of the lock may have put another version in place. The request wasn't to undo that one, and undoing it
/// would bring back what it replaced.
fn demand_unmoved(before: &Serving, now: &Serving) -> Result<(), CliError> {
    let switched = |serving: &Serving| serving.view().service.last_switch.clone();
    if before.is(now.active()) && same_switch(switched(before).as_deref(), switched(now).as_deref()) {
        return Ok(());
    }
    let message = format!(
        "{} was active when this rollback was requested, but traffic moved while it waited for the lock: {}. Nothing was changed; run it again to undo the newer change",
        before.name(),
        now.sentence()
    );
    Err(CliError::new(Exit::Superseded, message))
}

/// Without a writable state directory a rollback is refused, but uh-proxy can still move traffic.
async fn by_hand(session: &Session, failed: CliError) -> CliError {
    let Ok(proxy) = session.proxy().await else { return failed };
    let Ok(serving) = proxy.serving().await else { return failed };
    let service = &serving.view().service;
    let previous = service.previous.as_ref().map_or("BACKEND", BackendName::as_str);
    failed.with_hint(&format!(
        "{}. To move traffic without uh-deploy, run `uh-proxy switch {previous} --service {}`",
        serving.sentence(),
        service.name
    ))
}

/// Why there is no rollback.
enum NoRollback {
    /// Refused: another attempt would be refused too.
    Refused(String),
    /// Failed for a reason that may pass.
    Failed(CliError),
}

impl From<CliError> for NoRollback {
    fn from(failed: CliError) -> Self {
        Self::Failed(failed)
    }
}

impl From<NoRollback> for CliError {
    fn from(no: NoRollback) -> Self {
        match no {
            NoRollback::Refused(why) => Self::new(Exit::Failed, why),
            NoRollback::Failed(failed) => failed,
        }
    }
}

/// The facts of a rollback that undoes the last change of a member of a release, or the deploy of this version; and the
/// operation that made that change.
pub(super) fn facts_in_release(
    session: &Session,
    proxy: &ProxyService,
    serving: &Serving,
    of: Option<&str>,
    operation: &str,
) -> Result<(OperationFacts, Option<String>), CliError> {
    let undo = find_undo(session, serving, of.map_or(UndoRequest::LastChange, UndoRequest::Of))?;
    let facts = facts(session, proxy, serving, &undo.to, false, operation.to_owned())?;
    Ok((facts, undo.operation))
}

/// The same, to a backend that the operator named.
pub(super) fn facts_to_backend(
    session: &Session,
    proxy: &ProxyService,
    serving: &Serving,
    to: &BackendName,
    again: bool,
    operation: &str,
) -> Result<OperationFacts, CliError> {
    Ok(facts(session, proxy, serving, to, again, operation.to_owned())?)
}

/// The same, for the automatic rollback of a watched member of a release. Returns what serves now, too.
pub(super) async fn facts_of_watched(
    watcher: &Watcher<'_>,
    breach: &Breach,
    operation: &str,
) -> Result<(OperationFacts, Option<String>, Serving), CliError> {
    let (session, proxy) = (watcher.session(), watcher.proxy());
    let (serving, undo) = automatic::undo_of_watched(session, proxy, watcher).await?;
    let facts = facts(session, proxy, &serving, &undo.to, false, operation.to_owned());
    let mut facts = facts.map_err(automatic::for_good)?;
    facts.why = Some("monitor".to_owned());
    facts.breach = Some(breach.clone());
    Ok((facts, undo.operation, serving))
}

/// The operation that made the last change that was kept.
pub(super) fn last_kept(session: &Session) -> Result<Option<String>, CliError> {
    Ok(undo::last_kept(&history(session)?).and_then(|line| line.operation.clone()))
}

/// The change to undo, whose target must still hold the version that served before.
fn find_undo(session: &Session, serving: &Serving, wanted: UndoRequest<'_>) -> Result<Undo, NoRollback> {
    let history = history(session)?;
    let undo = undo::find(&history, serving, wanted).map_err(NoRollback::Refused)?;
    let record = record(session, &undo.to)?.map(|record| record.frozen.version);
    let held = record.or_else(|| serving.view().version(&undo.to));
    undo.demand_its_version(held.as_deref(), &history, serving).map_err(NoRollback::Refused)?;
    Ok(undo)
}

fn history(session: &Session) -> Result<Vec<HistoryEntry>, CliError> {
    let lines = History::new(&session.config.deploy.state_dir).lines();
    lines.map_err(|e| {
        CliError::new(Exit::Failed, format!("can't read the history ({e}); nothing was changed"))
    })
}

fn record(session: &Session, backend: &BackendName) -> Result<Option<BackendRecord>, CliError> {
    let record = Records::new(&session.config.deploy.state_dir).of(backend);
    record.map_err(|e| CliError::new(Exit::Failed, format!("{e}; nothing was changed")))
}

/// The facts of a rollback from the active backend to another one.
fn facts(
    session: &Session,
    proxy: &ProxyService,
    serving: &Serving,
    to: &BackendName,
    again: bool,
    operation: String,
) -> Result<OperationFacts, NoRollback> {
    let report = &session.report;
    let refuse = |why: String| Err(NoRollback::Refused(why));
    let view = serving.view();
    let configured = operation::configured(session, view, to)?;
    if serving.is(to) {
        return refuse(format!("{to} is already active; nothing was changed"));
    }
    let record = record(session, to)?;
    let version = record.as_ref().map(|record| record.frozen.version.clone());
    if !again && undo::was_rolled_back(&history(session)?, to, version.as_deref()) {
        let name = named(to, version.as_deref());
        return refuse(format!(
            "{name} was rolled back before; {}. Nothing was changed. To switch to it anyway, run `uh-deploy rollback --to {to} --again`",
            serving.sentence()
        ));
    }
    wording::rollback_stage(session, RollbackStage::Read, to);
    report.fact("Active", &serving.name());
    report.fact("Previous", &named(to, version.as_deref()));
    Ok(OperationFacts {
        service: proxy.service.clone(),
        together_with: Vec::new(),
        from: serving.active().clone(),
        from_version: serving.version(),
        version,
        endpoints: record.map_or_else(|| configured.endpoints.clone(), |record| record.frozen.endpoints),
        generation: view.generation,
        last_switch: view.service.last_switch.clone(),
        instance: InstanceId::new(&proxy.service, to, &operation),
        to: to.clone(),
        operation,
        skip_health: false,
        keep_failed: false,
        who: who(),
        why: None,
        breach: None,
        watch: None,
        canary: None,
        earlier_trial: None,
        began_at: iso_millis(jiff::Timestamp::now()),
    })
}

/// Rolls back from the active backend to another one. `breach`: what a watch found wrong. The lock is held.
async fn roll_back(
    session: &Session,
    proxy: &ProxyService,
    serving: &Serving,
    to: &BackendName,
    again: bool,
    breach: Option<&Breach>,
) -> Result<OperationEnd, NoRollback> {
    let report = &session.report;
    let view = serving.view();
    let operation = new_operation(jiff::Timestamp::now());
    let mut facts = facts(session, proxy, serving, to, again, operation)?;
    facts.why = breach.is_some().then(|| "monitor".to_owned());
    facts.breach = breach.cloned();
    let (expected_routing, from) = (view.expected_routing(&facts.to), serving.name());
    let ended =
        operation::carry_out(session, proxy, OperationKind::Rollback, facts, expected_routing, None).await?;
    let serves = operation::who_serves(&ended);
    match ended.outcome {
        Outcome::RolledBack => {
            report.say(&format!("\n✅ Rollback complete in {}!", span(ended.took)));
            ended.moved_after.iter().for_each(|after| report.say(&format!("   Traffic moved after {}", span(*after))));
            report.say(&format!("   {serves}; undone: {from}"));
        }
        Outcome::Superseded | Outcome::Failed(FailureCause::Overtaken) => {
            report.say(&format!("\n❌ Superseded by a newer change: {serves}"));
        }
        Outcome::Failed(_) => {
            report.say(&format!("\n❌ Rollback failed; nothing has changed: {serves}"));
        }
        Outcome::Returned => report.say(&format!(
            "\n❌ The rollback failed: {to} died after the switch, so traffic was moved back; {serves}. Manual intervention required"
        )),
        Outcome::Deployed | Outcome::Attention | Outcome::Held => operation::say_attention(session, proxy, &ended).await,
    }
    Ok(ended)
}

/// What a rollback would take now, after a failed deploy, which may have stopped the standby.
pub(super) async fn cost(session: &Session, serving: &Serving) -> String {
    match price(session, serving).await {
        Ok(price) => format!("A rollback now: {price}"),
        Err(why) => format!("A rollback now: impossible ({why})"),
    }
}

/// What a rollback would take now, with the command, or why there is none.
pub(super) async fn price(session: &Session, serving: &Serving) -> Result<String, String> {
    let price = async {
        let lines = history(session).map_err(|failed| failed.message().to_owned())?;
        let undo = find_undo(session, serving, UndoRequest::Active);
        let undo = undo.map_err(|no| CliError::from(no).message().to_owned())?;
        let record = record(session, &undo.to).map_err(|failed| failed.message().to_owned())?;
        let Some(record) = record else { return Err(format!("there is no record of {}", undo.to)) };
        let name = named(&undo.to, Some(&record.frozen.version));
        if undo::was_rolled_back(&lines, &undo.to, Some(&record.frozen.version)) {
            return Err(format!("{name} was rolled back before"));
        }
        let command = serving.version().map_or_else(
            || format!("uh-deploy rollback --to {}", undo.to),
            |version| format!("uh-deploy rollback --of {version}"),
        );
        match session.runtime.state(&record.instance).await {
            Ok(state) if state.is_running() => Ok(format!("instant, {name} is running: `{command}`")),
            Ok(_) => Ok(format!("has to start {name} first, which isn't running: `{command}`")),
            Err(e) => Err(crate::chain(&e)),
        }
    };
    price.await.map_err(|why| in_short(&why).to_owned())
}

/// A refusal without who serves, which is said already, and without what wasn't changed.
fn in_short(why: &str) -> &str {
    let why = why.strip_prefix("nothing to roll back to: ").unwrap_or(why);
    why.split("; ").next().unwrap_or(why).trim_end_matches('.')
}
