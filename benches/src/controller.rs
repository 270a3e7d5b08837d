//! The controller, as a real program: its configuration, and its commands.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::front_door::Behind;
use crate::process::sibling;

/// `uh-deploy` with a configuration in a directory.
#[derive(Debug)]
pub struct Controller {
    program: PathBuf,
    app: PathBuf,
    config: PathBuf,
    deploy: String,
    base: String,
    monitor: String,
}

impl Controller {
    /// For a uh-proxy in the same directory.
    ///
    /// # Errors
    /// When the programs are not built.
    pub fn new(dir: &Path, backends: [Behind; 2]) -> Result<Self> {
        Self::at(dir, &dir.join("admin.sock"), backends)
    }

    /// The same, for an admin socket that is elsewhere.
    ///
    /// # Errors
    /// When the programs are not built.
    pub fn at(dir: &Path, admin_socket: &Path, backends: [Behind; 2]) -> Result<Self> {
        let text = |path: PathBuf| serde_json::Value::from(path.display().to_string()).to_string();
        let deploy = format!(
            "[deploy]\nadmin_socket = {}\nstate_dir = {}\n",
            text(admin_socket.to_owned()),
            text(dir.join("deploys")),
        );
        let mut base = format!(
            "[deploy.proxy]\nprogram = {}\nconfig = {}\n",
            text(sibling("uh-proxy")?),
            text(dir.join("uh-proxy.toml")),
        );
        for Behind { name, address } in backends {
            base.push_str(&format!("[backends.{name}]\nendpoints = [\"{address}\"]\n"));
        }
        base.push_str("[validate]\nmin_disk = \"100MiB\"\nmin_memory = \"100MiB\"\n");
        let controller = Self {
            program: sibling("uh-deploy")?,
            app: sibling("uh-sample-app")?,
            config: dir.join("uh-deploy.toml"),
            deploy,
            base,
            monitor: "interval = \"1s\"\nbreach_after = 1\n".to_owned(),
        };
        controller.configure("", "")?;
        Ok(controller)
    }

    /// Lines for `[monitor]`, from the next [`configure`](Self::configure) on.
    pub fn set_monitor(&mut self, lines: &str) {
        lines.clone_into(&mut self.monitor);
    }

    /// More lines for `[deploy]`, from the next [`configure`](Self::configure) on.
    pub fn add_to_deploy(&mut self, lines: &str) {
        self.deploy.push_str(lines);
    }

    /// What the next version is like: its environment, as the inside of a TOML table, and lines for `[health]`.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn configure(&self, env: &str, health: &str) -> Result<()> {
        let app = serde_json::Value::from(self.app.display().to_string());
        let text = format!(
            "{}{}[monitor]\n{}[health]\ninterval = \"100ms\"\n{health}\n[runtime.process]\ncommand = [{app}]\nenv = {{ {env} }}\n",
            self.deploy, self.base, self.monitor
        );
        fs::write(&self.config, text).with_context(|| format!("can't write {}", self.config.display()))
    }

    /// One of its commands.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config).args(args);
        command
    }

    /// Stops what it has started, which outlives it.
    ///
    /// # Errors
    /// When the records can't be read.
    pub fn end_instances(&self) -> Result<()> {
        end_instances(&self.config.with_file_name("deploys"))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = self.end_instances();
    }
}

/// Stops what a `uh-deploy` has started as processes, by its directory of records.
///
/// # Errors
/// When the records can't be read.
pub fn end_instances(state_dir: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(state_dir.join("instances")) else { return Ok(()) };
    for entry in entries {
        let instance = entry?.path();
        let Ok(text) = fs::read(instance.join("state.json")) else { continue };
        // Else its supervisor would start it again.
        fs::write(instance.join("stop"), "")?;
        let state: serde_json::Value = serde_json::from_slice(&text)?;
        let pid = state["app"]["pid"].as_i64().filter(|_| state["ended"].is_null());
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
    Ok(())
}

/// Two ports of this machine that nobody has now.
///
/// # Errors
/// When there is none.
pub fn two_free_addresses() -> Result<[SocketAddr; 2]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    Ok([listeners[0].local_addr()?, listeners[1].local_addr()?])
}
