//! The shipped compose files as one project on the Docker Engine, with its own ports.

mod host;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;
use uh_protocol::BackendName;
use uh_protocol::status::Status;
use uh_testkit::process::{Finished, run};
use uh_testkit::uh_deploy::SMALL_HOST;
use uh_testkit::wait::{free_address, until_within};

use crate::repository;

/// The longest any command may take; `stop` waits for requests in flight.
const COMMAND_WITHIN: Duration = Duration::from_secs(120);

/// How long the stack may take to become ready: normally about four seconds, more on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The setting of the shipped configurations that several projects on one engine can't share.
const NETWORK: &str = "\"uh\"";

/// The app images built by docker/ci/images, instead of those in the shipped files.
const IMAGES: [(&str, &str); 2] =
    [("uh-sample-app:", "uh-e2e-sample-app:"), ("uh-node-app:", "uh-e2e-node-app:")];

/// A running project. Dropping it removes the project, its volumes and the app's containers.
#[derive(Debug)]
pub struct Stack {
    /// Where uh-proxy is published.
    pub address: SocketAddr,
    /// Where its HTTPS is published, with an overlay that does.
    pub https: SocketAddr,
    project: String,
    files: Vec<PathBuf>,
    variables: BTreeMap<String, String>,
    dir: TempDir,
}

impl Stack {
    /// Starts uh-proxy, and 1.0.0 behind it as blue, with both shipped files: base and production. Builds nothing.
    ///
    /// # Errors
    /// If no engine answers, or the stack doesn't start.
    pub async fn up(name: &str) -> Result<Self> {
        let stack = Self::new(name, &["docker-compose.yml", "docker-compose.prod.yml"])?;
        stack.compose(&["up", "--detach", "--no-build"]).await?;
        stack.wait_for_the_first_deploy().await?;
        Ok(stack)
    }

    /// A set of shipped compose files; nothing is started.
    ///
    /// # Errors
    /// If there is no free port, or a file can't be read or written.
    pub fn new(name: &str, files: &[&str]) -> Result<Self> {
        let (address, https) = (free_address(), free_address());
        let project = format!("uh-e2e-{name}-{}", std::process::id());
        let variables = [
            ("UH_HTTP", address.to_string()),
            ("UH_HTTPS", https.to_string()),
            ("UH_METRICS", free_address().to_string()),
            ("UH_NETWORK", project.clone()),
            ("UH_VERSION", "e2e".to_owned()),
            ("UH_KEEPER_VERSION", "e2e".to_owned()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value)).into();
        let mut files: Vec<PathBuf> =
            files.iter().map(|file| repository::path("docker").join(file)).collect();
        let dir = tempfile::tempdir()?;
        let of_the_test = dir.path().join("test.yml");
        std::fs::write(&of_the_test, overrides(dir.path()))?;
        files.push(of_the_test);
        let stack = Self { address, https, project, files, variables, dir };
        stack.write_variables()?;
        stack.configure(&[])?;
        Ok(stack)
    }

    /// Makes the deploy tool use its shipped configurations with these texts replaced, from now on.
    ///
    /// # Errors
    /// If one of the texts isn't in the first configuration, or a file can't be read or written.
    pub fn configure(&self, replaced: &[(&str, &str)]) -> Result<()> {
        let network = format!("{:?}", self.project);
        for (file, shipped) in CONFIGURATIONS {
            let mut text = std::fs::read_to_string(repository::path("docker").join(shipped))?;
            ensure!(text.contains(NETWORK), "{shipped} is on another network than {NETWORK}");
            text = text.replace(NETWORK, &network);
            for (old, new) in replaced.iter().filter(|_| file == CONFIGURATIONS[0].0) {
                ensure!(text.contains(old), "{old} is not in {shipped}");
                text = text.replace(old, new);
            }
            for (shipped, ours) in IMAGES {
                text = text.replace(shipped, ours);
            }
            std::fs::write(self.dir.path().join(file), text + "\n" + SMALL_HOST)?;
        }
        Ok(())
    }

