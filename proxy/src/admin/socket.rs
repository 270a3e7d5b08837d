//! The admin socket: created so that only permitted users have access, and identifies its callers.

use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::lock::{self, LockError, identity, with_suffix};

/// Who may use the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Its owner and root.
    Owner,
    /// Anyone can connect; permission is decided by the peer's user ID, as reported by the kernel.
    Listed,
}

impl Access {
    fn socket_mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Listed => 0o666,
        }
    }

    fn directory_mode(self) -> u32 {
        match self {
            Self::Owner => 0o700,
            Self::Listed => 0o711,
        }
    }
}

/// The caller, as reported by the kernel (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// User ID.
    pub uid: u32,
    /// Process ID, if the kernel knows it.
    pub pid: Option<i32>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "uid={} pid={pid}", self.uid),
            None => write!(f, "uid={}", self.uid),
        }
    }
}

/// Why the admin socket can't be created.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process is listening there.
    #[error("another uh-proxy is using the admin socket {}: stop it first, or set server.admin_socket to another path", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// It's unclear whether another process is listening there.
    #[error(
        "{} exists, and it's unclear whether another uh-proxy is using it, so it was left in place: if none is, remove it",
        path.display()
    )]
    Unknown {
        /// The socket.
        path: PathBuf,
        /// The error of a connect to it.
        #[source]
        source: io::Error,
    },
    /// Its lock isn't available.
    #[error("cannot create the admin socket {}", path.display())]
    Lock {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: LockError,
    },
    /// Something else is at its path.
    #[error("{} exists and isn't a socket, so it was left in place: remove it, or set server.admin_socket to another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Other users could replace the socket.
    #[error("other users can write to {}: put the admin socket in a directory that only its owner can write to", directory.display())]
    OpenDirectory {
        /// The directory.
        directory: PathBuf,
    },
    /// A system call failed.
    #[error("cannot create the admin socket {}", path.display())]
    Failed {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is at the socket's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketFile {
    /// The socket.
    Ours,
    /// Nothing: the socket or its directory was removed.
    Empty,
    /// A file that isn't ours.
    Foreign,
}

/// The bound admin socket. Removes its file when dropped.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    path: PathBuf,
    access: Access,
    /// `None`: another process has it, after a hand-over.
    lock: Option<File>,
    bound: BoundSocket,
    removed: bool,
    /// Bound again, which its server hasn't noticed yet.
    returned: bool,
}

/// A listening socket and the identity of its file.
#[derive(Debug)]
struct BoundSocket {
    listener: UnixListener,
    file: (u64, u64),
}

