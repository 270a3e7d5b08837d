//! `uh-deploy` as a real program: its configuration, its commands, and the apps that it has started.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::program;

/// The usual configuration.
pub const CONFIG: &str = "uh-deploy.toml";

/// Where `uh-deploy` keeps its records, below the directory of its configuration.
pub const STATE_DIR: &str = "deploy-state";

/// Lines with which `uh-deploy validate` accepts a host that has little disk and memory left: a test must not depend on the
/// host it runs on.
pub const SMALL_HOST: &str = "[validate]\nmin_disk = \"1MiB\"\nmin_memory = \"1MiB\"\n";

/// `uh-deploy` with configurations in one directory.
#[derive(Debug)]
pub struct UhDeploy {
    dir: PathBuf,
    base: String,
}

impl UhDeploy {
    /// For the uh-proxy with this admin socket, and backends blue and green at these addresses. It deploys sample apps.
    ///
    /// # Errors
    /// When the programs are not built.
    pub fn new(dir: &Path, admin_socket: &Path, [blue, green]: [SocketAddr; 2]) -> Result<Self> {
        let base = format!(
            "[deploy]\nadmin_socket = {admin_socket:?}\nstate_dir = {:?}\n\
             [backends.blue]\nendpoints = [\"{blue}\"]\n[backends.green]\nendpoints = [\"{green}\"]\n\
             {SMALL_HOST}[runtime.process]\ncommand = [{:?}]\n",
            dir.join(STATE_DIR),
            program("uh-sample-app")?,
        );
        Ok(Self { dir: dir.to_owned(), base })
    }

    /// Lines for all configurations that are written from now on. They replace those of the same key, and may begin
    /// tables.
    pub fn add(&mut self, lines: &str) {
        self.base = merged(&self.base, lines);
    }

    /// Writes a configuration, with more lines of the same kind.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn configure(&self, file: &str, lines: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, merged(&self.base, lines)).with_context(|| format!("can't write {}", path.display()))
    }

    /// A command with one of the configurations, in a clean environment.
    ///
    /// # Errors
    /// When it is not built.
    pub fn command(&self, file: &str, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("uh-deploy")?);
        command.arg("--config").arg(self.dir.join(file)).args(args).env_remove("npm_package_version");
        Ok(command)
    }

    /// Its directory of records.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join(STATE_DIR)
    }
}

impl Drop for UhDeploy {
    /// What it has started outlives it.
    fn drop(&mut self) {
        end_instances(&self.state_dir());
    }
}

/// TOML with more lines in it: each replaces the line of the same key in its table, or is added to that table.
fn merged(base: &str, lines: &str) -> String {
    let mut tables: Vec<(String, Vec<String>)> = Vec::new();
    for line in base.lines().chain(lines.lines()) {
        if line.starts_with('[') {
            let found = tables.iter().position(|(name, _)| name == line);
            let table = found.map_or_else(|| (line.to_owned(), Vec::new()), |at| tables.remove(at));
            tables.push(table);
        } else if let (Some((_, lines)), Some((key, _))) = (tables.last_mut(), line.split_once(" = ")) {
            lines.retain(|other| !other.starts_with(&format!("{key} = ")));
            lines.push(line.to_owned());
        }
    }
    tables.iter().map(|(name, lines)| format!("{name}\n{}\n", lines.join("\n"))).collect()
}

/// The instances that a `uh-deploy` has records of, by its directory of records: their directories, and their states as
/// their supervisors have written them.
#[must_use]
pub fn instances(state_dir: &Path) -> Vec<(PathBuf, serde_json::Value)> {
    let entries = fs::read_dir(state_dir.join("instances")).into_iter().flatten().flatten();
    let state = |dir: &Path| fs::read(dir.join("state.json")).unwrap_or_default();
    let entries = entries.map(|entry| entry.path());
    entries.map(|dir| (dir.clone(), serde_json::from_slice(&state(&dir)).unwrap_or_default())).collect()
}

/// Asks what a `uh-deploy` has started as processes to end.
pub fn end_instances(state_dir: &Path) {
    for (dir, state) in instances(state_dir) {
        // Else its supervisor would start it again. If it can't be written, there is nothing left to stop.
        let _ = fs::write(dir.join("stop"), "");
        let pid = state["app"]["pid"].as_i64().filter(|_| state["ended"].is_null());
        if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_replaces_that_of_the_same_key_in_its_table() {
        let base = "[deploy]\nsettle = \"2s\"\nwho = \"me\"\n[health]\nwithin = \"2s\"\n";
        assert_eq!(
            merged(base, "[deploy]\nsettle = \"1s\"\n[monitor]\nwithin = \"3s\""),
            "[health]\nwithin = \"2s\"\n[deploy]\nwho = \"me\"\nsettle = \"1s\"\n[monitor]\nwithin = \"3s\"\n"
        );
    }
}
