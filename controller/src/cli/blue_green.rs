//! `uh-deploy blue-green`

use std::time::{Duration, Instant};

use uh_protocol::BackendName;
use uh_protocol::client::ClientError;

use super::args::BlueGreenArgs;
use super::exit::{Exit, Failed};
use super::monitor::{self, resume};
use super::session::Session;
use super::{Done, operation};
use crate::deploy::facts::{Facts, new_operation, who};
use crate::deploy::link::Link;
use crate::deploy::machine::{Failure, Kind, Outcome};
use crate::deploy::named;
use crate::deploy::records::Records;
use crate::deploy::watch::Plan;
use crate::front::{Front, FrontError, View};
use crate::runtime::{Candidate, InstanceId};
use crate::time::{iso_millis, span};

/// A version is an environment variable, a label and a word in many messages.
const MAX_VERSION_CHARS: usize = 128;

/// How long a front door that is being started is waited for.
const FRONT_WITHIN: Duration = Duration::from_secs(30);

/// How often it is asked for.
const FRONT_POLL: Duration = Duration::from_millis(100);

pub(super) async fn blue_green(session: &Session, args: &BlueGreenArgs) -> Done {
    let version = version(args)?;
    if args.dry_run {
        return dry_run(session, args, &version).await;
    }
    if args.first && something_was_deployed(session).await? {
        return Ok(Exit::Done);
    }
    let lock = session.lock(&format!("deploy of {version}"))?;
    let front = if args.first { front_soon(session).await? } else { session.front().await? };
    if let Some((_, Outcome::Attention)) = operation::recover_if_needed(session, &front).await? {
        return Ok(Exit::Attention);
    }
    resume::supersede(session, &format!("the deploy of {version}"))?;
    // It may have been finished just now.
    if args.first && something_was_deployed(session).await? {
        return Ok(Exit::Done);
    }
    let report = &session.report;
    let view = front.view().await?;
    if args.first {
        demand_nothing_served(&view)?;
    }
    report.step(1, 7, "Determining inactive environment");
    let mut facts = facts(session, &front, &view, &version, args.skip_health)?;
    let interval = session.config.monitor.interval;
    facts.watch = args.watch.map(|duration| Plan::new(duration, interval, args.auto_rollback));
    report.line(&format!("Active: {} → Building: {}", facts.from, facts.to));
    report.fact("Version", &version);
    let (from, from_version) = (facts.from.clone(), facts.from_version.clone());
    let (to, instance) = (facts.to.clone(), facts.instance.clone());
    let standing = view.standing(&to);
    let (plan, operation) = (facts.watch.clone(), facts.operation.clone());
    let link = Link::default();
    let mut watching = Box::pin(async {
        match plan {
            Some(plan) => monitor::after_switch(session, &front, &operation, plan, &link).await.map(Some),
            None => Ok(None),
        }
    });
    let mut watched = None;
    let (outcome, took) = {
        let deploy = operation::carry_out(session, &front, Kind::Deploy, facts, standing, Some(&link));
        let mut deploy = Box::pin(deploy);
        loop {
            tokio::select! {
                done = &mut deploy => break done?,
                ended = &mut watching, if watched.is_none() => watched = Some(ended),
            }
        }
    };
    link.set_over();
    let old = named(&from, from_version.as_deref());
    match outcome {
        Outcome::Deployed => {
            report.say("\n✅ Deployment complete!");
            report.say(&format!("   Time: {}", span(took)));
            report.say("   Downtime: 0s");
            let warm = span(session.config.deploy.warm);
            // Nothing answers there, if this was the first deploy.
            if from_version.is_some() {
                report.say(&format!(
                    "   {old} is kept running for {warm}: `uh-deploy rollback` brings it back at once"
                ));
            }
            super::prune::after_deploy(session).await;
        }
        Outcome::Failed(Failure::Overtaken) => {
            let serves = operation::serving(&front).await;
            report.say(&format!("\n❌ Superseded: {version} was not put in place; {serves}"));
        }
        Outcome::Failed(_) => {
            let serves = operation::serving(&front).await;
            report.say(&format!(
                "\n❌ Deployment failed; nothing has changed for users: {serves}, {instance} is stopped"
            ));
        }
        Outcome::Returned => {
            report.say(&format!(
                "\n❌ Rolled back: {to} (v{version}) died after the switch; {old} serves again"
            ));
        }
        Outcome::RolledBack | Outcome::Attention => operation::say_attention(session, &front).await,
    }
    if outcome != Outcome::Deployed {
        monitor::drop_watch(session, &operation);
        return Ok(outcome.into());
    }
    // Whoever wants to roll back by hand meanwhile must be able to.
    drop(lock);
    // An operation that was interrupted and finished by its recovery has no link.
    link.switched();
    let watched = match watched {
        Some(watched) => watched,
        None => watching.await,
    };
    match watched? {
        Some((mut watcher, ended)) => {
            monitor::conclude(session, &front, &mut watcher, ended, args.require_verdict).await
        }
        None => Ok(outcome.into()),
    }
}

