//! One operation at a time: an OS file lock that the kernel releases when its holder dies, for whatever reason.
//!
//! The text in the file is only for messages; the kernel decides whether the lock is held.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::journal;
use crate::files;

/// How long to wait until a new holder has written its name.
const NAME_WITHIN: Duration = Duration::from_millis(500);

/// The largest text about a holder.
const MAX_HOLDER_BYTES: u64 = 64 << 10;

/// How often to check for it.
const NAME_POLL: Duration = Duration::from_millis(5);

/// How often a waiting caller tries again.
const WAIT_POLL: Duration = Duration::from_millis(50);

/// After this, a waiting caller reports that it waits: most holders are done by then.
const SAY_AFTER: Duration = Duration::from_secs(1);

/// A command that only checks the lock holds it for microseconds, which must not make a deploy fail.
const GLANCE: Duration = Duration::from_millis(50);

/// The lock, held until this is dropped or the process exits. The journal is locked too: if the lock file is removed,
/// a new one could be locked a second time, but the journal still can't be written by two processes.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    journal: Rc<File>,
}

/// The process that holds the lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// Its process id.
    pub pid: u32,
    /// User and host.
    pub who: String,
    /// What it is doing: `deploy of 1.0.1`.
    pub what: String,
    /// When it took the lock: ISO 8601, UTC.
    pub since: String,
    /// Its version of uh-deploy.
    pub program: String,
}

/// Why the lock couldn't be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another uh-deploy is running.
    #[error("{}", held_by(holder.as_deref()))]
    Held {
        /// Its holder, if it has written its name yet.
        holder: Option<Box<Holder>>,
    },
    /// Another uh-deploy is running, and its lock file was removed.
    #[error("another uh-deploy is running: it holds the journal {}, but its lock file was removed; nothing was changed. Wait until it has ended, and never remove the lock file: the lock disappears with its holder", path.display())]
    JournalHeld {
        /// The journal.
        path: PathBuf,
    },
    /// The file can't be opened or locked.
    #[error("can't lock {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn held_by(holder: Option<&Holder>) -> String {
    let who = holder.map_or_else(
        || "unknown user".to_owned(),
        |holder| format!("{} (pid {}), since {}: {}", holder.who, holder.pid, holder.since, holder.what),
    );
    format!(
        "another uh-deploy is running: {who}; nothing was changed. Wait until it has ended: its lock disappears with it, even if it is killed"
    )
}

impl LockError {
    /// Whether another process holds it, so that waiting may help.
    #[must_use]
    pub(crate) fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. } | Self::JournalHeld { .. })
    }
}

impl Lock {
    /// Takes the lock, or reports immediately who holds it.
    ///
    /// # Errors
    /// Another process holds it, or the file can't be opened or locked.
    pub(crate) fn take(directory: &Path, holder: &Holder) -> Result<Self, LockError> {
        let path = directory.join("lock");
        let failed = |source: io::Error| LockError::File { path: path.clone(), source };
        files::make_directory(directory).map_err(failed)?;
        let mut file = open(&path).map_err(failed)?;
        if !lock_soon(&file).map_err(failed)? {
            return Err(LockError::Held { holder: holder_of(&mut file) });
        }
        let write = |file: &mut File| -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(serde_json::to_string(holder)?.as_bytes())
        };
        write(&mut file).map_err(failed)?;
        let path = journal::path(directory);
        let failed = |source: io::Error| LockError::File { path: path.clone(), source };
        let journal = files::append(&path).map_err(failed)?;
        if !lock_soon(&journal).map_err(failed)? {
            return Err(LockError::JournalHeld { path });
        }
        Ok(Self { _file: file, journal: Rc::new(journal) })
    }

    /// The same, but waits for the current holder. `waiting` is called once if that takes longer than a moment.
    ///
    /// # Errors
    /// Another process holds it for longer than that, or the file can't be opened or locked.
    pub(crate) async fn wait(
        directory: &Path,
        holder: &Holder,
        patience: Duration,
        waiting: impl FnOnce(&LockError),
    ) -> Result<Self, LockError> {
        let start = Instant::now();
        let mut waiting = Some(waiting);
        loop {
            match Self::take(directory, holder) {
                Err(error) if error.is_held() && start.elapsed() < patience => {
                    if start.elapsed() >= SAY_AFTER {
                        waiting.take().into_iter().for_each(|waiting| waiting(&error));
                    }
                    tokio::time::sleep(WAIT_POLL).await;
                }
                other => return other,
            }
        }
    }

    /// The journal, locked.
    #[must_use]
    pub(crate) fn journal(&self) -> Rc<File> {
        Rc::clone(&self.journal)
    }
}

/// The current holder; `None`: the lock is free.
///
/// # Errors
/// The file exists but can't be opened.
pub(crate) fn at_work(directory: &Path) -> io::Result<Option<LockError>> {
    for path in [directory.join("lock"), journal::path(directory)] {
        let mut file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) if path.ends_with("lock") => {
                return Ok(Some(LockError::Held { holder: holder_of(&mut file) }));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Some(LockError::JournalHeld { path })),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(None)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Whether it could be locked. Waits for a command that only checks the lock.
pub(super) fn lock_soon(file: &File) -> io::Result<bool> {
    let deadline = Instant::now() + GLANCE;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(NAME_POLL);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
}

/// A new holder needs a moment to write its name over that of its predecessor, which may be dead.
fn holder_of(file: &mut File) -> Option<Box<Holder>> {
    let deadline = Instant::now() + NAME_WITHIN;
    while Instant::now() < deadline {
        let mut text = String::new();
        let read = file.rewind().and_then(|()| (&*file).take(MAX_HOLDER_BYTES).read_to_string(&mut text));
        let holder: Option<Box<Holder>> = read.ok().and_then(|_| serde_json::from_str(&text).ok());
        if let Some(holder) = holder.filter(|holder| Path::new(&format!("/proc/{}", holder.pid)).exists()) {
            return Some(holder);
        }
        std::thread::sleep(NAME_POLL);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(what: &str) -> Holder {
        Holder {
            pid: std::process::id(),
            who: "me@here".to_owned(),
            what: what.to_owned(),
            since: "2026-11-25T10:00:00.000Z".to_owned(),
            program: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn a_second_caller_learns_who_holds_the_lock_and_gets_it_once_it_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path(), &holder("deploy of 1.0.1, a long text")).unwrap();
        let error = Lock::take(dir.path(), &holder("deploy of 1.0.2")).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("me@here (pid ") && message.contains("deploy of 1.0.1"), "{message}");
        drop(first);
        let _second = Lock::take(dir.path(), &holder("rollback")).unwrap();
        let message = Lock::take(dir.path(), &holder("x")).unwrap_err().to_string();
        assert!(message.contains("rollback") && !message.contains("long text"), "{message}");
    }

    #[test]
    fn removing_the_lock_file_does_not_allow_a_second_uh_deploy() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path(), &holder("deploy of 1.0.1")).unwrap();
        std::fs::remove_file(dir.path().join("lock")).unwrap();
        let error = Lock::take(dir.path(), &holder("deploy of 1.0.2")).unwrap_err();
        assert!(error.is_held(), "{error}");
        assert!(error.to_string().contains("its lock file was removed"), "{error}");
        assert!(at_work(dir.path()).unwrap().is_some());
        drop(first);
        assert!(at_work(dir.path()).unwrap().is_none());
        Lock::take(dir.path(), &holder("deploy of 1.0.3")).unwrap();
    }
}
