//! Plain local processes.
//!
//! Each instance has a directory, named after it, and a *supervisor*: this program again (`uh-deploy supervise DIR`),
//! in its own session and, under systemd, in its own scope. The supervisor is the parent of all of the app's
//! processes. It records the app before it starts it, records how it exited, restarts it once restarts are enabled,
//! rotates its log and enforces its memory limit. The app writes to its log file directly, so even the supervisor's
//! death wouldn't disturb it.
//!
//! ```text
//! STATE_DIR/instances/app.green.20261125t101500-4f2a/
//!     spec.json      command, environment, limits (mode 0600)
//!     keeper.lock    locked while the supervisor is alive
//!     state.json     process ids, start times, exit; written only by the supervisor
//!     restart        exists once restarts are enabled
//!     stop           exists once the instance is to be stopped: a late supervisor then starts nothing
//!     app.log, app.log.1 …
//! ```

mod instance_dir;
mod launch;
mod log;
pub mod proc;
mod scope;
mod spec;
mod stop;
pub(crate) mod supervisor;
mod tree;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use uh_protocol::ServiceName;
use uh_protocol::{Address, BackendName};

use self::instance_dir::{InstanceDir, SupervisorState};
use self::spec::{ProcessSpec, resolve};
use super::{
    Candidate, DryRunPlan, Ending, Frozen, InstanceId, LogQuery, Runtime, RuntimeError, State, ports,
};
use crate::assets::copy_tree;
use crate::check::Check;
use crate::config::{Config, ProcessSettings};
use crate::fault;
use crate::lines::Lines;
use crate::redact::Foreign;

/// How often to check a state while waiting for it.
const POLL: Duration = Duration::from_millis(10);

/// How long the supervisor may take to record an app's exit: it writes and syncs a file, on a disk that may be busy.
const SAID_WITHIN: Duration = Duration::from_secs(5);

/// How many lines of a failed build are shown.
const BUILD_LOG_LINES: usize = 50;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The `process` runtime.
#[derive(Debug)]
pub struct ProcessRuntime {
    instances: PathBuf,
    settings: ProcessSettings,
    build_timeout: Duration,
    service: Option<ServiceName>,
    /// Whether the build or a hook may still create what is missing.
    is_made_later: bool,
}

impl ProcessRuntime {
    /// For this configuration.
    #[must_use]
    pub fn new(config: &Config, settings: &ProcessSettings) -> Self {
        Self {
            instances: config.deploy.state_dir.join("instances"),
            settings: settings.clone(),
            build_timeout: config.deploy.build_timeout,
            service: config.deploy.service.clone(),
            is_made_later: !settings.build.is_empty() || !config.hooks.pre_deploy.is_empty(),
        }
    }

    fn dir(&self, instance: &InstanceId) -> InstanceDir {
        InstanceDir::new(self.instances.join(instance.as_str()))
    }
}

fn failed(action: &'static str, instance: &InstanceId) -> impl Fn(BoxError) -> RuntimeError {
    let instance = instance.clone();
    move |source| RuntimeError::Instance { action, instance: instance.clone(), source }
}

fn state_of(saved: Option<&SupervisorState>) -> State {
    match saved {
        None => State::Absent,
        Some(SupervisorState { failed: Some(_), .. }) => {
            State::Exited(Ending { code: Some(127), out_of_memory: false })
        }
        Some(SupervisorState { ended: Some(ending), .. }) => State::Exited(*ending),
        Some(saved) if saved.alive().is_some() => {
            State::Running { restarts: saved.restarts_in_a_row(jiff::Timestamp::now()) }
        }
        Some(_) => State::Exited(Ending { code: None, out_of_memory: false }),
    }
}

