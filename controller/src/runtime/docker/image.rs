//! The image of an instance: built from a directory or pulled, and referred to by its id from then on.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use bollard::Docker as Client;
use bollard::errors::Error;
use bollard::query_parameters::{BuildImageOptionsBuilder, CreateImageOptionsBuilder};
use futures_util::StreamExt as _;

use super::{DockerRuntime, START_WITHIN, context, spec};
use crate::check::Check;
use crate::config::Pull;
use crate::lines::{LineSplitter, Lines};
use crate::redact::Foreign;
use crate::runtime::engine::{EngineError, RegistryCredentials};
use crate::runtime::{Candidate, RuntimeError};

/// How long a registry may take to report whether it has an image.
const REGISTRY_WITHIN: std::time::Duration = std::time::Duration::from_secs(15);

/// How many lines of a failed build are shown.
const BUILD_LOG_LINES: usize = 50;

impl DockerRuntime {
    /// Builds or pulls the image, and returns its id.
    pub(super) async fn make_image(
        &self,
        candidate: &Candidate,
        progress: Lines<'_>,
    ) -> Result<String, RuntimeError> {
        let image = spec::fill(&self.settings.image, candidate);
        if let Some(context) = &self.settings.context {
            self.build_image(context, &image, candidate, progress).await?;
        } else {
            let here = self.engine.image_id(&image).await.map_err(EngineError::unreachable)?.is_some();
            match self.settings.pull {
                Pull::Never if !here => {
                    let reason =
                        format!("image {image} isn't on this host, and runtime.docker.pull is \"never\"");
                    return Err(RuntimeError::Build { reason, log: Vec::new() });
                }
                Pull::Always => self.pull_image(&image, progress).await?,
                Pull::Missing if !here => self.pull_image(&image, progress).await?,
                Pull::Missing | Pull::Never => {}
            }
        }
        let id = self.engine.image_id(&image).await.map_err(EngineError::unreachable)?;
        id.ok_or_else(|| RuntimeError::Build {
            reason: format!("the engine has no image {image}"),
            log: Vec::new(),
        })
    }

