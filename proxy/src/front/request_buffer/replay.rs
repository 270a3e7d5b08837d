//! A buffered body as the source of a pump: first what is on disk, then what is in memory, and then, if the body isn't
//! complete, what the client still sends.

use std::io;
use std::task::{Context, Poll, ready};

use super::budget::Share;
use crate::front::files::source::FileSource;
use crate::front::pump::ends::{PlainSocket, PumpSource};
use uh_http1::body::Framing;
use uh_http1::buffer::Buffer;
use uh_http1::response::Coding;

/// A body of which everything, or the first part, is buffered.
#[derive(Debug)]
pub(crate) struct BufferedBody {
    /// What is on disk, with its share of it.
    pub(super) file: Option<(FileSource, Share)>,
    pub(super) memory: Vec<u8>,
    /// How much of the memory has been read.
    pub(super) read: usize,
    /// The share of it.
    pub(super) memory_share: Share,
    /// What was read from the client and isn't in memory: more of the body, or what follows it if it is complete.
    pub(super) rest: Option<Buffer>,
    /// Whether all of it is buffered.
    pub(super) complete: bool,
    /// How long it is, if its head doesn't say so.
    pub(super) length: Option<u64>,
    /// How it is framed, and how it is passed on.
    pub(super) form: (Framing, Coding),
    /// It can't be read from the disk.
    pub(super) broken: bool,
}

impl BufferedBody {
    /// Whether all of it is buffered. Then nothing more is read from the client.
    #[must_use]
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// How it is framed, and how it is passed on.
    #[must_use]
    pub(crate) fn form(&self) -> (Framing, Coding) {
        self.form
    }

    /// How long it is, if it is complete and its head doesn't say so.
    #[must_use]
    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Whether more of it is awaited from the client.
    #[must_use]
    pub(crate) fn awaits_client(&self) -> bool {
        !self.complete && self.rest.is_none() && self.has_read_all()
    }

    /// Whether it can't be read from the disk.
    #[must_use]
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// What was read from the client past a complete body.
    pub(crate) fn take_surplus(&mut self) -> Option<Buffer> {
        if self.complete { self.rest.take() } else { None }
    }

    fn has_read_all(&self) -> bool {
        self.file.is_none() && self.read == self.memory.len()
    }

    /// Reads what is buffered; `None`: nothing is left.
    fn poll_buffered(
        &mut self,
        cx: &mut Context<'_>,
        slot: &mut Option<Buffer>,
    ) -> Option<Poll<io::Result<usize>>> {
        if let Some((file, _)) = &mut self.file {
            let Poll::Ready(read) = file.poll_fill(cx, slot) else { return Some(Poll::Pending) };
            if file.left() == 0 {
                self.file = None;
            } else if !matches!(read, Ok(1..)) {
                self.broken = true;
                return Some(Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())));
            }
            return Some(Poll::Ready(read));
        }
        let left = &self.memory[self.read..];
        if !left.is_empty() {
            let read = copy(left, slot);
            self.read += read;
            if self.has_read_all() {
                (self.memory, self.read) = (Vec::new(), 0);
                self.memory_share.clear();
            }
            return Some(Poll::Ready(Ok(read)));
        }
        if self.complete {
            return Some(Poll::Ready(Ok(0)));
        }
        let mut rest = self.rest.take()?;
        if slot.is_none() {
            let read = rest.filled().len();
            *slot = Some(rest);
            return Some(Poll::Ready(Ok(read)));
        }
        let read = copy(rest.filled(), slot);
        rest.consume(read);
        self.rest = Some(rest).filter(|rest| !rest.is_empty());
        Some(Poll::Ready(Ok(read)))
    }
}

fn copy(bytes: &[u8], slot: &mut Option<Buffer>) -> usize {
    let buffer = slot.get_or_insert_with(Buffer::take);
    let room = buffer.room();
    let most = bytes.len().min(room.len());
    room[..most].copy_from_slice(&bytes[..most]);
    buffer.grow(most);
    most
}

/// A buffered body, followed by what the client still sends.
pub(crate) struct Replay<'a, L> {
    /// The body.
    pub body: &'a mut BufferedBody,
    /// The client.
    pub client: &'a mut L,
}

impl<L: PumpSource> PumpSource for Replay<'_, L> {
    fn poll_fill(&mut self, cx: &mut Context<'_>, slot: &mut Option<Buffer>) -> Poll<io::Result<usize>> {
        match self.body.poll_buffered(cx, slot) {
            Some(read) => Poll::Ready(ready!(read)),
            None => self.client.poll_fill(cx, slot),
        }
    }

    fn write_trailers(&mut self, out: &mut Vec<u8>) {
        self.client.write_trailers(out);
    }

    fn plain(&self) -> Option<PlainSocket<'_>> {
        self.client.plain().filter(|_| self.body.awaits_client())
    }
}
