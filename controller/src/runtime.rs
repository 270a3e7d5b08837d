//! Runs instances of the app: the interface between a deploy and the machine.
//!
//! The driver decides *when* to build, start, check and stop something; a [`Runtime`] knows *how*. A runtime decides
//! nothing: it never talks to uh-proxy, never chooses a backend, and never stops an instance that it wasn't asked to
//! stop. [`for_config`] makes the configured one.
//!
//! # Rules for every runtime
//!
//! **An instance's name comes first.** The driver chooses the [`InstanceId`] and writes it to its journal before it calls [`Runtime::start`]. Whatever `start` creates must be found by that name alone, even after a `kill -9` at any moment: the container's name, a label or a record in a file is the name, and no handle lives only in memory.
//!
//! **Every call may be repeated.** After a crash, the driver repeats calls that may already have been carried out: `start` of a running instance, and `stop` and `remove` of a missing one, succeed and change nothing. After `stop` or `remove` has returned, a `start` that was in progress in a killed uh-deploy must not bring the instance back.
//!
//! **Frozen means frozen.** [`Runtime::build`] decides everything about the instance (image digest, command, environment, limits) and puts it into [`Frozen::spec`]. `start` uses only that: neither the configuration nor the environment of this process. The driver stores it, and passes it to `start` again if a rollback finds its target stopped.
//!
//! **Secrets stay hidden.** The spec may hold secrets (the environment): the driver stores it in a file of mode 0600 and never prints it. A runtime puts no secrets into arguments, labels, errors or progress lines.
//!
//! **Instances outlive uh-deploy.** An instance must not be affected when uh-deploy exits or is killed, or when its terminal closes.
//!
//! **Waits have deadlines.** No call may hang because an engine hangs. Dropping a call's future stops the waiting.

mod compose;
mod docker;
mod engine;
pub(crate) mod front_door;
mod instance;
pub(crate) mod ports;
pub mod process;

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uh_protocol::{Address, BackendName, ServiceName};

pub use self::instance::InstanceId;
use crate::check::Check;
use crate::config::{Config, RuntimeConfig};
use crate::lines::Lines;
use crate::redact::Foreign;
use crate::waiting::Waiting;

/// A way to run instances of the app. See the module for the rules.
///
/// Futures don't have to be `Send`: the driver runs on one thread.
#[async_trait(?Send)]
pub trait Runtime {
    /// `process`, `docker` or `compose`.
    fn kind(&self) -> &'static str;

    /// The checks of `validate`: that the engine answers, that the compose tool is installed, that the image can be
    /// built or the command is found, and that what the configuration names (environment files, volumes, networks)
    /// exists. Changes nothing. What can't be determined is a failed check, never an error.
    async fn checks(&self, candidate: &Candidate) -> Vec<Check>;

    /// What [`Runtime::build`] and [`Runtime::start`] would do, for `--dry-run`. Changes nothing.
    ///
    /// # Errors
    /// They would certainly fail.
    async fn plan(&self, candidate: &Candidate) -> Result<DryRunPlan, RuntimeError>;

