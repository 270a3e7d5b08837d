//! File locks: the holder is the only process that uses the locked resource.
//!
//! Any process that can open a lock file can hold its lock, and so keep uh-proxy from starting. So only its owner can
//! open it, in a directory where no other user can create one. Without the lock, uh-proxy doesn't start.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use uh_system::plain;

/// Only its owner may read and write it.
const MODE: u32 = 0o600;

/// A link at the lock's path could lead anywhere, and opening a pipe could block.
const FLAGS: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();

/// How many times to try a lock whose file is replaced meanwhile.
const ATTEMPTS: u32 = 5;

/// Why a lock isn't available.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("another process holds the lock {}", path.display())]
    Taken {
        /// The lock file.
        path: PathBuf,
    },
    /// Any local user could hold the lock, or replace the locked file.
    #[error("every local user can write to {}: run chmod o-w on it", directory.display())]
    OpenDirectory {
        /// The directory.
        directory: PathBuf,
    },
    /// Something else is at its path.
    #[error("{} is not a regular file: remove it", path.display())]
    NotAFile {
        /// The lock file.
        path: PathBuf,
    },
    /// It belongs to another user, for example because uh-proxy was once run by root.
    #[error(
        "the lock {} belongs to user ID {owner}: remove it, or chown it to {user}",
        path.display()
    )]
    Foreign {
        /// The lock file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The current user.
        user: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot open the lock {}", path.display())]
    Failed {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Takes a lock, which is held for as long as the file is open. Creates the file if it is missing; its directory must
/// exist.
///
/// # Errors
/// See [`LockError`].
pub(crate) fn take(path: &Path) -> Result<File, LockError> {
    let failed = |source| LockError::Failed { path: path.to_owned(), source };
    check_directory(path)?;
    for _ in 0..ATTEMPTS {
        let file = open(path)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(LockError::NotAFile { path: path.to_owned() });
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(LockError::Taken { path: path.to_owned() }),
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        if metadata.mode() & 0o077 != 0
            && let Err(error) = file.set_permissions(Permissions::from_mode(MODE))
        {
            tracing::warn!(error = %plain(&error), path = %path.display(), "cannot change the lock's mode: other users can open it");
        }
        // The file may have been removed meanwhile: then the lock is on a file that no other process can find.
        let there = fs::symlink_metadata(path).is_ok_and(|there| identity(&there) == identity(&metadata));
        if there {
            return Ok(file);
        }
    }
    Err(failed(io::Error::other("another process keeps replacing it")))
}

/// The path with something appended to its file name, such as that of the lock.
#[must_use]
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().map_or_else(std::ffi::OsString::new, std::ffi::OsString::from);
    name.push(suffix);
    path.with_file_name(name)
}

/// The identity of a file.
#[must_use]
pub(crate) fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Whether a lock at this path can exclude other processes.
///
/// # Errors
/// If every local user may write to its directory, or its permissions can't be read.
pub(crate) fn check_directory(path: &Path) -> Result<(), LockError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let metadata =
        fs::metadata(directory).map_err(|source| LockError::Failed { path: path.to_owned(), source })?;
    // Even with the sticky bit: any user could be the first to create the lock.
    if metadata.mode() & 0o002 != 0 {
        return Err(LockError::OpenDirectory { directory: directory.to_owned() });
    }
    Ok(())
}

fn open(path: &Path) -> Result<File, LockError> {
    let mut options = OpenOptions::new();
    let written = options.create(true).append(true).mode(MODE).custom_flags(FLAGS).open(path);
    written.or_else(|error| match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO | rustix::io::Errno::ISDIR) => {
            Err(LockError::NotAFile { path: path.to_owned() })
        }
        // A lock needs no write access: on a read-only disk, the file of an earlier run is enough.
        _ => OpenOptions::new().read(true).custom_flags(FLAGS).open(path).map_err(|_| refused(path, error)),
    })
}

/// If the file exists and belongs to another user, the error says what to do about it.
fn refused(path: &Path, source: io::Error) -> LockError {
    let user = rustix::process::geteuid().as_raw();
    let owner = fs::symlink_metadata(path).ok().map(|metadata| metadata.uid()).filter(|owner| *owner != user);
    let path = path.to_owned();
    match owner.filter(|_| source.kind() == io::ErrorKind::PermissionDenied) {
        Some(owner) => LockError::Foreign { path, owner, user, source },
        None => LockError::Failed { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_lock_is_for_its_owner_alone_and_for_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let held = take(&path).unwrap();
        assert_eq!(mode(&path), 0o600, "an earlier version's lock stays open to all");
        assert!(matches!(take(&path), Err(LockError::Taken { .. })));
        drop(held);
        fs::remove_file(&path).unwrap();
        let _held = take(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_directory_in_which_anybody_can_make_the_lock_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for open in [0o777, 0o1777] {
            fs::set_permissions(dir.path(), Permissions::from_mode(open)).unwrap();
            assert!(matches!(take(&dir.path().join("lock")), Err(LockError::OpenDirectory { .. })));
        }
    }

    #[test]
    fn what_is_no_file_is_no_lock_and_no_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(matches!(take(&path), Err(LockError::NotAFile { .. })));
        assert!(!dir.path().join("elsewhere").exists(), "the link was followed");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(take(&path), Err(LockError::NotAFile { .. })));
        fs::remove_dir(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        assert!(matches!(take(&path), Err(LockError::NotAFile { .. })));
    }
}
