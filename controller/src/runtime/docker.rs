//! Containers through the Engine API, without any command-line tool.
//!
//! An instance is a container of its name, with our labels. What was frozen is the whole request that makes it, with
//! the image by its id: a roll back starts the very same, whatever the tag means by then.

mod context;
mod spec;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker as Client;
use bollard::errors::Error;
use bollard::models::{EndpointSettings, NetworkConnectRequest};
use bollard::query_parameters::{
    BuildImageOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
};
use futures_util::StreamExt as _;
use uh_protocol::BackendName;

use self::spec::Spec;
use super::engine::{BoxError, Engine, EngineError, LineCutter};
use super::{Candidate, Frozen, InstanceId, Lines, LogQuery, Plan, Runtime, RuntimeError, State};
use crate::check::Check;
use crate::config::{Config, DockerSettings, Pull};
use crate::{fault, ports};

/// How many lines of a failed build are shown.
const BUILD_LOG_LINES: usize = 50;

/// How long making or starting a container may take: an engine under load pulls itself together in seconds.
const START_WITHIN: Duration = Duration::from_secs(60);

/// The `docker` runtime.
#[derive(Debug)]
pub struct Docker {
    engine: Engine,
    settings: DockerSettings,
    build_timeout: Duration,
}

impl Docker {
    /// For this configuration.
    #[must_use]
    pub fn new(config: &Config, settings: &DockerSettings) -> Self {
        Self {
            engine: Engine::new(&config.deploy.state_dir, config.deploy.service.clone()),
            settings: settings.clone(),
            build_timeout: config.deploy.build_timeout,
        }
    }

    async fn build_image(
        &self,
        context: &std::path::Path,
        image: &str,
        candidate: &Candidate,
        progress: Lines<'_>,
    ) -> Result<(), RuntimeError> {
        let settings = &self.settings;
        let args: HashMap<String, String> = settings
            .build_args
            .iter()
            .map(|(name, value)| (name.clone(), spec::fill(value, candidate)))
            .collect();
        let mut options = BuildImageOptionsBuilder::new()
            .dockerfile(&settings.dockerfile)
            .t(image)
            .rm(true)
            .forcerm(true)
            .buildargs(&args);
        if let Some(target) = &settings.target {
            options = options.target(target);
        }
        if settings.pull == Pull::Always {
            options = options.pull("true");
        }
        let client = self.engine.ask(START_WITHIN, async |client: Client| Ok(client)).await;
        let client = client.map_err(EngineError::unreachable)?;
        let (body, packing) = context::stream(context, &settings.dockerfile);
        let mut output = client.build_image(options.build(), None, Some(bollard::body_try_stream(body)));
        let mut log = Log::new(progress);
        while let Some(step) = output.next().await {
            match step {
                Ok(step) => {
                    log.text(step.stream.as_deref().unwrap_or_default());
                    if let Some(error) = step.error_detail.and_then(|detail| detail.message) {
                        return Err(log.failed(error));
                    }
                }
                Err(error) => {
                    // The engine's complaint about a half-sent context says less than why it was half-sent.
                    let packed = packing.await.unwrap_or(Ok(()));
                    return Err(log.failed(packed.err().unwrap_or_else(|| said(&error))));
                }
            }
        }
        Ok(())
    }

    async fn pull_image(&self, image: &str, progress: Lines<'_>) -> Result<(), RuntimeError> {
        let (name, tag) = split_tag(image);
        let options = CreateImageOptionsBuilder::new().from_image(name).tag(tag).build();
        let client = self.engine.ask(START_WITHIN, async |client: Client| Ok(client)).await;
        let client = client.map_err(EngineError::unreachable)?;
        let mut output = client.create_image(Some(options), None, None);
        let mut log = Log::new(progress);
        while let Some(step) = output.next().await {
            match step {
                Ok(step) => {
                    // Without the progress bars: a line each time a layer changes its state.
                    if let (Some(status), None) = (&step.status, &step.progress_detail) {
                        log.text(&format!("{} {status}\n", step.id.as_deref().unwrap_or(image)));
                    }
                    if let Some(error) = step.error_detail.and_then(|detail| detail.message) {
                        return Err(log.failed(error));
                    }
                }
                Err(error) => return Err(log.failed(format!("cannot pull {image}: {}", said(&error)))),
            }
        }
        Ok(())
    }

