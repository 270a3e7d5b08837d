//! What uh-keeper and its callers send each other: one message each way over a Unix socket that preserves message
//! boundaries (`SOCK_SEQPACKET`), with the sockets attached (`SCM_RIGHTS`).
//!
//! ```text
//! caller → keeper   uh-keeper 1                   attached: the sockets that the caller holds, none at its start
//! keeper → caller   uh-keeper 1                   attached: the sockets that the keeper holds
//!                   missing 0.0.0.0:443 Address already in use
//! ```
//!
//! A caller attaches its sockets so that a keeper that was restarted gets them back: as long as uh-proxy holds them, they
//! can't be bound again. Which address a socket has is asked of the kernel, and never taken from the text. A caller may
//! ask more than once, and keeps its connection open: its end means that the keeper is gone.

use std::fmt::Write as _;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg,
    socket_with,
};
use rustix::process::geteuid;

/// Where uh-keeper answers, unless it is started with another path.
pub const DEFAULT_SOCKET: &str = "/run/uh-keeper/sock";

/// The most sockets of one message, and so of a keeper. The kernel passes up to 253 at once.
pub const MOST_SOCKETS: usize = 64;

/// The first line of each message. The number changes if a message gets another meaning.
const GREETING: &str = "uh-keeper 1";

/// The longest message: [`MOST_SOCKETS`] lines about missing addresses.
const MOST_BYTES: usize = 8 << 10;

/// How long either side may take to answer. It takes microseconds, unless the machine is overloaded.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why a keeper gave no sockets.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No process listens there.
    #[error("no uh-keeper answers at {}: start it, or correct the path", path.display())]
    NoKeeper {
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket belongs to another user, who could read everything that clients send.
    #[error("the process at {} runs as user ID {uid}, which is neither root nor this program's user: run uh-keeper as the same user", path.display())]
    Foreign {
        /// Its socket.
        path: PathBuf,
        /// Its user.
        uid: u32,
    },
    /// The keeper refuses this caller.
    #[error("uh-keeper refuses: {reason}")]
    Refused {
        /// In its words.
        reason: String,
    },
    /// It isn't a keeper, or one of another version.
    #[error(
        "uh-keeper sent a message that this version doesn't understand ({said:?}): use a uh-keeper and a uh-proxy that fit together"
    )]
    Unknown {
        /// The start of it.
        said: String,
    },
    /// The connection broke, or the keeper doesn't answer.
    #[error("lost the connection to uh-keeper")]
    Broken(#[source] io::Error),
}

/// A connection to a keeper.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// What a keeper holds.
#[derive(Debug, Default)]
pub struct Answer {
    /// The listening sockets, in the order of its arguments.
    pub held: Vec<(SocketAddr, TcpListener)>,
    /// Addresses that it was started with and doesn't hold, and why.
    pub missing: Vec<(SocketAddr, String)>,
}

impl Link {
    /// Connects to the keeper at this path.
    ///
    /// # Errors
    /// There is none, or it runs as another user.
    pub fn connect(path: &Path) -> Result<Self, LinkError> {
        let no_keeper = |source| LinkError::NoKeeper { path: path.to_owned(), source };
        let none = |source: rustix::io::Errno| no_keeper(source.into());
        let socket = new_socket().map_err(none)?;
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, timeout, Some(ANSWER_WITHIN)).map_err(none)?;
        }
        connect(&socket, &SocketAddrUnix::new(path).map_err(none)?).map_err(none)?;
        let uid = peer(socket.as_fd()).map_err(no_keeper)?;
        let user = geteuid().as_raw();
        if uid != user && uid != 0 && user != 0 {
            return Err(LinkError::Foreign { path: path.to_owned(), uid });
        }
        Ok(Self(socket))
    }

    /// Asks for the keeper's sockets, and gives it those that it has lost.
    ///
    /// # Errors
    /// It refuses, or doesn't answer.
    pub fn ask(&self, holding: &[&TcpListener]) -> Result<Answer, LinkError> {
        let holding: Vec<BorrowedFd<'_>> = holding.iter().map(|socket| socket.as_fd()).collect();
        match send(self.0.as_fd(), &format!("{GREETING}\n"), &holding, SendFlags::empty()) {
            // The keeper has refused and closed the connection already: what it said can still be read.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(LinkError::Broken(error)),
            _ => {}
        }
        let received = match receive(self.0.as_fd(), RecvFlags::empty()) {
            // The same, while the greeting was on its way.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                receive(self.0.as_fd(), RecvFlags::empty())
            }
            received => received,
        };
        let Some(message) = received.map_err(LinkError::Broken)? else {
            return Err(LinkError::Broken(io::ErrorKind::UnexpectedEof.into()));
        };
        message.into_answer()
    }

    /// Waits until the keeper is gone, for at most this long, and returns whether it is.
    #[must_use]
    pub fn is_gone_within(&self, at_most: Duration) -> bool {
        let timeout = Timespec::try_from(at_most).ok();
        // A keeper never speaks unasked, so anything that there is to read is the end.
        let mut events = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut events, timeout.as_ref()).is_ok_and(|ready| ready > 0)
    }
}

/// A message, as received.
#[derive(Debug)]
pub(crate) struct Message {
    text: String,
    pub(crate) sockets: Vec<OwnedFd>,
}

impl Message {
    /// Whether a caller of a known version sent it.
    pub(crate) fn is_greeting(&self) -> bool {
        self.text.lines().next() == Some(GREETING)
    }

