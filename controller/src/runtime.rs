//! What runs a copy of the app: the seam between a deploy and the machine it happens on.
//!
//! The driver decides *when* something is built, started, asked about and stopped; a [`Runtime`] knows *how*. A
//! runtime decides nothing: it never looks at the front door, never chooses a backend, and never stops an instance
//! that it was not asked to stop. [`for_config`] makes the one that the configuration asks for.
//!
//! # Rules for every runtime
//!
//! **An instance's name comes first.** The driver chooses the [`InstanceId`] and writes it to its journal before
//! [`Runtime::start`] is called, so whatever `start` makes must be found again by that name alone, after a `kill -9`
//! at any moment within it. The container's name (or a label, a record in a file) is the name; there is no handle that
//! lives only in memory.
//!
//! **Everything may be asked for twice.** After a crash the driver asks again for what may have been done already:
//! `start` of an instance that runs, `stop` and `remove` of one that is gone, are successes that change nothing.
//! After `stop` or `remove` has returned, a `start` that was under way in a killed controller must not bring the
//! instance back.
//!
//! **Frozen means frozen.** [`Runtime::build`] decides everything that makes the copy what it is (image digest,
//! command, environment, limits) and puts it into [`Frozen::spec`]. `start` uses that and nothing else: not the
//! configuration, not the environment of this process. The driver keeps it, and hands it to `start` again if a roll
//! back finds its target gone.
//!
//! **Secrets stay out of sight.** The spec may hold secrets (the environment): the driver keeps it in a file of mode
//! 0600 and shows it to nobody. A runtime puts none into arguments, labels, errors or progress lines.
//!
//! **Instances outlive us.** An instance must not notice that the controller ends, by itself or by a signal, nor when
//! its terminal goes away.
//!
//! **Waits have deadlines.** No call may hang because an engine does. Dropping a call's future stops the waiting.

pub mod compose;
pub mod docker;
mod endpoint;
mod engine;
mod instance;
pub mod process;

use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uh_protocol::{BackendName, ServiceName};

pub use self::endpoint::Endpoint;
pub use self::instance::InstanceId;
use crate::check::Check;
use crate::config::{Config, RuntimeConfig};
use crate::redact::Foreign;

/// A way to run copies of the app. See the module for the rules.
///
/// Futures need not be `Send`: the driver runs on one thread.
#[async_trait(?Send)]
pub trait Runtime {
    /// `process`, `docker` or `compose`.
    fn kind(&self) -> &'static str;

    /// What `validate` asks of the machine before a deploy: that the engine answers and which version it is, that the
    /// compose tool is there, that the image can be built or the command be found, that what the configuration names
    /// (environment files, volumes, networks) exists. One [`Check`] for each question, in the order of the guide;
    /// changes nothing. A question that can't be answered is a failed check, never an error.
    async fn checks(&self, candidate: &Candidate) -> Vec<Check>;

    /// What [`Runtime::build`] and [`Runtime::start`] would do, for `--dry-run`. Changes nothing.
    ///
    /// # Errors
    /// It can be told already that they would fail.
    async fn plan(&self, candidate: &Candidate) -> Result<Plan, RuntimeError>;