    /// Builds what the candidate will run, and freezes it: an image that is built or pulled and named by its digest,
    /// or a command with its environment. `progress` gets the tool's output line by line.
    ///
    /// # Errors
    /// [`RuntimeError::Build`] with the last lines of output.
    async fn build(&self, candidate: &Candidate, progress: Lines<'_>) -> Result<Frozen, RuntimeError>;

    /// Starts an instance from what was frozen, and returns as soon as it is running; the health gate checks whether
    /// it works. If an instance of this name is running, nothing is done. Restarting after a reboot is up to the
    /// runtime (a restart policy); the driver doesn't rely on it.
    ///
    /// # Errors
    /// It can't be started; then nothing of that name is running. [`RuntimeError::PortTaken`] if the runtime finds
    /// that another process uses its port.
    async fn start(&self, instance: &InstanceId, frozen: &Frozen) -> Result<(), RuntimeError>;

    /// Copies a directory of what was frozen to `to`, which doesn't exist yet and lies in a directory of its own. Leaves
    /// nothing else behind, not even where an earlier call was interrupted.
    ///
    /// # Errors
    /// There is no such directory, or it can't be copied.
    async fn copy_files(&self, frozen: &Frozen, from: &str, to: &Path) -> Result<(), RuntimeError>;

    /// Removes what an interrupted [`Runtime::copy_files`] for this backend has left, except at its destination. By
    /// default, that is nothing.
    ///
    /// # Errors
    /// The engine doesn't answer.
    async fn end_copy(&self, _backend: &BackendName) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Whether what was frozen can still be started, as far as that is known without starting it. Called before
    /// anything is stopped for it. By default, it can.
    ///
    /// # Errors
    /// Its directory or program is missing, or another runtime started it.
    fn can_start(&self, frozen: &Frozen) -> Result<(), RuntimeError> {
        demand_kind(self.kind(), frozen)
    }

    /// Enables restarts, if configured, once the instance has stayed alive with traffic. Not called for a candidate
    /// before that, because its exit must fail the deploy immediately. By default nothing is done: an engine has a
    /// restart policy from the start.
    ///
    /// # Errors
    /// Restarts can't be enabled.
    async fn keep_running(&self, _instance: &InstanceId) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Whether nothing would restart a running instance. By default, the engine would.
    ///
    /// # Errors
    /// It can't be determined.
    async fn is_alone(&self, _instance: &InstanceId) -> Result<bool, RuntimeError> {
        Ok(false)
    }

    /// Starts an instance again under its own name, for example after a reboot. A running one is left alone.
    ///
    /// # Errors
    /// As for [`Runtime::start`].
    async fn revive(&self, instance: &InstanceId, frozen: &Frozen) -> Result<(), RuntimeError> {
        self.start(instance, frozen).await
    }

    /// The current state of an instance. Called several times a second by the health gate, so it must be cheap, and
    /// must report an exit within a few hundred milliseconds.
    ///
    /// # Errors
    /// It can't be determined, because the engine doesn't answer. Not for a missing instance: that is
    /// [`State::Absent`].
    async fn state(&self, instance: &InstanceId) -> Result<State, RuntimeError>;

    /// All instances of a backend that were started from this state directory, running or not, newest last. Found by
    /// name, label or record.
    ///
    /// # Errors
    /// It can't be determined.
    async fn find(&self, backend: &BackendName) -> Result<Vec<InstanceId>, RuntimeError>;

    /// Sends SIGTERM to an instance, and kills it at the timeout. Returns its final state once it has exited. What
    /// [`Runtime::logs`] needs stays.
    ///
    /// # Errors
    /// It is still running.
    async fn stop(&self, instance: &InstanceId, timeout: Duration) -> Result<State, RuntimeError>;

    /// Removes what [`Runtime::stop`] leaves behind (container, record, logs). Kills it first if it is running.
    ///
    /// # Errors
    /// Something is left.
    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError>;

    /// Removes those of these artifacts (image ids) that nothing uses. Returns a line about each that existed.
    ///
    /// # Errors
    /// The engine does not answer.
    async fn prune(&self, artifacts: &[String]) -> Result<Vec<String>, RuntimeError> {
        let _ = artifacts;
        Err(RuntimeError::Unsupported(format!("the {} runtime has no images to remove", self.kind())))
    }

    /// Passes an instance's log to `line`, standard output and error together, oldest first. With
    /// [`LogQuery::follow`], continues until the instance has exited. A missing log has no lines.
    ///
    /// # Errors
    /// The log can't be read, or this runtime doesn't support the query.
    async fn logs(
        &self,
        instance: &InstanceId,
        query: &LogQuery,
        line: Lines<'_>,
    ) -> Result<(), RuntimeError>;
}

/// Makes the configured runtime. `waiting` reports waits that take long.
#[must_use]
pub fn for_config(config: &Config, waiting: Waiting) -> Box<dyn Runtime> {
    match &config.runtime {
        RuntimeConfig::Process(settings) => Box::new(process::ProcessRuntime::new(config, settings)),
        RuntimeConfig::Docker(settings) => Box::new(docker::DockerRuntime::new(config, settings, waiting)),
        RuntimeConfig::Compose(settings) => Box::new(compose::ComposeRuntime::new(config, settings, waiting)),
    }
}

/// Requires that this kind of runtime froze it: no other can start or stop it.
///
/// # Errors
/// Another runtime did.
pub fn demand_kind(kind: &str, frozen: &Frozen) -> Result<(), RuntimeError> {
    if frozen.runtime == kind {
        return Ok(());
    }
    Err(RuntimeError::Unsupported(format!(
        "version {} of {} was started by the {} runtime, but runtime.kind is now {kind}: set it back to {}, or deploy the version again",
        frozen.version, frozen.backend, frozen.runtime, frozen.runtime
    )))
}

/// An instance that is about to be created.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The service.
    pub service: ServiceName,
    /// Its backend.
    pub backend: BackendName,
    /// The app's version.
    pub version: String,
    /// Where it must listen, as this machine and uh-proxy reach it; at least one.
    pub endpoints: Vec<Address>,
}