#[async_trait(?Send)]
impl Runtime for ProcessRuntime {
    fn kind(&self) -> &'static str {
        "process"
    }

    async fn checks(&self, candidate: &Candidate) -> Vec<Check> {
        let (name, remedy) = ("Program found", "install it, or fix runtime.process");
        let mut checks = vec![match self.freeze(candidate) {
            Ok(frozen) => Check::passed(name, frozen.artifact),
            Err(e) if self.is_made_later => Check::passed(
                name,
                format!("not yet: the build or pre_deploy must create it ({})", crate::chain(&e)),
            ),
            Err(e) => Check::failed(name, crate::chain(&e), remedy),
        }];
        if let Some(program) = self.settings.build.first() {
            let found = resolve(program, &self.settings.directory);
            checks.push(match found {
                Ok(path) => Check::passed("Build command found", path.display().to_string()),
                Err(reason) => {
                    Check::failed("Build command found", reason, "install it, or fix runtime.process.build")
                }
            });
        }
        checks
    }

    async fn plan(&self, candidate: &Candidate) -> Result<DryRunPlan, RuntimeError> {
        let build = match self.settings.build.as_slice() {
            [] => vec!["nothing to build".to_owned()],
            command => vec![format!("run {} in {}", command.join(" "), self.settings.directory.display())],
        };
        let start = match self.freeze(candidate) {
            Ok(frozen) => format!("start {} under its own supervisor", frozen.artifact),
            Err(e) if self.is_made_later => {
                format!(
                    "start it once the build or pre_deploy has created what is missing: {}",
                    crate::chain(&e)
                )
            }
            Err(e) => return Err(e),
        };
        Ok(DryRunPlan { build, start: vec![start] })
    }

    async fn build(&self, candidate: &Candidate, progress: Lines<'_>) -> Result<Frozen, RuntimeError> {
        if !self.settings.build.is_empty() {
            let spec =
                ProcessSpec::build(&self.settings, candidate).map_err(|reason| build_failed(&reason))?;
            crate::command::run_lines(&spec.command(), self.build_timeout, progress, BUILD_LOG_LINES)
                .await
                .map_err(|failed| RuntimeError::Build { reason: failed.reason, log: failed.log })?;
        }
        self.freeze(candidate)
    }

    async fn copy_files(&self, _frozen: &Frozen, from: &str, to: &Path) -> Result<(), RuntimeError> {
        let (source, target) = (PathBuf::from(from), to.to_owned());
        let copied = tokio::task::spawn_blocking(move || copy_tree(&source, &target));
        let copied = tokio::time::timeout(self.build_timeout, copied).await;
        let late =
            || io::Error::other(format!("not finished within {}", crate::time::span(self.build_timeout)));
        let copied = copied.map_err(|_| late()).and_then(|joined| joined.map_err(io::Error::other)).flatten();
        copied.map_err(|source| RuntimeError::Files {
            to: to.to_owned(),
            source: io::Error::other(format!("{from}: {}", crate::chain(&source))),
        })
    }

    async fn start(&self, instance: &InstanceId, frozen: &Frozen) -> Result<(), RuntimeError> {
        let failed = failed("start", instance);
        let dir = self.dir(instance);
        if dir.saved().map_err(|e| failed(e.into()))?.is_some() {
            return Ok(());
        }
        self.can_start(frozen)?;
        for endpoint in &frozen.endpoints {
            if let Some(by) = ports::taken_by(endpoint) {
                return Err(RuntimeError::PortTaken { endpoint: endpoint.to_string(), by: by.to_string() });
            }
        }
        dir.prepare(&frozen.spec).map_err(|e| failed(e.into()))?;
        fault::point("process.start.prepared");
        launch::supervisor(&dir).await.map_err(failed)
    }

    fn can_start(&self, frozen: &Frozen) -> Result<(), RuntimeError> {
        super::demand_kind(self.kind(), frozen)?;
        let spec: ProcessSpec = serde_json::from_value(frozen.spec.clone()).map_err(|e| {
            build_failed(&format!("the record of version {} is damaged: {e}", frozen.version))
        })?;
        match spec.fault() {
            Some(fault) => {
                Err(build_failed(&format!("version {} can't be started: {fault}", frozen.version)))
            }
            None => Ok(()),
        }
    }

    async fn keep_running(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        let dir = self.dir(instance);
        if !dir.exists() {
            return Ok(());
        }
        dir.allow_restart().map_err(|e| failed("enable restarts of", instance)(e.into()))
    }

    async fn is_alone(&self, instance: &InstanceId) -> Result<bool, RuntimeError> {
        let dir = self.dir(instance);
        let alone = if dir.exists() { dir.is_unsupervised() } else { Ok(false) };
        alone.map_err(|e| failed("check", instance)(e.into()))
    }

    async fn revive(&self, instance: &InstanceId, frozen: &Frozen) -> Result<(), RuntimeError> {
        self.can_start(frozen)?;
        let dir = self.dir(instance);
        if dir.exists() {
            if self.state(instance).await?.is_running() {
                return Ok(());
            }
            // It may wait for a restart, or have unsupervised processes left.
            stop::stop(&dir, Duration::ZERO).await.map_err(failed("stop", instance))?;
            dir.reset().map_err(|e| failed("start", instance)(e.into()))?;
        }
        self.start(instance, frozen).await
    }

    async fn state(&self, instance: &InstanceId) -> Result<State, RuntimeError> {
        let failed = failed("check", instance);
        let dir = self.dir(instance);
        let deadline = Instant::now() + SAID_WITHIN;
        loop {
            let state = state_of(dir.saved().map_err(|e| failed(e.into()))?.as_ref());
            let unsaid = matches!(state, State::Exited(Ending { code: None, .. }));
            if !unsaid || Instant::now() > deadline {
                return Ok(state);
            }
            // If the supervisor has exited, it has recorded everything.
            if dir.is_unsupervised().map_err(|e| failed(e.into()))? {
                return Ok(state_of(dir.saved().map_err(|e| failed(e.into()))?.as_ref()));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn find(&self, backend: &BackendName) -> Result<Vec<InstanceId>, RuntimeError> {
        let unreadable = |source: io::Error| RuntimeError::Unreachable {
            what: self.instances.display().to_string(),
            source: source.into(),
        };
        let entries = match std::fs::read_dir(&self.instances) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(unreadable)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(unreadable)?.file_name();
            let Some(name) = name.to_str() else { continue };
            let service: Option<ServiceName> = match &self.service {
                Some(service) => Some(service.clone()),
                // A state directory is for one service, whose name is in the entry.
                None => name.split('.').next().and_then(|service| service.parse().ok()),
            };
            found.extend(service.and_then(|service| InstanceId::of(&service, backend, name)));
        }
        found.sort();
        Ok(found)
    }

    async fn stop(&self, instance: &InstanceId, timeout: Duration) -> Result<State, RuntimeError> {
        let dir = self.dir(instance);
        if !dir.exists() {
            return Ok(State::Absent);
        }
        stop::stop(&dir, timeout).await.map_err(failed("stop", instance))
    }

    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        let dir = self.dir(instance);
        if !dir.exists() {
            return Ok(());
        }
        stop::stop(&dir, Duration::ZERO).await.map_err(failed("stop", instance))?;
        dir.remove().map_err(|e| failed("remove", instance)(e.into()))
    }

    async fn logs(
        &self,
        instance: &InstanceId,
        query: &LogQuery,
        line: Lines<'_>,
    ) -> Result<(), RuntimeError> {
        if query.since.is_some() {
            let message = "logs of the process runtime have no timestamps: use --tail instead of --since";
            return Err(RuntimeError::Unsupported(message.to_owned()));
        }
        let dir = self.dir(instance);
        let failed = failed("read the log of", instance);
        let mut reader = log::LogReader::open(&dir.log(), query.tail, &mut |text| line(&Foreign::new(text)))
            .map_err(|e| failed(e.into()))?;
        if !query.follow {
            return Ok(());
        }
        loop {
            let runs = self.state(instance).await?.is_running();
            reader.read_on(&mut |text| line(&Foreign::new(text))).map_err(|e| failed(e.into()))?;
            if !runs {
                return Ok(());
            }
            tokio::time::sleep(log::FOLLOW_POLL).await;
        }
    }
}

