//! One operation at a time: an OS file lock that the kernel frees when its holder dies, however that comes about.
//!
//! The text inside the file is only for people; whether the lock is held is the kernel's to say.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::files;

/// How long the loser waits for the winner's name.
const NAME_WITHIN: Duration = Duration::from_millis(500);

/// The longest text about a holder.
const MAX_HOLDER_BYTES: u64 = 64 << 10;

/// How often it looks.
const NAME_POLL: Duration = Duration::from_millis(5);

/// The lock, held until this is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Who holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// User and host.
    pub who: String,
    /// What it does: `deploy of 1.0.1`.
    pub what: String,
    /// Since when: ISO 8601, UTC.
    pub since: String,
    /// Version of uh-deploy.
    pub program: String,
}

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else is at work.
    #[error("{}", held_by(holder.as_deref()))]
    Held {
        /// Who, if it has written that down already.
        holder: Option<Box<Holder>>,
    },
    /// The file can't be opened or locked.
    #[error("cannot lock {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn held_by(holder: Option<&Holder>) -> String {
    let who = holder.map_or_else(
        || "somebody".to_owned(),
        |holder| format!("{} (pid {}), since {}: {}", holder.who, holder.pid, holder.since, holder.what),
    );
    format!(
        "another uh-deploy is at work: {who}; nothing was changed. Wait until it has ended; its lock goes with it, even if it is killed"
    )
}

impl Lock {
    /// Takes the lock, or says at once who has it.
    ///
    /// # Errors
    /// Somebody has it, or the system refuses.
    pub fn take(directory: &Path, holder: &Holder) -> Result<Self, LockError> {
        let path = directory.join("lock");
        let failed = |source: io::Error| LockError::File { path: path.clone(), source };
        files::make_directory(directory).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LockError::Held { holder: holder_of(&mut file) });
            }
            Err(e) => return Err(failed(e.into())),
        }
        let write = |file: &mut File| -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(serde_json::to_string(holder)?.as_bytes())
        };
        write(&mut file).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Whoever has just got the lock needs a moment to write its name over that of the one before, which may be a dead one's.
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
    fn the_second_is_told_who_has_it_and_gets_it_when_the_first_lets_go() {
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
}