    /// A directory for files of the test, which is removed with the project.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Adds a compose file of the test.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn overlay(&mut self, text: &str) -> Result<()> {
        let file = self.dir.path().join(format!("overlay-{}.yml", self.files.len()));
        std::fs::write(&file, text)?;
        self.files.push(file);
        Ok(())
    }

    /// Sets a variable that the compose files read.
    ///
    /// # Errors
    /// If its file can't be written.
    pub fn set(&mut self, variable: &str, value: &str) -> Result<()> {
        self.variables.insert(variable.to_owned(), value.to_owned());
        self.write_variables()
    }

    /// Runs a compose command that must succeed.
    ///
    /// # Errors
    /// If it fails, with its output.
    pub async fn compose(&self, arguments: &[&str]) -> Result<String> {
        succeeded(arguments, run(self.command(arguments), COMMAND_WITHIN).await?)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = compose_tool();
        command.arg("--project-name").arg(&self.project);
        for file in &self.files {
            command.arg("--file").arg(file);
        }
        command.arg("--env-file").arg(self.variables_file()).args(arguments);
        command
    }

    /// What `.env` is for the shipped files.
    fn variables_file(&self) -> PathBuf {
        self.dir.path().join("variables")
    }

    fn write_variables(&self) -> Result<()> {
        let lines = self.variables.iter().map(|(name, value)| format!("{name}={value}\n"));
        std::fs::write(self.variables_file(), lines.collect::<String>())?;
        Ok(())
    }

    /// Runs `uh-deploy …` in a new container, whether it succeeds or not.
    ///
    /// # Errors
    /// If it can't be run.
    pub async fn uh_deploy(&self, arguments: &[&str]) -> Result<Finished> {
        let run_it = ["run", "--rm", "-T", "controller"];
        run(self.command(&[&run_it, arguments].concat()), COMMAND_WITHIN).await
    }

    /// The same, for a command that must succeed.
    ///
    /// # Errors
    /// If it fails, with its output.
    pub async fn deploy_tool(&self, arguments: &[&str]) -> Result<String> {
        succeeded(arguments, self.uh_deploy(arguments).await?)
    }

    /// Runs `uh-proxy …` in the proxy's container, whether it succeeds or not.
    ///
    /// # Errors
    /// If it can't be run.
    pub async fn uh_proxy(&self, arguments: &[&str]) -> Result<Finished> {
        let container = self.container("proxy").await?;
        let mut command = Command::new("docker");
        command.args(["exec", &container, "uh-proxy"]).args(arguments);
        run(command, COMMAND_WITHIN).await
    }

    /// The same, for a command that must succeed.
    ///
    /// # Errors
    /// If it fails, with its output.
    pub async fn must(&self, arguments: &[&str]) -> Result<String> {
        succeeded(arguments, self.uh_proxy(arguments).await?)
    }

    /// uh-proxy's status.
    ///
    /// # Errors
    /// If it doesn't answer.
    pub async fn status(&self) -> Result<Status> {
        let text = self.must(&["status", "--json"]).await?;
        serde_json::from_str(&text).with_context(|| format!("not a status: {text}"))
    }

    /// The active backend.
    ///
    /// # Errors
    /// If uh-proxy doesn't answer.
    pub async fn active(&self) -> Result<BackendName> {
        let status = self.status().await?;
        Ok(status.services.first().context("there is no service")?.active.clone())
    }

    /// Waits until uh-proxy finds this backend healthy, with the expected version.
    ///
    /// # Errors
    /// If it doesn't in time.
    pub async fn wait_until_healthy(&self, backend: &str) -> Result<()> {
        let healthy = async || {
            let status = self.status().await.ok()?;
            (is_healthy(&status, backend) == Some(true)).then_some(())
        };
        until_within(READY_WITHIN, &format!("{backend} is healthy"), healthy).await
    }

    /// Waits until the container started by `up` has deployed or found nothing to do.
    ///
    /// # Errors
    /// If it fails or takes too long.
    pub async fn wait_for_the_first_deploy(&self) -> Result<()> {
        let ended = async || {
            let running = self.inspect("first-deploy", ".State.Running").await;
            running.map(|running| (running != "true").then_some(())).transpose()
        };
        until_within(READY_WITHIN, "the first deploy is done", ended).await??;
        if self.inspect("first-deploy", ".State.ExitCode").await? != "0" {
            bail!("the first deploy failed:\n{}", self.compose(&["logs", "--no-color"]).await?);
        }
        Ok(())
    }

    /// Waits until the front page is served, and returns it.
    ///
    /// # Errors
    /// If it doesn't in time.
    pub async fn wait_for_an_answer(&self) -> Result<String> {
        let answer = async || Some(self.get("localhost").await).filter(|answer| !answer.is_empty());
        Ok(until_within(READY_WITHIN, "something answers", answer).await?.trim().to_owned())
    }

    /// Runs a docker command on the container of a compose service or of a backend. It must succeed.
    ///
    /// # Errors
    /// If it fails, with its output.
    pub async fn docker(&self, arguments: &[&str], service: &str) -> Result<String> {
        let container = self.container(service).await?;
        let mut command = Command::new("docker");
        command.args(arguments).arg(container);
        succeeded(arguments, run(command, COMMAND_WITHIN).await?)
    }

    /// One field of `docker inspect`.
    ///
    /// # Errors
    /// If the container doesn't exist.
    pub async fn inspect(&self, service: &str, field: &str) -> Result<String> {
        let format = format!("--format={{{{{field}}}}}");
        Ok(self.docker(&["inspect", &format], service).await?.trim().to_owned())
    }

    /// The front page that uh-proxy serves for a host; empty if it fails.
    pub async fn get(&self, host: &str) -> String {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--header"]).arg(format!("host: {host}"));
        curl.arg(format!("http://{}/", self.address));
        run(curl, COMMAND_WITHIN).await.map(|finished| finished.output).unwrap_or_default()
    }

    /// The container of a compose service or of a backend.
    async fn container(&self, name: &str) -> Result<String> {
        let compose = ["com.docker.compose.project=", &self.project].concat();
        let mut found = self.containers(&[&compose, &format!("com.docker.compose.service={name}")]).await?;
        if found.is_empty() {
            found = self.containers(&["uh-deploy.service=app", &format!("uh-deploy.backend={name}")]).await?;
        }
        found.into_iter().next().with_context(|| format!("{name} has no container"))
    }

    /// The containers on the project's network that have all of these labels, running or not.
    async fn containers(&self, labels: &[&str]) -> Result<Vec<String>> {
        let mut command = Command::new("docker");
        command.args(["ps", "--all", "--quiet", "--filter", &format!("network={}", self.project)]);
        command.args(labels.iter().map(|label| format!("--filter=label={label}")));
        let found = succeeded(&["ps"], run(command, COMMAND_WITHIN).await?)?;
        Ok(found.lines().map(str::to_owned).collect())
    }
}