/// Everything that was decided about an instance when it was built: enough to start the same again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Its backend.
    pub backend: BackendName,
    /// The app's version.
    pub version: String,
    /// Where it listens.
    pub endpoints: Vec<Address>,
    /// The runtime that froze it ([`Runtime::kind`]).
    pub runtime: String,
    /// What it runs, for messages and the history: an image digest or a program's path. Not secret.
    pub artifact: String,
    /// Whatever the runtime's `start` needs. May hold secrets.
    pub spec: serde_json::Value,
}

/// The state of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// There is none of that name, or it was never started.
    Absent,
    /// It is running.
    Running {
        /// How often the runtime has restarted it. The process runtime only counts restarts since it last ran well.
        /// An increasing number means a crash loop.
        restarts: u32,
    },
    /// It exited.
    Exited(Ending),
}

impl State {
    /// Whether it is running.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }
}

/// How an instance exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Its exit code, if known; 128 + n for signal n, as in shells.
    pub code: Option<i32>,
    /// Whether it was killed for using too much memory.
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

/// What a build and a start would do, one line for each step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DryRunPlan {
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
    /// Only newer lines.
    pub since: Option<Timestamp>,
    /// Also what is written from now on.
    pub follow: bool,
}

/// Why a call of a runtime failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The build failed.
    #[error("the build failed: {reason}")]
    Build {
        /// Which step failed, and how.
        reason: String,
        /// The last lines of its output.
        log: Vec<Foreign>,
    },
    /// Another process uses the port.
    #[error("{endpoint} is in use by {by}")]
    PortTaken {
        /// The candidate's endpoint.
        endpoint: String,
        /// The process, if known.
        by: String,
    },
    /// An action on an instance failed.
    #[error("can't {action} {instance}")]
    Instance {
        /// `start`, `stop` …
        action: &'static str,
        /// Which one.
        instance: InstanceId,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The runtime's engine or tool doesn't answer.
    #[error("{what} doesn't answer")]
    Unreachable {
        /// The engine or tool.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of the runtime can't be read or written.
    #[error("can't use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The files that uh-proxy serves can't be put in place.
    #[error("can't put the files of the candidate at {}", to.display())]
    Files {
        /// Where they are served.
        to: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The runtime doesn't support it.
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
    fn an_exit_code_is_shown_as_in_shells() {
        let ending = |code, out_of_memory| Ending { code, out_of_memory }.to_string();
        assert_eq!(ending(Some(3), false), "exit code 3");
        assert_eq!(ending(Some(137), false), "killed by signal 9 (exit code 137)");
        assert_eq!(ending(Some(137), true), "killed for using too much memory");
    }
}
