//! The Docker Engine, as both container runtimes use it: containers are found by their labels, no matter what created
//! them.
//!
//! A restarting engine doesn't answer for a few seconds. Calls that are safe to repeat wait for it, up to
//! [`PATIENCE`].

mod credentials;
mod error;
mod files;
mod owner;
mod places;
mod prune;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerSummary};
use bollard::query_parameters::{
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    StopContainerOptionsBuilder,
};
use futures_util::StreamExt as _;
use tokio::sync::OnceCell;
use uh_protocol::{BackendName, ServiceName};

pub(super) use self::credentials::RegistryCredentials;
pub(super) use self::error::EngineError;
use self::owner::Owner;
use super::{Ending, InstanceId, LogQuery, RuntimeError, State};
use crate::check::Check;
use crate::lines::{LineSplitter, Lines};
use crate::waiting::Waiting;

/// How long to wait for an engine that doesn't answer: a restart of dockerd takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// The time limit of an ordinary call.
const CALL: Duration = Duration::from_secs(30);

/// The time between two attempts to reach an engine.
const RETRY: Duration = Duration::from_millis(200);

/// The client's own time limit. uh-deploy's are shorter and depend on the call.
const CLIENT_LIMIT: Duration = Duration::from_secs(25 * 60 * 60);

/// The label that names an instance.
pub(super) const INSTANCE: &str = "uh-deploy.instance";
/// The label that names its service.
pub(super) const SERVICE: &str = "uh-deploy.service";
/// The label that names its backend.
pub(super) const BACKEND: &str = "uh-deploy.backend";
/// The label that names its version.
pub(super) const VERSION: &str = "uh-deploy.version";
/// The label that names the state directory it was started from, for operators.
pub(super) const STATE_DIR: &str = "uh-deploy.state-dir";
/// The label with that directory's id, which is what counts.
pub(super) const STATE_ID: &str = "uh-deploy.state-id";

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The Docker Engine, and which containers belong to this uh-deploy.
pub(super) struct Engine {
    client: OnceCell<Docker>,
    owner: Owner,
    service: Option<ServiceName>,
    waiting: Waiting,
}

impl Engine {
    pub(super) fn new(state_dir: &std::path::Path, service: Option<ServiceName>, waiting: Waiting) -> Self {
        Self { client: OnceCell::new(), owner: Owner::new(state_dir), service, waiting }
    }

