//! Trials on the command line: `promote`, `hold`, `abort`, and their words.

mod forecast;

use std::time::{Duration, Instant};

use self::forecast::Forecast;
use super::args::BlueGreenArgs;
use super::exit::{CliError, Exit, journal_failed};
use super::monitor::resume;
use super::report::Report;
use super::session::Session;
use super::{Done, operation, wording};
use crate::config::{CanaryPlan, OnNotEnoughData};
use crate::deploy::driver::Driver;
use crate::deploy::facts::{OperationFacts, who};
use crate::deploy::journal::{self, ReplayedOperation};
use crate::deploy::lock;
use crate::deploy::machine::{Event, FailureCause, Outcome, Phase};
use crate::deploy::member::Member;
use crate::deploy::progress::{Progress, TrialProgress};
use crate::deploy::trial::{self, OrderFile, TrialOrder, TrialOutcome, TrialVerdict};
use crate::downtime::TrafficSample;
use crate::names::named;
use crate::proxy::{ProxyError, ProxyService, ServiceView};
use crate::time::span;

/// What to do about a trial that waits for an operator.
pub(super) const WAYS_ON: &str =
    "`uh-deploy promote` gives everybody the new version, `uh-deploy abort` the old one";

/// How long a running deploy may take to obey: it looks five times a second, and may be waiting for uh-proxy.
const OBEYED_WITHIN: Duration = Duration::from_secs(30);

/// For how long a dry run counts requests.
const SAMPLE: Duration = Duration::from_secs(2);

/// How often to look whether it has.
const POLL: Duration = Duration::from_millis(100);

/// The trial of a deploy, if it gets one.
pub(super) fn plan(session: &Session, view: &ServiceView, args: &BlueGreenArgs) -> Option<CanaryPlan> {
    let plan = session.config.canary.clone().filter(|_| !args.no_canary && !args.first)?;
    let active = &view.service.active;
    let healthy = view.backend(active).and_then(|backend| backend.healthy);
    if can_be_compared_with(healthy, view.version(active).as_deref()) {
        return Some(plan);
    }
    session.report.warn(&format!(
        "no trial: {active} is active and isn't healthy, so there is nothing to compare with. Everybody gets the new version at once"
    ));
    None
}

/// Whether the active backend serves, as far as uh-proxy knows. Without probes, one that has a version was deployed.
fn can_be_compared_with(healthy: Option<bool>, version: Option<&str>) -> bool {
    healthy.unwrap_or(version.is_some())
}

/// Shows the trial of a dry run: its steps, and from the present traffic how long they will take and what they can find.
pub(super) async fn say_plan(
    session: &Session,
    proxy: &ProxyService,
    plan: &CanaryPlan,
) -> Result<(), CliError> {
    let report = &session.report;
    report.say(&format!("\nTrial on some clients: {} steps, then everybody", plan.steps.len()));
    let forecast = Forecast::new(plan, requests_per_second(proxy).await?);
    let rate = forecast.requests_per_second;
    for (step, expected) in plan.steps.iter().zip(&forecast.steps_s) {
        let expected = expected.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let expected = expected.map_or_else(
            || format!("more than {}, which isn't enough data", span(step.at_least() + plan.step_timeout())),
            |time| format!("about {}", span(time)),
        );
        let (percent, at_least) = (step.percent(), span(step.at_least()));
        report
            .line(&format!("{percent} % for at least {at_least} and {} requests: {expected}", step.requests));
    }
    report.fact("Traffic now", &format!("{rate:.1} requests/s"));
    let total = forecast
        .total()
        .map_or_else(|| "can't be decided".to_owned(), |time| format!("about {}", span(time)));
    report.fact("Together", &total);
    report.line(&match forecast.finds_points {
        Some(points) => format!("finds a version that fails {points:.1} points more often than the old one; a smaller difference late or never"),
        None => "there is too little traffic to find anything".to_owned(),
    });
    report.fact(
        "Not enough data",
        match plan.on_not_enough_data {
            OnNotEnoughData::Promote => "everybody gets the new version",
            OnNotEnoughData::Hold => "the split stays until you decide (exit 8)",
            OnNotEnoughData::Abort => "everybody gets the old version again (exit 8)",
        },
    );
    report.event("trial_plan", serde_json::json!({"plan": plan, "forecast": forecast}));
    Ok(())
}

