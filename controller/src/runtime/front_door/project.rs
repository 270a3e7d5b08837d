//! The compose project that the front door was started from, as its labels say, and the compose tool for its files.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lines::Lines;
use crate::redact::Foreign;
use crate::runtime::compose::{Document, Tool};
use crate::waiting::Waiting;

/// How long the tool may take to resolve the files, or to check a configuration.
const ANSWERS_WITHIN: Duration = Duration::from_secs(120);

/// How long it may take to start a container, or to replace one that finishes its requests first.
const STARTS_WITHIN: Duration = Duration::from_secs(300);

/// The variable in the shipped files that names the version. Only what the files say counts, as for a later `up`.
pub(crate) const VERSION: &str = "UH_VERSION";

/// A compose project and the service in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Project {
    /// The project.
    pub(crate) name: String,
    /// The service.
    pub(crate) service: String,
    /// The directory with its `.env`.
    pub(crate) directory: PathBuf,
    files: Vec<PathBuf>,
    env_file: Option<PathBuf>,
    one_off: bool,
}

impl Project {
    /// From a container's labels.
    pub(super) fn of(labels: &HashMap<String, String>) -> Option<Self> {
        let label =
            |name: &str| labels.get(&format!("com.docker.compose.{name}")).filter(|it| !it.is_empty());
        let directory = PathBuf::from(label("project.working_dir")?);
        let names = label("project.config_files")?;
        let typed_in = typed_in(&directory, names.split(',').next().unwrap_or_default());
        Some(Self {
            name: label("project")?.clone(),
            service: label("service")?.clone(),
            files: names.split(',').map(|file| typed_in.join(file)).collect(),
            env_file: label("project.environment_file").map(|file| directory.join(file)),
            one_off: label("oneoff").is_some_and(|text| text.eq_ignore_ascii_case("true")),
            directory,
        })
    }

    /// Whether it is the same service of the same project.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.name == other.name && self.service == other.service
    }

    /// Whether the container was made by `run`, for one command.
    pub(super) fn is_one_off(&self) -> bool {
        self.one_off
    }

    /// The file that sets [`VERSION`].
    pub(crate) fn env_file(&self) -> PathBuf {
        self.env_file.clone().unwrap_or_else(|| self.directory.join(".env"))
    }

    /// What an operator types to start a second container.
    pub(crate) fn by_hand(&self) -> String {
        let files: Vec<String> = self.files.iter().map(|file| format!("-f {}", file.display())).collect();
        format!(
            "docker-compose {} -p {} up -d --no-deps --no-recreate --scale {service}=2 {service}",
            files.join(" "),
            self.name,
            service = self.service
        )
    }

    /// The tool, if the files are here.
    pub(super) async fn files(&self, waiting: &Waiting) -> Result<Option<ComposeFiles>, String> {
        if !self.files.iter().all(|file| file.is_file()) {
            return Ok(None);
        }
        let mut arguments = vec!["--project-directory".to_owned(), self.directory.display().to_string()];
        for file in &self.files {
            arguments.extend(["-f".to_owned(), file.display().to_string()]);
        }
        if let Some(file) = &self.env_file {
            arguments.extend(["--env-file".to_owned(), file.display().to_string()]);
        }
        let tool = Tool::of_files(arguments, Some(self.name.clone()), &self.directory, waiting)
            .await?
            .without(VERSION);
        Ok(Some(ComposeFiles { tool, service: self.service.clone() }))
    }
}

/// The files of a project, through the compose tool.
#[derive(Debug)]
pub(crate) struct ComposeFiles {
    tool: Tool,
    service: String,
}

impl ComposeFiles {
    /// The tool's name and version.
    pub(crate) fn tool(&self) -> String {
        self.tool.version()
    }

    /// The image that a plain `up` would start.
    ///
    /// # Errors
    /// The files can't be resolved, or the service has no image.
    pub(crate) async fn image(&self) -> Result<String, String> {
        let text = self.tool.config(&BTreeMap::new(), ANSWERS_WITHIN).await.map_err(|e| e.to_string())?;
        let image = Document::of(&text, &self.service)?.image();
        image.ok_or_else(|| format!("the compose service {} names no image", self.service))
    }

