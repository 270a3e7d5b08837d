//! Plain local processes.
//!
//! Each instance has a directory, named after it, and a *keeper*: this program once more (`uh-deploy keep DIR`), in a
//! session of its own. The keeper is the app's parent. It puts the app's process id and start time on record, writes
//! down how it ended, rotates its log and holds it to its memory limit. The app writes to its log file directly, so
//! not even the keeper's death would disturb it.
//!
//! ```text
//! STATE_DIR/instances/app.green.20261125t101500-4f2a/
//!     spec.json      what runs: command, environment, limits (mode 0600)
//!     keeper.lock    locked for as long as the keeper lives
//!     state.json     process id, start time, how it ended; written by the keeper alone
//!     stop           there as soon as it was to be stopped: a keeper that comes late starts nothing
//!     app.log, app.log.1 …
//! ```

pub mod keeper;
mod log;
mod place;
pub mod proc;
mod spec;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rustix::process::Signal;
use uh_protocol::BackendName;
use uh_protocol::ServiceName;

use self::place::{Place, Saved};
use self::spec::{Spec, resolve};
use super::{
    Candidate, Ending, Endpoint, Frozen, InstanceId, Lines, LogQuery, Plan, Runtime, RuntimeError, State,
};
use crate::check::Check;
use crate::config::{Config, ProcessSettings};
use crate::{fault, ports};

/// How often a state is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(10);

/// A keeper has nothing to do before it starts the app; a busy machine gets far more.
const START_WITHIN: Duration = Duration::from_secs(15);

/// From an app's end to the keeper's word about it: a file is written and synced, on a disk that may be busy.
const SAID_WITHIN: Duration = Duration::from_secs(5);

/// After SIGKILL only the kernel has work to do.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// How many lines of a failed build are shown.
const BUILD_LOG_LINES: usize = 50;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The `process` runtime.
#[derive(Debug)]
pub struct Process {
    instances: PathBuf,
    settings: ProcessSettings,
    build_timeout: Duration,
    service: Option<ServiceName>,
}

impl Process {
    /// For this configuration.
    #[must_use]
    pub fn new(config: &Config, settings: &ProcessSettings) -> Self {
        Self {
            instances: config.deploy.state_dir.join("instances"),
            settings: settings.clone(),
            build_timeout: config.deploy.build_timeout,
            service: config.deploy.service.clone(),
        }
    }

    fn place(&self, instance: &InstanceId) -> Place {
        Place::new(self.instances.join(instance.as_str()))
    }

