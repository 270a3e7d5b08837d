//! `uh-deploy blue-green`

use std::time::{Duration, Instant};

use uh_protocol::BackendName;
use uh_protocol::client::ClientError;
use uh_protocol::status::Suspect;

use super::args::{BlueGreenArgs, RetireArgs};
use super::exit::{CliError, Exit};
use super::monitor::{self, resume};
use super::retire::retire;
use super::session::Session;
use super::{Done, alive, canary, operation, rollback, wording};
use crate::deploy::facts::{OperationFacts, new_operation, who};
use crate::deploy::link::WatchLink;
use crate::deploy::machine::{FailureCause, OperationKind, Outcome};
use crate::deploy::member::OperationEnd;
use crate::deploy::progress::DeployStage;
use crate::deploy::records::Records;
use crate::deploy::trial::EarlierTrial;
use crate::deploy::watch::WatchPlan;
use crate::names::named;
use crate::proxy::{ProxyError, ProxyService, ServiceView, Serving};
use crate::runtime::{Candidate, InstanceId};
use crate::time::{iso_millis, span};

/// A version is an environment variable, a label and a word in many messages.
const MAX_VERSION_CHARS: usize = 128;

/// How long to wait for a uh-proxy that is starting.
const PROXY_WITHIN: Duration = Duration::from_secs(30);

/// How often to ask it.
const PROXY_POLL: Duration = Duration::from_millis(100);

pub(super) async fn blue_green(session: &Session, args: &BlueGreenArgs) -> Done {
    let version = version(args)?;
    if args.dry_run {
        return dry_run(session, args, &version).await;
    }
    let proxy = if args.first { proxy_soon(session).await? } else { session.proxy().await? };
    if args.first && serves_already(session, &proxy).await? {
        return Ok(Exit::Done);
    }
    let lock = session.lock(&format!("deploy of {version}"))?;
    if let Some((_, OperationEnd { outcome: Outcome::Attention, .. })) =
        operation::recover_if_needed(session, &proxy).await?
    {
        return Ok(Exit::Attention);
    }
    // The watch goes on if this deploy can't.
    demand_no_split(&proxy.view().await?)?;
    resume::supersede(session, &format!("the deploy of {version}"))?;
    // The recovery may just have finished a deploy.
    if args.first && serves_already(session, &proxy).await? {
        return Ok(Exit::Done);
    }
    let report = &session.report;
    let view = proxy.view().await?;
    if args.first {
        demand_nothing_served(&view)?;
    }
    wording::deploy_stage(session, DeployStage::Choose);
    let mut facts = facts(session, &proxy, &view, &version, args, new_operation(jiff::Timestamp::now()))?;
    facts.canary = canary::plan(session, &view, args);
    let interval = session.config.monitor.interval;
    facts.watch = args.watch.map(|duration| WatchPlan::new(duration, interval, args.auto_rollback));
    report.line(&format!("Active: {} → Building: {}", facts.from, facts.to));
    report.fact("Version", &version);
    let (from_version, to, instance) = (facts.from_version.clone(), facts.to.clone(), facts.instance.clone());
    let (old, new) = (named(&facts.from, from_version.as_deref()), named(&to, Some(&version)));
    let expected_routing = view.expected_routing(&to);
    let (plan, operation) = (facts.watch.clone(), facts.operation.clone());
    let link = WatchLink::default();
    let mut watching = Box::pin(async {
        match plan {
            Some(plan) => monitor::after_switch(session, &proxy, &operation, plan, &link).await.map(Some),
            None => Ok(None),
        }
    });
    let kind = OperationKind::Deploy;
    let deploy = operation::carry_out(session, &proxy, kind, facts, expected_routing, Some(&link));
    let (ended, watched) = monitor::in_parallel(deploy, watching.as_mut()).await;
    let ended = ended?;
    link.set_over();
    let serves = operation::who_serves(&ended);
    match ended.outcome {
        Outcome::Deployed => {
            report.say("\n✅ Deployment complete!");
            report.say(&format!("   Time: {}", span(ended.took)));
            report.say(&format!("   Downtime: {}", ended.downtime));
            // After the first deploy there is no old version.
            if from_version.is_some() {
                report.say(&format!("   {}", fate_of_old(session, &old)));
            }
            // The warnings of step 7 may have scrolled out of view.
            let warnings = ended.serving.iter().flat_map(Serving::warnings);
            warnings.for_each(|warning| report.say(&format!("   ⚠ {warning}")));
        }
        Outcome::Superseded => {
            report.say(&format!(
                "\n❌ Superseded: traffic was switched to {new} and then moved again; {serves}. {instance} keeps running"
            ));
        }
        Outcome::Held => {}
        Outcome::Failed(failure) => {
            let what = if failure == FailureCause::Overtaken {
                format!("Superseded: {version} wasn't deployed")
            } else if failure == FailureCause::Worse {
                format!("Rolled back: the trial found {new} worse, and all clients are back on {old}")
            } else if ended.trial.is_some() {
                format!("Not deployed: the trial of {new} was ended, and all clients are back on {old}")
            } else {
                "Deployment failed; nothing has changed for users".to_owned()
            };
            let kept = args.keep_failed
                && session.runtime.state(&instance).await.is_ok_and(|state| state.is_running());
            let fate = if kept { "keeps running, out of service" } else { "was stopped" };
            report.say(&format!("\n❌ {what}: {serves}; {instance} {fate}"));
            say_rollback_cost(session, &ended).await;
        }
        Outcome::Returned => {
            report.say(&format!(
                "\n❌ Rolled back: {new} died after the switch, so traffic was moved back; {serves}"
            ));
            say_rollback_cost(session, &ended).await;
        }
        Outcome::RolledBack | Outcome::Attention => operation::say_attention(session, &proxy, &ended).await,
    }
    let outcome = ended.outcome;
    if outcome != Outcome::Deployed {
        monitor::drop_watch(session, &operation);
        return Ok(outcome.into());
    }
    // A manual rollback must be possible meanwhile.
    drop(lock);
    // An operation that its recovery finished hasn't signalled the switch.
    link.switched();
    let watched = match watched {
        Some(watched) => watched,
        None => watching.await,
    };
    let exit = match watched? {
        Some((mut watcher, ended)) => {
            monitor::conclude(session, &proxy, &mut watcher, ended, args.require_verdict).await?
        }
        None => outcome.into(),
    };
    // Only now, since a rollback mustn't wait for this or find its target gone.
    if matches!(exit, Exit::Done | Exit::NotEnoughData) {
        if session.config.deploy.warm.is_zero() && from_version.is_some() {
            stop_old(session, &old).await;
        }
        super::prune::after_deploy(session).await;
    }
    Ok(exit)
}

