//! An instance's directory: what the controller and the keeper tell each other.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::proc::Known;
use crate::files;
use crate::runtime::Ending;

/// An instance's directory.
#[derive(Debug, Clone)]
pub(super) struct Place {
    directory: PathBuf,
}

/// What the keeper says of its app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    /// The app's process; none if it could not be started.
    pub(super) app: Option<Known>,
    /// When it was started: ISO 8601, UTC.
    pub(super) started_at: String,
    /// Why it could not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<String>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended: Option<Ending>,
}

impl Saved {
    /// The app, if it is alive.
    pub(super) fn alive(&self) -> Option<&Known> {
        self.app.as_ref().filter(|app| self.ended.is_none() && app.is_alive())
    }
}

impl Place {
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

    /// Makes the directory, with what is to run.
    pub(super) fn prepare(&self, spec: &serde_json::Value) -> io::Result<()> {
        files::make_directory(&self.directory)?;
        files::replace(&self.spec(), spec.to_string().as_bytes())
    }

    /// What is to run.
    pub(super) fn read_spec(&self) -> io::Result<Vec<u8>> {
        fs::read(self.spec())
    }

    /// From now on nothing may be started here.
    pub(super) fn forbid(&self) -> io::Result<()> {
        files::replace(&self.stop(), b"")
    }

    pub(super) fn is_forbidden(&self) -> bool {
        self.stop().exists()
    }

    /// Takes the keeper's lock; `None`: a keeper has it.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let path = self.directory.join("keeper.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether no keeper lives here.
    pub(super) fn keeper_is_gone(&self) -> io::Result<bool> {
        match self.lock() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            other => other.map(|lock| lock.is_some()),
        }
    }

    pub(super) fn save(&self, saved: &Saved) -> io::Result<()> {
        files::replace(&self.state(), serde_json::to_string(saved)?.as_bytes())
    }

    /// What the keeper has said; `None`: nothing yet.
    pub(super) fn saved(&self) -> io::Result<Option<Saved>> {
        let text = files::read(&self.state())?;
        text.map(|text| serde_json::from_slice(&text).map_err(io::Error::from)).transpose()
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}