    /// Runs `uh-proxy check` in a container of the service's new image.
    ///
    /// # Errors
    /// What it said.
    pub(crate) async fn check(&self, config: &str, line: Lines<'_>) -> Result<(), String> {
        let words = ["run", "--rm", "--no-deps", "-T", &self.service, "check", "--config", config];
        let checked = self.tool.run(&words, ANSWERS_WITHIN, line).await;
        checked.or_else(|failed| match only_names(failed.log.iter().map(Foreign::as_str)) {
            true => Ok(()),
            false => Err(failed.to_string()),
        })
    }

    /// Starts a second container next to the first, which isn't touched.
    ///
    /// # Errors
    /// What the tool said.
    pub(crate) async fn start_second(&self) -> Result<(), String> {
        let scale = format!("{}=2", self.service);
        let words =
            ["up", "-d", "--no-deps", "--no-build", "--no-recreate", "--scale", &scale, &self.service];
        self.tool.run(&words, STARTS_WITHIN, &|_| {}).await.map_err(|failed| failed.to_string())
    }

    /// Stops the container and starts one of the new image.
    ///
    /// # Errors
    /// What the tool said.
    pub(crate) async fn replace(&self) -> Result<(), String> {
        let words = ["up", "-d", "--no-deps", "--no-build", "--force-recreate", &self.service];
        self.tool.run(&words, STARTS_WITHIN, &|_| {}).await.map_err(|failed| failed.to_string())
    }
}

/// The directory in which the tool ran. docker-compose 1.29 names the files as they were typed there, and the project's
/// directory is that of the first one.
fn typed_in(directory: &Path, first: &str) -> PathBuf {
    let parent = Path::new(first).parent().unwrap_or(Path::new(""));
    let above = directory.ancestors().nth(parent.components().count());
    above.filter(|_| directory.ends_with(parent)).unwrap_or(directory).to_owned()
}

/// Whether `uh-proxy check` only found names that don't resolve: a standby that is stopped has none on the containers'
/// network, and uh-proxy serves without it. Each fault is an indented line.
pub(super) fn only_names<'a>(lines: impl Iterator<Item = &'a str>) -> bool {
    let mut faults = lines.filter(|line| line.starts_with("  ")).peekable();
    faults.peek().is_some()
        && faults.all(|fault| fault.trim_start().starts_with("services.") && fault.contains(".endpoints: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_standby_is_no_reason_against_an_upgrade() {
        let head = "uh-proxy: cannot use /etc/uh-proxy/uh-proxy.toml:";
        let name = "  services.app.backends.green.endpoints: green:3008: Name or service not known";
        assert!(only_names([head, name].into_iter()));
        let port = "  server.listen: uh-keeper doesn't hold 0.0.0.0:81";
        assert!(!only_names([head, name, port].into_iter()));
        assert!(!only_names([head].into_iter()));
    }

    #[test]
    fn files_are_found_from_the_labels_of_every_compose_tool() {
        let labels = |files: &str| {
            let pairs = [
                ("project", "uh"),
                ("service", "proxy"),
                ("project.working_dir", "/srv/uh"),
                ("project.config_files", files),
                ("oneoff", "False"),
            ];
            pairs.map(|(name, value)| (format!("com.docker.compose.{name}"), value.to_owned())).into()
        };
        let expected = [PathBuf::from("/srv/uh/a.yml"), PathBuf::from("/srv/uh/b.yml")];
        for files in ["a.yml,b.yml", "/srv/uh/a.yml,/srv/uh/b.yml", "uh/a.yml,uh/b.yml"] {
            let project = Project::of(&labels(files)).unwrap();
            assert_eq!(project.files, expected);
            assert!(!project.is_one_off());
            assert_eq!(project.env_file(), PathBuf::from("/srv/uh/.env"));
        }
    }
}
