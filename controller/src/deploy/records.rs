//! What runs, or ran, as each backend: enough to start the very same again. Mode 0600, for it holds the environment.
//!
//! A candidate's record becomes its backend's only after traffic has moved to it. So if a deploy fails, the record is
//! still that of the version which last served as this backend, and a roll back brings back that one.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uh_protocol::BackendName;

use crate::files;
use crate::runtime::{Frozen, InstanceId};

/// What runs, or ran, as a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its instance.
    pub instance: InstanceId,
    /// What it is.
    pub frozen: Frozen,
    /// The operation that started it.
    pub operation: String,
}

/// The records of a state directory.
#[derive(Debug, Clone)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// Those of this state directory.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { directory: state_dir.join("records") }
    }

    fn path(&self, backend: &BackendName) -> PathBuf {
        self.directory.join(format!("{backend}.json"))
    }

    fn candidate_path(&self) -> PathBuf {
        // No backend's name has a dot.
        self.directory.join("candidate.record.json")
    }

    /// What last served as this backend; `None`: nothing that we know of.
    ///
    /// # Errors
    /// It is there and can't be read.
    pub fn of(&self, backend: &BackendName) -> io::Result<Option<Record>> {
        read(&self.path(backend))
    }

    /// The candidate of the operation under way; `None`: it has none, or it is another operation's.
    ///
    /// # Errors
    /// It is there and can't be read.
    pub fn candidate(&self, operation: &str) -> io::Result<Option<Record>> {
        Ok(read(&self.candidate_path())?.filter(|record| record.operation == operation))
    }

    /// What all records are made of, whoever's they are: image digests, programs' paths.
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

    /// Writes down the candidate.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn propose(&self, record: &Record) -> io::Result<()> {
        files::make_directory(&self.directory)?;
        files::replace(&self.candidate_path(), serde_json::to_string(record)?.as_bytes())
    }

    /// Takes the operation's candidate, if it has one, as its backend's.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn commit(&self, operation: &str) -> io::Result<()> {
        let Some(record) = self.candidate(operation)? else { return Ok(()) };
        files::replace(&self.path(&record.frozen.backend), serde_json::to_string(&record)?.as_bytes())?;
        files::remove(&self.candidate_path())
    }

    /// Forgets the operation's candidate.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn withdraw(&self, operation: &str) -> io::Result<()> {
        match self.candidate(operation) {
            Ok(None) => Ok(()),
            _ => files::remove(&self.candidate_path()),
        }
    }
}

fn read(path: &Path) -> io::Result<Option<Record>> {
    let text = files::read(path)?;
    let record = text.map(|text| serde_json::from_slice(&text)).transpose();
    record.map_err(|e| {
        let backend = path.file_stem().unwrap_or_default().to_string_lossy();
        let message = format!(
            "the record of {backend}, {}, is damaged ({e}). Move that file away; what runs as {backend} goes on running, and a rollback to it is possible again after a deploy to it",
            path.display()
        );
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}
