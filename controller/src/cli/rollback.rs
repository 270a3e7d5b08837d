//! `uh-deploy rollback`

use uh_protocol::BackendName;

use super::args::RollbackArgs;
use super::exit::{Exit, Failed};
use super::monitor::resume;
use super::session::Session;
use super::{Done, operation};
use crate::deploy::facts::{Facts, new_operation, who};
use crate::deploy::machine::{Failure, Kind, Outcome};
use crate::deploy::named;
use crate::deploy::records::Records;
use crate::evidence::Breach;
use crate::front::Front;
use crate::runtime::InstanceId;
use crate::time::{iso_millis, span};

pub(super) async fn rollback(session: &Session, args: &RollbackArgs) -> Done {
    let _lock = session.lock("rollback")?;
    let front = session.front().await?;
    if let Some((_, Outcome::Attention)) = operation::recover_if_needed(session, &front).await? {
        return Ok(Exit::Attention);
    }
    resume::supersede(session, "a rollback by hand")?;
    Ok(roll_back(session, &front, args.to.as_ref(), None, None).await?.into())
}

/// Rolls back. `from`: only if this one is active. `breach`: what a watch found wrong with it. The lock is held.
pub(super) async fn roll_back(
    session: &Session,
    front: &Front,
    to: Option<&BackendName>,
    from: Option<&BackendName>,
    breach: Option<&Breach>,
) -> Result<Outcome, Failed> {
    let report = &session.report;
    report.step(1, 4, "Reading current state");
    let view = front.view().await?;
    let active = view.service.active.clone();
    if let Some(expected) = from.filter(|expected| **expected != active) {
        let message = format!("{expected} is not active any more, {active} is: nothing was changed");
        return Err(Failed::new(Exit::Superseded, message));
    }
    let from_version = view.version(&active);
    report.fact("Active", &named(&active, from_version.as_deref()));
    let to = to.or(view.service.previous.as_ref()).cloned().ok_or_else(|| {
        let message = format!("there is nothing to roll back to: {active} has been active from the start. Say --to to name a backend; nothing was changed");
        Failed::new(Exit::Failed, message)
    })?;
    let configured = operation::configured(session, &view, &to)?;
    if to == active {
        return Err(Failed::new(Exit::Failed, format!("{to} is active already: nothing was changed")));
    }
    let record = Records::new(&session.config.deploy.state_dir).of(&to);
    let record = record.map_err(|e| Failed::new(Exit::Failed, format!("cannot read a record: {e}")))?;
    let version = record.as_ref().map(|record| record.frozen.version.clone());
    report.fact("Previous", &named(&to, version.as_deref()));
    let operation = new_operation(jiff::Timestamp::now());
    let facts = Facts {
        service: front.service.clone(),
        from: active.clone(),
        from_version,
        version,
        endpoints: record.map_or_else(|| configured.endpoints.clone(), |record| record.frozen.endpoints),
        generation: view.generation,
        instance: InstanceId::new(&front.service, &to, &operation),
        to: to.clone(),
        operation,
        skip_health: false,
        who: who(),
        why: breach.is_some().then(|| "monitor".to_owned()),
        breach: breach.cloned(),
        watch: None,
        began_at: iso_millis(jiff::Timestamp::now()),
    };
    let standing = view.standing(&facts.to);
    let (outcome, took) = operation::carry_out(session, front, Kind::Rollback, facts, standing, None).await?;
    match outcome {
        Outcome::RolledBack => report.say(&format!("\n✅ Rollback complete in {}!", span(took))),
        Outcome::Failed(Failure::Overtaken) => {
            report.say(&format!("\n❌ Superseded; {}", operation::serving(front).await));
        }
        Outcome::Failed(_) => report
            .say(&format!("\n❌ Rollback failed; nothing has changed: {}", operation::serving(front).await)),
        Outcome::Deployed | Outcome::Returned | Outcome::Attention => {
            operation::say_attention(session, front).await;
        }
    }
    Ok(outcome)
}
