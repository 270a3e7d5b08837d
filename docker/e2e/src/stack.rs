//! The shipped compose files as one project on the Docker Engine, on ports of its own.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use uh_benches::process::{Finished, run};
use uh_protocol::BackendName;
use uh_protocol::status::Status;

use crate::repository;

/// The longest that any command may take; `stop` waits for what is in flight.
const COMMAND_WITHIN: Duration = Duration::from_secs(120);

/// Containers start in a second or two, and probes need two more; a busy machine gets far more.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How often something is asked for that is waited for.
const POLL: Duration = Duration::from_millis(100);

/// A running project. It is taken down, volumes and all, when this is dropped.
#[derive(Debug)]
pub struct Stack {
    /// Where the front door is published.
    pub address: SocketAddr,
    project: String,
    files: Vec<PathBuf>,
    variables: BTreeMap<String, String>,
    dir: TempDir,
}

impl Stack {
    /// Blue and the front door, with both of the shipped files: base and production. Nothing is built.
    ///
    /// # Errors
    /// When no engine answers, or it does not come up.
    pub async fn up(name: &str) -> Result<Self> {
        let files = ["docker-compose.yml", "docker-compose.prod.yml"];
        let files = files.map(|file| repository::path("docker").join(file)).to_vec();
        let stack = Self::new(name, files)?;
        stack.compose(&["up", "--detach", "--no-build", "proxy", "blue"]).await?;
        stack.wait_until_healthy("blue").await?;
        Ok(stack)
    }

    /// Another set of compose files; nothing is started.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn new(name: &str, files: Vec<PathBuf>) -> Result<Self> {
        let free = || -> Result<SocketAddr> { Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?) };
        let address = free()?;
        let mut variables = BTreeMap::from([("UH_HTTP".to_owned(), address.to_string())]);
        for port in ["UH_METRICS", "UH_BLUE", "UH_GREEN"] {
            variables.insert(port.to_owned(), free()?.to_string());
        }
        let project = format!("uh-e2e-{name}-{}", std::process::id());
        let dir = tempfile::tempdir()?;
        Ok(Self { address, project, files, variables, dir })
    }

    /// Sets a variable that the compose files read.
    pub fn set(&mut self, variable: &str, value: &str) {
        self.variables.insert(variable.to_owned(), value.to_owned());
    }

    /// Gives a backend more environment from now on, as an operator's own override file would.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn override_environment(&mut self, backend: &str, variable: &str, value: &str) -> Result<()> {
        let path = self.dir.path().join(format!("{backend}-{variable}.yml"));
        let text = format!("services:\n  {backend}:\n    environment:\n      {variable}: \"{value}\"\n");
        std::fs::write(&path, text)?;
        self.files.retain(|file| *file != path);
        self.files.push(path);
        Ok(())
    }

    /// Takes all overrides back.
    pub fn forget_overrides(&mut self) {
        let dir = self.dir.path().to_owned();
        self.files.retain(|file| !file.starts_with(&dir));
    }

    /// A compose command that must succeed.
    ///
    /// # Errors
    /// With its output, when it does not.
    pub async fn compose(&self, arguments: &[&str]) -> Result<String> {
        succeeded(arguments, run(self.command(arguments), COMMAND_WITHIN).await?)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = compose_tool();
        command.arg("--project-name").arg(&self.project);
        for file in &self.files {
            command.arg("--file").arg(file);
        }
        command.args(arguments).envs(&self.variables);
        command
    }

    /// `uh-proxy …` in the front door's container, however it ends.
    ///
    /// # Errors
    /// When it can't be run.
    pub async fn uh_proxy(&self, arguments: &[&str]) -> Result<Finished> {
        let container = self.container("proxy").await?;
        let mut command = Command::new("docker");
        command.args(["exec", &container, "uh-proxy"]).args(arguments);
        run(command, COMMAND_WITHIN).await
    }

    /// The same, for a command that must succeed.
    ///
    /// # Errors
    /// With its output, when it does not.
    pub async fn must(&self, arguments: &[&str]) -> Result<String> {
        succeeded(arguments, self.uh_proxy(arguments).await?)
    }

    /// What the front door says.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status(&self) -> Result<Status> {
        let text = self.must(&["status", "--json"]).await?;
        serde_json::from_str(&text).with_context(|| format!("not a status: {text}"))
    }

    /// The active backend.
    ///
    /// # Errors
    /// When the front door does not answer.
    pub async fn active(&self) -> Result<BackendName> {
        let status = self.status().await?;
        Ok(status.services.first().context("there is no service")?.active.clone())
    }

    /// Waits until the front door finds this backend healthy, with the version that is meant to run.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn wait_until_healthy(&self, backend: &str) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let status = self.status().await;
            let healthy = status.as_ref().is_ok_and(|status| is_healthy(status, backend) == Some(true));
            if healthy {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{backend} is not healthy after {READY_WITHIN:?}: {status:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// A docker command on the container of a service, that must succeed.
    ///
    /// # Errors
    /// With its output, when it does not.
    pub async fn docker(&self, arguments: &[&str], service: &str) -> Result<String> {
        let container = self.container(service).await?;
        let mut command = Command::new("docker");
        command.args(arguments).arg(container);
        succeeded(arguments, run(command, COMMAND_WITHIN).await?)
    }

    /// One field of `docker inspect`.
    ///
    /// # Errors
    /// When the container is not there.
    pub async fn inspect(&self, service: &str, field: &str) -> Result<String> {
        let format = format!("--format={{{{{field}}}}}");
        Ok(self.docker(&["inspect", &format], service).await?.trim().to_owned())
    }

    /// The front page that the front door serves for a host; empty if it does not.
    pub async fn get(&self, host: &str) -> String {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--header"]).arg(format!("host: {host}"));
        curl.arg(format!("http://{}/", self.address));
        run(curl, COMMAND_WITHIN).await.map(|finished| finished.output).unwrap_or_default()
    }

    async fn container(&self, service: &str) -> Result<String> {
        let mut command = Command::new("docker");
        command.args(["ps", "--all", "--quiet"]);
        for (label, value) in [("project", self.project.as_str()), ("service", service)] {
            command.arg("--filter").arg(format!("label=com.docker.compose.{label}={value}"));
        }
        let found = succeeded(&["ps"], run(command, COMMAND_WITHIN).await?)?;
        let first = found.lines().next().with_context(|| format!("{service} has no container"))?;
        Ok(first.to_owned())
    }
}

/// The plugin of today, else docker-compose 1.29.
fn compose_tool() -> Command {
    static PLUGIN: LazyLock<bool> = LazyLock::new(|| {
        let version = Command::new("docker").args(["compose", "version"]).output();
        version.is_ok_and(|output| output.status.success())
    });
    if *PLUGIN {
        let mut command = Command::new("docker");
        command.arg("compose");
        return command;
    }
    Command::new("docker-compose")
}

/// What the front door knows of a backend's health.
#[must_use]
pub fn is_healthy(status: &Status, backend: &str) -> Option<bool> {
    let mut backends = status.services.iter().flat_map(|service| &service.backends);
    backends.find(|found| found.name.as_str() == backend)?.healthy
}

fn succeeded(arguments: &[&str], finished: Finished) -> Result<String> {
    ensure!(finished.status.success(), "{arguments:?} ended with {}: {}", finished.status, finished.output);
    Ok(finished.output)
}

impl Drop for Stack {
    fn drop(&mut self) {
        // Nothing more can be done if this fails; the project's name tells whose it was.
        let _ = self.command(&["down", "--volumes", "--timeout", "0"]).output();
    }
}