    async fn until_started(&self, instance: &InstanceId, place: &Place) -> Result<(), BoxError> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            match place.saved()? {
                Some(Saved { failed: Some(reason), .. }) => return Err(reason.into()),
                Some(_) => return Ok(()),
                None if Instant::now() > deadline => {
                    return Err(format!("{instance}'s keeper did not start it in time").into());
                }
                None => tokio::time::sleep(POLL).await,
            }
        }
    }

    async fn stop_it(&self, place: &Place, timeout: Duration) -> Result<State, BoxError> {
        place.forbid()?;
        fault::point("process.stop.forbidden");
        let deadline = Instant::now() + timeout;
        let (mut asked, mut killed_at) = (false, None);
        loop {
            let saved = place.saved()?;
            let app = saved.as_ref().and_then(Saved::alive);
            match app {
                // With the lock free no keeper lives, and any that comes finds that it must not start anything.
                None if place.keeper_is_gone()? => return Ok(state_of(place.saved()?.as_ref())),
                None => {}
                Some(app) if !asked => {
                    app.signal(Signal::TERM)?;
                    asked = true;
                    fault::point("process.stop.asked");
                }
                Some(app) if killed_at.is_none() && Instant::now() >= deadline => {
                    app.kill_group()?;
                    killed_at = Some(Instant::now());
                }
                Some(_) => {}
            }
            let limit = killed_at.unwrap_or(deadline.max(Instant::now())) + KILL_WITHIN;
            if Instant::now() > limit {
                return Err("it is still there after SIGKILL".into());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn failed(action: &'static str, instance: &InstanceId) -> impl Fn(BoxError) -> RuntimeError {
    let instance = instance.clone();
    move |source| RuntimeError::Instance { action, instance: instance.clone(), source }
}

fn state_of(saved: Option<&Saved>) -> State {
    match saved {
        None => State::Absent,
        Some(Saved { failed: Some(_), .. }) => {
            State::Exited(Ending { code: Some(127), out_of_memory: false })
        }
        Some(Saved { ended: Some(ending), .. }) => State::Exited(*ending),
        Some(saved) if saved.alive().is_some() => State::Running { restarts: 0 },
        Some(_) => State::Exited(Ending { code: None, out_of_memory: false }),
    }
}

#[async_trait(?Send)]
impl Runtime for Process {
    fn kind(&self) -> &'static str {
        "process"
    }

    async fn checks(&self, candidate: &Candidate) -> Vec<Check> {
        let (name, remedy) = ("Program found", "install it, or mend runtime.process.command");
        let mut checks = vec![match self.freeze(candidate) {
            Ok(frozen) => Check::passed(name, frozen.artifact),
            Err(e) => Check::failed(name, crate::chain(&e), remedy),
        }];
        if let Some(program) = self.settings.build.first() {
            let found = resolve(program, &self.settings.directory);
            checks.push(match found {
                Ok(path) => Check::passed("Build command found", path.display().to_string()),
                Err(reason) => {
                    Check::failed("Build command found", reason, "install it, or mend runtime.process.build")
                }
            });
        }
        checks
    }

    async fn plan(&self, candidate: &Candidate) -> Result<Plan, RuntimeError> {
        let frozen = self.freeze(candidate)?;
        let build = match self.settings.build.as_slice() {
            [] => vec!["nothing to build".to_owned()],
            command => vec![format!("run {} in {}", command.join(" "), self.settings.directory.display())],
        };
        Ok(Plan { build, start: vec![format!("start {} in a process group of its own", frozen.artifact)] })
    }

    async fn build(&self, candidate: &Candidate, progress: Lines<'_>) -> Result<Frozen, RuntimeError> {
        if !self.settings.build.is_empty() {
            let spec = Spec::build(&self.settings, candidate).map_err(|reason| build_failed(&reason))?;
            crate::command::run_lines(&spec.command(), self.build_timeout, progress, BUILD_LOG_LINES)
                .await
                .map_err(|failed| RuntimeError::Build { reason: failed.reason, log: failed.log })?;
        }
        self.freeze(candidate)
    }

    async fn start(&self, instance: &InstanceId, frozen: &Frozen) -> Result<(), RuntimeError> {
        let failed = failed("start", instance);
        let place = self.place(instance);
        if place.saved().map_err(|e| failed(e.into()))?.is_some() {
            return Ok(());
        }
        for endpoint in &frozen.endpoints {
            if let Some(by) = ports::taken_by(endpoint) {
                return Err(RuntimeError::PortTaken { endpoint: endpoint.to_string(), by });
            }
        }
        place.prepare(&frozen.spec).map_err(|e| failed(e.into()))?;
        fault::point("process.start.prepared");
        let keeper = std::env::current_exe().map_err(|e| failed(e.into()))?;
        let mut command = Command::new(keeper);
        command.arg("keep").arg(place.directory()).current_dir("/");
        // CI runners end whatever carries their variables when a job is over. The keeper must outlive that too.
        command.env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Not waited for: it outlives us. One that ends while we live is a zombie until we end.
        command.spawn().map_err(|e| failed(e.into()))?;
        fault::point("process.start.spawned");
        self.until_started(instance, &place).await.map_err(failed)
    }

    async fn state(&self, instance: &InstanceId) -> Result<State, RuntimeError> {
        let failed = failed("look at", instance);
        let place = self.place(instance);
        let deadline = Instant::now() + SAID_WITHIN;
        loop {
            let state = state_of(place.saved().map_err(|e| failed(e.into()))?.as_ref());
            let unsaid = matches!(state, State::Exited(Ending { code: None, .. }));
            if !unsaid || Instant::now() > deadline {
                return Ok(state);
            }
            // A keeper that has just gone has said all that it will say.
            if place.keeper_is_gone().map_err(|e| failed(e.into()))? {
                return Ok(state_of(place.saved().map_err(|e| failed(e.into()))?.as_ref()));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn find(&self, backend: &BackendName) -> Result<Vec<InstanceId>, RuntimeError> {
        let unreadable = |source: std::io::Error| RuntimeError::Unreachable {
            what: self.instances.display().to_string(),
            source: source.into(),
        };
        let entries = match std::fs::read_dir(&self.instances) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(unreadable)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(unreadable)?.file_name();
            let Some(name) = name.to_str() else { continue };
            let service: Option<ServiceName> = match &self.service {
                Some(service) => Some(service.clone()),
                // One state directory is for one service; its name is in the entry.
                None => name.split('.').next().and_then(|service| service.parse().ok()),
            };
            found.extend(service.and_then(|service| InstanceId::of(&service, backend, name)));
        }
        found.sort();
        Ok(found)
    }

    async fn stop(&self, instance: &InstanceId, timeout: Duration) -> Result<State, RuntimeError> {
        let place = self.place(instance);
        if !place.exists() {
            return Ok(State::Absent);
        }
        self.stop_it(&place, timeout).await.map_err(failed("stop", instance))
    }

    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        let place = self.place(instance);
        if !place.exists() {
            return Ok(());
        }
        self.stop_it(&place, Duration::ZERO).await.map_err(failed("stop", instance))?;
        place.remove().map_err(|e| failed("remove", instance)(e.into()))
    }

    async fn logs(
        &self,
        instance: &InstanceId,
        query: &LogQuery,
        line: Lines<'_>,
    ) -> Result<(), RuntimeError> {
        if query.since.is_some() {
            let message = "lines of the process runtime carry no time: use --tail in place of --since";
            return Err(RuntimeError::Unsupported(message.to_owned()));
        }
        let place = self.place(instance);
        let failed = failed("read the log of", instance);
        let mut reader = log::Reader::open(&place.log(), query.tail, &mut |text| line(text))
            .map_err(|e| failed(e.into()))?;
        if !query.follow {
            return Ok(());
        }
        loop {
            let runs = self.state(instance).await?.is_running();
            reader.read_on(&mut |text| line(text)).map_err(|e| failed(e.into()))?;
            if !runs {
                return Ok(());
            }
            tokio::time::sleep(log::FOLLOW_POLL).await;
        }
    }
}

impl Process {
    fn freeze(&self, candidate: &Candidate) -> Result<Frozen, RuntimeError> {
        let spec = Spec::app(&self.settings, candidate).map_err(|reason| build_failed(&reason))?;
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

/// The environment variable by which an instance's processes know whose they are, and `ps e` tells a human.
pub(crate) const INSTANCE_VARIABLE: &str = "UH_DEPLOY_INSTANCE";

/// Tells an endpoint's host and port for the app's environment.
fn host_and_port(endpoint: Option<&Endpoint>) -> (String, String) {
    match endpoint {
        Some(Endpoint::Tcp(host, port)) => (host.trim_matches(['[', ']']).to_owned(), port.to_string()),
        Some(Endpoint::Unix(path)) => (String::new(), path.display().to_string()),
        None => (String::new(), String::new()),
    }
}
