//! The screen of `uh-deploy status`.

use std::time::Duration;

use jiff::Timestamp;
use uh_protocol::status::{Role, SplitStatus, Suspect, TrialState, TrialStatus};

use super::picture::{Backend, Operation, Picture, Progress, Routing, Watching};
use crate::cli::report::{Line, Mood};
use crate::deploy::history::HistoryEntry;
use crate::deploy::machine::Phase;
use crate::names::named;
use crate::time::span;

/// The lines about all services.
pub(super) fn screen(pictures: &[Picture], now: Timestamp) -> Vec<Line> {
    let mut lines = Vec::new();
    for picture in pictures {
        if !lines.is_empty() {
            lines.push(Line::new(Mood::Plain, ""));
        }
        of_service(picture, now, &mut lines);
    }
    lines
}

fn of_service(picture: &Picture, now: Timestamp, lines: &mut Vec<Line>) {
    if let Some(routing) = &picture.routing {
        of_routing(routing, now, lines);
    }
    if let Some(error) = &picture.error {
        lines.push(Line::new(Mood::Bad, &format!("✗ {error}")));
    }
    if let Some(operation) = &picture.operation {
        lines.push(of_operation(operation, now));
    }
    if let Some(watch) = &picture.watch {
        lines.push(of_watch(watch));
    }
    if let Some(routing) = &picture.routing {
        let possible = if routing.rollback.possible { "" } else { "impossible: " };
        lines.push(labelled(Mood::Plain, "Rollback", &format!("{possible}{}", routing.rollback.text)));
    }
    if let Some(last) = &picture.last {
        lines.push(labelled(Mood::Plain, "Last", &of_history(last, now)));
    }
    lines.extend(picture.warnings.iter().map(|warning| labelled(Mood::Doubt, "Warning", warning)));
}

fn labelled(mood: Mood, label: &str, text: &str) -> Line {
    Line::new(mood, &format!("{label:<11} {text}"))
}

fn of_routing(routing: &Routing, now: Timestamp, lines: &mut Vec<Line>) {
    let uptime = span(Duration::from_secs(routing.proxy_uptime_s));
    let title =
        format!("{} behind uh-proxy {}, which has been up for {uptime}", routing.service, routing.proxy);
    lines.push(Line::new(Mood::Plain, &title));
    lines.extend(routing.backends.iter().map(|backend| of_backend(backend, routing, now)));
    if let Some(why) = &routing.reason {
        lines.push(labelled(
            Mood::Bad,
            "Users",
            &format!("get errors: {} doesn't answer ({why})", routing.active),
        ));
    }
    if let Some(split) = &routing.split {
        lines.push(labelled(Mood::Plain, "Split", &of_split(split, now)));
    }
    if let Some(trial) = &routing.trial {
        let mood = if trial.state == TrialState::Undecided { Mood::Plain } else { Mood::Bad };
        lines.push(labelled(mood, "Trial", &of_trial(trial)));
    }
}

fn of_backend(backend: &Backend, routing: &Routing, now: Timestamp) -> Line {
    let name = named(&backend.name, backend.version.as_deref());
    let role = match (backend.role, &routing.active_since) {
        (Role::Active, Some(since)) => format!("active for {}", ago(since, now)),
        (Role::Active, None) => "active".to_owned(),
        (Role::Standby, _) => "standby".to_owned(),
        (Role::Withdrawn, _) => "out of service".to_owned(),
        (Role::Other, _) => "?".to_owned(),
    };
    let active = backend.role == Role::Active;
    let (mood, health) = match backend.healthy {
        Some(true) => (Mood::Good, "healthy"),
        Some(false) if active => (Mood::Bad, "doesn't answer"),
        Some(false) => (Mood::Plain, "doesn't answer"),
        None if backend.role == Role::Withdrawn => (Mood::Plain, ""),
        None => (Mood::Plain, "health unknown"),
    };
    let mark = if active { "●" } else { "○" };
    let tunnels = match backend.tunnels {
        0 => String::new(),
        1 => ", 1 tunnel".to_owned(),
        tunnels => format!(", {tunnels} tunnels"),
    };
    let text = format!("{mark} {name:<20} {role:<20} {health:<15} {} in flight{tunnels}", backend.in_flight);
    Line::new(mood, &text)
}

/// `10% of the clients go to green, for 12s; renewed by uh-deploy`
fn of_split(split: &SplitStatus, now: Timestamp) -> String {
    let leased = if split.leased { "renewed by uh-deploy" } else { "set by hand or held" };
    format!("{}% of the clients go to {}, for {}; {leased}", split.weight, split.to, ago(&split.since, now))
}

