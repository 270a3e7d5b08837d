//! The user's own compose files, through the compose tool. They are read, never written.
//!
//! The tool resolves the files (`config`). What it prints about the deployed service is frozen: a separate document
//! with the image pinned and every `${…}` replaced. `start` passes that document to the tool, with uh-deploy's labels
//! added; from then on the container is found by its labels through the Engine API.
//!
//! ```text
//! STATE_DIR/compose/app.green.20261125t101500-4f2a.json    what the tool was started with (mode 0600)
//! ```

mod document;
mod tool;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bollard::Docker as Client;
use bollard::query_parameters::TagImageOptionsBuilder;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use uh_protocol::BackendName;

pub(super) use self::document::Document;
pub(super) use self::tool::Tool;
use super::engine::{BoxError, Engine, EngineError};
use super::process::proc::ProcessIdentity;
use super::{Candidate, DryRunPlan, Frozen, InstanceId, LogQuery, Runtime, RuntimeError, State};
use crate::check::Check;
use crate::command::CommandFailed;
use crate::config::{ComposeSettings, Config, Pull};
use crate::lines::Lines;
use crate::waiting::Waiting;
use crate::{env_file, fault, files};

/// How long the tool may take to resolve the files.
const RESOLVE_WITHIN: Duration = Duration::from_secs(60);

/// How long it may take to create and start one container of a local image.
const START_WITHIN: Duration = Duration::from_secs(120);

/// How long a killed tool may take to exit: only the kernel has work to do.
const TOOL_ENDS_WITHIN: Duration = Duration::from_secs(10);

/// How often to check for it.
const TOOL_POLL: Duration = Duration::from_millis(20);

/// The repository of uh-deploy's tags, which keep pinned images from being pruned.
const PINNED: &str = "uh-deploy";

#[derive(Debug)]
pub(super) struct ComposeRuntime {
    engine: Engine,
    settings: ComposeSettings,
    directory: PathBuf,
    documents: PathBuf,
    build_timeout: Duration,
    waiting: Waiting,
}

/// What was frozen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ComposeSpec {
    /// The compose project.
    project: String,
    /// The service in it.
    service: String,
    /// Everything the tool needs to start it. May hold secrets.
    document: Document,
}

impl ComposeRuntime {
    /// For this configuration.
    #[must_use]
    pub(super) fn new(config: &Config, settings: &ComposeSettings, waiting: Waiting) -> Self {
        Self {
            engine: Engine::new(&config.deploy.state_dir, config.deploy.service.clone(), waiting.clone()),
            settings: settings.clone(),
            directory: config.directory.clone(),
            documents: config.deploy.state_dir.join("compose"),
            build_timeout: config.deploy.build_timeout,
            waiting,
        }
    }

    /// Variables for the files' `${…}`.
    fn variables(&self, candidate: &Candidate) -> Result<BTreeMap<String, String>, String> {
        let mut variables = BTreeMap::from([
            ("APP_VERSION".to_owned(), candidate.version.clone()),
            ("DEPLOYMENT_ENV".to_owned(), candidate.backend.to_string()),
        ]);
        if let Some(path) = &self.settings.env_file {
            variables.extend(env_file::read(path)?);
        }
        variables
            .extend(self.settings.env.iter().map(|(name, value)| (name.clone(), fill(value, candidate))));
        Ok(variables)
    }

    async fn tool(&self) -> Result<Tool, String> {
        Tool::find(&self.settings, &self.directory, &self.waiting).await
    }

    /// Resolves the candidate's service in the files.
    async fn resolve(&self, tool: &Tool, candidate: &Candidate) -> Result<ComposeSpec, CommandFailed> {
        let wrong = |reason: String| CommandFailed { reason, log: Vec::new() };
        let variables = self.variables(candidate).map_err(wrong)?;
        let text = tool.config(&variables, RESOLVE_WITHIN).await?;
        let service = fill(&self.settings.service, candidate);
        let document = Document::of(&text, &service).map_err(wrong)?;
        let project = self.settings.project.clone().or_else(|| document.project()).unwrap_or_else(|| {
            let folder = self.settings.files.first().and_then(|file| file.parent()?.file_name());
            default_project(&folder.unwrap_or_default().to_string_lossy())
        });
        Ok(ComposeSpec { project, service, document })
    }

    /// Builds or pulls the service's image with the tool.
    async fn make(
        &self,
        tool: &Tool,
        what: &str,
        spec: &ComposeSpec,
        progress: Lines<'_>,
    ) -> Result<(), RuntimeError> {
        let scratch = TempDocument::new(&self.documents, what, spec)
            .map_err(|reason| RuntimeError::Build { reason, log: Vec::new() })?;
        let names = (spec.project.as_str(), spec.service.as_str());
        tool.make(what, &scratch.0, names, self.build_timeout, progress).await.map_err(build_failed)
    }

