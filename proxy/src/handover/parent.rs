//! What a uh-proxy that upgrades passes to the program that it starts: its listening sockets, over the standard input of
//! that program, which is a Unix socket. The program reports on it why it can't take over.
//!
//! ```text
//! parent → child   {"sockets":[{"key":"server.listen","address":"0.0.0.0:80","by":"us"}]}   attached: the sockets
//! child → parent   {"failed":"cannot run: …"}
//! ```

use std::env;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_acceptconn};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::front::listener::{Holder, Listener};

/// Tells a program that its standard input has sockets for it.
pub(crate) const VARIABLE: &str = "UH_PROXY_SOCKETS";

/// Its value.
pub(crate) const STDIN: &str = "stdin";

/// The most sockets that are passed: as many as a uh-keeper holds.
const MOST_SOCKETS: usize = 64;

/// The longest message: a line for each socket, or a reason.
const MOST_BYTES: usize = 16 << 10;

/// How long the message may take, which is there before the program starts.
const ARRIVES_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// Who holds a socket, apart from the processes that pass it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum HeldBy {
    Us,
    ServiceManager,
}

/// A socket that is passed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PassedSocket {
    /// The configuration's key that it is for.
    key: String,
    /// As configured, so with port 0 if the kernel has chosen one.
    address: SocketAddr,
    by: HeldBy,
}

/// What is said.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Sockets(Vec<PassedSocket>),
    Failed(String),
}

/// Why the sockets of the parent can't be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot get the listening sockets from the uh-proxy that has started this one")]
pub struct ParentError(#[from] io::Error);

/// A listening socket to pass on.
#[derive(Debug)]
pub(crate) struct OwnSocket {
    passed: PassedSocket,
    socket: TcpListener,
}

impl OwnSocket {
    /// That of a listener; `None`: a uh-keeper passes it.
    ///
    /// # Errors
    /// It can't be duplicated.
    pub(crate) fn of(listener: &Listener) -> io::Result<Option<Self>> {
        let by = match listener.holder {
            Holder::Us => HeldBy::Us,
            Holder::ServiceManager => HeldBy::ServiceManager,
            Holder::Keeper(_) => return Ok(None),
        };
        let passed = PassedSocket { key: listener.key.to_owned(), address: listener.configured, by };
        Ok(Some(Self { passed, socket: listener.socket.try_clone()? }))
    }
}

/// The program that this process has started, and its sockets.
#[derive(Debug)]
pub(crate) struct ChildLink(OwnedFd);

impl ChildLink {
    /// Passes these sockets on. Returns the standard input for the program.
    ///
    /// # Errors
    /// There are too many.
    pub(crate) fn passing(sockets: &[OwnSocket]) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let message = Message::Sockets(sockets.iter().map(|socket| socket.passed.clone()).collect());
        let attached: Vec<BorrowedFd<'_>> = sockets.iter().map(|socket| socket.socket.as_fd()).collect();
        send(ours.as_fd(), &message, &attached)?;
        Ok((Self(ours), theirs))
    }

    /// Why the program says that it can't take over, if it has said so already.
    pub(crate) fn reason(&self) -> Option<String> {
        match receive(self.0.as_fd(), RecvFlags::DONTWAIT) {
            Ok(Some((Message::Failed(reason), _))) => Some(reason),
            _ => None,
        }
    }
}

/// The uh-proxy that has started this one to replace it, and the sockets that it has passed.
#[derive(Debug)]
pub struct Parent {
    link: OwnedFd,
    sockets: Vec<(PassedSocket, TcpListener)>,
}

impl Parent {
    /// Takes over its sockets; `None`: no uh-proxy has started this one.
    ///
    /// # Errors
    /// The standard input isn't what it should be.
    pub fn take() -> Result<Option<Self>, ParentError> {
        if env::var_os(VARIABLE).is_none_or(|value| value != STDIN) {
            return Ok(None);
        }
        // A duplicate: what is 0 stays 0.
        Ok(Some(Self::from_link(io::stdin().as_fd().try_clone_to_owned()?)?))
    }

