//! Closes a connection with a reset instead of an end.
//!
//! To a client of HTTP/1.0 the end of the connection is the end of the body. If the body has broken off, the one way
//! to say so is a reset, for which the socket's linger time is set to nothing. pingora keeps its sockets to itself but
//! for their numbers, and a number is no proof of a live descriptor; so the kernel is asked for a copy, by sending the
//! descriptor to ourselves.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use pingora::protocols::Stream;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};
use socket2::SockRef;

/// From here on, closing the connection resets it; what the kernel has not sent yet is lost. Where that can't be done,
/// it will simply be closed.
pub fn at_close(stream: &Stream) {
    let set = copy(stream.id()).and_then(|socket| SockRef::from(&socket).set_linger(Some(Duration::ZERO)));
    if let Err(error) = set {
        tracing::debug!(%error, "a connection can't be reset, and is closed");
    }
}

/// A descriptor of our own for an open socket.
fn copy(descriptor: RawFd) -> io::Result<OwnedFd> {
    let (here, there) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sendmsg::<()>(
        here.as_raw_fd(),
        &[IoSlice::new(&[0])],
        &[ControlMessage::ScmRights(&[descriptor])],
        MsgFlags::empty(),
        None,
    )?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut received = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&there, &mut [IoSliceMut::new(&mut [0])], &mut received, RecvFlags::CMSG_CLOEXEC)?;
    let copied = received.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    copied.ok_or_else(|| io::ErrorKind::NotFound.into())
}
