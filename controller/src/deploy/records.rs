//! Records of what runs or ran as each backend, with everything needed to start it again. Mode 0600, because they
//! hold the environment.
//!
//! A candidate's record becomes its backend's only after traffic has moved to it. So after a failed deploy, the
//! record is still that of the version that last served as this backend, and a rollback restores that version.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uh_protocol::BackendName;

use crate::files;
use crate::runtime::{Frozen, InstanceId};

/// What runs, or ran, as a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendRecord {
    /// Its instance.
    pub instance: InstanceId,
    /// What it runs.
    pub frozen: Frozen,
    /// The files that uh-proxy serves for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<RecordedFiles>,
    /// The operation that started it.
    pub operation: String,
}

/// The files of a version that uh-proxy serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFiles {
    /// The directory they come from, as the runtime understands it.
    pub from: String,
    /// Where they are served.
    pub to: PathBuf,
}

/// The records of a state directory.
#[derive(Debug, Clone)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// The records of this state directory.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { directory: state_dir.join("records") }
    }

    fn path(&self, backend: &BackendName) -> PathBuf {
        self.directory.join(format!("{backend}.json"))
    }

    fn candidate_path(&self) -> PathBuf {
        // Backend names have no dots.
        self.directory.join("candidate.record.json")
    }

    /// The record of what last served as this backend; `None`: there is none.
    ///
    /// # Errors
    /// It exists but can't be read.
    pub fn of(&self, backend: &BackendName) -> io::Result<Option<BackendRecord>> {
        read(&self.path(backend))
    }

    /// The candidate of this operation; `None`: it has none.
    ///
    /// # Errors
    /// It exists but can't be read.
    pub fn candidate(&self, operation: &str) -> io::Result<Option<BackendRecord>> {
        Ok(read(&self.candidate_path())?.filter(|record| record.operation == operation))
    }

    /// The artifacts of all records: image digests, paths of programs.
    ///
    /// # Errors
    /// One of them can't be read.
    pub fn artifacts(&self) -> io::Result<std::collections::HashSet<String>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
            other => other?,
        };
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        let records =
            paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        records.filter_map(|path| read(path).transpose()).map(|record| Ok(record?.frozen.artifact)).collect()
    }

    /// Writes the candidate's record.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn propose(&self, record: &BackendRecord) -> io::Result<()> {
        files::make_directory(&self.directory)?;
        files::replace(&self.candidate_path(), serde_json::to_string(record)?.as_bytes())
    }

    /// Makes the record of the operation's candidate, if it has one, its backend's.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn commit(&self, operation: &str) -> io::Result<()> {
        let Some(record) = self.candidate(operation)? else { return Ok(()) };
        files::replace(&self.path(&record.frozen.backend), serde_json::to_string(&record)?.as_bytes())?;
        files::remove(&self.candidate_path())
    }

    /// Removes the record of the operation's candidate.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn withdraw(&self, operation: &str) -> io::Result<()> {
        match self.candidate(operation) {
            Ok(None) => Ok(()),
            _ => files::remove(&self.candidate_path()),
        }
    }
}

fn read(path: &Path) -> io::Result<Option<BackendRecord>> {
    let text = files::read(path)?;
    let record = text.map(|text| serde_json::from_slice(&text)).transpose();
    record.map_err(|e| {
        let backend = path.file_stem().unwrap_or_default().to_string_lossy();
        let message = format!(
            "the record of {backend}, {}, is damaged ({e}). Move the file away: {backend} keeps running, and a rollback to it is possible again after the next deploy to it",
            path.display()
        );
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}
