//! Reads and writes the state file so that no crash can leave half of one: temporary file, fsync, rename, fsync of the
//! directory. A last-good copy is kept beside it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::file::StateFile;
use crate::fault;

/// A state file larger than this is not one of ours.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A link in the lock's place may lead anywhere.
const NOFOLLOW: i32 = OFlags::NOFOLLOW.bits().cast_signed();

/// The state file's place, held against other processes for as long as this lives.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// `None`: the directory can't be written.
    _lock: Option<File>,
}

/// Why the state file can't be used at all.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("another uh-proxy uses the state file {}: only one may write it", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
    },
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The state, from the file or its copy.
    pub state: Option<StateFile>,
    /// What is wrong, for the log and the status.
    pub warnings: Vec<String>,
}

impl Store {
    /// Takes the state file's place. Makes its directory if it is missing.
    ///
    /// # Errors
    /// Another process has it. That the directory can't be written is no error here: the front door serves all the
    /// same, and says that its state is not on disk.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = match lock(path) {
            Ok(lock) => Some(lock),
            Err(fs::TryLockError::WouldBlock) => return Err(StoreError::Taken { path: path.to_owned() }),
            // Nobody can write there, so there is nobody to race with.
            Err(fs::TryLockError::Error(error)) => {
                tracing::warn!(%error, path = %path.display(), "the state file's directory can't be written");
                None
            }
        };
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Reads the state: from the file, or else from its last-good copy. Never fails; says what is wrong.
    #[must_use]
    pub fn load(&self) -> Loaded {
        let mut loaded = Loaded::default();
        let copy = beside(&self.path, ".last-good");
        for path in [&self.path, &copy] {
            match read(path) {
                Ok(Some(state)) => {
                    if path == &copy {
                        loaded.warnings.push(format!(
                            "using the last-good copy {}, which may be one switch behind",
                            copy.display()
                        ));
                    }
                    loaded.state = Some(state);
                    return loaded;
                }
                Ok(None) if path == &self.path && copy.exists() => {
                    loaded.warnings.push(format!("the state file {} is missing", path.display()));
                }
                Ok(None) => {}
                Err(reason) => {
                    // Kept for whoever wants to know how that came about; it will be written anew at once.
                    let kept = beside(path, ".damaged");
                    let moved = fs::rename(path, &kept).map(|()| format!("; kept as {}", kept.display()));
                    loaded.warnings.push(format!(
                        "{}: {reason}{}",
                        path.display(),
                        moved.unwrap_or_default()
                    ));
                }
            }
        }
        if !loaded.warnings.is_empty() {
            loaded.warnings.push("using the configuration's active backends".to_owned());
        }
        loaded
    }

    /// Writes the state. When this returns, it survives a crash.
    ///
    /// # Errors
    /// The disk refuses. The file is then as it was.
    pub fn save(&self, state: &StateFile) -> io::Result<()> {
        replace(&self.path, state).map_err(|e| named(&self.path, &e))
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

fn lock(path: &Path) -> Result<File, fs::TryLockError> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(fs::TryLockError::Error)?;
    }
    let lock =
        OpenOptions::new().create(true).append(true).custom_flags(NOFOLLOW).open(beside(path, ".lock"));
    let lock = lock.map_err(fs::TryLockError::Error)?;
    lock.try_lock()?;
    Ok(lock)
}

fn read(path: &Path) -> Result<Option<StateFile>, String> {
    match fs::metadata(path) {
        // A pipe would never end, nor would some devices.
        Ok(metadata) if !metadata.is_file() => return Err("not a regular file".to_owned()),
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            return Err("too large for a state file".to_owned());
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    }
    let text = fs::read(path).map_err(|e| e.to_string())?;
    StateFile::parse(&text).map(Some).map_err(|e| e.to_string())
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
    io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
}

/// The path with something appended to its file name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(suffix);
    path.with_file_name(name)
}
