//! The image that an instance runs: built from a directory, or pulled, and named by its id from then on.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::path::Path;

use bollard::Docker as Client;
use bollard::errors::Error;
use bollard::query_parameters::{BuildImageOptionsBuilder, CreateImageOptionsBuilder};
use futures_util::StreamExt as _;

use super::{Docker, START_WITHIN, context, spec};
use crate::check::Check;
use crate::config::Pull;
use crate::runtime::engine::{EngineError, LineCutter};
use crate::runtime::{Candidate, Lines, RuntimeError};

/// How many lines of a failed build are shown.
const BUILD_LOG_LINES: usize = 50;

impl Docker {
    /// Builds or pulls the image, and gives its id.
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

    /// Whether the image can be had, as far as it can be told beforehand.
    pub(super) async fn image_check(&self, candidate: &Candidate) -> Check {
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
    last: RefCell<VecDeque<String>>,
    progress: Lines<'a>,
}

impl<'a> Log<'a> {
    fn new(progress: Lines<'a>) -> Self {
        Self { lines: LineCutter::default(), last: RefCell::default(), progress }
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