impl AdminSocket {
    /// Creates the socket with its final mode, in a directory that only its owner can write to. A stale socket is
    /// replaced once a connect has shown that nothing is listening.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub(crate) fn bind(path: &Path, access: Access) -> Result<Self, SocketError> {
        prepare_directory(path, access)?;
        let lock = lock(path)?;
        let bound = bind(path, access)?;
        Ok(Self { path: path.to_owned(), access, lock: Some(lock), bound, removed: false, returned: false })
    }

    /// Replaces the socket of another process, which has released its lock. At no time is there no socket.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub(crate) fn take_over(path: &Path, access: Access) -> Result<Self, SocketError> {
        prepare_directory(path, access)?;
        let lock = lock(path)?;
        let bound = bind_over(path, access)?;
        Ok(Self { path: path.to_owned(), access, lock: Some(lock), bound, removed: false, returned: false })
    }

    /// A listening socket next to this one, for successors.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub(crate) fn for_successors(&self) -> Result<UnixListener, SocketError> {
        Ok(bind_over(&successors_of(&self.path), Access::Owner)?.listener)
    }

    /// Lets another process take its place.
    pub(crate) fn release(&mut self) {
        self.lock = None;
    }

    /// Takes its place back.
    ///
    /// # Errors
    /// See [`SocketError`]. Another process may have it.
    pub(crate) fn take_back(&mut self) -> Result<(), SocketError> {
        let lock = lock(&self.path)?;
        if self.place() != SocketFile::Ours {
            self.bound = bind_over(&self.path, self.access)?;
            self.returned = true;
        }
        self.lock = Some(lock);
        Ok(())
    }

    /// Whether it has been bound again since the last call.
    pub(crate) fn has_returned(&mut self) -> bool {
        std::mem::take(&mut self.returned)
    }

    /// Whether another process has taken its place, or may.
    pub(crate) fn is_released(&self) -> bool {
        self.lock.is_none()
    }

    /// The listening socket, for the server.
    ///
    /// # Errors
    /// It can't be duplicated.
    pub(crate) fn listener(&self) -> io::Result<UnixListener> {
        self.bound.listener.try_clone()
    }

    /// Its path.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks what is at the path.
    #[must_use]
    pub(crate) fn place(&self) -> SocketFile {
        match fs::symlink_metadata(&self.path) {
            // While the socket is open, no other file can have its inode number.
            Ok(metadata) if identity(&metadata) == self.bound.file => SocketFile::Ours,
            Ok(_) => SocketFile::Foreign,
            Err(e) if e.kind() == io::ErrorKind::NotFound => SocketFile::Empty,
            // Unknown: leave it in place.
            Err(_) => SocketFile::Ours,
        }
    }

    /// Recreates the socket after its file was removed. Connected callers stay connected.
    ///
    /// # Errors
    /// See [`SocketError`]; the old, unreachable socket is kept then.
    pub(crate) fn renew(&mut self) -> Result<(), SocketError> {
        prepare_directory(&self.path, self.access)?;
        let held = self.lock.as_ref().and_then(|lock| lock.metadata().ok());
        let ours = held.is_some_and(|ours| {
            fs::symlink_metadata(with_suffix(&self.path, ".lock"))
                .is_ok_and(|there| identity(&there) == identity(&ours))
        });
        if !ours {
            self.lock = Some(lock(&self.path)?);
        }
        self.bound = bind(&self.path, self.access)?;
        Ok(())
    }

    /// Removes its file for good, if it is still ours.
    pub(crate) fn remove(&mut self) {
        if self.place() == SocketFile::Ours {
            // The next start finds that nothing is listening there.
            let _ = fs::remove_file(&self.path);
        }
        self.removed = true;
    }

    /// Whether we have removed it ourselves.
    #[must_use]
    pub(crate) fn is_removed(&self) -> bool {
        self.removed
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Where the owner of this admin socket waits for its successor.
#[must_use]
pub(crate) fn successors_of(path: &Path) -> PathBuf {
    with_suffix(path, ".successor")
}

/// The lock makes check and replacement atomic among instances that start at the same time.
fn lock(path: &Path) -> Result<File, SocketError> {
    lock::take(&with_suffix(path, ".lock")).map_err(|error| match error {
        LockError::Taken { .. } => SocketError::Taken { path: path.to_owned() },
        source => SocketError::Lock { path: path.to_owned(), source },
    })
}

/// Bound under another name and renamed into place, so that it never has another mode at its real path.
fn bind(path: &Path, access: Access) -> Result<BoundSocket, SocketError> {
    check_replaceable(path)?;
    bind_over(path, access)
}

/// The same without a look at what is there.
fn bind_over(path: &Path, access: Access) -> Result<BoundSocket, SocketError> {
    let failed = |source| SocketError::Failed { path: path.to_owned(), source };
    let temporary = with_suffix(path, ".new");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    fs::set_permissions(&temporary, Permissions::from_mode(access.socket_mode())).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let file = identity(&fs::symlink_metadata(path).map_err(failed)?);
    Ok(BoundSocket { listener, file })
}

fn prepare_directory(path: &Path, access: Access) -> Result<(), SocketError> {
    let failed = |source| SocketError::Failed { path: path.to_owned(), source };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.exists() {
        DirBuilder::new().recursive(true).mode(access.directory_mode()).create(directory).map_err(failed)?;
    }
    let metadata = fs::metadata(directory).map_err(failed)?;
    let owned = metadata.uid() == geteuid().as_raw() || metadata.uid() == 0;
    if !owned || metadata.mode() & 0o022 != 0 {
        return Err(SocketError::OpenDirectory { directory: directory.to_owned() });
    }
    Ok(())
}

fn check_replaceable(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(SocketError::Failed { path: path.to_owned(), source }),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(SocketError::NotASocket { path: path.to_owned() })
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => {
                Err(SocketError::Unknown { path: path.to_owned(), source: e })
            }
            // Another process is listening, even if its queue is full.
            Ok(_) | Err(_) => Err(SocketError::Taken { path: path.to_owned() }),
        },
    }
}