    /// Makes what the candidate will run, and freezes it: an image built or pulled and named by its digest, a command
    /// with its environment. `progress` gets a line at a time, as the tool prints it.
    ///
    /// # Errors
    /// [`RuntimeError::Build`] with the last lines of output.
    async fn build(&self, candidate: &Candidate, progress: Lines<'_>) -> Result<Frozen, RuntimeError>;

    /// Starts an instance from what was frozen, and returns as soon as it is running; whether it is any good is for
    /// the health gate to find out. If the name exists and runs, nothing is done. The instance must restart by itself
    /// after a reboot only if the runtime's own means do that (a restart policy); the driver does not count on it.
    ///
    /// # Errors
    /// It can't be started; then nothing by that name runs. [`RuntimeError::PortTaken`] if something else has its
    /// port, as far as the runtime can tell.
    async fn start(&self, instance: &InstanceId, frozen: &Frozen) -> Result<(), RuntimeError>;

    /// Whether what was frozen can still be started here, as far as that can be known without starting it. Asked before
    /// anything is stopped for it. By default, yes.
    ///
    /// # Errors
    /// Its directory, its program or its runtime is not what it was.
    fn can_start(&self, frozen: &Frozen) -> Result<(), RuntimeError> {
        demand_kind(self.kind(), frozen)
    }

    /// The instance has become its backend's, or is about to, having kept alive with traffic: from now on the runtime's
    /// own means restart it when it ends, if the configuration said so. Never called for a candidate before that, whose
    /// end must fail its deploy at once. By default nothing is
    /// done: an engine has its restart policy from the start.
    ///
    /// # Errors
    /// It can't be told to.
    async fn keep_running(&self, _instance: &InstanceId) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Whether nobody is left to restart an instance that runs. By default somebody is: the engine.
    ///
    /// # Errors
    /// It can't be told.
    async fn is_alone(&self, _instance: &InstanceId) -> Result<bool, RuntimeError> {
        Ok(false)
    }

    /// Starts an instance again, under its own name, that has ended with its machine. One that runs is left alone.
    ///
    /// # Errors
    /// As for [`Runtime::start`].
    async fn revive(&self, instance: &InstanceId, frozen: &Frozen) -> Result<(), RuntimeError> {
        self.start(instance, frozen).await
    }

    /// How an instance is now. Asked several times a second while the health gate waits, so it must be cheap, and
    /// must know of an exit within a few hundred milliseconds.
    ///
    /// # Errors
    /// It can't be told (the engine does not answer). Never for an instance that is not there: [`State::Absent`].
    async fn state(&self, instance: &InstanceId) -> Result<State, RuntimeError>;

    /// All instances of a backend that are ours, running or not, newest last. Found by name, label or record; those
    /// of other services, of other state directories and of nobody are left out.
    ///
    /// # Errors
    /// It can't be told.
    async fn find(&self, backend: &BackendName) -> Result<Vec<InstanceId>, RuntimeError>;

    /// Asks an instance to end (SIGTERM), and kills it at the timeout. Returns when it is gone; what [`Runtime::logs`]
    /// needs stays. Says how it ended.
    ///
    /// # Errors
    /// It still runs.
    async fn stop(&self, instance: &InstanceId, timeout: Duration) -> Result<State, RuntimeError>;

    /// Removes what [`Runtime::stop`] left behind (container, record, logs). Stops it first, at once, if it runs.
    ///
    /// # Errors
    /// Something is left.
    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError>;

    /// Removes those of these artifacts (image ids) that nothing uses. Says what became of each that was here.
    ///
    /// # Errors
    /// The engine does not answer.
    async fn prune(&self, artifacts: &[String]) -> Result<Vec<String>, RuntimeError> {
        let _ = artifacts;
        Err(RuntimeError::Unsupported(format!("the {} runtime makes no images", self.kind())))
    }

    /// Gives an instance's log to `line`, a line at a time, standard output and error together, oldest first. With
    /// [`LogQuery::follow`] it goes on until the instance has ended. No log is no line.
    ///
    /// # Errors
    /// It can't be read, or the query asks for what this runtime does not know.
    async fn logs(
        &self,
        instance: &InstanceId,
        query: &LogQuery,
        line: Lines<'_>,
    ) -> Result<(), RuntimeError>;
}

/// Makes the runtime that the configuration asks for.
#[must_use]
pub fn for_config(config: &Config) -> Box<dyn Runtime> {
    match &config.runtime {
        RuntimeConfig::Process(settings) => Box::new(process::Process::new(config, settings)),
        RuntimeConfig::Docker(settings) => Box::new(docker::Docker::new(config, settings)),
        RuntimeConfig::Compose(settings) => Box::new(compose::Compose::new(config, settings)),
    }
}

/// Demands that what was frozen was frozen by this kind of runtime: no other can start or stop it.
///
/// # Errors
/// It was not.
pub fn demand_kind(kind: &str, frozen: &Frozen) -> Result<(), RuntimeError> {
    if frozen.runtime == kind {
        return Ok(());
    }
    Err(RuntimeError::Unsupported(format!(
        "version {} of {} was started by the {} runtime, and runtime.kind is {kind} now: set it back to {} for this, or \
         deploy the version again",
        frozen.version, frozen.backend, frozen.runtime, frozen.runtime
    )))
}

/// Whoever wants lines of foreign text, one at a time, as they come.
pub type Lines<'a> = &'a (dyn Fn(&Foreign) + 'a);

/// A copy of the app that is about to be: what the driver has decided.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The service.
    pub service: ServiceName,
    /// The backend that it will be.
    pub backend: BackendName,
    /// The app's version.
    pub version: String,
    /// Where it must listen, as this machine and the front door reach it; at least one.
    pub endpoints: Vec<Endpoint>,
}

/// What was decided about a copy when it was built. Enough to start the very same again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// The backend that it is.
    pub backend: BackendName,
    /// The app's version.
    pub version: String,
    /// Where it listens.
    pub endpoints: Vec<Endpoint>,
    /// The runtime that froze it, by [`Runtime::kind`].
    pub runtime: String,
    /// What it is made of, for people and the history: an image digest, a program's path. No secret.
    pub artifact: String,
    /// The runtime's own: whatever `start` needs. May hold secrets.
    pub spec: serde_json::Value,
}