    /// The labels by which an instance is found again.
    pub(super) fn labels(
        &self,
        instance: &InstanceId,
        service: &str,
        backend: &BackendName,
        version: &str,
    ) -> Result<HashMap<String, String>, RuntimeError> {
        Ok([
            (INSTANCE, instance.as_str()),
            (SERVICE, service),
            (BACKEND, backend.as_str()),
            (VERSION, version),
            (STATE_DIR, &self.owner.directory()),
            (STATE_ID, &self.owner.id_or_new()?),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into())
    }

    /// The client, at the engine's own API version.
    async fn client(&self) -> Result<Docker, Error> {
        let connect = || async {
            Docker::connect_with_defaults()?.with_timeout(CLIENT_LIMIT).negotiate_version().await
        };
        self.client.get_or_try_init(connect).await.cloned()
    }

    /// Calls once. `what` completes "waiting for the Docker Engine to …", which is reported if the call takes long.
    pub(super) async fn ask<T>(
        &self,
        what: &str,
        limit: Duration,
        call: impl AsyncFnOnce(Docker) -> Result<T, Error>,
    ) -> Result<T, EngineError> {
        self.wait(what, limit, self.ask_silently(limit, call)).await
    }

    async fn ask_silently<T>(
        &self,
        limit: Duration,
        call: impl AsyncFnOnce(Docker) -> Result<T, Error>,
    ) -> Result<T, EngineError> {
        let answer = tokio::time::timeout(limit, async { call(self.client().await?).await }).await;
        Ok(answer.map_err(|_| EngineError::Slow(limit))??)
    }

    /// Calls what is safe to repeat, and waits for a restarting engine.
    pub(super) async fn call<T>(
        &self,
        what: &str,
        limit: Duration,
        call: impl AsyncFn(Docker) -> Result<T, Error>,
    ) -> Result<T, EngineError> {
        let deadline = Instant::now() + PATIENCE;
        let answered = async {
            loop {
                match self.ask_silently(limit, |docker| call(docker)).await {
                    Err(EngineError::Unreachable(_)) if Instant::now() < deadline => {
                        tokio::time::sleep(RETRY).await;
                    }
                    other => return other,
                }
            }
        };
        self.wait(what, PATIENCE + limit, answered).await
    }

    /// Waits for the engine's reply, and reports a long wait. Every call goes through here.
    fn wait<T>(
        &self,
        what: &str,
        at_most: Duration,
        answer: impl Future<Output = T>,
    ) -> impl Future<Output = T> {
        // bollard's futures are large: boxed, they don't make every caller's as large.
        let answer = Box::pin(answer);
        let what = format!("the Docker Engine to {what}");
        async move { self.waiting.on(&what, at_most, answer).await }
    }

    /// Whether it is running, for `validate`.
    pub(super) async fn check(&self) -> Check {
        let name = "Docker Engine running";
        match self.version().await {
            Ok(version) => Check::passed(name, version),
            Err(error) => Check::failed(name, crate::chain(&error), "start it: systemctl start docker"),
        }
    }

    /// Its version and API version, for messages.
    async fn version(&self) -> Result<String, EngineError> {
        let version =
            self.ask("report its version", CALL, async |docker: Docker| docker.version().await).await?;
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
        Ok(format!("Docker {} (API {})", or_unknown(version.version), or_unknown(version.api_version)))
    }

    /// The id of a local image.
    pub(super) async fn image_id(&self, name: &str) -> Result<Option<String>, EngineError> {
        match self.call("find an image", CALL, async |docker: Docker| docker.inspect_image(name).await).await
        {
            Ok(image) => Ok(image.id),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The containers that match these filters; with `all` also stopped ones.
    async fn containers(
        &self,
        filter: &str,
        values: Vec<String>,
        all: bool,
    ) -> Result<Vec<ContainerSummary>, EngineError> {
        let filters = HashMap::from([(filter.to_owned(), values)]);
        let options = ListContainersOptionsBuilder::new().all(all).filters(&filters).build();
        self.call("list containers", CALL, async |docker: Docker| {
            docker.list_containers(Some(options.clone())).await
        })
        .await
    }

    /// The containers with this label that were started from this state directory.
    async fn list(&self, name: &str, value: &str) -> Result<Vec<ContainerSummary>, EngineError> {
        let Some(id) = self.owner.id().map_err(EngineError::Owner)? else { return Ok(Vec::new()) };
        let labels = [(name, value), (STATE_ID, &id)];
        self.containers("label", labels.map(|(name, value)| format!("{name}={value}")).into(), true).await
    }

    /// All instances of a backend that were started from this state directory, oldest first.
    pub(super) async fn instances(&self, backend: &BackendName) -> Result<Vec<InstanceId>, EngineError> {
        let found = self.list(BACKEND, backend.as_str()).await?;
        let instance = |container: ContainerSummary| {
            let labels = container.labels?;
            let service: ServiceName = labels.get(SERVICE)?.parse().ok()?;
            let ours = self.service.as_ref().is_none_or(|wanted| *wanted == service);
            InstanceId::of(&service, backend, labels.get(INSTANCE)?).filter(|_| ours)
        };
        let mut instances: Vec<InstanceId> = found.into_iter().filter_map(instance).collect();
        instances.sort();
        instances.dedup();
        Ok(instances)
    }

    /// The engine's id of an instance's container.
    pub(super) async fn container(&self, instance: &InstanceId) -> Result<Option<String>, EngineError> {
        let found = self.list(INSTANCE, instance.as_str()).await?;
        Ok(found.into_iter().find_map(|container| container.id))
    }

    async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
        match self
            .call("describe a container", CALL, async |docker: Docker| {
                docker.inspect_container(id, None).await
            })
            .await
        {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The state of an instance.
    pub(super) async fn state(&self, instance: &InstanceId) -> Result<State, RuntimeError> {
        let about = |error: EngineError| error.about("check", instance);
        let Some(id) = self.container(instance).await.map_err(about)? else { return Ok(State::Absent) };
        Ok(self.inspect(&id).await.map_err(about)?.map_or(State::Absent, |found| state_of(&found)))
    }

    /// Stops an instance with its image's stop signal (SIGTERM by default), and kills it at the timeout. One that was
    /// never started is removed, because a start by a killed uh-deploy may still be in progress in the engine.
    pub(super) async fn stop(&self, instance: &InstanceId, timeout: Duration) -> Result<State, RuntimeError> {
        let about = |error: EngineError| error.about("stop", instance);
        let Some(id) = self.container(instance).await.map_err(about)? else { return Ok(State::Absent) };
        if self.inspect(&id).await.map_err(about)?.is_some_and(|found| state_of(&found) == State::Absent) {
            self.remove(instance).await?;
            return Ok(State::Absent);
        }
        // The engine takes whole seconds; 0 kills immediately.
        let seconds = i32::try_from(timeout.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::new().t(seconds).build();
        let stopped = self
            .call(&format!("stop {instance}"), timeout + CALL, async |docker: Docker| {
                docker.stop_container(&id, Some(options.clone())).await
            })
            .await;
        match stopped {
            Err(error) if !matches!(error.status(), Some(304 | 404)) => return Err(about(error)),
            _ => {}
        }
        let state = self.inspect(&id).await.map_err(about)?.map_or(State::Absent, |found| state_of(&found));
        if state.is_running() {
            let source = "it is still running".into();
            return Err(RuntimeError::Instance { action: "stop", instance: instance.clone(), source });
        }
        Ok(state)
    }

    /// Removes an instance's container and its anonymous volumes. Kills it first if it is running.
    pub(super) async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        self.remove_within(instance, CALL).await
    }

    async fn remove_within(&self, instance: &InstanceId, limit: Duration) -> Result<(), RuntimeError> {
        let about = |error: EngineError| error.about("remove", instance);
        let deadline = Instant::now() + limit;
        while let Some(id) = self.container(instance).await.map_err(about)? {
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            let removed = self
                .call(&format!("remove {instance}"), CALL, async |docker: Docker| {
                    docker.remove_container(&id, Some(options.clone())).await
                })
                .await;
            match removed {
                // 409: it is already being removed.
                Err(error) if !matches!(error.status(), Some(404 | 409)) || Instant::now() >= deadline => {
                    return Err(about(error));
                }
                Err(_) => tokio::time::sleep(RETRY).await,
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Passes an instance's log to `line`.
    pub(super) async fn logs(
        &self,
        instance: &InstanceId,
        query: &LogQuery,
        line: Lines<'_>,
    ) -> Result<(), RuntimeError> {
        let about = |error: EngineError| error.about("read the log of", instance);
        let Some(id) = self.container(instance).await.map_err(about)? else { return Ok(()) };
        let since = query.since.map_or(0, |since| i32::try_from(since.as_second()).unwrap_or(i32::MAX));
        let tail = query.tail.map_or_else(|| "all".to_owned(), |tail| tail.to_string());
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .follow(query.follow)
            .since(since)
            .tail(&tail)
            .build();
        let client =
            self.ask("accept a connection", CALL, async |docker: Docker| Ok(docker)).await.map_err(about)?;
        let mut output = client.logs(&id, Some(options));
        let mut lines = LineSplitter::default();
        loop {
            // With `follow`, the wait is for the app and unlimited; otherwise only for the engine.
            let next = if query.follow {
                output.next().await
            } else {
                let next = tokio::time::timeout(CALL, output.next());
                let next = self.wait("send a log", CALL, next).await;
                next.map_err(|_| about(EngineError::Slow(CALL)))?
            };
            match next {
                Some(Ok(chunk)) => lines.push(chunk.as_ref(), &mut |text| line(&text)),
                Some(Err(error)) => return Err(about(error.into())),
                None => break,
            }
        }
        lines.finish(&mut |text| line(&text));
        Ok(())
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("owner", &self.owner).finish_non_exhaustive()
    }
}

fn state_of(container: &ContainerInspectResponse) -> State {
    let Some(state) = &container.state else { return State::Absent };
    let restarts = container.restart_count.and_then(|count| u32::try_from(count).ok()).unwrap_or_default();
    match state.status {
        Some(ContainerStateStatusEnum::CREATED) => State::Absent,
        Some(ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::PAUSED) => {
            State::Running { restarts }
        }
        // Also one that waits for a restart: it has exited and doesn't serve.
        _ => State::Exited(ending_of(state)),
    }
}

fn ending_of(state: &ContainerState) -> Ending {
    Ending {
        code: state.exit_code.and_then(|code| i32::try_from(code).ok()),
        out_of_memory: state.oom_killed.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