/// Measured, not from memory: traffic an hour ago says little.
async fn requests_per_second(proxy: &ProxyService) -> Result<f64, ProxyError> {
    let sample = async || -> Result<TrafficSample, ProxyError> {
        Ok(TrafficSample::read(&proxy.client.metrics().await?, proxy.service.as_str(), 0, 0))
    };
    let (before, start) = (sample().await?, Instant::now());
    tokio::time::sleep(SAMPLE).await;
    let requests = u32::try_from(sample().await?.requests_since(&before)).unwrap_or(u32::MAX);
    Ok(f64::from(requests) / start.elapsed().as_secs_f64())
}

/// What happens during a trial.
pub(super) fn progress(report: &Report, progress: TrialProgress<'_>) {
    match progress {
        TrialProgress::Step { number, of, weight, to } => {
            report.say(&format!("\nTrial, step {number} of {of}: {weight} % of the clients go to {to}"));
            let event = serde_json::json!({"step": number, "of": of, "weight": weight, "backend": to});
            report.event("trial_step", event);
        }
        TrialProgress::CrossCheck { suspicious: true, weight } => {
            report.line(&format!("suspicious: {weight} % of the clients, until it is certain"));
        }
        TrialProgress::CrossCheck { suspicious: false, weight } => {
            report.line(&format!("not confirmed: {weight} % of the clients again"));
        }
        TrialProgress::Verdict(verdict) => say_verdict(report, verdict),
        TrialProgress::Held { new, weight, until } => {
            report
                .say(&format!("\n⏸ Held: {weight} % of the clients stay on {new} until {until}. {WAYS_ON}"));
        }
        TrialProgress::SplitEnded { to, weight } => {
            report.line(&format!("Ended the split: {weight} % of the clients went to {to}"));
        }
    }
}

fn say_verdict(report: &Report, verdict: &TrialVerdict) {
    let (sign, word) = match verdict.verdict {
        TrialOutcome::Pass => ("✓", "pass"),
        TrialOutcome::Fail => ("❌", "fail"),
        TrialOutcome::NotEnoughData => ("⚠", "not enough data"),
    };
    report.say(&format!("{sign} Trial: {word}: {}", verdict.reason));
    verdict.lines().iter().for_each(|line| report.line(line));
    wording::last_log_lines(report, &verdict.log);
    report.event("trial_verdict", verdict);
}

/// `step 2 of 4: 40 % of the clients`
pub(super) fn step_of(replayed: &ReplayedOperation) -> Option<String> {
    let (Phase::Trying(index) | Phase::Held(index)) = replayed.phase else { return None };
    let plan = replayed.facts.canary.as_ref()?;
    let step = plan.steps.get(usize::from(index))?;
    Some(format!(
        "step {} of {}: {} % of the clients",
        u16::from(index) + 1,
        plan.steps.len(),
        step.percent()
    ))
}

/// Nothing else may be changed while a trial waits for an operator.
pub(super) fn is_held(facts: &OperationFacts) -> CliError {
    let new = named(&facts.to, facts.version.as_deref());
    let message = format!("the trial of {new} is held; nothing was changed. {WAYS_ON}");
    CliError::new(Exit::Failed, message)
}

/// `uh-deploy promote | hold | abort`
pub(super) async fn order(session: &Session, order: TrialOrder) -> Done {
    let deadline = Instant::now() + OBEYED_WITHIN;
    loop {
        match session.lock(name(order)) {
            Ok(lock) => {
                let done = decide(session, order).await?;
                drop(lock);
                return after(session, order, done).await;
            }
            Err(failed) if failed.exit() != Exit::Locked => return Err(failed),
            Err(failed) => {
                if give(session, order, deadline, &failed).await? {
                    return Ok(Exit::Done);
                }
            }
        }
    }
}

fn name(order: TrialOrder) -> &'static str {
    match order {
        TrialOrder::Promote => "promote",
        TrialOrder::Hold => "hold",
        TrialOrder::Abort => "abort",
    }
}

