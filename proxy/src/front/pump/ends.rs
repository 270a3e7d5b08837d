//! The two ends of a pump: what a body is read from, and what it is written to.
//!
//! Both are chosen by type, so a plain socket costs no more than itself. Only an end whose bytes are the content itself
//! has a [`PlainSocket`], and only two of those can be spliced: what an encrypted stream reads and writes isn't what is
//! on its socket.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::{Stream, UniqueID as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{PumpError, Waiting};
use crate::front::descriptor;
use uh_http1::buffer::Buffer;

/// Where a pump reads a body.
pub(crate) trait PumpSource {
    /// Reads more into a buffer borrowed from the thread's stock for as long as it holds bytes. Ready with 0 at the end
    /// of the input. A pump calls this only when everything read before has been written.
    ///
    /// # Errors
    /// Reading failed, or the buffer is full.
    fn poll_fill(&mut self, cx: &mut Context<'_>, slot: &mut Option<Buffer>) -> Poll<io::Result<usize>>;

    /// At the end of the input: appends the trailers that came apart from the content, as field lines. They must have
    /// been checked.
    fn write_trailers(&mut self, out: &mut Vec<u8>) {
        let _ = out;
    }

    /// Sends more to this socket by itself, if it can, without a way through our memory. A pump calls this only when
    /// everything read before has been written, and for content that leaves as it is.
    fn poll_send(&mut self, cx: &mut Context<'_>, to: PlainSocket<'_>) -> Option<Sending> {
        let _ = (cx, to);
        None
    }

    /// The socket, if its bytes are the content itself.
    fn plain(&self) -> Option<PlainSocket<'_>> {
        None
    }
}

/// What has become of [`PumpSource::poll_send`].
#[derive(Debug)]
pub(crate) enum Sending {
    /// So many bytes were sent; 0 at the end of the input.
    Moved(usize),
    /// The task is woken when there is more to send, or when the socket takes more.
    Waits(Waiting),
    /// No more can be sent.
    Failed(PumpError),
}

/// What a pump writes next, in this order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    /// Complete heads, or their rest.
    pub head: &'a [u8],
    /// Chunk framing before the content.
    pub before: &'a [u8],
    /// Content.
    pub content: &'a [u8],
    /// Chunk framing after the content.
    pub after: &'a [u8],
    /// Nothing follows: not even trailers.
    pub last: bool,
}

impl Parts<'_> {
    /// Nothing, at the end of a message.
    pub(crate) const LAST: Self = Self { head: b"", before: b"", content: b"", after: b"", last: true };
}

/// Where a pump writes a message.
pub(crate) trait PumpSink {
    /// Takes the first bytes of the parts, and returns how many.
    ///
    /// # Errors
    /// The other side takes no more.
    fn poll_write(&mut self, cx: &mut Context<'_>, parts: Parts<'_>) -> Poll<io::Result<usize>>;

    /// Whether what was taken may still wait here until it is flushed.
    fn buffers(&self) -> bool {
        false
    }

    /// Passes on what waits here.
    ///
    /// # Errors
    /// The other side takes no more.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = cx;
        Poll::Ready(Ok(()))
    }

    /// The message is complete; `trailers` are its trailers as field lines, if it is sent in frames. Never called for a
    /// message that broke off. May be called again.
    ///
    /// # Errors
    /// The other side takes no more.
    fn poll_end(&mut self, cx: &mut Context<'_>, trailers: &[u8]) -> Poll<io::Result<()>> {
        let _ = (cx, trailers);
        Poll::Ready(Ok(()))
    }

    /// The socket, if its bytes are the content itself.
    fn plain(&self) -> Option<PlainSocket<'_>> {
        None
    }
}

/// A socket with nothing between it and the content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlainSocket<'a>(Held<'a>);

#[derive(Debug, Clone, Copy)]
enum Held<'a> {
    Tcp(&'a TcpStream),
    /// It may as well be a Unix socket.
    Pingora(&'a Socket),
}

impl<'a> PlainSocket<'a> {
    /// The socket of a stream that is nothing more; `None`: something lies between the two.
    #[must_use]
    pub(crate) fn of_stream(stream: &'a Stream) -> Option<Self> {
        // Of what is in the box: the box is a stream, too.
        (**stream).as_any().downcast_ref().map(|socket| Self(Held::Pingora(socket)))
    }

    /// The connection, if it is a client's.
    #[must_use]
    pub(crate) fn tcp(self) -> Option<&'a TcpStream> {
        match self.0 {
            Held::Tcp(socket) => Some(socket),
            Held::Pingora(_) => None,
        }
    }

    /// A descriptor of our own for it.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(crate) fn copy(self) -> io::Result<OwnedFd> {
        match self.0 {
            Held::Tcp(socket) => socket.as_fd().try_clone_to_owned(),
            Held::Pingora(socket) => descriptor::copy(socket.id()),
        }
    }
}

impl<'a> From<&'a TcpStream> for PlainSocket<'a> {
    fn from(socket: &'a TcpStream) -> Self {
        Self(Held::Tcp(socket))
    }
}

/// A connection to a backend.
impl PumpSource for Stream {
    fn poll_fill(&mut self, cx: &mut Context<'_>, slot: &mut Option<Buffer>) -> Poll<io::Result<usize>> {
        fill_from(self, cx, slot)
    }

    fn plain(&self) -> Option<PlainSocket<'_>> {
        PlainSocket::of_stream(self)
    }
}

impl PumpSink for Stream {
    fn poll_write(&mut self, cx: &mut Context<'_>, parts: Parts<'_>) -> Poll<io::Result<usize>> {
        write_to(self, cx, parts)
    }

    fn plain(&self) -> Option<PlainSocket<'_>> {
        PlainSocket::of_stream(self)
    }
}

/// [`PumpSource::poll_fill`] for a stream of bytes.
pub(crate) fn fill_from<S: AsyncRead + Unpin>(
    from: &mut S,
    cx: &mut Context<'_>,
    slot: &mut Option<Buffer>,
) -> Poll<io::Result<usize>> {
    let mut buffer = slot.take().unwrap_or_else(Buffer::take);
    let room = buffer.room();
    if room.is_empty() {
        *slot = Some(buffer);
        return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
    }
    let mut room = ReadBuf::new(room);
    let result = Pin::new(from).poll_read(cx, &mut room);
    let read = room.filled().len();
    buffer.grow(read);
    if !buffer.is_empty() {
        *slot = Some(buffer);
    }
    result.map(|result| result.map(|()| read))
}

/// [`PumpSink::poll_write`] for a stream of bytes: in one system call, however many parts there are.
pub(crate) fn write_to<S: AsyncWrite + Unpin>(
    to: &mut S,
    cx: &mut Context<'_>,
    parts: Parts<'_>,
) -> Poll<io::Result<usize>> {
    match (parts.head, parts.before, parts.content, parts.after) {
        (part, [], [], []) | ([], part, [], []) | ([], [], part, []) | ([], [], [], part) => {
            Pin::new(to).poll_write(cx, part)
        }
        (head, before, content, after) => {
            Pin::new(to).poll_write_vectored(cx, &[head, before, content, after].map(IoSlice::new))
        }
    }
}
