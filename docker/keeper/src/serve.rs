//! The keeper's loop: one thread, no wait but `poll`, and no connection of a client ever accepted.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, accept_with, bind, listen};
use rustix::process::geteuid;
use uh_system::plain;

use crate::sockets::Sockets;
use crate::wire;

/// Callers that are connected at once: a uh-proxy, its successor, and a few `uh-proxy check`. The oldest is dropped for one
/// more; a uh-proxy then connects again.
const MOST_CALLERS: usize = 32;

/// How often to try an address that another process has.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// The pause after a failed `accept`, for example when no descriptors are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The Unix socket that callers connect to. The lock makes sure that no second keeper takes its place.
struct Door {
    socket: OwnedFd,
    _lock: File,
}

/// Holds sockets and passes them to callers, indefinitely. Calls `report` with what happens.
///
/// # Errors
/// The Unix socket can't be created, or an address can't be bound.
pub(crate) fn serve(path: &Path, mut sockets: Sockets, report: fn(&str)) -> io::Result<()> {
    let door = Door::open(path)?;
    let mut callers: Vec<OwnedFd> = Vec::new();
    loop {
        sockets.bind_missing(report)?;
        let (at_door, speaking) = wait(&door, &callers, sockets.is_incomplete())?;
        callers = callers
            .into_iter()
            .zip(speaking)
            .filter_map(|(caller, speaks)| {
                (!speaks || answer(caller.as_fd(), &mut sockets, report)).then_some(caller)
            })
            .collect();
        if at_door {
            match admit(&door, report) {
                Ok(Some(caller)) => callers.push(caller),
                Ok(None) => {}
                Err(error) => {
                    report(&format!("cannot accept a caller: {}", plain(&error)));
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
            if callers.len() > MOST_CALLERS {
                callers.remove(0);
            }
        }
    }
}

/// Waits for something to do, and returns whether there is a new caller, and which callers speak.
fn wait(door: &Door, callers: &[OwnedFd], retry: bool) -> io::Result<(bool, Vec<bool>)> {
    let mut events: Vec<PollFd<'_>> =
        [&door.socket].into_iter().chain(callers).map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
    let timeout = if retry { Timespec::try_from(RETRY_EVERY).ok() } else { None };
    match poll(&mut events, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready = events.iter().map(|event| !event.revents().is_empty());
    Ok((ready.next().unwrap_or(false), ready.collect()))
}

/// Lets in a caller of the same user or root; any other is refused.
fn admit(door: &Door, report: fn(&str)) -> io::Result<Option<OwnedFd>> {
    let caller = match accept_with(&door.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(caller) => caller,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let (uid, user) = (wire::peer(caller.as_fd())?, geteuid().as_raw());
    if uid == user || uid == 0 {
        return Ok(Some(caller));
    }
    let reason = format!("user ID {uid} may not have these sockets, only {user} and root");
    report(&format!("refused a caller: {reason}"));
    // A caller that doesn't wait for it finds the connection closed.
    let _ = wire::send(caller.as_fd(), &wire::refusal_text(&reason), &[], SendFlags::DONTWAIT);
    Ok(None)
}

/// Answers a caller that has asked. Returns whether to keep the connection.
fn answer(caller: BorrowedFd<'_>, sockets: &mut Sockets, report: fn(&str)) -> bool {
    match wire::receive(caller, RecvFlags::DONTWAIT) {
        Ok(Some(message)) if message.is_greeting() => {
            sockets.adopt(message.sockets, report);
            let text = wire::answer_text(sockets.missing());
            wire::send(caller, &text, &sockets.held(), SendFlags::DONTWAIT).is_ok()
        }
        Ok(Some(_)) => {
            let text = wire::refusal_text("this uh-keeper speaks version 1 only");
            let _ = wire::send(caller, &text, &[], SendFlags::DONTWAIT);
            false
        }
        Ok(None) => false,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

impl Door {
    /// Bound under another name and renamed into place, so that it never has another mode at its real path.
    fn open(path: &Path) -> io::Result<Self> {
        let failed = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("cannot create the socket {}: {}", path.display(), plain(&error)),
            )
        };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        }
        let lock = File::options().create(true).append(true).mode(0o600).open(next_to(path, ".lock"));
        let lock = lock.map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                failed(io::Error::other("another uh-keeper answers there: stop it first"))
            }
            fs::TryLockError::Error(error) => failed(error),
        })?;
        let temporary = next_to(path, ".new");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let socket = Self::bound(&temporary).map_err(|error| failed(error.into()))?;
        fs::set_permissions(&temporary, Permissions::from_mode(0o600)).map_err(failed)?;
        fs::rename(&temporary, path).map_err(failed)?;
        Ok(Self { socket, _lock: lock })
    }

    fn bound(path: &Path) -> rustix::io::Result<OwnedFd> {
        let socket = wire::new_socket()?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, i32::try_from(MOST_CALLERS).unwrap_or(i32::MAX))?;
        Ok(socket)
    }
}

/// The path with something appended to its file name.
fn next_to(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}
