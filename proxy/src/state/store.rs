//! Reads and writes the state file so that no crash can leave half of one: temporary file, fsync, rename, fsync of the
//! directory. A last-good copy is kept next to it.
//!
//! Only what can be read and is no state file is damage, and damage never stops the front door. A file that can't be read
//! at all says nothing about what is in it: then nothing is renamed, nothing is decided, and nothing starts.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use uh_system::plain;

use super::file::{SCHEMA, StateFile};
use crate::fault;
use crate::lock::{self, LockError, beside};

/// A state file larger than this is not one of ours.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The mode of a directory that is made here: who may write to it could hold the lock.
const DIRECTORY_MODE: u32 = 0o755;

/// The state file's place, held against other processes for as long as this lives.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    lock: Mutex<File>,
    new: bool,
}

/// Why the state file can't be used at all. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("another uh-proxy uses the state file {}: only one may write it", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// Its lock can't be taken.
    #[error(
        "cannot lock the state file {}, and two processes must not write it{}",
        path.display(),
        lock_advice(source)
    )]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: LockError,
    },
    /// Its directory can't be made.
    #[error("cannot make the directory of the state file {}", path.display())]
    Directory {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is there, but can't be read.
    #[error(
        "cannot read the state file {}, so it is unknown which backend was active; nothing was changed. Make it readable for uh-proxy's user; or move it away to start with the configuration's active backends",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What to do where the lock's own error doesn't say it.
fn lock_advice(error: &LockError) -> &'static str {
    match error {
        LockError::Failed { .. } => ": see that uh-proxy's user can write to its directory",
        _ => "",
    }
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The state, from the file or its copy.
    pub state: Option<StateFile>,
    /// What is wrong, for the log and the status.
    pub warnings: Vec<String>,
}

/// What a file is.
enum Found {
    State(Box<StateFile>),
    Missing,
    /// It can be read, and is no state file.
    Damaged(String),
}