/// Gives the order to the deploy that holds the lock. `false`: it is gone.
async fn give(
    session: &Session,
    order: TrialOrder,
    deadline: Instant,
    locked: &CliError,
) -> Result<bool, CliError> {
    let state_dir = &session.config.deploy.state_dir;
    let tried = |replayed: &ReplayedOperation| matches!(replayed.phase, Phase::Trying(_));
    let Some(replayed) = operation::unfinished(session)?.filter(tried) else {
        return Err(CliError::new(Exit::Locked, format!("no trial is under way; {}", locked.message())));
    };
    let operation = replayed.facts.operation.clone();
    let file = OrderFile { operation: operation.clone(), order, who: who() };
    file.write(state_dir).map_err(|e| {
        CliError::new(Exit::Failed, format!("can't write the order: {e}; nothing was changed"))
    })?;
    loop {
        // First, so that the journal has everything that a deploy which is gone has done.
        let gone = lock::at_work(state_dir).is_ok_and(|held| held.is_none());
        let now = journal::look(state_dir).map_err(|e| journal_failed(&e))?;
        let now = now.filter(|now| now.facts.operation == operation);
        let over = !now.as_ref().is_some_and(tried);
        let late = Instant::now() >= deadline;
        if !over && !gone && !late {
            tokio::time::sleep(POLL).await;
            continue;
        }
        // The deploy obeys by taking the file, so an order that can be taken back was not obeyed.
        let obeyed = OrderFile::take(state_dir, &operation).is_none();
        if gone && !over {
            return Ok(false);
        }
        if obeyed {
            let done = match order {
                TrialOrder::Promote => "gives everybody the new version",
                TrialOrder::Hold => "holds the trial and ends",
                TrialOrder::Abort => "gives everybody the old version again",
            };
            session.report.say(&format!("The running deploy {done} now."));
            return Ok(true);
        }
        return Err(if over {
            let instead = instead(now.as_ref().map(|now| now.phase));
            let message = format!(
                "too late: the trial was over before the running deploy got the order, and it {instead}. See `uh-deploy history`"
            );
            CliError::new(Exit::Failed, message)
        } else {
            let message =
                format!("the running deploy hasn't obeyed; nothing was changed. {}", locked.message());
            CliError::new(Exit::Locked, message)
        });
    }
}

/// What a deploy has done instead of obeying. `None`: another operation has begun since.
fn instead(phase: Option<Phase>) -> &'static str {
    match phase {
        Some(Phase::Held(_)) => "holds the trial",
        Some(
            Phase::Switching(_)
            | Phase::Draining(_)
            | Phase::Confirming(Outcome::Deployed)
            | Phase::Recording(Outcome::Deployed)
            | Phase::Done(Outcome::Deployed),
        ) => "gives everybody the new version",
        Some(
            Phase::Undoing(..)
            | Phase::Confirming(Outcome::Failed(_))
            | Phase::Recording(Outcome::Failed(_))
            | Phase::Done(Outcome::Failed(_)),
        ) => "gives everybody the old version again",
        _ => "has ended",
    }
}

/// Continues from the journal, because the deploy that began the trial is gone. The lock is held.
async fn decide(session: &Session, order: TrialOrder) -> Result<Outcome, CliError> {
    let (journal, replayed) = session.journal()?;
    let tried = |replayed: &ReplayedOperation| matches!(replayed.phase, Phase::Trying(_) | Phase::Held(_));
    let Some(replayed) = replayed.filter(tried) else {
        let message = "no trial is under way; nothing was changed. See `uh-deploy history`";
        return Err(CliError::new(Exit::Failed, message));
    };
    let facts = replayed.facts.clone();
    operation::demand_runtime(session, &facts)?;
    let proxy = session.proxy().await?;
    let view = proxy.view().await?;
    demand_unmoved(&view, &facts)?;
    if order == TrialOrder::Promote {
        demand_not_worse(session, &view, &replayed)?;
    }
    let held = matches!(replayed.phase, Phase::Held(_));
    let new = named(&facts.to, facts.version.as_deref());
    let event = match order {
        TrialOrder::Promote => Event::Passed,
        TrialOrder::Abort => Event::Failed(FailureCause::Aborted),
        TrialOrder::Hold if held => return Err(is_held(&facts)),
        TrialOrder::Hold if view.split_to(&facts.to).is_none() => {
            let message = format!(
                "the deploy that tried {new} is gone, and so is the split; nothing was changed. {WAYS_ON}"
            );
            return Err(CliError::new(Exit::Failed, message));
        }
        TrialOrder::Hold => Event::Held,
    };
    operation::say_found(&session.report, &replayed);
    let by = match order {
        TrialOrder::Promote => format!("promoted by {}", who()),
        TrialOrder::Hold => format!("held by {}", who()),
        TrialOrder::Abort => format!("aborted by {}", who()),
    };
    let listener = |progress: Progress<'_>| wording::progress(session, progress);
    let expected_routing = view.expected_routing(&facts.to);
    let member = Member::new(&session.config, &*session.runtime, &proxy, &listener, facts.clone());
    let mut driver = Driver::new(journal, vec![member]);
    let outcome = match driver.decide(&replayed, event, &by, expected_routing).await {
        Ok(outcome) => outcome,
        Err(e) => return Err(operation::stopped(&e, &proxy).await),
    };
    operation::readmit(session, &proxy).await;
    let ended = operation::only(driver, outcome)?;
    let ended = operation::look_again(session, &proxy, ended, &facts.to).await;
    let serves = operation::who_serves(&ended);
    match ended.outcome {
        Outcome::Deployed => session.report.say(&format!("\n✅ Promoted: {serves}")),
        Outcome::Failed(FailureCause::Aborted) => {
            session.report.say(&format!("\n✅ Aborted: {new} was removed; {serves}"));
        }
        Outcome::Held => {}
        _ => session.report.say(&operation::recovered(&ended)),
    }
    Ok(ended.outcome)
}

