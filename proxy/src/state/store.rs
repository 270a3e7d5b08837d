//! Reads and writes the state file so that no crash can leave half of one: temporary file, fsync, rename, fsync of the
//! directory. A last-good copy is kept next to it.
//!
//! A file that can be read but isn't a valid state file is damaged; damage never keeps uh-proxy from starting. If a
//! file can't be read at all, its content is unknown: then nothing is renamed and uh-proxy doesn't start.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use uh_system::plain;

use super::file::{SCHEMA, StateFile};
use crate::fault;
use crate::lock::{self, LockError, with_suffix};

/// A larger file can't be a state file.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The mode of a directory created here: a user who may write to it could hold the lock.
const DIRECTORY_MODE: u32 = 0o755;

/// The state file, locked against other processes for as long as this lives, except during a hand-over.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// `None`: another process has it, after or before a hand-over.
    lock: Mutex<Option<File>>,
    /// The same, for those who must not wait for a disk.
    ours: AtomicBool,
    new: bool,
}

/// Why the state file can't be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("another uh-proxy is using the state file {}: stop it first, or set server.state_file to another path", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// Its lock isn't available.
    #[error(
        "cannot lock the state file {}, which only one process may write{}",
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
    /// Its directory can't be created.
    #[error("cannot create the directory of the state file {}", path.display())]
    Directory {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It exists, but can't be read.
    #[error(
        "cannot read the state file {}, so it's unknown which backend was active; nothing was changed. Make the file readable for uh-proxy's user, or move it away to start with the active backends from the configuration",
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

/// Advice for lock errors that don't include any.
fn lock_advice(error: &LockError) -> &'static str {
    match error {
        LockError::Failed { .. } => ": make sure that uh-proxy's user can write to its directory",
        _ => "",
    }
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The state, from the file or its copy.
    pub state: Option<StateFile>,
    /// Problems, for the log and the status.
    pub warnings: Vec<String>,
}

/// What a file is.
enum FileContent {
    State(Box<StateFile>),
    Missing,
    /// It can be read, but isn't a valid state file.
    Damaged(String),
}