/// What happens to the old version, and what a rollback to it takes.
pub(super) fn fate_of_old(session: &Session, old: &str) -> String {
    let warm = session.config.deploy.warm;
    if warm.is_zero() {
        return format!("{old} isn't kept running (warm is 0s): a rollback has to start it first");
    }
    format!("{old} keeps running for {}: `uh-deploy rollback` switches back to it instantly", span(warm))
}

/// Without a warm window, the old version is stopped here. If that fails, the deploy has still succeeded.
pub(super) async fn stop_old(session: &Session, old: &str) {
    let problem = match retire(session, &RetireArgs { now: false }).await {
        Ok(Exit::Done) => return,
        Ok(_) => String::new(),
        Err(failed) => format!(": {}", failed.message()),
    };
    session.report.warn(&format!("{old} may still be running{problem}. Run `uh-deploy retire` to stop it"));
}

pub(super) async fn say_rollback_cost(session: &Session, ended: &OperationEnd) {
    if let Some(serving) = &ended.serving {
        session.report.say(&format!("   {}", rollback::cost(session, serving).await));
    }
}

pub(super) fn version(args: &BlueGreenArgs) -> Result<String, CliError> {
    let version = args.deploy_version.clone().unwrap_or_default();
    if version.is_empty() {
        return Err(CliError::usage(
            "no version given: pass --version VERSION (under npm run, it is npm_package_version)",
        ));
    }
    if version.chars().count() > MAX_VERSION_CHARS || !version.chars().all(|c| c.is_ascii_graphic()) {
        let message = format!(
            "invalid --version: use 1 to {MAX_VERSION_CHARS} visible ASCII characters without spaces"
        );
        return Err(CliError::usage(message));
    }
    Ok(version)
}

