//! An instance's directory, through which uh-deploy and the supervisor communicate.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::proc::ProcessIdentity;
use crate::files;
use crate::runtime::Ending;

/// After running this long, an app counts as stable: earlier crashes are forgotten, and the restart delay is reset.
pub(super) const RAN_WELL: Duration = Duration::from_secs(10);

/// An instance's directory.
#[derive(Debug, Clone)]
pub(super) struct InstanceDir {
    directory: PathBuf,
}

/// What the supervisor records about its app, before it starts it and at every change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SupervisorState {
    /// The app's process; `None` before it is started, or if it couldn't be.
    pub(super) app: Option<ProcessIdentity>,
    /// The supervisor itself. Earlier versions didn't record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) supervisor: Option<ProcessIdentity>,
    /// How often the app was restarted.
    #[serde(default)]
    pub(super) restarts: u32,
    /// How often since it last ran well.
    #[serde(default)]
    pub(super) in_a_row: u32,
    /// When it was started: ISO 8601, UTC.
    pub(super) started_at: String,
    /// Why it couldn't be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<String>,
    /// How it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended: Option<Ending>,
}

impl SupervisorState {
    /// The app, if it is alive.
    pub(super) fn alive(&self) -> Option<&ProcessIdentity> {
        self.app.as_ref().filter(|app| self.ended.is_none() && app.is_alive())
    }

    /// How often it was restarted since it last ran well, which shows a crash loop.
    pub(super) fn restarts_in_a_row(&self, now: jiff::Timestamp) -> u32 {
        let started: Option<jiff::Timestamp> = self.started_at.parse().ok();
        let runs_for = started.and_then(|at| Duration::try_from(now.duration_since(at)).ok());
        if runs_for.is_some_and(|time| time >= RAN_WELL) { 0 } else { self.in_a_row }
    }

    /// Whether the app is yet to be started.
    pub(super) fn is_starting(&self) -> bool {
        self.app.is_none() && self.failed.is_none() && self.ended.is_none()
    }
}

impl InstanceDir {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn exists(&self) -> bool {
        self.directory.exists()
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("app.log")
    }

    fn spec(&self) -> PathBuf {
        self.directory.join("spec.json")
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    fn stop(&self) -> PathBuf {
        self.directory.join("stop")
    }

    /// Creates the directory and the spec.
    pub(super) fn prepare(&self, spec: &serde_json::Value) -> io::Result<()> {
        files::make_directory(&self.directory)?;
        files::replace(&self.spec(), spec.to_string().as_bytes())
    }

    pub(super) fn read_spec(&self) -> io::Result<Vec<u8>> {
        files::read(&self.spec())?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Forbids starting anything here from now on.
    pub(super) fn forbid(&self) -> io::Result<()> {
        files::replace(&self.stop(), b"")
    }

    /// Whether nothing may be started here: it was forbidden, or the directory is gone.
    pub(super) fn is_forbidden(&self) -> bool {
        self.stop().exists() || !self.directory.exists()
    }

    fn restart(&self) -> PathBuf {
        self.directory.join("restart")
    }

    /// Enables restarts of the app, if its spec allows them.
    pub(super) fn allow_restart(&self) -> io::Result<()> {
        files::replace(&self.restart(), b"")
    }

    pub(super) fn may_restart(&self) -> bool {
        self.restart().exists() && !self.is_forbidden()
    }

    /// Resets its state, so that it can be started again. No supervisor may be alive.
    pub(super) fn reset(&self) -> io::Result<()> {
        [self.restart(), self.state(), self.stop()].iter().try_for_each(|path| files::remove(path))
    }

    /// The instance's name.
    pub(super) fn instance(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Takes the supervisor's lock; `None`: a supervisor holds it. The file keeps its old name, because a supervisor
    /// of an earlier version may hold it.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let path = self.directory.join("keeper.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether no supervisor is alive.
    pub(super) fn is_unsupervised(&self) -> io::Result<bool> {
        match self.lock() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            other => other.map(|lock| lock.is_some()),
        }
    }

    pub(super) fn save(&self, saved: &SupervisorState) -> io::Result<()> {
        files::replace(&self.state(), serde_json::to_string(saved)?.as_bytes())
    }

    /// What the supervisor has recorded; `None`: nothing yet.
    pub(super) fn saved(&self) -> io::Result<Option<SupervisorState>> {
        let text = files::read(&self.state())?;
        let saved = text.map(|text| serde_json::from_slice(&text)).transpose();
        saved.map_err(|e| io::Error::other(format!("{} is damaged: {e}", self.state().display())))
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_crashes_are_not_a_crash_loop() {
        let saved = SupervisorState {
            started_at: "2026-11-25T10:15:00.000Z".to_owned(),
            restarts: 12,
            in_a_row: 4,
            ..SupervisorState::default()
        };
        let after = |time: &str| saved.restarts_in_a_row(time.parse().unwrap());
        assert_eq!(after("2026-11-25T10:15:09.999Z"), 4);
        assert_eq!(after("2026-11-25T10:15:10Z"), 0);
        assert_eq!(after("2026-11-25T10:14:00Z"), 4, "a clock that was set back");
    }
}
