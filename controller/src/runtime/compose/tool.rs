//! The compose tool: `docker compose` if it is installed, otherwise `docker-compose`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{CommandFailed, run_lines};
use crate::config::ComposeSettings;
use crate::lines::Lines;
use crate::waiting::Waiting;

/// How long it may take to print its version.
const VERSION_WITHIN: Duration = Duration::from_secs(15);

/// How many lines of a failed call are shown.
const LOG_LINES: usize = 50;

/// The compose tool, and the user's files.
#[derive(Debug)]
pub(in crate::runtime) struct Tool {
    /// `docker compose` or `docker-compose`.
    words: &'static [&'static str],
    version: String,
    directory: PathBuf,
    arguments: Vec<String>,
    project: Option<String>,
    /// A variable of the user that it doesn't get.
    hidden: Option<&'static str>,
    waiting: Waiting,
}

impl Tool {
    /// Finds the first one that works.
    pub(in crate::runtime) async fn find(
        settings: &ComposeSettings,
        directory: &Path,
        waiting: &Waiting,
    ) -> Result<Self, String> {
        let mut arguments = Vec::new();
        for file in &settings.files {
            arguments.extend(["-f".to_owned(), file.display().to_string()]);
        }
        for profile in &settings.profiles {
            arguments.extend(["--profile".to_owned(), profile.clone()]);
        }
        Self::of_files(arguments, settings.project.clone(), directory, waiting).await
    }

    /// The same, for arguments that name the files.
    pub(in crate::runtime) async fn of_files(
        arguments: Vec<String>,
        project: Option<String>,
        directory: &Path,
        waiting: &Waiting,
    ) -> Result<Self, String> {
        let mut reasons = Vec::new();
        for words in [&["docker", "compose"][..], &["docker-compose"]] {
            let mut tool = Self {
                words,
                version: String::new(),
                directory: directory.to_owned(),
                arguments: arguments.clone(),
                project: project.clone(),
                hidden: None,
                waiting: waiting.clone(),
            };
            match tool.ask(tool.command(["version", "--short"]), VERSION_WITHIN).await {
                Ok(version) => {
                    tool.version = version.trim().to_owned();
                    return Ok(tool);
                }
                Err(failed) => reasons.push(failed.reason),
            }
        }
        Err(format!("neither docker compose nor docker-compose works: {}", reasons.join("; ")))
    }

    /// Doesn't pass this variable on, so that only the files set it.
    pub(in crate::runtime) fn without(mut self, variable: &'static str) -> Self {
        self.hidden = Some(variable);
        self
    }

    /// Its name and version, for messages.
    pub(in crate::runtime) fn version(&self) -> String {
        format!("{} {}", self.words.join(" "), self.version)
    }

    fn command<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let (program, words) = self.words.split_first().unwrap_or((&"docker-compose", &[]));
        let mut command = Command::new(program);
        command.args(words).args(arguments).current_dir(&self.directory);
        // The files may refer to any variable of the user.
        command.env_clear().envs(std::env::vars_os());
        if let Some(variable) = self.hidden {
            command.env_remove(variable);
        }
        // uh-deploy's document has one service: don't warn about the project's others.
        command.env("COMPOSE_IGNORE_ORPHANS", "1");
        command
    }

    /// Runs a command and returns its standard output. Standard error is only shown if it fails.
    async fn ask(&self, command: Command, within: Duration) -> Result<String, CommandFailed> {
        let what = self.words.join(" ");
        self.waiting.on(&what, within, crate::command::output(&command, within, LOG_LINES)).await
    }

    /// Resolves the user's files.
    pub(in crate::runtime) async fn config(
        &self,
        variables: &BTreeMap<String, String>,
        within: Duration,
    ) -> Result<String, CommandFailed> {
        let mut command = self.for_files();
        command.arg("config").envs(variables);
        self.ask(command, within).await
    }

    fn for_files(&self) -> Command {
        let mut command = self.command([]);
        command.args(&self.arguments);
        if let Some(project) = &self.project {
            command.args(["-p", project]);
        }
        command
    }

    /// Runs any command for the user's files, and passes its output on.
    pub(in crate::runtime) async fn run(
        &self,
        words: &[&str],
        within: Duration,
        line: Lines<'_>,
    ) -> Result<(), CommandFailed> {
        let mut command = self.for_files();
        command.args(words);
        let what = format!("{} {}", self.words.join(" "), words.first().unwrap_or(&""));
        self.waiting.on(&what, within, run_lines(&command, within, line, LOG_LINES)).await
    }

    fn about(&self, document: &Path, project: &str) -> Command {
        let mut command = self.command([]);
        // Paths in it are already absolute; this is for what the tool looks up next to the files (.env).
        command.arg("--project-directory").arg(&self.directory);
        command.arg("-f").arg(document).args(["-p", project]);
        command
    }

    /// Runs `build` or `pull` for a document's service.
    pub(in crate::runtime) async fn make(
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

    /// Creates and starts the container of a document's service, and nothing else.
    pub(in crate::runtime) async fn up(
        &self,
        document: &Path,
        project: &str,
        service: &str,
        within: Duration,
    ) -> Result<(), CommandFailed> {
        let mut command = self.about(document, project);
        command.args(["up", "-d", "--no-deps", "--no-build", "--force-recreate", service]);
        let what = format!("{} to start {service}", self.words.join(" "));
        self.waiting.on(&what, within, run_lines(&command, within, &|_| {}, LOG_LINES)).await
    }
}