/// Whether something was already deployed and the active backend answers. Reports it, because `compose up` runs this
/// every time.
///
/// # Errors
/// Something was deployed, but the active backend doesn't answer: which version to start isn't ours to guess.
pub(super) async fn serves_already(session: &Session, proxy: &ProxyService) -> Result<bool, CliError> {
    let records = Records::new(&session.config.deploy.state_dir);
    let mut deployed = Vec::new();
    for backend in &session.config.backends {
        let record = records.of(&backend.name).map_err(|e| CliError::new(Exit::Failed, e.to_string()))?;
        deployed.extend(record.map(|record| named(&backend.name, Some(&record.frozen.version))));
    }
    if deployed.is_empty() {
        return Ok(false);
    }
    let serving = proxy.serving().await?;
    let deployed = deployed.join(", ");
    match alive::why_dead(session, &serving).await {
        None => {
            session.report.say(&format!(
                "{deployed} was already deployed, so --first has nothing to do; {}",
                serving.sentence()
            ));
            serving.warnings().iter().for_each(|warning| session.report.warn(warning));
            Ok(true)
        }
        Some(why) => {
            let message = format!(
                "this isn't the first deploy: {deployed} was deployed before, and {} is active but doesn't answer ({why}); nothing was changed. Start it with `uh-deploy start`, or drop --first and pass --version",
                serving.name()
            );
            Err(CliError::new(Exit::Failed, message))
        }
    }
}

/// Our records may be lost while uh-proxy's state isn't: a first deploy must not replace what uh-proxy serves or
/// served.
pub(super) fn demand_nothing_served(view: &ServiceView) -> Result<(), CliError> {
    let (service, active) = (&view.service, &view.service.active);
    let healthy = view.backend(active).and_then(|backend| backend.healthy) == Some(true);
    if service.last_switch.is_none() && service.previous.is_none() && !healthy {
        return Ok(());
    }
    let serves = named(active, view.version(active).as_deref());
    let message = format!(
        "this isn't the first deploy: {serves} is active in uh-proxy, although this state directory has no record of a deploy; nothing was changed. Drop --first and pass --version"
    );
    Err(CliError::new(Exit::Failed, message))
}

/// Finds uh-proxy, which may still be starting.
pub(super) async fn proxy_soon(session: &Session) -> Result<ProxyService, CliError> {
    let deadline = Instant::now() + PROXY_WITHIN;
    loop {
        match ProxyService::find(&session.config).await {
            Err(ProxyError::Call(ClientError::NoProxy { .. })) if Instant::now() < deadline => {
                tokio::time::sleep(PROXY_POLL).await;
            }
            other => return Ok(other?),
        }
    }
}

/// A backend that isn't active, and if possible not the one that a rollback would need.
fn choose(view: &ServiceView) -> Option<BackendName> {
    let mut standbys = view.service.backends.iter().map(|b| &b.name).filter(|name| !view.is_active(name));
    let first = standbys.clone().next().cloned();
    standbys.find(|name| Some(*name) != view.service.previous.as_ref()).cloned().or(first)
}

/// While clients are split between two backends, neither can be replaced. Refused before anything is built.
fn demand_no_split(view: &ServiceView) -> Result<(), CliError> {
    let Some(split) = &view.service.split else { return Ok(()) };
    let (service, to, weight) = (&view.service.name, &split.to, split.weight);
    let message = format!(
        "{weight} % of the clients of {service} go to {to} by a split; nothing was changed. If a canary deploy made it, run `uh-deploy promote` or `uh-deploy abort`. If not, end it with `uh-proxy split off --service {service}`, or move all to {to} with `uh-proxy switch {to} --service {service}`"
    );
    let message = if split.suspect == Suspect::Active {
        format!(
            "half of the clients of {service} are on {to} for the cross-check of a watch, which takes 20 s or as long as both versions fail; nothing was changed. Try again then, or run `uh-deploy rollback`"
        )
    } else {
        message
    };
    Err(CliError::new(Exit::Failed, message))
}

