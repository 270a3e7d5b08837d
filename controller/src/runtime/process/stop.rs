//! Stops all processes of an instance.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::instance_dir::{InstanceDir, SupervisorState};
use super::proc::ProcessIdentity;
use super::{BoxError, POLL, state_of, tree};
use crate::fault;
use crate::runtime::State;

/// After SIGKILL only the kernel has work to do.
const KILL_WITHIN: Duration = Duration::from_secs(10);

/// A supervisor that is still alive this long after its app was killed is killed too.
const SUPERVISOR_WITHIN: Duration = Duration::from_secs(6);

/// How often to search the machine's processes for those of an instance.
const SEARCH_POLL: Duration = Duration::from_millis(50);

/// Stops an instance: afterwards none of its processes is alive, and nothing restarts it.
///
/// # Errors
/// A process of it is still alive, or it could be restarted.
pub(super) async fn stop(dir: &InstanceDir, timeout: Duration) -> Result<State, BoxError> {
    // With a full disk, stop it anyway, and return this error at the end.
    let forbidden = dir.forbid();
    fault::point("process.stop.forbidden");
    let deadline = Instant::now() + timeout;
    let (mut asked, mut killed_at): (Option<ProcessIdentity>, Option<Instant>) = (None, None);
    loop {
        // An unreadable record must not prevent the stop.
        let saved = dir.saved().unwrap_or_default();
        let app = saved.as_ref().and_then(SupervisorState::alive);
        if let Some(app) = app.filter(|app| asked.as_ref() != Some(*app) && killed_at.is_none()) {
            app.signal(Signal::TERM)?;
            asked = Some(app.clone());
            fault::point("process.stop.asked");
        }
        // If the lock is free, no supervisor is alive, and a late one won't start anything.
        let is_unsupervised = dir.is_unsupervised()?;
        let mut wait = POLL;
        if Instant::now() >= deadline || (is_unsupervised && app.is_none()) {
            wait = SEARCH_POLL;
            let left = processes(dir, saved.as_ref(), killed_at);
            if is_unsupervised && left.is_empty() {
                forbidden?;
                return Ok(state_of(dir.saved().unwrap_or_default().as_ref()));
            }
            if killed_at.is_some_and(|at: Instant| at.elapsed() > KILL_WITHIN) {
                let pids: Vec<String> = left.iter().map(|process| process.pid.to_string()).collect();
                return Err(format!("still running after SIGKILL: pid {}", pids.join(", ")).into());
            }
            tree::kill(&left)?;
            killed_at.get_or_insert_with(Instant::now);
        }
        tokio::time::sleep(wait).await;
    }
}

/// The instance's live processes. The supervisor is included only if it is still alive long after the others were
/// killed.
fn processes(
    dir: &InstanceDir,
    saved: Option<&SupervisorState>,
    killed_at: Option<Instant>,
) -> Vec<ProcessIdentity> {
    let supervisor = saved.and_then(|saved| saved.supervisor.as_ref());
    let app = saved.and_then(|saved| saved.app.as_ref());
    let roots: Vec<&ProcessIdentity> = supervisor.into_iter().chain(app).collect();
    let mut found = tree::members(&dir.instance(), &roots);
    if killed_at.is_none_or(|at| at.elapsed() <= SUPERVISOR_WITHIN) {
        found.retain(|process| Some(process) != supervisor);
    }
    found
}
