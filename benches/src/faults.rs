//! Faults, injected one by one into uh-proxy under load, and what clients and the operator see of each.
//!
//! A [`Fault`] says what is done, and which failures clients may see of it; its function injects it on a [`stage`] of
//! its own, checks what the operator must see, and measures the time until everything works again. What must never
//! happen is demanded of every one of them: an answer from the wrong backend, a request without an end, a switch
//! that was acknowledged and is lost, an exchange that stays counted.

pub mod admin;
pub mod apps;
pub mod clock;
pub mod disks;
pub mod interference;
pub mod late;
pub mod network;
pub mod processes;
pub mod resources;
pub mod scripted;
pub mod stage;
pub mod table;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::Result;

use uh_testkit::judgement::Verdict;

/// What clients see while uh-proxy is down for a moment.
pub const BROKEN: &[&str] =
    &["could not connect", "closed before the response", "closed within the head", "closed within the body"];

/// The conditions that a fault runs under.
#[derive(Debug, Clone)]
pub struct FaultConditions {
    /// A directory of its own.
    pub dir: PathBuf,
    /// Whether mounts and network are in separate namespaces that end with this process.
    pub isolated: bool,
    /// Whether there is time for more than the short form.
    pub thorough: bool,
}

/// The observations.
#[derive(Debug)]
pub struct Seen {
    /// What the load saw.
    pub verdict: Verdict,
    /// What the fault's own clients saw, in addition.
    pub clients: Vec<String>,
    /// What the operator saw.
    pub operator: String,
    /// From the end of the fault, or the operator's answer to it, until all was well.
    pub recovery: Duration,
}

/// The outcome.
#[derive(Debug)]
pub enum Outcome {
    /// It was injected.
    Seen(Seen),
    /// It can't be injected here; why.
    Skipped(String),
}

/// What a fault's function returns.
pub type Run = Pin<Box<dyn Future<Output = Result<Outcome>>>>;

/// One line of the matrix.
#[derive(Clone, Copy)]
pub struct Fault {
    /// Its name.
    pub name: &'static str,
    /// What is done.
    pub injected: &'static str,
    /// Failures that requests of the load may end with; any other one is a complaint.
    pub may_fail: &'static [&'static str],
    /// Whether the short form has it.
    pub in_short: bool,
    /// Injects it.
    pub run: fn(FaultConditions) -> Run,
}

impl Fault {
    /// Why the observations aren't good enough.
    #[must_use]
    pub fn complaints(&self, seen: &Seen) -> Vec<String> {
        let verdict = &seen.verdict;
        let mut complaints = Vec::new();
        if verdict.requests == 0 {
            complaints.push("no request was made".to_owned());
        }
        for (kind, count) in &verdict.failures {
            if !self.may_fail.contains(&kind.as_str()) {
                complaints.push(format!("{count} requests failed: {kind}"));
            }
        }
        if let Some(first) = verdict.old_answers.first() {
            complaints.push(format!("{} wrong backends; {first}", verdict.old_answers.len()));
        }
        complaints
    }
}

/// All of them, in the order of the table.
#[must_use]
pub fn all() -> Vec<Fault> {
    [
        processes::FAULTS,
        apps::FAULTS,
        disks::FAULTS,
        admin::FAULTS,
        resources::FAULTS,
        clock::FAULTS,
        network::FAULTS,
        interference::FAULTS,
    ]
    .concat()
}