    /// Builds or pulls the service's image, and pins it. Returns the image's id.
    async fn make_image(
        &self,
        spec: &mut ComposeSpec,
        candidate: &Candidate,
        progress: Lines<'_>,
    ) -> Result<String, RuntimeError> {
        let wrong = |reason: String| RuntimeError::Build { reason, log: Vec::new() };
        let tool = self.tool().await.map_err(wrong)?;
        let repository = format!("{PINNED}/{}-{}", spec.project, spec.service);
        let image = if spec.document.is_built() {
            let image = format!("{repository}:{}", tag_of(&candidate.version));
            spec.document.set_image(&image);
            self.make(&tool, "build", spec, progress).await?;
            image
        } else {
            let image = spec.document.image().ok_or_else(|| {
                wrong(format!("the compose service {} has neither image nor build", spec.service))
            })?;
            let here = self.engine.image_id(&image).await.map_err(EngineError::unreachable)?.is_some();
            match self.settings.pull {
                Pull::Never if !here => {
                    return Err(wrong(format!(
                        "image {image} isn't on this host, and runtime.compose.pull is \"never\""
                    )));
                }
                Pull::Missing if here => {}
                Pull::Never => {}
                Pull::Missing | Pull::Always => self.make(&tool, "pull", spec, progress).await?,
            }
            image
        };
        let id = self.engine.image_id(&image).await.map_err(EngineError::unreachable)?;
        let id = id.ok_or_else(|| wrong(format!("the engine has no image {image}")))?;
        let short = id.trim_start_matches("sha256:").get(..12).unwrap_or("image").to_owned();
        let options = TagImageOptionsBuilder::new().repo(&repository).tag(&short).build();
        self.engine
            .call("tag an image", RESOLVE_WITHIN, async |client: Client| {
                client.tag_image(&id, Some(options.clone())).await
            })
            .await
            .map_err(EngineError::unreachable)?;
        spec.document.pin(&format!("{repository}:{short}"));
        Ok(id)
    }
}

impl ComposeRuntime {
    /// The path of an instance's document.
    fn document(&self, instance: &InstanceId) -> PathBuf {
        self.documents.join(format!("{instance}.json"))
    }

    /// Kills a tool process that a killed uh-deploy left behind for an instance, since it would start the instance
    /// later.
    async fn end_tool(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        let failed = |source: BoxError| RuntimeError::Instance {
            action: "stop the compose tool that starts",
            instance: instance.clone(),
            source,
        };
        let document = self.document(instance);
        let deadline = Instant::now() + TOOL_ENDS_WITHIN;
        loop {
            let left = ProcessIdentity::with_argument(document.as_os_str());
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let pids: Vec<String> = left.iter().map(|process| process.pid.to_string()).collect();
                return Err(failed(format!("process {} doesn't exit", pids.join(", ")).into()));
            }
            for process in left {
                process.signal(Signal::KILL).map_err(|e| failed(e.into()))?;
            }
            tokio::time::sleep(TOOL_POLL).await;
        }
    }

    fn forget(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        files::remove(&self.document(instance)).map_err(|e| RuntimeError::Instance {
            action: "remove the compose document of",
            instance: instance.clone(),
            source: e.into(),
        })
    }
}

