//! The admin socket: made so that nobody else can get at it, and telling who calls.

use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::lock::{self, LockError, beside, identity};

/// Who can get at the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Its owner alone, and root.
    Owner,
    /// Anybody can connect; who may call is decided by the kernel's word for who it is.
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

/// Who calls, as the kernel tells it (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Process id, where the kernel knows it.
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

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("another uh-proxy uses the admin socket {}: stop it first, or configure another server.admin_socket", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Whether anybody answers there can't be found out.
    #[error(
        "{} exists, and whether another uh-proxy uses it is unknown: it is left alone. If none does, remove it",
        path.display()
    )]
    Unknown {
        /// The socket.
        path: PathBuf,
        /// What a connect to it says.
        #[source]
        source: io::Error,
    },
    /// Its lock can't be taken.
    #[error("cannot make the admin socket {}", path.display())]
    Lock {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: LockError,
    },
    /// Something else is there.
    #[error("{} exists and is not a socket: it is left alone", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Others could replace the socket.
    #[error("others may write to {}: give the admin socket a directory that only its owner can write to", directory.display())]
    OpenDirectory {
        /// The directory.
        directory: PathBuf,
    },
    /// The system refuses.
    #[error("cannot make the admin socket {}", path.display())]
    Failed {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What stands at the socket's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The socket.
    Ours,
    /// Nothing: somebody has removed it, or its directory.
    Empty,
    /// Something that somebody else has put there.
    Foreign,
}

/// The bound admin socket. Removes its file when dropped.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
    access: Access,
    lock: File,
    bound: Bound,
    removed: bool,
}

/// A listening socket, and which file it is.
#[derive(Debug)]
struct Bound {
    listener: UnixListener,
    file: (u64, u64),
}

impl AdminSocket {
    /// Makes the socket, with its final mode, in a directory that only its owner can write to. A stale one is replaced,
    /// once a connect has proven that nobody listens.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path, access: Access) -> Result<Self, SocketError> {
        prepare_directory(path, access)?;
        let lock = lock(path)?;
        let bound = bind(path, access)?;
        Ok(Self { path: path.to_owned(), access, lock, bound, removed: false })
    }

    /// The listening socket, for the server.
    ///
    /// # Errors
    /// It can't be duplicated.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.bound.listener.try_clone()
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks who is at the path.
    #[must_use]
    pub fn place(&self) -> Place {
        match fs::symlink_metadata(&self.path) {
            // As long as the socket is open, no other file can have its number.
            Ok(metadata) if identity(&metadata) == self.bound.file => Place::Ours,
            Ok(_) => Place::Foreign,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Place::Empty,
            // Nobody can tell: then it is left alone.
            Err(_) => Place::Ours,
        }
    }

    /// Makes the socket once more, after somebody has removed it. Callers that are connected stay so.
    ///
    /// # Errors
    /// See [`SocketError`]; the old one is then still there, where nobody can find it.
    pub fn renew(&mut self) -> Result<(), SocketError> {
        prepare_directory(&self.path, self.access)?;
        let ours = self.lock.metadata().is_ok_and(|ours| {
            fs::symlink_metadata(beside(&self.path, ".lock"))
                .is_ok_and(|there| identity(&there) == identity(&ours))
        });
        if !ours {
            self.lock = lock(&self.path)?;
        }
        self.bound = bind(&self.path, self.access)?;
        Ok(())
    }

    /// Removes its file, if it is still ours, for good.
    pub fn remove(&mut self) {
        if self.place() == Place::Ours {
            // The next one finds out that nobody listens there.
            let _ = fs::remove_file(&self.path);
        }
        self.removed = true;
    }

    /// Whether we have removed it ourselves.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The lock makes check and replacement one act among front doors that start at the same time.
fn lock(path: &Path) -> Result<File, SocketError> {
    lock::take(&beside(path, ".lock")).map_err(|error| match error {
        LockError::Taken { .. } => SocketError::Taken { path: path.to_owned() },
        source => SocketError::Lock { path: path.to_owned(), source },
    })
}

/// Bound under another name and renamed into place: at its real path it never has another mode.
fn bind(path: &Path, access: Access) -> Result<Bound, SocketError> {
    let failed = |source| SocketError::Failed { path: path.to_owned(), source };
    check_replaceable(path)?;
    let temporary = beside(path, ".new");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    fs::set_permissions(&temporary, Permissions::from_mode(access.socket_mode())).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let file = identity(&fs::symlink_metadata(path).map_err(failed)?);
    Ok(Bound { listener, file })
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
            // Somebody listens, however long the queue is: it is not ours to take.
            Ok(_) | Err(_) => Err(SocketError::Taken { path: path.to_owned() }),
        },
    }
}
