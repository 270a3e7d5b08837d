//! Puts into words what operations report. Stages are numbered and titled here and nowhere else.

use uh_protocol::{Address, BackendName};

use super::canary;
use super::report::Report;
use super::session::Session;
use crate::chain;
use crate::deploy::progress::{DeployStage, Progress, RollbackStage, Unwritten};
use crate::gate::{Diagnosis, GateProgress};
use crate::names::named;
use crate::notice::{Hook, HookProgress};
use crate::proxy::WithdrawalProgress;
use crate::redact::Foreign;
use crate::runtime::RuntimeError;
use crate::time::span;

/// How many stages a deploy has: the last one's number.
const DEPLOY_STAGES: u32 = DeployStage::Record as u32 + 1;

/// How many stages a rollback has.
const ROLLBACK_STAGES: u32 = RollbackStage::Record as u32 + 1;

/// Begins a stage of a deploy.
pub(super) fn deploy_stage(session: &Session, stage: DeployStage) {
    let title = match stage {
        DeployStage::Choose => "Determining inactive environment",
        DeployStage::Build if runs_processes(session) => "Building",
        DeployStage::Build => "Building image",
        DeployStage::Start if runs_processes(session) => "Starting process",
        DeployStage::Start => "Starting container",
        DeployStage::Prove => "Waiting for health checks",
        DeployStage::Switch => "Switching traffic",
        DeployStage::Drain => "Draining old environment",
        DeployStage::Record => "Updating deployment state",
    };
    session.report.step(stage as u32 + 1, DEPLOY_STAGES, title);
}

/// Begins a stage of a rollback to this backend.
pub(super) fn rollback_stage(session: &Session, stage: RollbackStage, to: &BackendName) {
    let title = match stage {
        RollbackStage::Read => "Reading current state",
        RollbackStage::Check => "Validating rollback target",
        RollbackStage::Switch => &format!("Switching traffic to {to}"),
        RollbackStage::Record => "Updating state",
    };
    session.report.step(stage as u32 + 1, ROLLBACK_STAGES, title);
}

/// What happens during an operation.
pub(super) fn progress(session: &Session, progress: Progress<'_>) {
    let report = &*session.report;
    match progress {
        Progress::Of(service) => report.service(service),
        Progress::Deploying(stage) => deploy_stage(session, stage),
        Progress::RollingBack { stage, to } => rollback_stage(session, stage, to),
        Progress::Hook(progress) => hook(report, progress),
        Progress::HookFailed { hook, reason } => {
            let stands = if hook == Hook::PostSwitch { "traffic has moved" } else { "the outcome stands" };
            report.warn(&format!("the hook {} failed ({reason}); {stands}", hook.name()));
        }
        Progress::WebhookFailed(reason) => report.warn(reason),
        Progress::BuildOutput(line) => report.output(line),
        Progress::Built { artifact, took } => {
            report.end_progress();
            report.fact(if runs_processes(session) { "Program" } else { "Image" }, artifact);
            report.fact("Time", &span(took));
        }
        Progress::Target(instance) => report.fact("Instance", instance.as_str()),
        Progress::TargetHealthy => {
            report.fact("Status", "Running ✓");
            report.fact("Health", "OK ✓");
        }
        Progress::TargetStopped => report.fact("Status", "not running: starting it again from its record"),
        Progress::Withdrawal(progress) => withdrawal(report, progress),
        Progress::Clearing(instance) => {
            report.line(&format!("Stopping {instance}, which was kept for a rollback"));
        }
        Progress::FilesCopied(to) => report.fact("Files", &to.display().to_string()),
        Progress::Starting { instance, endpoints } => {
            report.fact(if runs_processes(session) { "Process" } else { "Container" }, instance.as_str());
            report.fact("Port", &ports(endpoints));
        }
        Progress::Gate(progress) => gate(report, progress),
        Progress::GateSkipped => {
            report.warn("health checks are SKIPPED (--skip-health): this version is unverified");
        }
        Progress::Proven { successes, took } => {
            report.end_progress();
            report.line(&format!("Healthy ✓ ({successes} in a row, after {})", span(took)));
        }
        Progress::Trial(progress) => canary::progress(report, progress),
        Progress::Moving { from, to } => {
            let of = |(backend, endpoints): (&BackendName, &[Address])| {
                format!("{backend} ({})", ports(endpoints))
            };
            report.fact("Old", &of(from));
            report.fact("New", &of(to));
        }
        Progress::Unwritten { what, backend, error } => {
            let state = match what {
                Unwritten::Registration => "is registered",
                Unwritten::Switch => "serves",
                Unwritten::Return => "serves again",
                Unwritten::Split => "gets a share of the clients",
            };
            report.warn(&format!("{backend} {state}, but uh-proxy couldn't write that to disk yet: {error}"));
        }
        Progress::Switched => report.line("Traffic switched ✓"),
        Progress::CountersLost(error) => {
            report.warn(&format!("can't save the counters from before the switch: {error}"));
        }
        Progress::Draining { in_flight } => {
            let in_flight = in_flight.map_or("unknown".to_owned(), |n| n.to_string());
            report.fact("Active connections", &in_flight);
            report.output("Waiting for drain...");
        }
        Progress::DrainOver => report.end_progress(),
        Progress::Drained => report.line("Connections drained ✓"),
        Progress::StillInFlight { left, backend, after } => report.warn(&format!(
            "{left} requests are still in flight on {backend} after {}; they continue, and it keeps running",
            span(after)
        )),
        Progress::NotDrained { backend, error } => {
            report.warn(&format!("{backend} couldn't be drained: {}", chain(error)));
        }
        Progress::Unwatched(error) => report.warn(&error.to_string()),
        Progress::Returning(to) => report.say(&format!("Moving traffic back to {to}...")),
        Progress::NotReturned { to, error } => {
            report.say(&format!("❌ can't move traffic back to {to}: {}", chain(error)));
        }
        Progress::Readmitted { backend, version } => report.say(&format!(
            "{} was withdrawn but is still running: it was registered again, so a rollback can use it",
            named(backend, Some(version))
        )),
        Progress::NotReadmitted { backend, error } => {
            report.warn(&format!("{backend} stays withdrawn: {error}"));
        }
        Progress::NotKeptRunning { backend, reason } => {
            report.warn(&format!("{backend} won't be restarted when it exits: {reason}"));
        }
        Progress::RecordUnwritten { backend, error } => {
            report.warn(&format!("can't write the record of {backend}: {error}"));
        }
        Progress::HistoryUnwritten(error) => report.warn(&format!("can't write the history: {error}")),
        Progress::Failed { reason, log } => {
            report.say(&format!("❌ {reason}"));
            indented(report, log);
        }
        Progress::RuntimeFailed(error) => runtime_failed(report, error),
        Progress::TurnedAway(why) => diagnosis(report, why),
        Progress::Deployed(serving) => {
            report.fact("Active", serving.active().as_str());
            report.fact("Version", serving.version().as_deref().unwrap_or("unknown"));
        }
        Progress::RolledBack { serving, undone: (backend, version) } => {
            report.fact("Active", &serving.name());
            report.fact("Previous", &named(backend, version));
        }
        Progress::Remark(text) => report.warn(text),
        Progress::Outcome(entry) => report.event("outcome", entry),
    }
}