impl ProcessRuntime {
    fn freeze(&self, candidate: &Candidate) -> Result<Frozen, RuntimeError> {
        let spec = ProcessSpec::app(&self.settings, candidate).map_err(|reason| build_failed(&reason))?;
        Ok(Frozen {
            backend: candidate.backend.clone(),
            version: candidate.version.clone(),
            endpoints: candidate.endpoints.clone(),
            runtime: self.kind().to_owned(),
            artifact: spec.program.display().to_string(),
            spec: serde_json::to_value(&spec).map_err(|e| build_failed(&e.to_string()))?,
        })
    }
}

fn build_failed(reason: &str) -> RuntimeError {
    RuntimeError::Build { reason: reason.to_owned(), log: Vec::new() }
}

/// The environment variable that marks an instance's processes, also visible in `ps e`.
pub(crate) const INSTANCE_VARIABLE: &str = "UH_DEPLOY_INSTANCE";

/// An endpoint's host and port for the app's environment.
fn host_and_port(endpoint: Option<&Address>) -> (String, String) {
    match endpoint {
        Some(Address::Unix(path)) => (String::new(), path.display().to_string()),
        Some(endpoint) => (
            endpoint.host().unwrap_or_default().into_owned(),
            endpoint.port().map(|port| port.to_string()).unwrap_or_default(),
        ),
        None => (String::new(), String::new()),
    }
}