    fn from_link(link: OwnedFd) -> io::Result<Self> {
        set_socket_timeout(&link, Timeout::Recv, Some(ARRIVES_WITHIN))?;
        let Some((Message::Sockets(passed), attached)) = receive(link.as_fd(), RecvFlags::empty())? else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it sent something else"));
        };
        if passed.len() != attached.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "some of them are missing"));
        }
        let sockets = passed.into_iter().zip(attached).map(|(passed, socket)| {
            if !socket_acceptconn(&socket)? {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "one of them doesn't listen"));
            }
            Ok((passed, TcpListener::from(socket)))
        });
        let sockets = sockets.collect::<io::Result<_>>()?;
        Ok(Self { link, sockets })
    }

    /// The socket for an address of the configuration, if there is one, and who holds it.
    pub(crate) fn claim(&mut self, address: SocketAddr, key: &str) -> Option<(TcpListener, Holder)> {
        let is_that = |(passed, socket): &(PassedSocket, TcpListener)| {
            if address.port() == 0 {
                return passed.address == address && passed.key == key;
            }
            passed.address == address || socket.local_addr().is_ok_and(|bound| bound == address)
        };
        let place = self.sockets.iter().position(is_that)?;
        let (passed, socket) = self.sockets.remove(place);
        let holder = match passed.by {
            HeldBy::Us => Holder::Us,
            HeldBy::ServiceManager => Holder::ServiceManager,
        };
        Some((socket, holder))
    }

    /// Ends the claims. Returns the address of one that nobody has claimed and that the service manager holds: its clients
    /// would wait indefinitely.
    pub(crate) fn finish(&mut self) -> Option<SocketAddr> {
        let unclaimed = std::mem::take(&mut self.sockets);
        let held = unclaimed.into_iter().find(|(passed, _)| passed.by == HeldBy::ServiceManager);
        held.map(|(passed, _)| passed.address)
    }

    /// Reports why this process can't take over.
    pub fn report(&self, reason: &str) {
        let cut: String = reason.chars().take(MOST_BYTES / 8).collect();
        // If it is gone, nobody wants to know.
        let _ = send(self.link.as_fd(), &Message::Failed(cut), &[]);
    }
}

fn send(to: BorrowedFd<'_>, message: &Message, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    let fits = sockets.len() <= MOST_SOCKETS && text.len() <= MOST_BYTES;
    if !fits || !sockets.is_empty() && !attached.push(SendAncillaryMessage::ScmRights(sockets)) {
        let reason = format!("at most {MOST_SOCKETS} listening sockets can be passed on");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    sendmsg(to, &[IoSlice::new(&text)], &mut attached, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// The next message; `None`: the other end is closed.
fn receive(from: BorrowedFd<'_>, flags: RecvFlags) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
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
    let message = serde_json::from_slice(buffer.get(..received.bytes).unwrap_or_default())?;
    Ok(Some((message, sockets)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::listener::{Speaks, bind};

    fn listener(configured: &str, key: &'static str, holder: Holder) -> Listener {
        let configured: SocketAddr = configured.parse().unwrap();
        Listener { socket: bind(configured).unwrap(), holder, speaks: Speaks::Http, key, configured }
    }

    fn passed(listeners: &[Listener]) -> (ChildLink, Parent) {
        let own: Vec<OwnSocket> =
            listeners.iter().filter_map(|listener| OwnSocket::of(listener).unwrap()).collect();
        let (child, stdin) = ChildLink::passing(&own).unwrap();
        (child, Parent::from_link(stdin).unwrap())
    }

    #[test]
    fn sockets_are_claimed_by_what_they_are_configured_for() {
        let listeners = [
            listener("127.0.0.1:0", "server.listen", Holder::Us),
            listener("127.0.0.1:0", "server.metrics", Holder::ServiceManager),
        ];
        let [http, metrics] = [0, 1].map(|index: usize| listeners[index].socket.local_addr().unwrap());
        let (_child, mut parent) = passed(&listeners);
        // By the port that the kernel has chosen, if that is configured now; under another key, too.
        assert!(parent.claim("127.0.0.1:1".parse().unwrap(), "server.listen").is_none());
        let (socket, holder) = parent.claim(http, "server.listen_tls").unwrap();
        assert!(socket.local_addr().unwrap() == http && matches!(holder, Holder::Us));
        assert!(parent.claim(http, "server.listen").is_none());
        let (socket, holder) = parent.claim("127.0.0.1:0".parse().unwrap(), "server.metrics").unwrap();
        assert!(socket.local_addr().unwrap() == metrics && matches!(holder, Holder::ServiceManager));
        assert_eq!(parent.finish(), None);
        let (_child, mut parent) = passed(&listeners);
        assert_eq!(parent.finish(), Some("127.0.0.1:0".parse().unwrap()));
    }

    #[test]
    fn a_reason_reaches_the_parent_even_if_the_child_is_gone() {
        let (child, parent) = passed(&[]);
        assert_eq!(child.reason(), None);
        parent.report("no config");
        drop(parent);
        assert_eq!(child.reason().as_deref(), Some("no config"));
        assert_eq!(child.reason(), None);
    }

    #[test]
    fn another_standard_input_is_an_error() {
        let (here, there) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        drop(here);
        Parent::from_link(there).unwrap_err();
        Parent::from_link(std::fs::File::open("/dev/null").unwrap().into()).unwrap_err();
    }
}
