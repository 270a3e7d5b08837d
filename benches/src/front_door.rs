//! uh-proxy as a real process between sample apps and load.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::time::sleep;
use uh_protocol::ServiceName;
use uh_protocol::client::{Client, ClientError};
use uh_protocol::status::Status;

use crate::process::{Process, sibling};
use crate::sample_app::SampleApp;

/// The only service.
pub const SERVICE: &str = "app";

/// Start and first probes take some hundred milliseconds; a busy machine gets far more.
const READY_WITHIN: Duration = Duration::from_secs(15);

/// How often to check whether uh-proxy is ready.
const POLL: Duration = Duration::from_millis(20);

/// How to start it.
#[derive(Debug)]
pub struct Setup<'a> {
    /// For its configuration, socket and logs.
    pub dir: &'a Path,
    /// For its state file.
    pub state_dir: &'a Path,
    /// `off`, `json` …
    pub access_log: &'a str,
    /// The backends; the first is active.
    pub backends: [&'a SampleApp; 2],
    /// More tables for its configuration.
    pub extra: &'a str,
}

/// A backend of uh-proxy.
#[derive(Debug, Clone, Copy)]
pub struct Behind {
    /// Its name.
    pub name: &'static str,
    /// Where it listens, or will.
    pub address: SocketAddr,
}

/// When uh-proxy counts as started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    /// It is listening.
    Listening,
    /// It has also found all backends healthy.
    Healthy,
}

fn config(
    dir: &Path,
    state_dir: &Path,
    access_log: &str,
    extra: &str,
    [active, standby]: [Behind; 2],
) -> String {
    let quoted = |name: &str| toml_string(&dir.join(name));
    format!(
        r#"[server]
listen = ["127.0.0.1:0"]
metrics = "127.0.0.1:0"
admin_socket = {admin_socket}
state_file = {state_file}
access_log = {{ path = {access_log}, format = "{format}" }}

[services.{SERVICE}]
active = "{active_name}"

[services.{SERVICE}.backends.{active_name}]
endpoints = ["{active_address}"]

[services.{SERVICE}.backends.{standby_name}]
endpoints = ["{standby_address}"]

[services.{SERVICE}.health]
interval = "100ms"
healthy_after = 1

{extra}
"#,
        admin_socket = quoted("admin.sock"),
        state_file = toml_string(&state_dir.join(".deployment-state.json")),
        access_log = quoted("access.jsonl"),
        format = access_log,
        active_name = active.name,
        active_address = active.address,
        standby_name = standby.name,
        standby_address = standby.address,
    )
}

/// A JSON string is a TOML basic string for every path that a test machine has.
fn toml_string(path: &Path) -> String {
    serde_json::Value::from(path.display().to_string()).to_string()
}

/// A running uh-proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct FrontDoor {
    /// Where clients connect.
    pub address: SocketAddr,
    /// The admin client.
    pub admin: Client,
    /// The only service.
    pub service: ServiceName,
    program: PathBuf,
    process: Process,
}

impl FrontDoor {
    /// Starts it, and waits until it listens and has found both backends healthy.
    ///
    /// # Errors
    /// When it is not built, or does not get ready.
    pub async fn start(setup: &Setup<'_>) -> Result<Self> {
        let backends = setup.backends.map(|app| Behind { name: app.name, address: app.address });
        let Setup { dir, state_dir, access_log, extra, .. } = setup;
        Self::start_as(dir, &config(dir, state_dir, access_log, extra, backends), Ready::Healthy).await
    }

    /// Starts it without backends, and waits until it listens.
    ///
    /// # Errors
    /// When it is not built, or does not get ready.
    pub async fn start_empty(dir: &Path, backends: [Behind; 2]) -> Result<Self> {
        Self::start_as(dir, &config(dir, dir, "json", "", backends), Ready::Listening).await
    }

    async fn start_as(dir: &Path, text: &str, ready: Ready) -> Result<Self> {
        let program = sibling("uh-proxy")?;
        let config = dir.join("uh-proxy.toml");
        fs::write(&config, text).with_context(|| format!("can't write {}", config.display()))?;
        let mut command = Command::new(&program);
        command.args(["run", "--config"]).arg(&config);
        let mut process = Process::spawn("uh-proxy", &mut command, dir)?;
        let admin = Client::new(dir.join("admin.sock"));
        let address = wait_until_ready(&mut process, &admin, ready).await?;
        Ok(Self { address, admin, service: SERVICE.parse()?, program, process })
    }

    /// A command of the real command line for this uh-proxy.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env("UH_PROXY_ADMIN_SOCKET", self.admin.socket());
        command
    }

    /// Sends SIGTERM, and expects exit code 0 in time.
    ///
    /// # Errors
    /// When it does not.
    pub async fn stop(self, within: Duration) -> Result<()> {
        self.process.stop(within).await
    }
}

async fn wait_until_ready(process: &mut Process, admin: &Client, ready: Ready) -> Result<SocketAddr> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        process.check_running()?;
        let status = admin.status().await;
        match &status {
            Ok(status) if is_ready(status, ready) => {
                let listen = status.proxy.listen.first().map_or("", String::as_str);
                return listen
                    .parse()
                    .with_context(|| format!("uh-proxy reports the listen address {listen:?}"));
            }
            Ok(_) | Err(ClientError::NoProxy { .. }) if Instant::now() < deadline => sleep(POLL).await,
            Ok(status) => bail!("uh-proxy is not ready after {READY_WITHIN:?}: {:?}", status.services),
            Err(_) => {
                status.context("uh-proxy doesn't respond")?;
            }
        }
    }
}

fn is_ready(status: &Status, ready: Ready) -> bool {
    let mut backends = status.services.iter().flat_map(|service| &service.backends);
    let healthy = ready == Ready::Listening || backends.all(|backend| backend.healthy == Some(true));
    !status.proxy.listen.is_empty() && healthy
}
