//! A range of an open file as the source of a body.
//!
//! Into memory, or past it (`sendfile(2)`) where the client's connection is a plain socket. A worker's thread never
//! waits for the disk: what isn't in memory is read by a thread that may wait.

use std::future::Future as _;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::fs::sendfile;
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};
use tokio::io::Interest;
use tokio::task::JoinHandle;

use super::open::{FileState, OpenFile};
use crate::front::pump::ends::{PlainSocket, PumpSource, Sending};
use crate::front::pump::{PumpError, Waiting};
use uh_http1::buffer::{BUFFER_BYTES, Buffer};

/// The most that is sent in one call: what fits into a turn of a pump.
const MOST_AT_ONCE: u64 = 128 << 10;

/// Part of a file, as it was when it was opened.
#[derive(Debug)]
pub(in crate::front) struct FileSource {
    file: Arc<OwnedFd>,
    state: FileState,
    /// What is still to be sent.
    rest: Range<u64>,
    /// A read that waits for the disk.
    reading: Option<JoinHandle<io::Result<Vec<u8>>>>,
    /// Up to here, the file is in memory as far as is known.
    in_memory: u64,
    /// The file system can't send by itself.
    only_reads: bool,
}

impl FileSource {
    /// This part of a file.
    pub(super) fn new(opened: OpenFile, part: Range<u64>) -> Self {
        let OpenFile { file, state } = opened;
        let in_memory = part.start;
        Self { file: Arc::new(file), state, rest: part, reading: None, in_memory, only_reads: false }
    }

    /// The first bytes of a file that nobody else has.
    ///
    /// # Errors
    /// Its state isn't known.
    pub(in crate::front) fn of_start(file: OwnedFd, length: u64) -> io::Result<Self> {
        let state = OpenFile::state_now(file.as_fd())?;
        Ok(Self::new(OpenFile { file, state }, 0..length))
    }

    /// The first part of it, if it is in memory.
    pub(in crate::front) fn first(&mut self) -> Option<Buffer> {
        let mut buffer = Buffer::take();
        let read = self.read_now(buffer.room()).ok()?;
        buffer.grow(read);
        (read > 0).then_some(buffer)
    }

    /// What is still to be read.
    pub(in crate::front) fn left(&self) -> u64 {
        self.rest.end - self.rest.start
    }

    /// So many bytes have been read or sent.
    fn advance(&mut self, bytes: usize) {
        self.rest.start = (self.rest.start + bytes as u64).min(self.rest.end);
    }

    /// Whether the file is still the one whose length and tag the client was sent. Asked before the last bytes of it
    /// leave: an answer that mixes two states is never complete.
    fn is_unchanged(&self) -> bool {
        OpenFile::state_now(self.file.as_fd()).is_ok_and(|state| state.has_same_content(&self.state))
    }

    /// Reads what is in memory. 0: the file has ended too early, or has changed.
    fn read_now(&mut self, room: &mut [u8]) -> rustix::io::Result<usize> {
        let most = usize::try_from(self.left()).map_or(room.len(), |left| left.min(room.len()));
        let parts = &mut [IoSliceMut::new(&mut room[..most])];
        let read = preadv2(&self.file, parts, self.rest.start, ReadWriteFlags::NOWAIT)?;
        Ok(self.accept(read))
    }

    fn accept(&mut self, read: usize) -> usize {
        if read as u64 >= self.left() && !self.is_unchanged() {
            return 0;
        }
        self.advance(read);
        read
    }

    /// Lets another thread read so many bytes.
    fn read_elsewhere(&mut self, most: u64) -> &mut JoinHandle<io::Result<Vec<u8>>> {
        let (file, from) = (Arc::clone(&self.file), self.rest.start);
        let most = usize::try_from(most.min(self.left())).unwrap_or(BUFFER_BYTES);
        self.reading.insert(tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; most];
            let read = pread(&*file, &mut bytes[..], from)?;
            bytes.truncate(read);
            Ok(bytes)
        }))
    }

    /// Waits for the read by another thread, if there is one.
    fn poll_reading(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Vec<u8>>>> {
        let Some(reading) = &mut self.reading else { return Poll::Ready(Ok(None)) };
        let read = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        Poll::Ready(read.map_err(io::Error::other).flatten().map(Some))
    }

    /// Makes sure that the next bytes can be sent without a wait. A file system that can't say so is taken to need it.
    fn poll_in_memory(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(read) = ready!(self.poll_reading(cx))? {
                self.in_memory = self.rest.start + (read.len() as u64).max(1);
            }
            if self.in_memory > self.rest.start {
                return Poll::Ready(Ok(()));
            }
            let mut byte = [0];
            let parts = &mut [IoSliceMut::new(&mut byte)];
            match preadv2(&self.file, parts, self.rest.start, ReadWriteFlags::NOWAIT) {
                Ok(_) => self.in_memory = self.rest.start + MOST_AT_ONCE,
                Err(_) => {
                    self.read_elsewhere(MOST_AT_ONCE);
                }
            }
        }
    }
}

impl PumpSource for FileSource {
    fn poll_fill(&mut self, cx: &mut Context<'_>, slot: &mut Option<Buffer>) -> Poll<io::Result<usize>> {
        let mut buffer = slot.take().unwrap_or_else(Buffer::take);
        let read = loop {
            match self.poll_reading(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => break Err(error),
                Poll::Ready(Ok(Some(bytes))) => {
                    let room = buffer.room();
                    let most = bytes.len().min(room.len());
                    room[..most].copy_from_slice(&bytes[..most]);
                    break Ok(self.accept(most));
                }
                Poll::Ready(Ok(None)) => {}
            }
            match self.read_now(buffer.room()) {
                Ok(read) => break Ok(read),
                // It isn't in memory, or the file system can't say.
                Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.read_elsewhere(BUFFER_BYTES as u64);
                }
                Err(Errno::INTR) => {}
                Err(error) => break Err(error.into()),
            }
        };
        buffer.grow(read.as_ref().copied().unwrap_or(0));
        if !buffer.is_empty() {
            *slot = Some(buffer);
        }
        Poll::Ready(read)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, to: PlainSocket<'_>) -> Option<Sending> {
        let socket = to.tcp().filter(|_| !self.only_reads)?;
        loop {
            match self.poll_in_memory(cx) {
                Poll::Pending => return Some(Sending::Waits(Waiting::Source)),
                Poll::Ready(Err(_)) => return Some(Sending::Failed(PumpError::Read)),
                Poll::Ready(Ok(())) => {}
            }
            match socket.poll_write_ready(cx) {
                Poll::Pending => return Some(Sending::Waits(Waiting::Sink)),
                Poll::Ready(Err(_)) => return Some(Sending::Failed(PumpError::Write)),
                Poll::Ready(Ok(())) => {}
            }
            let most = self.left().min(MOST_AT_ONCE);
            if most == self.left() && !self.is_unchanged() {
                return Some(Sending::Moved(0));
            }
            let mut from = self.rest.start;
            let send = || {
                let most = usize::try_from(most).unwrap_or(BUFFER_BYTES);
                sendfile(socket, &self.file, Some(&mut from), most).map_err(io::Error::from)
            };
            match socket.try_io(Interest::WRITABLE, send) {
                Ok(sent) => {
                    self.advance(sent);
                    return Some(Sending::Moved(sent));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::NOSYS)) => {
                    self.only_reads = true;
                    return None;
                }
                Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::IO)) => {
                    return Some(Sending::Failed(PumpError::Read));
                }
                Err(_) => return Some(Sending::Failed(PumpError::Write)),
            }
        }
    }
}