impl Store {
    /// Locks the state file. Creates its directory if it is missing.
    ///
    /// # Errors
    /// If another process has it, or its lock isn't available.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory);
            made.map_err(|source| StoreError::Directory { path: path.to_owned(), source })?;
        }
        let lock_path = with_suffix(path, ".lock");
        let new = fs::symlink_metadata(&lock_path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        let store = Self { path: path.to_owned(), lock: Mutex::new(None), ours: AtomicBool::new(false), new };
        store.acquire()?;
        Ok(store)
    }

    /// The state file while another process has its lock.
    #[must_use]
    pub fn of_another(path: &Path) -> Self {
        Self { path: path.to_owned(), lock: Mutex::new(None), ours: AtomicBool::new(false), new: false }
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// If another process has it, or it isn't available.
    pub fn acquire(&self) -> Result<(), StoreError> {
        let path = &self.path;
        let lock = lock::take(&with_suffix(path, ".lock")).map_err(|error| match error {
            LockError::Taken { .. } => StoreError::Taken { path: path.clone() },
            source => StoreError::Lock { path: path.clone(), source },
        })?;
        *self.lock.lock() = Some(lock);
        self.ours.store(true, Ordering::Release);
        Ok(())
    }

    /// Releases the lock, after a write that has begun. Nothing is written from then on. If that write takes longer than
    /// this, returns `false` and keeps the lock.
    #[must_use]
    pub fn release_within(&self, at_most: Duration) -> bool {
        self.ours.store(false, Ordering::Release);
        let Some(mut lock) = self.lock.try_lock_for(at_most) else {
            self.ours.store(true, Ordering::Release);
            return false;
        };
        *lock = None;
        true
    }

    /// Whether this process has the lock.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.ours.load(Ordering::Acquire)
    }

    /// Whether there was no earlier run: not even a lock existed, which no run removes.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// Reads the state from the file, or else from its last-good copy. Reports problems. Damaged files are renamed.
    ///
    /// # Errors
    /// If the needed file can't be read. Nothing was renamed then.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let copy = with_suffix(&self.path, ".last-good");
        let first = match read(&self.path)? {
            FileContent::State(state) => {
                let warnings = newer(&self.path, &state).into_iter().collect();
                return Ok(Loaded { state: Some(*state), warnings });
            }
            other => other,
        };
        // Both are read before anything is renamed.
        let second = read(&copy)?;
        let mut warnings = Vec::new();
        match first {
            FileContent::Damaged(reason) => warnings.push(keep_damaged(&self.path, &reason)),
            FileContent::State(_) | FileContent::Missing => {
                if !matches!(second, FileContent::Missing) {
                    warnings.push(format!("the state file {} is missing", self.path.display()));
                }
            }
        }
        match second {
            FileContent::State(state) => {
                let copy = copy.display();
                warnings.push(format!("using the last-good copy {copy}, which may be one change behind"));
                return Ok(Loaded { state: Some(*state), warnings });
            }
            FileContent::Damaged(reason) => warnings.push(keep_damaged(&copy, &reason)),
            FileContent::Missing => {}
        }
        if !warnings.is_empty() {
            warnings.push("using the configuration's active backends".to_owned());
        }
        Ok(Loaded { state: None, warnings })
    }

    /// Writes the state. When this returns, it survives a crash.
    ///
    /// # Errors
    /// If writing fails, or another process has taken the lock. The file is unchanged then.
    pub fn save(&self, state: &StateFile) -> io::Result<()> {
        // Held until the end, so that a release waits for the write.
        let mut lock = self.lock.lock();
        let Some(ours) = lock.as_mut() else { return Ok(()) };
        self.keep_lock(ours)?;
        replace(&self.path, state).map_err(|e| named(&self.path, &e))
    }

    /// Takes the lock again if its file was removed, since it would no longer exclude other processes.
    fn keep_lock(&self, ours: &mut File) -> io::Result<()> {
        let path = with_suffix(&self.path, ".lock");
        let mine = lock::identity(&ours.metadata()?);
        if fs::symlink_metadata(&path).is_ok_and(|there| lock::identity(&there) == mine) {
            return Ok(());
        }
        match lock::take(&path) {
            Ok(again) => {
                tracing::warn!(path = %path.display(), "the state file's lock was removed; took it again");
                *ours = again;
                Ok(())
            }
            Err(LockError::Taken { .. }) => Err(io::Error::other(format!(
                "{} was removed, and another uh-proxy has taken it: stop one of them, since only one may write the state file",
                path.display()
            ))),
            // The directory is gone: writing fails for the same reason, with a better error.
            Err(LockError::Failed { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Writes the last-good copy, after [`Store::save`].
    ///
    /// # Errors
    /// If writing fails.
    pub fn save_copy(&self, state: &StateFile) -> io::Result<()> {
        let lock = self.lock.lock();
        if lock.is_none() {
            return Ok(());
        }
        fault::point("state_copying");
        let copy = with_suffix(&self.path, ".last-good");
        replace(&copy, state).map_err(|e| named(&copy, &e))
    }
}

fn read(path: &Path) -> Result<FileContent, StoreError> {
    let unreadable = |source| StoreError::Unreadable { path: path.to_owned(), source };
    match fs::metadata(path) {
        // Reading a pipe or some devices would never end.
        Ok(metadata) if !metadata.is_file() => {
            return Ok(FileContent::Damaged("not a regular file".to_owned()));
        }
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            return Ok(FileContent::Damaged("too large for a state file".to_owned()));
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(FileContent::Missing),
        Err(e) => return Err(unreadable(e)),
    }
    let text = fs::read(path).map_err(unreadable)?;
    match StateFile::parse(&text) {
        Ok(state) => Ok(FileContent::State(Box::new(state))),
        Err(reason) => Ok(FileContent::Damaged(reason.to_string())),
    }
}

/// A warning if a newer version has written the file: the active backends are known, but fields that only that version
/// knows are lost.
fn newer(path: &Path, state: &StateFile) -> Option<String> {
    (state.schema > SCHEMA).then(|| {
        format!(
            "{} was written by a newer uh-proxy (schema {}); fields that this version doesn't know are lost at the next write",
            path.display(),
            state.schema
        )
    })
}

/// Renames a damaged file, so that it can be examined: the original will be overwritten immediately.
fn keep_damaged(path: &Path, reason: &str) -> String {
    let kept = with_suffix(path, ".damaged");
    match fs::rename(path, &kept) {
        Ok(()) => format!("{}: {reason}; kept as {}", path.display(), kept.display()),
        Err(error) => {
            let (path, kept, error) = (path.display(), kept.display(), plain(&error));
            format!("{path}: {reason}; cannot keep it as {kept}: {error}")
        }
    }
}

fn replace(path: &Path, state: &StateFile) -> io::Result<()> {
    let temporary = with_suffix(path, ".tmp");
    let mut file = create(&temporary)?;
    file.write_all(&state.text()?)?;
    file.sync_all()?;
    fault::point("state_written");
    fs::rename(&temporary, path)?;
    fault::point("state_renamed");
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// Creates a new file. One left over from a crash is removed first, and nothing that another user put there, such as a
/// link to another file, is ever written to.
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