/// Nobody may have seen that uh-proxy has found the version worse: its trial was held, or its deploy is gone.
fn demand_not_worse(
    session: &Session,
    view: &ServiceView,
    replayed: &ReplayedOperation,
) -> Result<(), CliError> {
    let (facts, trial) = (&replayed.facts, view.service.trial.as_ref());
    let Some(verdict) = trial::worse(trial, facts, None, replayed.step) else { return Ok(()) };
    say_verdict(&session.report, &verdict);
    let message = format!(
        "uh-proxy has found {} worse and ended its split; nothing was changed. `uh-deploy abort` or `uh-deploy recover` removes it",
        named(&facts.to, facts.version.as_deref())
    );
    Err(CliError::new(Exit::Failed, message))
}

/// What the deploy relied on must still be so.
fn demand_unmoved(view: &ServiceView, facts: &OperationFacts) -> Result<(), CliError> {
    if view.is_active(&facts.from) && view.has_endpoints(&facts.to, &facts.endpoints) {
        return Ok(());
    }
    let message = format!(
        "the routing has changed since the trial: {} is active; nothing was changed. Run `uh-deploy recover`",
        view.service.active
    );
    Err(CliError::new(Exit::Superseded, message))
}

/// The exit code of an order. A deploy that was promoted may have a watch, which goes on as after a crash.
async fn after(session: &Session, order: TrialOrder, outcome: Outcome) -> Done {
    match (order, outcome) {
        (TrialOrder::Promote, Outcome::Deployed) => {
            let proxy: ProxyService = session.proxy().await?;
            let watched = resume::finish(session, &proxy).await?;
            Ok(watched.unwrap_or(Exit::Done))
        }
        (TrialOrder::Abort, Outcome::Failed(FailureCause::Aborted)) | (TrialOrder::Hold, Outcome::Held) => {
            Ok(Exit::Done)
        }
        (_, other) => Ok(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::machine::{InstanceOrigin, OperationKind, OperationTarget};

    #[test]
    fn an_order_that_came_too_late_says_what_happened_instead() {
        let target = OperationTarget { kind: OperationKind::Deploy, origin: InstanceOrigin::Ours };
        let failed = Outcome::Failed(FailureCause::Worse);
        for (phase, expected) in [
            (Some(Phase::Held(1)), "holds the trial"),
            (Some(Phase::Switching(target)), "gives everybody the new version"),
            (Some(Phase::Done(Outcome::Deployed)), "gives everybody the new version"),
            (Some(Phase::Undoing(target, FailureCause::Worse)), "gives everybody the old version again"),
            (Some(Phase::Recording(failed)), "gives everybody the old version again"),
            (Some(Phase::Done(Outcome::Superseded)), "has ended"),
            (None, "has ended"),
        ] {
            assert_eq!(instead(phase), expected, "{phase:?}");
        }
    }

    #[test]
    fn only_what_serves_can_be_compared_with() {
        for (healthy, version, expected) in [
            (Some(true), None, true),
            (Some(false), Some("1"), false),
            // uh-proxy doesn't probe, or hasn't yet.
            (None, Some("1"), true),
            (None, None, false),
        ] {
            assert_eq!(can_be_compared_with(healthy, version), expected, "{healthy:?} {version:?}");
        }
    }
}