fn of_trial(trial: &TrialStatus) -> String {
    let found = match trial.state {
        TrialState::Undecided => "nothing says so far that it is worse",
        TrialState::Suspicious => "it seems worse",
        TrialState::Bad => "it is worse",
    };
    let what = if trial.suspect == Suspect::Active { "cross-check of" } else { "of" };
    let figures = &trial.failures;
    format!(
        "{what} {}: {found}; {} of {} requests failed there, {} of {} on the other side",
        trial.backend, figures.new_bad, figures.new_requests, figures.old_bad, figures.old_requests
    )
}

fn of_operation(operation: &Operation, now: Timestamp) -> Line {
    let since =
        operation.since.as_deref().map_or_else(String::new, |since| format!(", for {}", ago(since, now)));
    let pid = operation.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
    let phase = operation.phase.map_or_else(String::new, |phase| format!(": {}", of_phase(phase, operation)));
    let what = if operation.what.is_empty() { "another command" } else { operation.what.as_str() };
    let who = &operation.who;
    match operation.progress {
        Progress::Running => labelled(Mood::Plain, "Running", &format!("{what}{since} ({who}{pid}){phase}")),
        Progress::Held => {
            let next = "`uh-deploy promote` or `uh-deploy abort` decides";
            labelled(Mood::Doubt, "Held", &format!("{what} ({who}){phase}; {next}"))
        }
        Progress::Interrupted => {
            labelled(Mood::Bad, "Interrupted", &format!("{what} ({who}){phase}; run `uh-deploy recover`"))
        }
    }
}

fn of_phase(phase: Phase, operation: &Operation) -> String {
    let step = |index: u8| match operation.trial_steps {
        Some(steps) => format!("step {} of {steps} of its trial", u32::from(index) + 1),
        None => format!("step {} of its trial", u32::from(index) + 1),
    };
    match phase {
        Phase::Idle => "beginning".to_owned(),
        Phase::Building => "building".to_owned(),
        Phase::Checking => "checking the target".to_owned(),
        Phase::Starting(_) => "starting it".to_owned(),
        Phase::Probing(_) => "waiting for its health checks".to_owned(),
        Phase::Trying(index) => step(index),
        Phase::Held(index) => format!("stopped at {}", step(index)),
        Phase::Switching(_) => "switching traffic".to_owned(),
        Phase::Draining(_) => "draining the old version".to_owned(),
        Phase::Settling(_) => "watching it settle".to_owned(),
        Phase::Returning(_) => "moving traffic back".to_owned(),
        Phase::Undoing(..) => "undoing".to_owned(),
        Phase::Confirming(_) => "asking uh-proxy which backend serves".to_owned(),
        Phase::Recording(_) => "recording the outcome".to_owned(),
        Phase::Done(_) => "done".to_owned(),
    }
}

fn of_watch(watch: &Watching) -> Line {
    let name = named(&watch.backend, watch.version.as_deref());
    if !watch.running {
        return labelled(Mood::Bad, "Watch", &format!("of {name} was interrupted; run `uh-deploy recover`"));
    }
    let left = span(Duration::from_secs(watch.left_s));
    let then = if watch.auto_rollback { "rolls back if it misbehaves" } else { "only reports" };
    let check = if watch.cross_check { "; comparing it with the old version" } else { "" };
    labelled(Mood::Plain, "Watch", &format!("of {name}, {left} left, {then}{check}"))
}

/// `5m 12s ago: deploy of blue (v1.0.1): deployed, by ci@host`
fn of_history(entry: &HistoryEntry, now: Timestamp) -> String {
    let of = entry.to.as_ref().map(|to| format!(" of {}", named(to, entry.version.as_deref())));
    let reason = entry.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
    format!(
        "{} ago: {}{}: {}{reason}, by {}",
        ago(&entry.at, now),
        entry.command,
        of.unwrap_or_default(),
        entry.outcome.replace('_', " "),
        entry.who
    )
}

/// How long ago this was: `12s`. A clock that was changed doesn't make it negative.
fn ago(at: &str, now: Timestamp) -> String {
    let passed = at.parse::<Timestamp>().ok().and_then(|at| Duration::try_from(now.duration_since(at)).ok());
    // Parts of a second would only flicker.
    match passed.unwrap_or_default().as_secs() {
        0 => "0s".to_owned(),
        seconds => span(Duration::from_secs(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole_seconds_and_never_negative() {
        let now: Timestamp = "2026-12-01T10:00:12.900Z".parse().unwrap();
        assert_eq!(ago("2026-12-01T10:00:00.100Z", now), "12s");
        assert_eq!(ago("2026-12-01T10:00:20Z", now), "0s");
        assert_eq!(ago("yesterday", now), "0s");
    }
}