fn version(args: &BlueGreenArgs) -> Result<String, Failed> {
    let version = args.deploy_version.clone().unwrap_or_default();
    if version.is_empty() {
        return Err(Failed::usage("say which version with --version (npm run sets it by itself)"));
    }
    if version.chars().count() > MAX_VERSION_CHARS || !version.chars().all(|c| c.is_ascii_graphic()) {
        let message = format!("--version: write 1 to {MAX_VERSION_CHARS} visible ASCII characters");
        return Err(Failed::usage(message));
    }
    Ok(version)
}

/// Says so, too: whoever starts everything at once (`compose up`) does it more than once.
///
/// # Errors
/// It was, and nothing of it runs: which version is wanted now is not for us to guess.
async fn something_was_deployed(session: &Session) -> Result<bool, Failed> {
    let records = Records::new(&session.config.deploy.state_dir);
    let mut gone = Vec::new();
    for backend in &session.config.backends {
        let record = records.of(&backend.name);
        let record = record.map_err(|e| Failed::new(Exit::Failed, format!("cannot read a record: {e}")))?;
        let Some(record) = record else { continue };
        let deployed = named(&backend.name, Some(&record.frozen.version));
        if session.runtime.state(&record.instance).await?.is_running() {
            session.report.say(&format!("{deployed} was deployed already: nothing to do for --first"));
            return Ok(true);
        }
        gone.push(deployed);
    }
    if gone.is_empty() {
        return Ok(false);
    }
    let gone = gone.join(", ");
    let message = format!(
        "{gone}: deployed once, and not running: this is no first deploy; nothing was changed. `uh-deploy start` brings up \
         the active one; or leave out --first, and say which version"
    );
    Err(Failed::new(Exit::Failed, message))
}

/// Our records may be lost, and the front door's not: what it serves, or once served, is not for a first deploy to replace.
fn demand_nothing_served(view: &View) -> Result<(), Failed> {
    let (service, active) = (&view.service, &view.service.active);
    let healthy = view.backend(active).and_then(|backend| backend.healthy) == Some(true);
    if service.last_switch.is_none() && service.previous.is_none() && !healthy {
        return Ok(());
    }
    let serves = named(active, view.version(active).as_deref());
    let message = format!(
        "nothing is recorded here, but the front door knows of former deploys: {serves} is active; this is no first \
         deploy. Leave out --first, and say which version; nothing was changed"
    );
    Err(Failed::new(Exit::Failed, message))
}

/// A front door that is being started beside us.
pub(super) async fn front_soon(session: &Session) -> Result<Front, Failed> {
    let deadline = Instant::now() + FRONT_WITHIN;
    loop {
        match Front::find(&session.config).await {
            Err(FrontError::Call(ClientError::NoProxy { .. })) if Instant::now() < deadline => {
                tokio::time::sleep(FRONT_POLL).await;
            }
            other => return Ok(other?),
        }
    }
}

