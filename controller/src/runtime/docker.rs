//! Containers through the Engine API, without any command-line tool.
//!
//! An instance is a container of the same name, with uh-deploy's labels. What is frozen is the whole request that
//! creates it, with the image's id: a rollback starts the same image, even if the tag has moved.

mod context;
mod image;
mod spec;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker as Client;
use bollard::models::{EndpointSettings, NetworkConnectRequest};
use bollard::query_parameters::CreateContainerOptionsBuilder;
use uh_protocol::BackendName;

use self::spec::ContainerSpec;
use super::engine::{BoxError, Engine, EngineError};
use super::{Candidate, DryRunPlan, Frozen, InstanceId, LogQuery, Runtime, RuntimeError, State};
use crate::check::Check;
use crate::config::{Config, DockerSettings, Pull};
use crate::fault;
use crate::lines::Lines;
use crate::waiting::Waiting;

/// How long creating or starting a container may take: even a busy engine needs only seconds.
const START_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct DockerRuntime {
    engine: Engine,
    settings: DockerSettings,
    build_timeout: Duration,
    stop_timeout: Duration,
}

impl DockerRuntime {
    /// For this configuration.
    #[must_use]
    pub(super) fn new(config: &Config, settings: &DockerSettings, waiting: Waiting) -> Self {
        Self {
            engine: Engine::new(&config.deploy.state_dir, config.deploy.service.clone(), waiting),
            settings: settings.clone(),
            build_timeout: config.deploy.build_timeout,
            stop_timeout: config.deploy.stop_timeout,
        }
    }

    fn spec(&self, image_id: &str, candidate: &Candidate) -> Result<ContainerSpec, RuntimeError> {
        ContainerSpec::new(&self.settings, image_id, candidate)
            .map(|spec| spec.stopped_within(self.stop_timeout))
            .map_err(|reason| RuntimeError::Build { reason, log: Vec::new() })
    }

