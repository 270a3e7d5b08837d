//! The compose tool: `docker compose` where it is there, else `docker-compose`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{CommandFailed, run_lines};
use crate::config::ComposeSettings;
use crate::runtime::Lines;

/// How long it may take to say its version.
const VERSION_WITHIN: Duration = Duration::from_secs(15);

/// How many lines of a failed call are shown.
const LOG_LINES: usize = 50;

/// The compose tool, and the files that it is asked about.
#[derive(Debug)]
pub(super) struct Tool {
    /// `docker compose` or `docker-compose`.
    words: &'static [&'static str],
    version: String,
    directory: PathBuf,
    arguments: Vec<String>,
    project: Option<String>,
}

impl Tool {
    /// The first one that answers.
    pub(super) async fn find(settings: &ComposeSettings, directory: &Path) -> Result<Self, String> {
        let mut arguments = Vec::new();
        for file in &settings.files {
            arguments.extend(["-f".to_owned(), file.display().to_string()]);
        }
        for profile in &settings.profiles {
            arguments.extend(["--profile".to_owned(), profile.clone()]);
        }
        let mut reasons = Vec::new();
        for words in [&["docker", "compose"][..], &["docker-compose"]] {
            let mut tool = Self {
                words,
                version: String::new(),
                directory: directory.to_owned(),
                arguments: arguments.clone(),
                project: settings.project.clone(),
            };
            match tool.ask(tool.command(["version", "--short"]), VERSION_WITHIN).await {
                Ok(version) => {
                    tool.version = version.trim().to_owned();
                    return Ok(tool);
                }
                Err(failed) => reasons.push(failed.reason),
            }
        }
        Err(format!("neither docker compose nor docker-compose answers: {}", reasons.join("; ")))
    }

    /// Which one it is, for people.
    pub(super) fn version(&self) -> String {
        format!("{} {}", self.words.join(" "), self.version)
    }

    fn command<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let (program, words) = self.words.split_first().unwrap_or((&"docker-compose", &[]));
        let mut command = Command::new(program);
        command.args(words).args(arguments).current_dir(&self.directory);
        // The files are the user's, and so are the variables that they refer to.
        command.env_clear().envs(std::env::vars_os());
        // A document of ours has one service; that the project has others is no news.
        command.env("COMPOSE_IGNORE_ORPHANS", "1");
        command
    }

    /// Runs a command and returns its standard output; what it says besides is its error's.
    async fn ask(&self, command: Command, within: Duration) -> Result<String, CommandFailed> {
        crate::command::output(&command, within, LOG_LINES).await
    }

    /// The user's files, resolved.
    pub(super) async fn config(
        &self,
        variables: &BTreeMap<String, String>,
        within: Duration,
    ) -> Result<String, CommandFailed> {
        let mut command = self.command([]);
        command.args(&self.arguments);
        if let Some(project) = &self.project {
            command.args(["-p", project]);
        }
        command.arg("config").envs(variables);
        self.ask(command, within).await
    }

    fn about(&self, document: &Path, project: &str) -> Command {
        let mut command = self.command([]);
        // Paths in it are absolute since it was resolved; this is for what the tool looks for beside it (.env).
        command.arg("--project-directory").arg(&self.directory);
        command.arg("-f").arg(document).args(["-p", project]);
        command
    }

    /// Has something done with a document's service: `build` or `pull`.
    pub(super) async fn make(
        &self,
        what: &str,
        document: &Path,
        (project, service): (&str, &str),
        within: Duration,
        progress: Lines<'_>,
    ) -> Result<(), CommandFailed> {
        let mut command = self.about(document, project);
        command.args([what, service]);
        run_lines(&command, within, progress, LOG_LINES).await
    }

    /// Makes and starts the container of a document's service, and nothing else.
    pub(super) async fn up(
        &self,
        document: &Path,
        project: &str,
        service: &str,
        within: Duration,
    ) -> Result<(), CommandFailed> {
        let mut command = self.about(document, project);
        command.args(["up", "-d", "--no-deps", "--no-build", "--force-recreate", service]);
        run_lines(&command, within, &|_| {}, LOG_LINES).await
    }
}