/// The facts of a deploy with this id.
pub(super) fn facts(
    session: &Session,
    proxy: &ProxyService,
    view: &ServiceView,
    version: &str,
    args: &BlueGreenArgs,
    operation: String,
) -> Result<OperationFacts, CliError> {
    let to = choose(view).ok_or_else(|| {
        CliError::new(
            Exit::Failed,
            "uh-proxy has only one backend for this service: a deploy needs a second one",
        )
    })?;
    demand_no_split(view)?;
    let endpoints = operation::configured(session, view, &to)?.endpoints.clone();
    let from = view.service.active.clone();
    Ok(OperationFacts {
        service: proxy.service.clone(),
        together_with: Vec::new(),
        from_version: view.version(&from),
        from,
        version: Some(version.to_owned()),
        endpoints,
        generation: view.generation,
        last_switch: view.service.last_switch.clone(),
        instance: InstanceId::new(&proxy.service, &to, &operation),
        to,
        operation,
        skip_health: args.skip_health,
        keep_failed: args.keep_failed,
        who: who(),
        why: None,
        breach: None,
        watch: None,
        canary: None,
        earlier_trial: view.service.trial.as_ref().map(EarlierTrial::new),
        began_at: iso_millis(jiff::Timestamp::now()),
    })
}

/// Shows what a deploy would do. Takes no lock, writes nothing.
pub(super) async fn dry_run(session: &Session, args: &BlueGreenArgs, version: &str) -> Done {
    let proxy = session.proxy().await?;
    let view = proxy.view().await?;
    let mut facts = facts(session, &proxy, &view, version, args, new_operation(jiff::Timestamp::now()))?;
    facts.canary = canary::plan(session, &view, args);
    let candidate = Candidate {
        service: facts.service.clone(),
        backend: facts.to.clone(),
        version: version.to_owned(),
        endpoints: facts.endpoints.clone(),
    };
    let plan = session.runtime.plan(&candidate).await?;
    let report = &session.report;
    let stage = |stage| wording::deploy_stage(session, stage);
    report.say("Dry run: nothing is changed. A deploy would do this:");
    if let Some(replayed) = operation::unfinished(session)? {
        report.say(&format!(
            "First, the interrupted operation {} would be recovered.",
            replayed.facts.operation
        ));
    }
    let old = named(&facts.from, facts.from_version.as_deref());
    stage(DeployStage::Choose);
    report.line(&format!("Active: {old} → Building: {}", named(&facts.to, Some(version))));
    stage(DeployStage::Build);
    plan.build.iter().for_each(|line| report.line(line));
    stage(DeployStage::Start);
    for leftover in session.runtime.find(&facts.to).await? {
        report.line(&format!("stop and remove {leftover}"));
    }
    plan.start.iter().for_each(|line| report.line(line));
    let endpoints: Vec<String> = facts.endpoints.iter().map(ToString::to_string).collect();
    report.fact("Endpoint", &endpoints.join(", "));
    stage(DeployStage::Prove);
    let gate = &session.config.gate;
    if args.skip_health {
        report.warn("skipped (--skip-health)");
    } else {
        let (successes, within) = (gate.successes, span(gate.within));
        report.line(&format!("{successes} good answers in a row from {}, within {within}", gate.path));
    }
    if let Some(plan) = &facts.canary {
        canary::say_plan(session, &proxy, plan).await?;
    }
    stage(DeployStage::Switch);
    report.line(&format!(
        "switch {} from {} to {} (generation {})",
        facts.service, facts.from, facts.to, facts.generation
    ));
    stage(DeployStage::Drain);
    let drain = span(session.config.deploy.drain_timeout);
    report.line(&format!("wait up to {drain} for the requests in flight on {}", facts.from));
    stage(DeployStage::Record);
    let warm = session.config.deploy.warm;
    report.line(&if warm.is_zero() {
        format!("stop {old} (warm is 0s)")
    } else {
        format!("keep {old} running for {}", span(warm))
    });
    report.event("plan", serde_json::json!({"facts": facts, "plan": plan}));
    Ok(Exit::Done)
}