/// What happens at the health gate.
pub(super) fn gate(report: &Report, progress: GateProgress<'_>) {
    match progress {
        GateProgress::Attempt { number, of, found } => report.attempt(number, of, found),
        GateProgress::EngineSilent { instance, error } => report.line(&format!(
            "can't determine whether {instance} is running: {}; still waiting while the active backend serves",
            chain(error)
        )),
        GateProgress::EngineBack(instance) => {
            report.line(&format!("the engine responds again, and {instance} can be checked"));
        }
    }
}

/// What happens while a hook runs.
pub(super) fn hook(report: &Report, progress: HookProgress<'_>) {
    match progress {
        HookProgress::Starts { hook, words } => {
            report.line(&format!("hook {}: {}", hook.name(), words.join(" ")));
        }
        HookProgress::Output(line) => report.output(line),
    }
}

/// What happens while a backend is taken out of service.
pub(super) fn withdrawal(report: &Report, progress: WithdrawalProgress<'_>) {
    match progress {
        WithdrawalProgress::Unwritten { backend, error } => {
            report.warn(&format!("{backend} is withdrawn, but that isn't on disk yet: {error}"));
        }
        WithdrawalProgress::Waiting { held, backend } => {
            report.line(&format!("Waiting for {held} requests in flight on {backend}"));
        }
        WithdrawalProgress::StillInFlight { left, backend, after } => report.warn(&format!(
            "{left} requests are still in flight on {backend} after {}; stopping it cuts them",
            span(after)
        )),
    }
}

/// Why a candidate was turned away.
pub(super) fn diagnosis(report: &Report, diagnosis: &Diagnosis) {
    report.say(&format!("❌ {}", diagnosis.headline));
    section(report, "last probe:", &diagnosis.probe);
    last_log_lines(report, &diagnosis.log);
    section(report, "what to try:", &diagnosis.advice);
}

/// The end of a failed candidate's log.
pub(super) fn last_log_lines(report: &Report, lines: &[impl std::fmt::Display]) {
    section(report, "last lines of its log:", lines);
}

fn section(report: &Report, title: &str, lines: &[impl std::fmt::Display]) {
    if !lines.is_empty() {
        report.line(title);
        indented(report, lines);
    }
}

fn runtime_failed(report: &Report, error: &RuntimeError) {
    report.say(&format!("❌ {}", chain(error)));
    indented::<Foreign>(report, error.log());
    if let RuntimeError::PortTaken { .. } = error {
        report.line("what to try: stop the process that uses the port, or give the backend another endpoint");
    }
}

fn indented<T: std::fmt::Display>(report: &Report, lines: &[T]) {
    lines.iter().for_each(|line| report.line(&format!("  {line}")));
}

fn runs_processes(session: &Session) -> bool {
    session.runtime.kind() == "process"
}

/// `3008, 3009`; what has no port is shown whole.
fn ports(endpoints: &[Address]) -> String {
    let port =
        |endpoint: &Address| endpoint.port().map_or_else(|| endpoint.to_string(), |port| port.to_string());
    endpoints.iter().map(port).collect::<Vec<_>>().join(", ")
}