impl Store {
    /// Takes the state file's place. Makes its directory if it is missing.
    ///
    /// # Errors
    /// Another process has it, or its lock can't be taken.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory);
            made.map_err(|source| StoreError::Directory { path: path.to_owned(), source })?;
        }
        let lock_path = beside(path, ".lock");
        let new = fs::symlink_metadata(&lock_path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        let lock = lock::take(&lock_path).map_err(|error| match error {
            LockError::Taken { .. } => StoreError::Taken { path: path.to_owned() },
            source => StoreError::Lock { path: path.to_owned(), source },
        })?;
        Ok(Self { path: path.to_owned(), lock: Mutex::new(lock), new })
    }

    /// Whether this place was never used before: not even a lock was there, which no run removes.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// Reads the state: from the file, or else from its last-good copy. Says what is wrong. What is damaged is renamed.
    ///
    /// # Errors
    /// The one that is needed can't be read. Then nothing was renamed.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let copy = beside(&self.path, ".last-good");
        let first = match read(&self.path)? {
            Found::State(state) => {
                let warnings = newer(&self.path, &state).into_iter().collect();
                return Ok(Loaded { state: Some(*state), warnings });
            }
            other => other,
        };
        // Both are read before anything is renamed.
        let second = read(&copy)?;
        let mut warnings = Vec::new();
        match first {
            Found::Damaged(reason) => warnings.push(keep_damaged(&self.path, &reason)),
            Found::State(_) | Found::Missing => {
                if !matches!(second, Found::Missing) {
                    warnings.push(format!("the state file {} is missing", self.path.display()));
                }
            }
        }
        match second {
            Found::State(state) => {
                let copy = copy.display();
                warnings.push(format!("using the last-good copy {copy}, which may be one change behind"));
                return Ok(Loaded { state: Some(*state), warnings });
            }
            Found::Damaged(reason) => warnings.push(keep_damaged(&copy, &reason)),
            Found::Missing => {}
        }
        if !warnings.is_empty() {
            warnings.push("using the configuration's active backends".to_owned());
        }
        Ok(Loaded { state: None, warnings })
    }

    /// Writes the state. When this returns, it survives a crash.
    ///
    /// # Errors
    /// The disk refuses, or another process has taken the place. The file is then as it was.
    pub fn save(&self, state: &StateFile) -> io::Result<()> {
        self.keep_lock()?;
        replace(&self.path, state).map_err(|e| named(&self.path, &e))
    }

    /// Takes the lock again if somebody has removed its file: it would keep nobody away any more.
    fn keep_lock(&self) -> io::Result<()> {
        let path = beside(&self.path, ".lock");
        let mut ours = self.lock.lock();
        let mine = lock::identity(&ours.metadata()?);
        if fs::symlink_metadata(&path).is_ok_and(|there| lock::identity(&there) == mine) {
            return Ok(());
        }
        match lock::take(&path) {
            Ok(again) => {
                tracing::warn!(path = %path.display(), "the lock of the state file was removed; took it again");
                *ours = again;
                Ok(())
            }
            Err(LockError::Taken { .. }) => Err(io::Error::other(format!(
                "{} was removed, and another uh-proxy has taken it: only one may write the state file, so stop one of them",
                path.display()
            ))),
            // The directory is gone: writing fails for the same reason, and says it better.
            Err(LockError::Failed { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Writes the last-good copy, after [`Store::save`].
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save_copy(&self, state: &StateFile) -> io::Result<()> {
        let copy = beside(&self.path, ".last-good");
        replace(&copy, state).map_err(|e| named(&copy, &e))
    }
}

fn read(path: &Path) -> Result<Found, StoreError> {
    let unreadable = |source| StoreError::Unreadable { path: path.to_owned(), source };
    match fs::metadata(path) {
        // A pipe would never end, nor would some devices.
        Ok(metadata) if !metadata.is_file() => return Ok(Found::Damaged("not a regular file".to_owned())),
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            return Ok(Found::Damaged("too large for a state file".to_owned()));
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        Err(e) => return Err(unreadable(e)),
    }
    let text = fs::read(path).map_err(unreadable)?;
    match StateFile::parse(&text) {
        Ok(state) => Ok(Found::State(Box::new(state))),
        Err(reason) => Ok(Found::Damaged(reason.to_string())),
    }
}

/// Says so where a newer version has written the file: what serves is known, but what only that version knows is lost.
fn newer(path: &Path, state: &StateFile) -> Option<String> {
    (state.schema > SCHEMA).then(|| {
        format!(
            "{} was written by a newer uh-proxy (schema {}); what only that one knows is lost at the next write",
            path.display(),
            state.schema
        )
    })
}

/// Renames what is damaged, for whoever wants to know how that came about: the file will be written again at once.
fn keep_damaged(path: &Path, reason: &str) -> String {
    let kept = beside(path, ".damaged");
    match fs::rename(path, &kept) {
        Ok(()) => format!("{}: {reason}; kept as {}", path.display(), kept.display()),
        Err(error) => {
            let (path, kept, error) = (path.display(), kept.display(), plain(&error));
            format!("{path}: {reason}; it can't be kept as {kept}: {error}")
        }
    }
}

fn replace(path: &Path, state: &StateFile) -> io::Result<()> {
    let temporary = beside(path, ".tmp");
    let mut file = create(&temporary)?;
    file.write_all(&state.text()?)?;
    file.sync_all()?;
    fault::point("state_written");
    fs::rename(&temporary, path)?;
    fault::point("state_renamed");
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// Makes a file that was not there. One left over from a crash is taken away first, and nothing that somebody else has put
/// there, such as a link to another file, is ever written to.
fn create(path: &Path) -> io::Result<File> {
    let create = || OpenOptions::new().write(true).create_new(true).open(path);
    match create() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        other => other,
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {}: {}", path.display(), plain(error)))
}
