//! The front door's own containers: those that run uh-proxy, which `uh-deploy upgrade-proxy` replaces. They are found by
//! the title of their image, or by name. uh-deploy didn't create them, so it changes none but those of the front door that
//! it was asked to upgrade.

mod copy;
mod project;
mod second;

use std::collections::HashMap;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RestartContainerOptionsBuilder, StopContainerOptionsBuilder,
};
use futures_util::StreamExt as _;

pub(crate) use self::project::{ComposeFiles, Project, VERSION};
use super::RuntimeError;
use super::engine::{Engine, EngineError};
use crate::config::Config;
use crate::redact::Foreign;
use crate::waiting::Waiting;

/// The label of uh-proxy's image, and its value.
const TITLE: &str = "org.opencontainers.image.title=uh-proxy";

/// The time limit of an ordinary call.
const CALL: Duration = Duration::from_secs(30);

/// How long a container may take to stop if it says nothing itself: Docker's default.
const STOPS_WITHIN: i64 = 10;

/// How many lines of a log are read.
const LOG_LINES: usize = 20;

/// A container that runs uh-proxy.
#[derive(Debug, Clone)]
pub(crate) struct DoorContainer {
    id: String,
    /// Its name.
    pub(crate) name: String,
    /// The image, as it was named.
    pub(crate) image: String,
    /// The image's id.
    pub(crate) image_id: String,
    /// The name of its host, by which a status says where uh-proxy runs.
    pub(crate) host: String,
    /// The compose project, if it was started from compose files.
    pub(crate) project: Option<Project>,
    /// Whether it publishes a port itself, instead of a keeper.
    pub(crate) publishes: bool,
    /// Where it has a volume without a name, which no other container would have.
    pub(crate) unnamed_volume: Option<String>,
    /// The configuration file, from its arguments.
    pub(crate) config: String,
    /// How often it was restarted by its policy.
    pub(crate) restarts: i64,
    /// Whether it runs now.
    pub(crate) is_running: bool,
    exit_code: i64,
    created: String,
    stops_within: Duration,
}

/// The engine, for the containers of the front door.
#[derive(Debug)]
pub(crate) struct FrontDoor {
    engine: Engine,
    waiting: Waiting,
}

impl FrontDoor {
    /// For this configuration.
    pub(crate) fn new(config: &Config, waiting: Waiting) -> Self {
        Self { engine: Engine::new(&config.deploy.state_dir, None, waiting.clone()), waiting }
    }

    /// The containers of the one front door on this engine, or of the one that this container belongs to, oldest first.
    ///
    /// # Errors
    /// There is none, or there are several and none was named.
    pub(crate) async fn containers(&self, named: Option<&str>) -> Result<Vec<DoorContainer>, RuntimeError> {
        let mut found = match named {
            None => self.list(TITLE.to_owned()).await?,
            Some(name) => match self.inspect(name).await? {
                Some(container) if container.is_running => vec![container],
                Some(_) => return Err(refused(format!("the container {name} doesn't run: start it"))),
                None => return Err(refused(format!("there is no container {name}"))),
            },
        };
        if let (Some(_), Some(project)) = (named, found.first().and_then(|one| one.project.clone())) {
            found = self.of_project(&project).await?;
        }
        let Some(first) = found.first() else {
            return Err(refused(
                "no container with the image of uh-proxy runs here: start it, or name yours with --container"
                    .to_owned(),
            ));
        };
        let is_other = |container: &&DoorContainer| match (&container.project, &first.project) {
            (Some(one), Some(other)) => !one.is_same(other),
            (None, None) => container.id != first.id,
            _ => true,
        };
        if let Some(other) = found.iter().find(is_other) {
            return Err(refused(format!(
                "{} and {} belong to different front doors: choose one with --container",
                first.name, other.name
            )));
        }
        Ok(found)
    }

    /// The containers of a compose service, oldest first.
    ///
    /// # Errors
    /// The engine doesn't answer.
    pub(crate) async fn of_project(&self, project: &Project) -> Result<Vec<DoorContainer>, RuntimeError> {
        let mut found = self.list(format!("com.docker.compose.project={}", project.name)).await?;
        found.retain(|container| container.project.as_ref().is_some_and(|it| it.is_same(project)));
        Ok(found)
    }

    async fn list(&self, label: String) -> Result<Vec<DoorContainer>, RuntimeError> {
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let options = ListContainersOptionsBuilder::new().filters(&filters).build();
        let listed = self
            .engine
            .call("list containers", CALL, async |docker: Docker| {
                docker.list_containers(Some(options.clone())).await
            })
            .await
            .map_err(EngineError::unreachable)?;
        let mut found = Vec::new();
        for id in listed.into_iter().filter_map(|container| container.id) {
            let container = self.inspect(&id).await?;
            found.extend(container.filter(|container| {
                container.is_running && !container.project.as_ref().is_some_and(Project::is_one_off)
            }));
        }
        found.sort_by(|one, other| (&one.created, &one.name).cmp(&(&other.created, &other.name)));
        Ok(found)
    }