/// How an instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// There is none by that name, or it was never started.
    Absent,
    /// It runs.
    Running {
        /// How often the runtime's own means have started it again since; the process runtime leaves out what was
        /// before it last ran well. More and more: a crash loop.
        restarts: u32,
    },
    /// It has ended.
    Exited(Ending),
}

impl State {
    /// Whether it runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }
}

/// How an instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Its exit code, if it exited and that is known; 128 + n for signal n, as a shell has it.
    pub code: Option<i32>,
    /// It was killed for using too much memory.
    pub out_of_memory: bool,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { out_of_memory: true, .. } => f.write_str("killed for using too much memory"),
            Self { code: Some(code @ 129..=192), .. } => {
                write!(f, "killed by signal {} (exit code {code})", code - 128)
            }
            Self { code: Some(code), .. } => write!(f, "exit code {code}"),
            Self { code: None, .. } => f.write_str("exit code unknown"),
        }
    }
}

/// What a build and a start would do, a sentence for each step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What would be built or pulled.
    pub build: Vec<String>,
    /// What would be started.
    pub start: Vec<String>,
}

/// Which part of a log is wanted.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Only the last lines.
    pub tail: Option<usize>,
    /// Only what was written since.
    pub since: Option<Timestamp>,
    /// And what is written from now on.
    pub follow: bool,
}

/// Why a runtime could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nothing could be made to run.
    #[error("the build failed: {reason}")]
    Build {
        /// Which step, and how it ended.
        reason: String,
        /// The last lines of its output.
        log: Vec<Foreign>,
    },
    /// Something else has the port.
    #[error("{endpoint} is taken by {by}")]
    PortTaken {
        /// The candidate's endpoint.
        endpoint: String,
        /// Who has it, as far as it can be told.
        by: String,
    },
    /// Something about an instance.
    #[error("cannot {action} {instance}")]
    Instance {
        /// `start`, `stop` …
        action: &'static str,
        /// Which one.
        instance: InstanceId,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine or the tool behind the runtime does not answer.
    #[error("{what} does not answer")]
    Unreachable {
        /// The engine or tool.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of the runtime's own can't be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The runtime has no such thing.
    #[error("{0}")]
    Unsupported(String),
}

impl RuntimeError {
    /// The last lines of what failed, if there are any.
    #[must_use]
    pub fn log(&self) -> &[Foreign] {
        match self {
            Self::Build { log, .. } => log,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_is_told_as_a_shell_has_it() {
        let ending = |code, out_of_memory| Ending { code, out_of_memory }.to_string();
        assert_eq!(ending(Some(3), false), "exit code 3");
        assert_eq!(ending(Some(137), false), "killed by signal 9 (exit code 137)");
        assert_eq!(ending(Some(137), true), "killed for using too much memory");
    }
}