    async fn build_image(
        &self,
        context: &Path,
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
        let client =
            self.engine.ask("accept a connection", START_WITHIN, async |client: Client| Ok(client)).await;
        let client = client.map_err(EngineError::unreachable)?;
        let (body, packing) = context::stream(context, &settings.dockerfile);
        let (credentials, problems) = match RegistryCredentials::read() {
            Ok(logins) => logins.all().await,
            Err(problem) => (HashMap::new(), vec![problem]),
        };
        problems.iter().for_each(|problem| progress(&Foreign::new(problem)));
        let credentials = (!credentials.is_empty()).then_some(credentials);
        let mut output =
            client.build_image(options.build(), credentials, Some(bollard::body_try_stream(body)));
        let mut log = BuildLog::new(progress);
        while let Some(step) = output.next().await {
            match step {
                Ok(step) => {
                    log.text(step.stream.as_deref().unwrap_or_default());
                    if let Some(error) = step.error_detail.and_then(|detail| detail.message) {
                        return Err(log.failed(Foreign::new(&error).to_string()));
                    }
                }
                Err(error) => {
                    // If packing the context failed, that is the more useful error.
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
        let client =
            self.engine.ask("accept a connection", START_WITHIN, async |client: Client| Ok(client)).await;
        let client = client.map_err(EngineError::unreachable)?;
        let credentials = match RegistryCredentials::read() {
            Ok(logins) => logins.of_image(image).await,
            Err(problem) => Err(problem),
        };
        let credentials = credentials.unwrap_or_else(|problem| {
            progress(&Foreign::new(&format!("{problem}; trying without credentials")));
            None
        });
        let mut output = client.create_image(Some(options), None, credentials);
        let mut log = BuildLog::new(progress);
        while let Some(step) = output.next().await {
            match step {
                Ok(step) => {
                    // Without progress bars: a line whenever a layer changes its state.
                    if let (Some(status), None) = (&step.status, &step.progress_detail) {
                        log.text(&format!("{} {status}\n", step.id.as_deref().unwrap_or(image)));
                    }
                    if let Some(error) = step.error_detail.and_then(|detail| detail.message) {
                        return Err(log.failed(Foreign::new(&error).to_string()));
                    }
                }
                Err(error) => return Err(log.failed(format!("can't pull {image}: {}", said(&error)))),
            }
        }
        Ok(())
    }

    /// Whether the image is available, as far as this is known before a deploy.
    pub(super) async fn image_check(&self, candidate: &Candidate) -> Check {
        let image = spec::fill(&self.settings.image, candidate);
        if let Some(context) = &self.settings.context {
            let (name, dockerfile) = ("Image buildable", context.join(&self.settings.dockerfile));
            return if dockerfile.is_file() {
                Check::passed(name, dockerfile.display().to_string())
            } else {
                let remedy = "fix runtime.docker.context and dockerfile";
                Check::failed(name, format!("{} doesn't exist", dockerfile.display()), remedy)
            };
        }
        let name = "Image available";
        match (self.engine.image_id(&image).await, self.settings.pull) {
            (Ok(Some(id)), _) => Check::passed(name, format!("{image} ({id})")),
            (Ok(None), Pull::Never) => {
                Check::failed(name, format!("{image} isn't on this host"), format!("docker pull {image}"))
            }
            // The version to deploy isn't known yet.
            (Ok(None), _) if self.settings.image.contains("{version}") => Check::passed(
                name,
                format!("not checked: {} is pulled when a version is deployed", self.settings.image),
            ),
            (Ok(None), _) => match self.ask_registry(&image).await {
                Ok(()) => Check::passed(
                    name,
                    format!("{image} isn't on this host and will be pulled; its registry has it"),
                ),
                Err(reason) => {
                    let remedy = "push it, fix runtime.docker.image, or run docker login as this user";
                    Check::failed(
                        name,
                        format!("{image} isn't on this host and can't be pulled: {reason}"),
                        remedy,
                    )
                }
            },
            (Err(error), _) => Check::failed(name, crate::chain(&error), "check the Docker Engine"),
        }
    }
}

impl DockerRuntime {
    /// Whether an image's registry has it and permits pulling it.
    async fn ask_registry(&self, image: &str) -> Result<(), String> {
        let credentials = RegistryCredentials::read()?.of_image(image).await?;
        let asked = self
            .engine
            .ask("ask a registry for an image", REGISTRY_WITHIN, async |client: Client| {
                client.inspect_registry_image(image, credentials).await.map(drop)
            })
            .await;
        asked.map_err(|error| crate::chain(&error))
    }
}

/// Splits `registry:5000/app:1.0` into its name and tag. A digest stays with the name.
pub(super) fn split_tag(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') && !image.contains('@') => (name, tag),
        _ if image.contains('@') => (image, ""),
        _ => (image, "latest"),
    }
}

/// Whether a name matches a pattern with `{…}` placeholders.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?.1))) {
        None => pattern == name,
        Some((before, after)) => {
            let Some(rest) = name.strip_prefix(before) else { return false };
            (1..=rest.len()).any(|at| {
                rest.get(..at).is_some_and(|filled| !filled.contains('/')) && fits(after, &rest[at..])
            })
        }
    }
}

/// The engine's error message, without the client's wrapping.
fn said(error: &Error) -> String {
    let said = match error {
        Error::DockerStreamError { error } => Foreign::new(error),
        Error::DockerResponseServerError { message, .. } => Foreign::new(message),
        other => Foreign::error(other),
    };
    said.to_string()
}

/// Passes output on line by line, and keeps the last lines for an error.
struct BuildLog<'a> {
    lines: LineSplitter,
    last: VecDeque<Foreign>,
    progress: Lines<'a>,
}

impl<'a> BuildLog<'a> {
    fn new(progress: Lines<'a>) -> Self {
        Self { lines: LineSplitter::default(), last: VecDeque::new(), progress }
    }

    fn text(&mut self, text: &str) {
        let (last, progress) = (&mut self.last, self.progress);
        self.lines.push(text.as_bytes(), &mut |line| {
            progress(&line);
            if last.len() == BUILD_LOG_LINES {
                last.pop_front();
            }
            last.push_back(line);
        });
    }

    fn failed(self, reason: String) -> RuntimeError {
        RuntimeError::Build { reason, log: self.last.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_matches_within_a_path_segment() {
        assert!(fits("reg/app", "reg/app") && !fits("reg/app", "reg/app2"));
        assert!(fits("{service}", "shop") && !fits("{service}", "library/postgres"));
        assert!(fits("reg/{service}-{backend}", "reg/shop-blue") && !fits("reg/{service}-x", "reg/shop"));
    }

    #[test]
    fn a_registry_port_is_not_a_tag() {
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