    async fn inspect(&self, id: &str) -> Result<Option<DoorContainer>, RuntimeError> {
        let asked = self
            .engine
            .call("describe a container", CALL, async |docker: Docker| {
                docker.inspect_container(id, None).await
            })
            .await;
        match asked {
            Ok(found) => Ok(described(found)),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error.unreachable()),
        }
    }

    /// The container as it is now; `None`: it is gone.
    ///
    /// # Errors
    /// The engine doesn't answer.
    pub(crate) async fn look(
        &self,
        container: &DoorContainer,
    ) -> Result<Option<DoorContainer>, RuntimeError> {
        self.inspect(&container.id).await
    }

    /// The id of a local image.
    ///
    /// # Errors
    /// The engine doesn't answer.
    pub(crate) async fn image_id(&self, name: &str) -> Result<Option<String>, RuntimeError> {
        self.engine.image_id(name).await.map_err(EngineError::unreachable)
    }

    /// Stops a container, and kills it if it doesn't end in its own time; then removes it.
    ///
    /// # Errors
    /// The engine refuses, or doesn't answer.
    pub(crate) async fn remove(&self, container: &DoorContainer) -> Result<(), RuntimeError> {
        let within = container.stops_within + CALL;
        let name = &container.name;
        self.change(&format!("stop {name}"), within, async |docker: Docker| {
            let options = StopContainerOptionsBuilder::new().build();
            docker.stop_container(&container.id, Some(options)).await
        })
        .await?;
        self.change(&format!("remove {name}"), CALL, async |docker: Docker| {
            let options = RemoveContainerOptionsBuilder::new().force(true).build();
            docker.remove_container(&container.id, Some(options)).await
        })
        .await
    }

    /// Stops a container and starts it again.
    ///
    /// # Errors
    /// The engine refuses, or doesn't answer.
    pub(crate) async fn restart(&self, container: &DoorContainer) -> Result<(), RuntimeError> {
        let within = container.stops_within + CALL;
        self.change(&format!("restart {}", container.name), within, async |docker: Docker| {
            let options = RestartContainerOptionsBuilder::new().build();
            docker.restart_container(&container.id, Some(options)).await
        })
        .await
    }

    /// Calls, and takes what is so already for success.
    async fn change(
        &self,
        what: &str,
        within: Duration,
        call: impl AsyncFn(Docker) -> Result<(), Error>,
    ) -> Result<(), RuntimeError> {
        match self.engine.call(what, within, call).await {
            Err(error) if !matches!(error.status(), Some(304 | 404 | 409)) => {
                Err(refused(format!("can't {what}: {}", crate::chain(&error))))
            }
            _ => Ok(()),
        }
    }

    /// The last lines of a container's log; none if it can't be read.
    pub(crate) async fn last_lines(&self, container: &DoorContainer) -> Vec<Foreign> {
        let options =
            LogsOptionsBuilder::new().stdout(true).stderr(true).tail(&LOG_LINES.to_string()).build();
        let docker = self.engine.ask("accept a connection", CALL, async |docker: Docker| Ok(docker)).await;
        let Ok(docker) = docker else { return Vec::new() };
        let mut output = docker.logs(&container.id, Some(options));
        let mut lines = Vec::new();
        while let Ok(Some(Ok(line))) = tokio::time::timeout(CALL, output.next()).await {
            let line = Foreign::from_bytes(line.as_ref()).trimmed();
            if !line.is_empty() {
                lines.push(line);
            }
        }
        lines
    }

    /// The files that a project was started from, for the compose tool on this host; `None`: they aren't here.
    ///
    /// # Errors
    /// There is no compose tool.
    pub(crate) async fn files(&self, project: &Project) -> Result<Option<ComposeFiles>, RuntimeError> {
        project.files(&self.waiting).await.map_err(refused)
    }
}

fn refused(text: String) -> RuntimeError {
    RuntimeError::Unsupported(text)
}

fn described(found: ContainerInspectResponse) -> Option<DoorContainer> {
    let (config, state, host) = (found.config?, found.state, found.host_config);
    let labels = config.labels.unwrap_or_default();
    let bindings = host.and_then(|host| host.port_bindings).unwrap_or_default();
    let unnamed = found.mounts.unwrap_or_default().into_iter().find(|mount| {
        mount.typ.as_deref() == Some("volume") && mount.name.as_deref().is_some_and(is_unnamed)
    });
    let words = config.cmd.unwrap_or_default();
    let after = words.iter().position(|word| word == "--config").and_then(|at| words.get(at + 1));
    let seconds = u64::try_from(config.stop_timeout.unwrap_or(STOPS_WITHIN)).unwrap_or_default();
    Some(DoorContainer {
        id: found.id?,
        name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        image: config.image.unwrap_or_default(),
        image_id: found.image.unwrap_or_default(),
        host: config.hostname.unwrap_or_default(),
        project: Project::of(&labels),
        publishes: bindings.values().flatten().any(|list| !list.is_empty()),
        unnamed_volume: unnamed.and_then(|mount| mount.destination),
        config: after.cloned().unwrap_or_else(|| "/etc/uh-proxy/uh-proxy.toml".to_owned()),
        restarts: found.restart_count.unwrap_or_default(),
        is_running: state.as_ref().and_then(|state| state.running).unwrap_or_default(),
        exit_code: state.as_ref().and_then(|state| state.exit_code).unwrap_or_default(),
        created: found.created.map(|at| at.to_string()).unwrap_or_default(),
        stops_within: Duration::from_secs(seconds),
    })
}

/// Docker names such volumes by 64 hexadecimal digits.
fn is_unnamed(volume: &str) -> bool {
    volume.len() == 64 && volume.bytes().all(|byte| byte.is_ascii_hexdigit())
}
