//! What an operation reports while it runs: stages, and facts within them. The command line numbers and words them.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use uh_protocol::{Address, BackendName, ServiceName};

use super::history::HistoryEntry;
use super::trial::TrialVerdict;
use crate::gate::{Diagnosis, GateProgress};
use crate::notice::{Hook, HookProgress};
use crate::proxy::{ProxyError, Serving, WithdrawalProgress};
use crate::redact::Foreign;
use crate::runtime::{InstanceId, RuntimeError};

/// Receives the progress of an operation.
pub(crate) type Listener<'a> = &'a (dyn Fn(Progress<'_>) + 'a);

/// The stages of a deploy, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeployStage {
    /// Finding a backend that isn't active.
    Choose,
    /// Building what the candidate will run.
    Build,
    /// Clearing the candidate's place, and starting it.
    Start,
    /// Waiting until it passes the health gate.
    Prove,
    /// Registering it with uh-proxy, and switching to it.
    Switch,
    /// Waiting for the old backend's requests.
    Drain,
    /// Writing records and history.
    Record,
}

/// The stages of a rollback, in order. If its target has to be started first, that is part of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RollbackStage {
    /// Finding out what serves, and what served before.
    Read,
    /// Checking that the target can serve.
    Check,
    /// Switching to it.
    Switch,
    /// Writing the history.
    Record,
}

/// A change of the routing that is in force, but not on uh-proxy's disk yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwritten {
    /// The candidate's registration.
    Registration,
    /// The switch.
    Switch,
    /// The switch back.
    Return,
    /// The candidate's share of the clients.
    Split,
}

/// What happens during a trial.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TrialProgress<'a> {
    /// A step begins: this percentage of the clients go to the candidate.
    Step { number: u8, of: usize, weight: f64, to: &'a BackendName },
    /// The share of clients changes because of a suspicion, or because one is settled.
    CrossCheck { suspicious: bool, weight: f64 },
    /// It has a verdict.
    Verdict(&'a TrialVerdict),
    /// It waits for an operator: this percentage of the clients stay with the candidate until then.
    Held { new: &'a str, weight: f64, until: &'a str },
    /// Its split was ended.
    SplitEnded { to: &'a BackendName, weight: f64 },
}

/// What happens during an operation. The reasons and remarks are in the words that the history keeps.
#[derive(Clone, Copy)]
pub(crate) enum Progress<'a> {
    /// What follows is about this one of several services.
    Of(&'a ServiceName),
    /// A stage of a deploy begins.
    Deploying(DeployStage),
    /// A stage of a rollback to this backend begins.
    RollingBack { stage: RollbackStage, to: &'a BackendName },
    /// A hook runs.
    Hook(HookProgress<'a>),
    /// A hook failed whose failure changes nothing.
    HookFailed { hook: Hook, reason: &'a str },
    /// The webhook failed.
    WebhookFailed(&'a str),
    /// The build printed a line.
    BuildOutput(&'a Foreign),
    /// What the candidate will run is built.
    Built { artifact: &'a str, took: Duration },
    /// The instance that a rollback switches to.
    Target(&'a InstanceId),
    /// It runs, and is healthy.
    TargetHealthy,
    /// It doesn't run, and is started from its record.
    TargetStopped,
    /// A backend is taken out of service.
    Withdrawal(WithdrawalProgress<'a>),
    /// An instance that was kept for a rollback is stopped, to make room.
    Clearing(&'a InstanceId),
    /// The candidate's files were copied to where uh-proxy serves them.
    FilesCopied(&'a Path),
    /// The candidate is started.
    Starting { instance: &'a InstanceId, endpoints: &'a [Address] },
    /// The candidate is at the health gate.
    Gate(GateProgress<'a>),
    /// It isn't checked, as requested.
    GateSkipped,
    /// It has passed.
    Proven { successes: u32, took: Duration },
    /// A trial is under way.
    Trial(TrialProgress<'a>),
    /// Traffic is about to move between these backends.
    Moving { from: (&'a BackendName, &'a [Address]), to: (&'a BackendName, &'a [Address]) },
    /// A change of the routing is lost if uh-proxy is restarted now.
    Unwritten { what: Unwritten, backend: &'a BackendName, error: &'a str },
    /// Traffic has moved.
    Switched,
    /// The counters from before the switch can't be saved, so a watch can't compare.
    CountersLost(&'a dyn Display),
    /// The wait for the old backend's requests begins. `None`: it is unknown how many there are.
    Draining { in_flight: Option<u64> },
    /// The wait is over.
    DrainOver,
    /// All of them have ended.
    Drained,
    /// Some have not, and continue.
    StillInFlight { left: u64, backend: &'a BackendName, after: Duration },
    /// The old backend couldn't be drained.
    NotDrained { backend: &'a BackendName, error: &'a ProxyError },
    /// The target of a rollback can't be watched.
    Unwatched(&'a dyn Display),
    /// Traffic is moved back.
    Returning(&'a BackendName),
    /// It can't be moved back.
    NotReturned { to: &'a BackendName, error: &'a ProxyError },
    /// A backend that was withdrawn and not stopped is in service again.
    Readmitted { backend: &'a BackendName, version: &'a str },
    /// It stays withdrawn, because its record can't be read.
    NotReadmitted { backend: &'a BackendName, error: &'a dyn Display },
    /// An instance won't be restarted when it exits.
    NotKeptRunning { backend: &'a BackendName, reason: &'a str },
    /// A backend's record can't be written.
    RecordUnwritten { backend: &'a BackendName, error: &'a dyn Display },
    /// The history can't be written.
    HistoryUnwritten(&'a dyn Display),
    /// The operation failed.
    Failed { reason: &'a str, log: &'a [Foreign] },
    /// It failed in the runtime.
    RuntimeFailed(&'a RuntimeError),
    /// The candidate was turned away.
    TurnedAway(&'a Diagnosis),
    /// A deploy is done, and this serves.
    Deployed(&'a Serving),
    /// A rollback is done, this serves, and that was undone.
    RolledBack { serving: &'a Serving, undone: (&'a BackendName, Option<&'a str>) },
    /// A warning that the history keeps in the same words.
    Remark(&'a str),
    /// The operation's entry in the history.
    Outcome(&'a HistoryEntry),
}