/// The backend that is not active, according to the front door. Of several, not the one that a roll back would want.
fn choose(view: &View) -> Option<BackendName> {
    let mut standbys = view.service.backends.iter().map(|b| &b.name).filter(|name| !view.is_active(name));
    let first = standbys.clone().next().cloned();
    standbys.find(|name| Some(*name) != view.service.previous.as_ref()).cloned().or(first)
}

fn facts(
    session: &Session,
    front: &Front,
    view: &View,
    version: &str,
    skip_health: bool,
) -> Result<Facts, Failed> {
    let to = choose(view).ok_or_else(|| {
        Failed::new(Exit::Failed, "the front door has only one backend: a second one is needed to deploy to")
    })?;
    let endpoints = operation::configured(session, view, &to)?.endpoints.clone();
    let from = view.service.active.clone();
    let operation = new_operation(jiff::Timestamp::now());
    Ok(Facts {
        service: front.service.clone(),
        from_version: view.version(&from),
        from,
        version: Some(version.to_owned()),
        endpoints,
        generation: view.generation,
        instance: InstanceId::new(&front.service, &to, &operation),
        to,
        operation,
        skip_health,
        who: who(),
        why: None,
        breach: None,
        watch: None,
        began_at: iso_millis(jiff::Timestamp::now()),
    })
}

/// Says what would be done. Takes no lock, writes nothing.
async fn dry_run(session: &Session, args: &BlueGreenArgs, version: &str) -> Done {
    let front = session.front().await?;
    let view = front.view().await?;
    let facts = facts(session, &front, &view, version, args.skip_health)?;
    let candidate = Candidate {
        service: facts.service.clone(),
        backend: facts.to.clone(),
        version: version.to_owned(),
        endpoints: facts.endpoints.clone(),
    };
    let plan = session.runtime.plan(&candidate).await?;
    let report = &session.report;
    report.say("Dry run: this is what would be done; nothing is changed.");
    if let Some(story) = operation::unfinished(session)? {
        report.say(&format!("First, {} would be recovered: it was interrupted.", story.facts.operation));
    }
    let old = named(&facts.from, facts.from_version.as_deref());
    report.step(1, 7, "Determining inactive environment");
    report.line(&format!("Active: {old} → Building: {} (v{version})", facts.to));
    report.step(2, 7, "Building");
    plan.build.iter().for_each(|line| report.line(line));
    report.step(3, 7, "Starting");
    for leftover in session.runtime.find(&facts.to).await? {
        report.line(&format!("stop and remove {leftover}"));
    }
    plan.start.iter().for_each(|line| report.line(line));
    let endpoints: Vec<String> = facts.endpoints.iter().map(ToString::to_string).collect();
    report.fact("Endpoint", &endpoints.join(", "));
    report.step(4, 7, "Waiting for health checks");
    let gate = &session.config.gate;
    if args.skip_health {
        report.warn("skipped (--skip-health)");
    } else {
        let (successes, within) = (gate.successes, span(gate.within));
        report.line(&format!("{successes} good answers in a row from {} within {within}", gate.path));
    }
    report.step(5, 7, "Switching traffic");
    report.line(&format!(
        "switch {} from {} to {} (generation {})",
        facts.service, facts.from, facts.to, facts.generation
    ));
    report.step(6, 7, "Draining old environment");
    let drain = span(session.config.deploy.drain_timeout);
    report.line(&format!("wait up to {drain} for what {} has in flight", facts.from));
    report.step(7, 7, "Updating deployment state");
    report.line(&format!("keep {old} running for {}", span(session.config.deploy.warm)));
    report.event("plan", serde_json::json!({"facts": facts, "plan": plan}));
    Ok(Exit::Done)
}
