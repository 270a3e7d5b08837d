//! uh-proxy as a real process, with one service in a directory of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::time::sleep;
use uh_protocol::client::Client;
use uh_protocol::status::BackendStatus;

use crate::process::{Process, log_to, program};
use crate::wait::{POLL, SOON, until};

/// The only service.
pub const SERVICE: &str = "app";

/// What uh-proxy is started with. Everything is in one directory, which only its owner should be able to enter.
#[derive(Debug, Clone)]
pub struct Setup {
    dir: PathBuf,
    state_dir: PathBuf,
    active: String,
    blue: String,
    green: String,
    server: String,
    service: String,
}

impl Setup {
    /// For backends at these addresses; blue is active.
    #[must_use]
    #[allow(clippy::needless_pass_by_value, reason = "addresses and texts read better that way")]
    pub fn new(dir: &Path, blue: impl ToString, green: impl ToString) -> Self {
        Self {
            dir: dir.to_owned(),
            state_dir: dir.join("state"),
            active: "blue".to_owned(),
            blue: blue.to_string(),
            green: green.to_string(),
            server: String::new(),
            service: String::new(),
        }
    }

    /// Adds lines to `[server]`. They replace what is written without them.
    #[must_use]
    pub fn server(mut self, lines: &str) -> Self {
        self.server.push_str(lines);
        self.server.push('\n');
        self
    }

    /// Adds lines to `[services.app]`, which may begin new tables. They replace what is written without them.
    #[must_use]
    pub fn service(mut self, lines: &str) -> Self {
        self.service.push_str(lines);
        self.service.push('\n');
        self
    }

    /// Another active backend.
    #[must_use]
    pub fn active(mut self, name: &str) -> Self {
        name.clone_into(&mut self.active);
        self
    }

    /// Another directory for the state file.
    #[must_use]
    pub fn state_dir(mut self, dir: &Path) -> Self {
        dir.clone_into(&mut self.state_dir);
        self
    }

    /// A file in its directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Its admin socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("run/admin.sock")
    }

    /// Its state file.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.state_dir.join(".deployment-state.json")
    }

    /// Its access log.
    #[must_use]
    pub fn access_log(&self) -> PathBuf {
        self.path("access.log")
    }

    /// What it logs, of all its starts.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path("uh-proxy.log")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.path("uh-proxy.toml")
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> String {
        let Self { active, blue, green, server, service, .. } = self;
        let unless =
            |given: &str, key: &str, line: String| if given.contains(key) { String::new() } else { line };
        let log = format!("access_log = {{ path = {:?}, format = \"json\" }}\n", self.access_log());
        let defaults = [
            unless(server, "listen =", "listen = [\"127.0.0.1:0\"]\n".to_owned()),
            unless(server, "metrics =", "metrics = \"127.0.0.1:0\"\n".to_owned()),
            unless(server, "threads =", "threads = 2\n".to_owned()),
            unless(server, "access_log =", log),
        ]
        .concat();
        let health = "[services.app.health]\ninterval = \"50ms\"\nhealthy_after = 1\n".to_owned();
        let health = unless(service, "services.app.health", health);
        format!(
            "[server]\n{defaults}admin_socket = {:?}\nstate_file = {:?}\n{server}\n\
             [services.{SERVICE}]\nactive = \"{active}\"\n{service}\n\
             [services.{SERVICE}.backends.blue]\nendpoints = [\"{blue}\"]\n\
             [services.{SERVICE}.backends.green]\nendpoints = [\"{green}\"]\n{health}",
            self.socket(),
            self.state_file(),
        )
    }

    /// Writes the configuration, and returns the command that starts uh-proxy with it. Its output goes to the log.
    ///
    /// # Errors
    /// The files can't be written, or uh-proxy has not been built.
    pub fn command(&self) -> Result<Command> {
        let file = self.config_file();
        fs::write(&file, self.config()).with_context(|| format!("can't write {}", file.display()))?;
        self.command_as_written()
    }

    /// The same, with the configuration that is there.
    ///
    /// # Errors
    /// The log can't be written, or uh-proxy has not been built.
    pub fn command_as_written(&self) -> Result<Command> {
        let mut command = Command::new(program("uh-proxy")?);
        command.args(["run", "--config"]).arg(self.config_file());
        log_to(&mut command, &self.log())?;
        Ok(command)
    }

    /// Starts uh-proxy, and waits until its admin API answers.
    ///
    /// # Errors
    /// It ends, or doesn't answer.
    pub async fn start(&self) -> Result<UhProxy> {
        self.start_as(&mut self.command()?).await
    }

    /// The same, by another command.
    ///
    /// # Errors
    /// It ends, or doesn't answer.
    pub async fn start_as(&self, command: &mut Command) -> Result<UhProxy> {
        let mut process = Process::spawn_as("uh-proxy", command, &self.log())?;
        let client = Client::new(self.socket());
        let deadline = Instant::now() + SOON;
        let status = loop {
            process.check_running()?;
            // Not an older one that has not ended yet.
            let status = client.status().await.ok();
            if let Some(status) = status.filter(|status| status.proxy.pid == process.id()) {
                break status.proxy;
            }
            ensure!(Instant::now() < deadline, "uh-proxy doesn't answer:\n{}", process.output()?);
            sleep(POLL).await;
        };
        let address = status.listen.first().context("uh-proxy listens nowhere")?.parse()?;
        let metrics = status.metrics.context("uh-proxy has no metrics")?.parse()?;
        Ok(UhProxy { address, metrics, client, process })
    }

    /// A command of its command line for this uh-proxy.
    ///
    /// # Errors
    /// It has not been built.
    pub fn cli(&self, args: &[&str]) -> Result<Command> {
        cli(&self.socket(), args)
    }
}

/// A command of the command line for a uh-proxy with this admin socket.
///
/// # Errors
/// It has not been built.
pub fn cli(socket: &Path, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(program("uh-proxy")?);
    command.args(args).env("UH_PROXY_ADMIN_SOCKET", socket);
    Ok(command)
}

/// A running uh-proxy. Killed when dropped.
#[derive(Debug)]
pub struct UhProxy {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where metrics are served.
    pub metrics: SocketAddr,
    /// The admin client.
    pub client: Client,
    /// The process that it is.
    pub process: Process,
}

impl UhProxy {
    /// All its backends.
    ///
    /// # Errors
    /// It doesn't answer.
    pub async fn backends(&self) -> Result<Vec<BackendStatus>> {
        let services = self.client.status().await?.services;
        Ok(services.into_iter().flat_map(|service| service.backends).collect())
    }

    /// Waits until all backends are known to be healthy.
    ///
    /// # Errors
    /// They aren't.
    pub async fn until_healthy(&self) -> Result<()> {
        self.until("all backends are healthy", |backend| backend.healthy == Some(true)).await
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// Something stays.
    pub async fn until_idle(&self) -> Result<()> {
        let idle = |backend: &BackendStatus| backend.requests_in_flight + backend.tunnels == 0;
        self.until("nothing is in flight", idle).await
    }

    /// Asks it to end (SIGTERM), and demands that it does so in time and with exit code 0.
    ///
    /// # Errors
    /// When it does not.
    pub async fn stop(mut self, within: Duration) -> Result<()> {
        self.process.stop(within).await
    }

    /// Waits until this holds of each backend.
    ///
    /// # Errors
    /// It doesn't.
    pub async fn until(&self, what: &str, holds: impl Fn(&BackendStatus) -> bool) -> Result<()> {
        until(what, async || self.backends().await.ok()?.iter().all(&holds).then_some(())).await
    }
}

impl Drop for UhProxy {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
    }
}
