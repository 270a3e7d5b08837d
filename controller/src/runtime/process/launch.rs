//! Starting a supervisor, and waiting until it has started its app.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::place::{Place, Saved};
use super::{BoxError, POLL, scope};
use crate::fault;

/// A supervisor has nothing to do before it starts the app; a busy machine gets far more.
const START_WITHIN: Duration = Duration::from_secs(15);

/// What became of a supervisor that was started.
enum Begun {
    /// The app runs, or has run.
    App,
    /// The app can't be started.
    Failed(String),
    /// It ended before it recorded anything, or was not started at all. With the reason, for the end of a message.
    Nothing(String),
}

/// Starts an instance's supervisor, in a scope of its own if there can be one, and waits until the app runs.
pub(super) async fn supervisor(place: &Place) -> Result<(), BoxError> {
    let mut supervisor = Command::new(std::env::current_exe()?);
    // CI runners end whatever carries their variables when a job is over. The supervisor must outlive that too.
    supervisor.arg("supervise").arg(place.directory()).current_dir("/").env_clear();
    for mut scoped in scope::commands(&supervisor, &place.instance()) {
        match begun(&mut scoped, place).await? {
            Begun::App => return Ok(()),
            Begun::Failed(reason) => return Err(reason.into()),
            // Without a scope it runs where we run, which is no reason not to run it.
            Begun::Nothing(_) => {}
        }
    }
    match begun(&mut supervisor, place).await? {
        Begun::App => Ok(()),
        Begun::Failed(reason) => Err(reason.into()),
        Begun::Nothing(reason) => {
            Err(format!("its supervisor ended before the app was started{reason}").into())
        }
    }
}

/// Starts a supervisor, and waits until it has started the app, or has failed to.
async fn begun(command: &mut Command, place: &Place) -> Result<Begun, BoxError> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Not waited for to its end: it outlives us.
    let mut supervisor = match command.spawn() {
        Ok(supervisor) => supervisor,
        Err(e) => return Ok(Begun::Nothing(format!(": {e}"))),
    };
    fault::point("process.start.spawned");
    let deadline = Instant::now() + START_WITHIN;
    loop {
        // In this order: what an ended one has recorded is on the disk by now.
        let has_ended = supervisor.try_wait()?.is_some();
        match place.saved()? {
            Some(Saved { failed: Some(reason), .. }) => return Ok(Begun::Failed(reason)),
            Some(saved) if !saved.is_starting() => return Ok(Begun::App),
            _ if has_ended => {
                let mut reason = String::new();
                if let Some(mut stderr) = supervisor.stderr.take() {
                    // What it printed is a help, and no more.
                    let _ = stderr.read_to_string(&mut reason);
                }
                let reason = reason.trim().trim_start_matches("uh-deploy: ");
                let is_silent = reason.is_empty();
                return Ok(Begun::Nothing(if is_silent { String::new() } else { format!(": {reason}") }));
            }
            _ if Instant::now() > deadline => {
                let seconds = START_WITHIN.as_secs();
                return Err(format!("its supervisor has not started the app within {seconds} s").into());
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
}