#[async_trait(?Send)]
impl Runtime for ComposeRuntime {
    fn kind(&self) -> &'static str {
        "compose"
    }

    async fn checks(&self, candidate: &Candidate) -> Vec<Check> {
        let (compose, service) = ("Docker Compose available", "Compose files valid");
        let mut checks = vec![self.engine.check().await];
        let tool = match self.tool().await {
            Ok(tool) => tool,
            Err(reason) => {
                let remedy = "install docker-compose-plugin or docker-compose";
                checks.push(Check::failed(compose, reason, remedy));
                return checks;
            }
        };
        checks.push(Check::passed(compose, tool.version()));
        checks.push(match self.resolve(&tool, candidate).await {
            Ok(spec) => {
                Check::passed(service, format!("service {} of project {}", spec.service, spec.project))
            }
            Err(failed) => {
                Check::failed(service, failed.to_string(), "fix runtime.compose or the compose files")
            }
        });
        checks
    }

    async fn plan(&self, candidate: &Candidate) -> Result<DryRunPlan, RuntimeError> {
        let wrong = |reason: String| RuntimeError::Build { reason, log: Vec::new() };
        let tool = self.tool().await.map_err(wrong)?;
        let spec = self.resolve(&tool, candidate).await.map_err(build_failed)?;
        let image = spec.document.image().unwrap_or_default();
        let build = match (spec.document.is_built(), self.settings.pull) {
            (true, _) => format!("build compose service {}", spec.service),
            (false, Pull::Always) => format!("pull image {image}"),
            (false, Pull::Missing) => format!("pull image {image} unless it is on this host"),
            (false, Pull::Never) => format!("use image {image}, which must be on this host"),
        };
        let start = format!("start compose service {} of project {}", spec.service, spec.project);
        Ok(DryRunPlan { build: vec![build], start: vec![start] })
    }

    async fn build(&self, candidate: &Candidate, progress: Lines<'_>) -> Result<Frozen, RuntimeError> {
        let wrong = |reason: String| RuntimeError::Build { reason, log: Vec::new() };
        let tool = self.tool().await.map_err(wrong)?;
        let mut spec = self.resolve(&tool, candidate).await.map_err(build_failed)?;
        let artifact = self.make_image(&mut spec, candidate, progress).await?;
        Ok(Frozen {
            backend: candidate.backend.clone(),
            version: candidate.version.clone(),
            endpoints: candidate.endpoints.clone(),
            runtime: self.kind().to_owned(),
            artifact,
            spec: serde_json::to_value(&spec).map_err(|e| wrong(e.to_string()))?,
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
        let failed =
            |source: BoxError| RuntimeError::Instance { action: "start", instance: instance.clone(), source };
        let mut spec: ComposeSpec =
            serde_json::from_value(frozen.spec.clone()).map_err(|e| failed(e.into()))?;
        let service = instance.as_str().split('.').next().unwrap_or_default();
        let labels = self.engine.labels(instance, service, &frozen.backend, &frozen.version)?;
        spec.document.label(&labels);
        self.engine.demand_own(instance, place_of(&spec), &labels).await?;
        if spec.document.publishes() {
            self.engine.demand_free(&frozen.endpoints).await?;
        }
        let tool = self.tool().await.map_err(|reason| failed(reason.into()))?;
        let file = self.document(instance);
        files::make_directory(&self.documents).map_err(|e| failed(e.into()))?;
        files::replace(&file, spec.document.text().as_bytes()).map_err(|e| failed(e.into()))?;
        fault::point("compose.start.written");
        let started = tool.up(&file, &spec.project, &spec.service, START_WITHIN).await;
        fault::point("compose.start.started");
        if let Err(problem) = started {
            let said = problem.to_string();
            let taken = self.engine.undo_start(instance, frozen, &said).await;
            self.forget(instance)?;
            return Err(taken.unwrap_or_else(|| failed(said.into())));
        }
        Ok(())
    }

    async fn state(&self, instance: &InstanceId) -> Result<State, RuntimeError> {
        self.engine.state(instance).await
    }

    async fn find(&self, backend: &BackendName) -> Result<Vec<InstanceId>, RuntimeError> {
        self.engine.instances(backend).await.map_err(EngineError::unreachable)
    }

    async fn stop(&self, instance: &InstanceId, timeout: Duration) -> Result<State, RuntimeError> {
        self.end_tool(instance).await?;
        self.engine.stop(instance, timeout).await
    }

    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        self.end_tool(instance).await?;
        self.engine.remove(instance).await?;
        self.forget(instance)
    }

    async fn prune(&self, artifacts: &[String]) -> Result<Vec<String>, RuntimeError> {
        // Only uh-deploy's own tags. The name of a pulled image is the user's: it keeps the image, which is reported.
        let ours = |name: &str| name.strip_prefix(PINNED).is_some_and(|rest| rest.starts_with('/'));
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

fn build_failed(failed: CommandFailed) -> RuntimeError {
    RuntimeError::Build { reason: failed.reason, log: failed.log }
}

/// The tool's labels of the containers that it would replace: those of a project's service, except for `run`.
fn place_of(spec: &ComposeSpec) -> Vec<String> {
    let label = |name: &str, value: &str| format!("com.docker.compose.{name}={value}");
    vec![label("project", &spec.project), label("service", &spec.service), label("oneoff", "False")]
}

/// A document for one call of the tool, removed on drop.
struct TempDocument(PathBuf);

impl TempDocument {
    fn new(documents: &Path, purpose: &str, spec: &ComposeSpec) -> Result<Self, String> {
        let scratch = Self(documents.join(format!("{}-{}.{purpose}.json", spec.project, spec.service)));
        files::make_directory(documents)
            .and_then(|()| files::replace(&scratch.0, spec.document.text().as_bytes()))
            .map_err(|e| format!("can't write {}: {e}", scratch.0.display()))?;
        Ok(scratch)
    }
}

impl Drop for TempDocument {
    fn drop(&mut self) {
        let _ = files::remove(&self.0);
    }
}

fn fill(text: &str, candidate: &Candidate) -> String {
    text.replace("{backend}", candidate.backend.as_str()).replace("{version}", &candidate.version)
}

/// The project name that the tool derives from a directory's name: lower case, without invalid characters.
fn default_project(folder: &str) -> String {
    let fits = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    let name: String = folder.to_lowercase().chars().filter(fits).collect();
    let name = name.trim_start_matches(['-', '_']);
    if name.is_empty() { "default".to_owned() } else { name.to_owned() }
}

/// The image tag for a version.
fn tag_of(version: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '-' };
    let tag: String = version.chars().map(fits).take(100).collect();
    format!("v{tag}")
}
