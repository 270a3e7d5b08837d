//! Splices large bodies: the kernel moves data from one socket to another through a pipe, without copying it to user
//! memory and back (`splice(2)`).
//!
//! The set-up costs some system calls and descriptors, so it is only used for bodies with much still to come, and for a
//! limited number at a time. If it isn't available, bodies are moved through buffers.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;
use uh_system::plain;

use super::pump::ends::PlainSocket;

/// How much must still be to come for splicing to be worthwhile.
pub(crate) const WORTHWHILE: u64 = 256 << 10;

/// The capacity of a pipe.
pub(crate) const PIPE_BYTES: usize = 256 << 10;

/// The most bodies that a worker splices at a time. Each takes [`DESCRIPTORS`].
pub(crate) const MOST: usize = 32;

/// A copy of each socket's descriptor, and two ends of a pipe.
pub(crate) const DESCRIPTORS: usize = 4;

thread_local! {
    static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
}

/// Two sockets with a pipe between them.
#[derive(Debug)]
pub(crate) struct Splice {
    from: TcpStream,
    to: TcpStream,
    into_pipe: OwnedFd,
    out_of_pipe: OwnedFd,
    /// Bytes in the pipe.
    held: usize,
    _place: SplicePermit,
}

impl Splice {
    /// A way from one socket to the other; none if there are enough of them already, or no descriptors left.
    /// Takes plain sockets: what an encrypted stream reads and writes isn't what is on its socket, so its bytes would
    /// leave without having been encrypted.
    pub(crate) fn open(from: PlainSocket<'_>, to: PlainSocket<'_>) -> Option<Box<Self>> {
        let place = SplicePermit::take()?;
        let open = || -> io::Result<_> {
            let (out_of_pipe, into_pipe) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            // A pipe that stays small, because of the user's pipe limit, works as well, only slower.
            let _ = fcntl_setpipe_size(&into_pipe, PIPE_BYTES);
            Ok(Box::new(Self {
                from: own(from)?,
                to: own(to)?,
                into_pipe,
                out_of_pipe,
                held: 0,
                _place: place,
            }))
        };
        open().inspect_err(|error| tracing::debug!(error = %plain(error), "cannot splice a large body; copying it instead")).ok()
    }

    /// Whether everything taken from one socket has been written to the other.
    pub(crate) fn is_flushed(&self) -> bool {
        self.held == 0
    }

    /// Takes up to `most` bytes from the sender into the empty pipe. Ready with 0 when the sender has closed.
    ///
    /// # Errors
    /// Reading failed.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, most: u64) -> Poll<io::Result<usize>> {
        let most = usize::try_from(most).map_or(PIPE_BYTES, |most| most.min(PIPE_BYTES));
        let taken = loop {
            ready!(self.from.poll_read_ready(cx))?;
            let take = || move_bytes(&self.from, &self.into_pipe, most);
            match self.from.try_io(Interest::READABLE, take) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result?,
            }
        };
        self.held += taken;
        Poll::Ready(Ok(taken))
    }

    /// Writes what is in the pipe, or part of it, to the receiver.
    ///
    /// # Errors
    /// Writing failed.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let given = loop {
            ready!(self.to.poll_write_ready(cx))?;
            let give = || move_bytes(&self.out_of_pipe, &self.to, self.held);
            match self.to.try_io(Interest::WRITABLE, give) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result?,
            }
        };
        self.held -= given.min(self.held);
        Poll::Ready(Ok(given))
    }
}

/// A socket of our own for what another one reads and writes. Nothing but readiness is asked of it, so that it may as
/// well be a Unix socket.
fn own(socket: PlainSocket<'_>) -> io::Result<TcpStream> {
    TcpStream::from_std(std::net::TcpStream::from(socket.copy()?))
}

fn move_bytes(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(splice(from, None, to, None, most, flags)?)
}

/// A permit for one of the bodies that may be spliced at a time.
#[derive(Debug)]
struct SplicePermit;

impl SplicePermit {
    fn take() -> Option<Self> {
        let taken = UNDER_WAY.get();
        (taken < MOST).then(|| {
            UNDER_WAY.set(taken + 1);
            Self
        })
    }
}

impl Drop for SplicePermit {
    fn drop(&mut self) {
        UNDER_WAY.set(UNDER_WAY.get().saturating_sub(1));
    }
}
