//! Starts a supervisor, and waits until it has started its app.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::instance_dir::{InstanceDir, SupervisorState};
use super::{BoxError, POLL, scope};
use crate::fault;

/// How long a supervisor may take to start the app: normally milliseconds, more on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(15);

/// The result of starting a supervisor.
enum LaunchResult {
    /// The app was started.
    App,
    /// The app can't be started.
    Failed(String),
    /// The supervisor exited before it recorded anything, or wasn't started. With the reason, for the end of a
    /// message.
    Nothing(String),
}

/// Starts an instance's supervisor, in its own scope if possible, and waits until the app is running.
pub(super) async fn supervisor(dir: &InstanceDir) -> Result<(), BoxError> {
    let mut supervisor = Command::new(std::env::current_exe()?);
    // CI runners kill processes with their variables at the end of a job. The supervisor must survive that.
    supervisor.arg("supervise").arg(dir.directory()).current_dir("/").env_clear();
    for mut scoped in scope::commands(&supervisor, &dir.instance()) {
        match begun(&mut scoped, dir).await? {
            LaunchResult::App => return Ok(()),
            LaunchResult::Failed(reason) => return Err(reason.into()),
            // Without a scope it stays in our control group, which is better than nothing.
            LaunchResult::Nothing(_) => {}
        }
    }
    match begun(&mut supervisor, dir).await? {
        LaunchResult::App => Ok(()),
        LaunchResult::Failed(reason) => Err(reason.into()),
        LaunchResult::Nothing(reason) => {
            Err(format!("its supervisor exited before it started the app{reason}").into())
        }
    }
}

/// Starts a supervisor, and waits until it has started the app or failed.
async fn begun(command: &mut Command, dir: &InstanceDir) -> Result<LaunchResult, BoxError> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Not waited for: it outlives this process.
    let mut supervisor = match command.spawn() {
        Ok(supervisor) => supervisor,
        Err(e) => return Ok(LaunchResult::Nothing(format!(": {e}"))),
    };
    fault::point("process.start.spawned");
    let deadline = Instant::now() + START_WITHIN;
    loop {
        // In this order: a supervisor that has exited has recorded everything by now.
        let has_ended = supervisor.try_wait()?.is_some();
        match dir.saved()? {
            Some(SupervisorState { failed: Some(reason), .. }) => return Ok(LaunchResult::Failed(reason)),
            Some(saved) if !saved.is_starting() => return Ok(LaunchResult::App),
            _ if has_ended => {
                let mut reason = String::new();
                if let Some(mut stderr) = supervisor.stderr.take() {
                    // Its output is only additional information.
                    let _ = stderr.read_to_string(&mut reason);
                }
                let reason = reason.trim().trim_start_matches("uh-deploy: ");
                let is_silent = reason.is_empty();
                return Ok(LaunchResult::Nothing(if is_silent {
                    String::new()
                } else {
                    format!(": {reason}")
                }));
            }
            _ if Instant::now() > deadline => {
                let seconds = START_WITHIN.as_secs();
                return Err(format!("its supervisor didn't start the app within {seconds} s").into());
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
}