    async fn make_image(&self, candidate: &Candidate, progress: Lines<'_>) -> Result<String, RuntimeError> {
        let image = spec::fill(&self.settings.image, candidate);
        if let Some(context) = &self.settings.context {
            self.build_image(context, &image, candidate, progress).await?;
        } else {
            let here = self.engine.image_id(&image).await.map_err(EngineError::unreachable)?.is_some();
            match self.settings.pull {
                Pull::Never if !here => {
                    let reason =
                        format!("there is no image {image} here, and runtime.docker.pull is \"never\"");
                    return Err(RuntimeError::Build { reason, log: Vec::new() });
                }
                Pull::Always => self.pull_image(&image, progress).await?,
                Pull::Missing if !here => self.pull_image(&image, progress).await?,
                Pull::Missing | Pull::Never => {}
            }
        }
        let id = self.engine.image_id(&image).await.map_err(EngineError::unreachable)?;
        id.ok_or_else(|| RuntimeError::Build {
            reason: format!("there is no image {image}"),
            log: Vec::new(),
        })
    }

    fn spec(&self, image_id: &str, candidate: &Candidate) -> Result<Spec, RuntimeError> {
        Spec::new(&self.settings, image_id, candidate)
            .map_err(|reason| RuntimeError::Build { reason, log: Vec::new() })
    }

    /// Makes the container, unless there is one by that name.
    async fn create(&self, instance: &InstanceId, frozen: &Frozen, spec: &Spec) -> Result<(), EngineError> {
        let service = instance.as_str().split('.').next().unwrap_or_default();
        let labels = self.engine.labels(instance, service, &frozen.backend, &frozen.version);
        let body = spec.request(labels);
        let options = CreateContainerOptionsBuilder::new().name(instance.as_str()).build();
        let made = self
            .engine
            .call(START_WITHIN, async |client: Client| {
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
                .call(START_WITHIN, async |client: Client| client.connect_network(network, request()).await)
                .await;
            match joined {
                // It has joined already.
                Err(error) if error.status() == Some(403) => {}
                other => other?,
            }
        }
        Ok(())
    }

    async fn run(&self, instance: &InstanceId) -> Result<(), EngineError> {
        let started = self
            .engine
            .call(START_WITHIN, async |client: Client| client.start_container(instance.as_str(), None).await)
            .await;
        match started {
            // It runs already.
            Err(error) if error.status() == Some(304) => Ok(()),
            other => other,
        }
    }

    /// What became of a start that failed: nothing of it is left, and a port that is taken is told of as such.
    async fn undo(&self, instance: &InstanceId, frozen: &Frozen, error: EngineError) -> RuntimeError {
        let text = error.to_string();
        let _removed = self.engine.remove(instance).await;
        let taken = text.contains("port is already allocated") || text.contains("address already in use");
        match frozen.endpoints.iter().find(|endpoint| taken && endpoint.port().is_some()) {
            Some(endpoint) => self.port_taken(endpoint, "something that can't be told from here").await,
            None => error.about("start", instance),
        }
    }

    async fn port_taken(&self, endpoint: &super::Endpoint, by: &str) -> RuntimeError {
        let publisher = match endpoint.port() {
            Some(port) => self.engine.publisher(port).await,
            None => None,
        };
        RuntimeError::PortTaken {
            endpoint: endpoint.to_string(),
            by: publisher.unwrap_or_else(|| by.to_owned()),
        }
    }
}

#[async_trait(?Send)]
impl Runtime for Docker {
    fn kind(&self) -> &'static str {
        "docker"
    }