    fn into_answer(self) -> Result<Answer, LinkError> {
        if let Some(reason) = self.text.strip_prefix("refused ") {
            return Err(LinkError::Refused { reason: reason.trim().to_owned() });
        }
        let unknown = || LinkError::Unknown { said: self.text.chars().take(60).collect() };
        if !self.is_greeting() {
            return Err(unknown());
        }
        let mut answer = Answer::default();
        // Lines of another kind are of a newer keeper, and can be ignored.
        for line in self.text.lines().filter_map(|line| line.strip_prefix("missing ")) {
            let (address, reason) = line.split_once(' ').ok_or_else(unknown)?;
            answer.missing.push((address.parse().map_err(|_| unknown())?, reason.to_owned()));
        }
        for socket in self.sockets {
            answer.held.push(listening(socket).map_err(LinkError::Broken)?);
        }
        Ok(answer)
    }
}

/// The text of a keeper's answer.
pub(crate) fn answer_text<'a>(missing: impl Iterator<Item = (SocketAddr, &'a str)>) -> String {
    missing.fold(format!("{GREETING}\n"), |mut text, (address, reason)| {
        // A string takes everything that is written to it.
        let _ = writeln!(text, "missing {address} {}", reason.replace('\n', " "));
        text
    })
}

/// The text that refuses a caller.
pub(crate) fn refusal_text(reason: &str) -> String {
    format!("refused {reason}\n")
}

/// A socket with its address.
///
/// # Errors
/// It isn't a listening TCP socket.
pub(crate) fn listening(socket: OwnedFd) -> io::Result<(SocketAddr, TcpListener)> {
    if !rustix::net::sockopt::socket_acceptconn(&socket)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it isn't a listening socket"));
    }
    let listener = TcpListener::from(socket);
    Ok((listener.local_addr()?, listener))
}

/// A Unix socket of the kind that keepers use.
pub(crate) fn new_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// The user at the other end, as the kernel reports it (SO_PEERCRED).
///
/// The process ID of a peer in another container is 0. rustix reads that as an error.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(getsockopt(&socket, PeerCredentials)?.uid())
}

/// Sends a message.
pub(crate) fn send(
    to: BorrowedFd<'_>,
    text: &str,
    sockets: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    let fits = sockets.len() <= MOST_SOCKETS;
    if !fits || !sockets.is_empty() && !attached.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many sockets for one message"));
    }
    sendmsg(to, &[IoSlice::new(text.as_bytes())], &mut attached, flags | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a message; `None`: the other end has closed the connection.
pub(crate) fn receive(from: BorrowedFd<'_>, flags: RecvFlags) -> io::Result<Option<Message>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = vec![0; MOST_BYTES];
    let received =
        recvmsg(from, &mut [IoSliceMut::new(&mut buffer)], &mut attached, flags | RecvFlags::CMSG_CLOEXEC)?;
    let mut sockets = Vec::new();
    for message in attached.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too large"));
    }
    // Every message has text.
    if received.bytes == 0 {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(buffer.get(..received.bytes).unwrap_or_default()).into_owned();
    Ok(Some(Message { text, sockets }))
}

#[cfg(test)]
mod tests {
    use rustix::net::socketpair;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn sockets_arrive_with_the_address_that_the_kernel_knows() {
        let (here, there) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let text = answer_text([("[::]:443".parse().unwrap(), "in\nuse")].into_iter());
        send(here.as_fd(), &text, &[listener.as_fd()], SendFlags::empty()).unwrap();
        let answer = receive(there.as_fd(), RecvFlags::empty()).unwrap().unwrap().into_answer().unwrap();
        assert_eq!(answer.held[0].0, listener.local_addr().unwrap());
        assert_eq!(answer.missing, [("[::]:443".parse().unwrap(), "in use".to_owned())]);
    }

    #[test]
    fn the_most_sockets_fit_into_one_message_and_no_more() {
        let (here, there) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        send(here.as_fd(), "x", &[listener.as_fd(); MOST_SOCKETS], SendFlags::empty()).unwrap();
        let received = receive(there.as_fd(), RecvFlags::empty()).unwrap().unwrap();
        assert_eq!(received.sockets.len(), MOST_SOCKETS);
        send(here.as_fd(), "x", &[listener.as_fd(); MOST_SOCKETS + 1], SendFlags::empty()).unwrap_err();
    }

    #[test]
    fn a_refusal_an_end_and_a_stranger_are_told_apart() {
        let (here, there) = pair();
        let said = |text: &str| {
            send(here.as_fd(), text, &[], SendFlags::empty()).unwrap();
            receive(there.as_fd(), RecvFlags::empty()).unwrap().unwrap().into_answer().unwrap_err()
        };
        assert!(matches!(said(&refusal_text("no")), LinkError::Refused { reason } if reason == "no"));
        assert!(matches!(said("SSH-2.0"), LinkError::Unknown { .. }));
        assert!(matches!(said("uh-keeper 2\n"), LinkError::Unknown { .. }));
        drop(here);
        assert!(receive(there.as_fd(), RecvFlags::empty()).unwrap().is_none());
    }

    #[test]
    fn a_socket_that_does_not_listen_is_no_answer() {
        let (here, there) = pair();
        send(here.as_fd(), &answer_text(std::iter::empty()), &[here.as_fd()], SendFlags::empty()).unwrap();
        let received = receive(there.as_fd(), RecvFlags::empty()).unwrap().unwrap();
        assert!(matches!(received.into_answer(), Err(LinkError::Broken(_))));
    }
}