    /// Creates the container, unless there is one of that name.
    async fn create(
        &self,
        instance: &InstanceId,
        frozen: &Frozen,
        spec: &ContainerSpec,
    ) -> Result<(), EngineError> {
        let service = instance.as_str().split('.').next().unwrap_or_default();
        let labels = self.engine.labels(instance, service, &frozen.backend, &frozen.version);
        let labels = labels.map_err(EngineError::Owner)?;
        let body = spec.request(labels);
        let options = CreateContainerOptionsBuilder::new().name(instance.as_str()).build();
        let made = self
            .engine
            .call("create a container", START_WITHIN, async |client: Client| {
                client.create_container(Some(options.clone()), body.clone()).await
            })
            .await;
        match made {
            Err(error) if error.status() == Some(409) => {}
            other => drop(other?),
        }
        for network in spec.networks.iter().skip(1) {
            let request = || NetworkConnectRequest {
                container: instance.to_string(),
                endpoint_config: Some(EndpointSettings {
                    aliases: Some(spec.aliases.clone()),
                    ..EndpointSettings::default()
                }),
            };
            let joined = self
                .engine
                .call("connect a container to a network", START_WITHIN, async |client: Client| {
                    client.connect_network(network, request()).await
                })
                .await;
            match joined {
                // It has already joined.
                Err(error) if error.status() == Some(403) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Requires that no other container has the instance's names on its network: uh-proxy would use both in turn.
    async fn demand_names(&self, frozen: &Frozen, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let Some(network) = spec.networks.first() else { return Ok(()) };
        for endpoint in &frozen.endpoints {
            let Some(name) = endpoint.host().filter(|name| spec.aliases.iter().any(|alias| *alias == **name))
            else {
                continue;
            };
            let holder = self.engine.holder(network, &name).await.map_err(EngineError::unreachable)?;
            if let Some(holder) = holder {
                let by = format!("container {holder} on network {network}");
                return Err(RuntimeError::PortTaken { endpoint: endpoint.to_string(), by });
            }
        }
        Ok(())
    }

    async fn run(&self, instance: &InstanceId) -> Result<(), EngineError> {
        let started = self
            .engine
            .call(&format!("start {instance}"), START_WITHIN, async |client: Client| {
                client.start_container(instance.as_str(), None).await
            })
            .await;
        match started {
            // It is already running.
            Err(error) if error.status() == Some(304) => Ok(()),
            other => other,
        }
    }

    async fn undo(&self, instance: &InstanceId, frozen: &Frozen, error: EngineError) -> RuntimeError {
        let taken = self.engine.undo_start(instance, frozen, &error.to_string()).await;
        taken.unwrap_or_else(|| error.about("start", instance))
    }
}

#[async_trait(?Send)]
impl Runtime for DockerRuntime {
    fn kind(&self) -> &'static str {
        "docker"
    }

    async fn checks(&self, candidate: &Candidate) -> Vec<Check> {
        let mut checks = vec![self.engine.check().await];
        checks.push(self.image_check(candidate).await);
        let (name, remedy) = ("Container settings valid", "fix runtime.docker");
        checks.push(match ContainerSpec::new(&self.settings, "sha256:0", candidate) {
            Ok(_) => Check::passed(name, "environment, ports, volumes"),
            Err(reason) => Check::failed(name, reason, remedy),
        });
        for network in &self.settings.networks {
            let name = format!("Network {network} exists");
            let found = self
                .engine
                .ask("find a network", START_WITHIN, async |client: Client| {
                    client.inspect_network(network, None).await
                })
                .await;
            checks.push(match found {
                Ok(_) => Check::passed(name, "yes"),
                Err(error) => {
                    Check::failed(name, crate::chain(&error), format!("docker network create {network}"))
                }
            });
        }
        checks
    }

    async fn plan(&self, candidate: &Candidate) -> Result<DryRunPlan, RuntimeError> {
        let image = spec::fill(&self.settings.image, candidate);
        let spec = self.spec(&image, candidate)?;
        let build = match (&self.settings.context, self.settings.pull) {
            (Some(context), _) => {
                format!("build image {image} from {} ({})", context.display(), self.settings.dockerfile)
            }
            (None, Pull::Always) => format!("pull image {image}"),
            (None, Pull::Missing) => format!("pull image {image} unless it is on this host"),
            (None, Pull::Never) => format!("use image {image}, which must be on this host"),
        };
        Ok(DryRunPlan { build: vec![build], start: vec![format!("start a container{}", spec.published())] })
    }

    async fn build(&self, candidate: &Candidate, progress: Lines<'_>) -> Result<Frozen, RuntimeError> {
        let made = tokio::time::timeout(self.build_timeout, self.make_image(candidate, progress)).await;
        let image = made.map_err(|_| RuntimeError::Build {
            reason: format!("not finished within {}", crate::time::span(self.build_timeout)),
            log: Vec::new(),
        })??;
        let spec = self.spec(&image, candidate)?;
        Ok(Frozen {
            backend: candidate.backend.clone(),
            version: candidate.version.clone(),
            endpoints: candidate.endpoints.clone(),
            runtime: self.kind().to_owned(),
            artifact: image,
            spec: serde_json::to_value(&spec)
                .map_err(|e| RuntimeError::Build { reason: e.to_string(), log: Vec::new() })?,
        })
    }

    async fn copy_files(&self, frozen: &Frozen, from: &str, to: &Path) -> Result<(), RuntimeError> {
        self.engine.copy_files(&frozen.backend, &frozen.artifact, from, to, self.build_timeout).await
    }

    async fn end_copy(&self, backend: &BackendName) -> Result<(), RuntimeError> {
        self.engine.end_copy(backend).await
    }

    async fn start(&self, instance: &InstanceId, frozen: &Frozen) -> Result<(), RuntimeError> {
        if self.state(instance).await?.is_running() {
            return Ok(());
        }
        let wrong =
            |source: BoxError| RuntimeError::Instance { action: "start", instance: instance.clone(), source };
        let spec: ContainerSpec = serde_json::from_value(frozen.spec.clone()).map_err(|e| wrong(e.into()))?;
        if spec.publishes() {
            self.engine.demand_free(&frozen.endpoints).await?;
        }
        self.demand_names(frozen, &spec).await?;
        if let Err(error) = self.create(instance, frozen, &spec).await {
            return Err(match error.status() {
                Some(404) => wrong(
                    format!(
                        "image {} or a network no longer exists: {}",
                        frozen.artifact,
                        crate::chain(&error)
                    )
                    .into(),
                ),
                _ => self.undo(instance, frozen, error).await,
            });
        }
        fault::point("docker.start.created");
        match self.run(instance).await {
            Ok(()) => {
                fault::point("docker.start.started");
                Ok(())
            }
            Err(error) => Err(self.undo(instance, frozen, error).await),
        }
    }

    async fn state(&self, instance: &InstanceId) -> Result<State, RuntimeError> {
        self.engine.state(instance).await
    }

    async fn find(&self, backend: &BackendName) -> Result<Vec<InstanceId>, RuntimeError> {
        self.engine.instances(backend).await.map_err(EngineError::unreachable)
    }

    async fn stop(&self, instance: &InstanceId, timeout: Duration) -> Result<State, RuntimeError> {
        self.engine.stop(instance, timeout).await
    }

    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        self.engine.remove(instance).await
    }

    async fn prune(&self, artifacts: &[String]) -> Result<Vec<String>, RuntimeError> {
        // `{service}`, `{backend}` and `{version}` match anything that is valid there.
        let pattern = image::split_tag(&self.settings.image).0.to_owned();
        let ours = |name: &str| image::fits(&pattern, image::split_tag(name).0);
        self.engine.prune(artifacts, &ours).await.map_err(EngineError::unreachable)
    }

    async fn logs(
        &self,
        instance: &InstanceId,
        query: &LogQuery,
        line: Lines<'_>,
    ) -> Result<(), RuntimeError> {
        self.engine.logs(instance, query, line).await
    }
}