    async fn checks(&self, candidate: &Candidate) -> Vec<Check> {
        let engine = "Docker Engine running";
        let mut checks = vec![match self.engine.version().await {
            Ok(version) => Check::passed(engine, version),
            Err(error) => Check::failed(engine, crate::chain(&error), "start it: systemctl start docker"),
        }];
        checks.push(self.image_check(candidate).await);
        let (name, remedy) = ("Container settings valid", "mend runtime.docker");
        checks.push(match Spec::new(&self.settings, "sha256:0", candidate) {
            Ok(_) => Check::passed(name, "environment, ports, volumes"),
            Err(reason) => Check::failed(name, reason, remedy),
        });
        for network in &self.settings.networks {
            let name = format!("Network {network} there");
            let found = self
                .engine
                .ask(START_WITHIN, async |client: Client| client.inspect_network(network, None).await)
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

    async fn plan(&self, candidate: &Candidate) -> Result<Plan, RuntimeError> {
        let image = spec::fill(&self.settings.image, candidate);
        let spec = self.spec(&image, candidate)?;
        let build = match (&self.settings.context, self.settings.pull) {
            (Some(context), _) => {
                format!("build image {image} from {} ({})", context.display(), self.settings.dockerfile)
            }
            (None, Pull::Always) => format!("pull image {image}"),
            (None, Pull::Missing) => format!("pull image {image}, unless it is here"),
            (None, Pull::Never) => format!("use image {image}, which must be here"),
        };
        Ok(Plan { build: vec![build], start: vec![format!("start a container of it{}", spec.published())] })
    }

    async fn build(&self, candidate: &Candidate, progress: Lines<'_>) -> Result<Frozen, RuntimeError> {
        let made = tokio::time::timeout(self.build_timeout, self.make_image(candidate, progress)).await;
        let image = made.map_err(|_| RuntimeError::Build {
            reason: format!("it was not done after {:?}", self.build_timeout),
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

    async fn start(&self, instance: &InstanceId, frozen: &Frozen) -> Result<(), RuntimeError> {
        if self.state(instance).await?.is_running() {
            return Ok(());
        }
        let wrong =
            |source: BoxError| RuntimeError::Instance { action: "start", instance: instance.clone(), source };
        let spec: Spec = serde_json::from_value(frozen.spec.clone()).map_err(|e| wrong(e.into()))?;
        for endpoint in frozen.endpoints.iter().filter(|_| spec.publishes()) {
            if let Some(by) = ports::taken_by(endpoint) {
                return Err(self.port_taken(endpoint, &by).await);
            }
        }
        if let Err(error) = self.create(instance, frozen, &spec).await {
            return Err(match error.status() {
                Some(404) => wrong(
                    format!(
                        "{} is not here any more, or a network is not: {}",
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

    async fn logs(
        &self,
        instance: &InstanceId,
        query: &LogQuery,
        line: Lines<'_>,
    ) -> Result<(), RuntimeError> {
        self.engine.logs(instance, query, line).await
    }
}

impl Docker {
    async fn image_check(&self, candidate: &Candidate) -> Check {
        let image = spec::fill(&self.settings.image, candidate);
        if let Some(context) = &self.settings.context {
            let (name, dockerfile) = ("Image buildable", context.join(&self.settings.dockerfile));
            return if dockerfile.is_file() {
                Check::passed(name, dockerfile.display().to_string())
            } else {
                let remedy = "mend runtime.docker.context and dockerfile";
                Check::failed(name, format!("there is no {}", dockerfile.display()), remedy)
            };
        }
        let name = "Image available";
        match (self.engine.image_id(&image).await, self.settings.pull) {
            (Ok(Some(id)), _) => Check::passed(name, format!("{image} ({id})")),
            (Ok(None), Pull::Never) => {
                Check::failed(name, format!("{image} is not here"), format!("docker pull {image}"))
            }
            (Ok(None), _) => Check::passed(name, format!("{image} is not here: it will be pulled")),
            (Err(error), _) => Check::failed(name, crate::chain(&error), "see the engine"),
        }
    }
}

/// `registry:5000/app:1.0` → its name and its tag; a digest stays with the name.
fn split_tag(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') && !image.contains('@') => (name, tag),
        _ if image.contains('@') => (image, ""),
        _ => (image, "latest"),
    }
}

/// What the engine says, without the client's frame around it.
fn said(error: &Error) -> String {
    match error {
        Error::DockerStreamError { error } => error.clone(),
        Error::DockerResponseServerError { message, .. } => message.clone(),
        other => crate::chain(other),
    }
}

/// Hands output on line by line, and keeps the last lines for an error.
struct Log<'a> {
    lines: LineCutter,
    last: std::cell::RefCell<VecDeque<String>>,
    progress: Lines<'a>,
}

impl<'a> Log<'a> {
    fn new(progress: Lines<'a>) -> Self {
        Self { lines: LineCutter::default(), last: std::cell::RefCell::default(), progress }
    }

    fn text(&mut self, text: &str) {
        let (last, progress) = (&self.last, self.progress);
        self.lines.push(text.as_bytes(), &|line: &str| {
            progress(line);
            let mut last = last.borrow_mut();
            if last.len() == BUILD_LOG_LINES {
                last.pop_front();
            }
            last.push_back(line.to_owned());
        });
    }

    fn failed(self, reason: String) -> RuntimeError {
        RuntimeError::Build { reason, log: self.last.into_inner().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_a_registry_is_no_tag() {
        for (image, parts) in [
            ("app", ("app", "latest")),
            ("app:1.0", ("app", "1.0")),
            ("reg:5000/app", ("reg:5000/app", "latest")),
            ("reg:5000/app:1.0", ("reg:5000/app", "1.0")),
            ("app@sha256:00ff", ("app@sha256:00ff", "")),
        ] {
            assert_eq!(split_tag(image), parts, "{image}");
        }
    }
}