/// The deploy tool's configurations: the test's file names and the shipped ones.
const CONFIGURATIONS: [(&str, &str); 2] =
    [("uh-deploy.toml", "uh-deploy.toml"), ("shop.toml", "two-apps/shop.toml")];

/// Mounts the test's configurations instead of the shipped ones, and sets the test's app image.
fn overrides(dir: &Path) -> String {
    let mounts = CONFIGURATIONS
        .map(|(file, _)| format!("      - {}:/etc/uh-deploy/{file}:ro\n", dir.join(file).display()))
        .concat();
    format!(
        "services:\n  app:\n    image: {}${{APP_VERSION:-1.0.0}}\n  controller:\n    volumes: &mounts\n{mounts}  first-deploy:\n    \
         volumes: *mounts\n",
        IMAGES[0].1
    )
}

/// The compose plugin, or else docker-compose 1.29.
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

/// A backend's health, as uh-proxy reports it.
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
        // Nothing more can be done if this fails; the project's name shows where it came from.
        let script = format!(
            "docker ps --all --quiet --filter network={} --filter label=uh-deploy.instance \
             | xargs --no-run-if-empty docker rm --force",
            self.project
        );
        let _ = Command::new("sh").arg("-c").arg(script).output();
        let _ = self.command(&["down", "--volumes", "--timeout", "0"]).output();
    }
}
