//! Moves one message from one stream to another: first a head written here, then the body as it arrives.
//!
//! Reads only when everything read before is written, so a slow reader slows the sender down (back-pressure). Holds a
//! buffer only while there are bytes in it. Two pumps over the same two streams, polled by one task, are a full-duplex
//! relay without locks or channels. Only the beginning of a large body goes through user memory: see [`splice`].

pub mod ends;

use std::future::Future as _;
use std::io;
use std::task::{Context, Poll, ready};

use ends::{Parts, PumpSink, PumpSource};

use super::splice::{self, Splice};
use super::websocket::Frames;
use uh_http1::body::{BodyScanner, Framing, Step};
use uh_http1::buffer::Buffer;
use uh_http1::field::write_hex;
use uh_http1::response::Coding;

/// What a pump that makes no progress waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// More to read.
    Source,
    /// Room to write.
    Sink,
}

/// Why a pump stopped before the end.
#[derive(Debug)]
pub enum PumpError {
    /// Reading failed.
    Read(io::Error),
    /// The sender closed before its message was complete.
    Truncated,
    /// The sender's framing is broken.
    BadBody,
    /// The body exceeds its limit.
    TooLarge,
    /// Writing failed.
    Write(io::Error),
}

/// How much may be read before other tasks on this thread get their turn: two buffers, some 30 µs. Otherwise a
/// connection with a lot to move would delay all others, and a thousand of them for seconds. Counted at the input,
/// since that is the work, however little of it goes out.
const TURN_BYTES: u64 = 128 << 10;

/// The end of a chunk that uh-proxy writes.
const CHUNK_END: &[u8] = b"\r\n";

/// The last chunk that uh-proxy writes. Trailers and an empty line follow.
const LAST_CHUNK: &[u8] = b"0\r\n";

/// One direction of an exchange.
#[derive(Debug)]
pub struct Pump {
    head: Vec<u8>,
    head_sent: usize,
    scanner: BodyScanner,
    /// In a WebSocket tunnel: where its frames begin and end.
    frames: Option<Box<Frames>>,
    /// Don't begin another frame.
    ending: bool,
    /// The largest allowed content.
    most: u64,
    coding: Coding,
    buffer: Option<Buffer>,
    /// The splice for the rest of a large body.
    splice: Option<Box<Splice>>,
    /// Whether a splice was attempted. It is attempted once.
    splice_sought: bool,
    /// What was written may still wait at the sink, to be flushed.
    unflushed: bool,
    /// The message ends with this body. Not while only interim heads are moved: the response is still to come.
    ends: bool,
    /// The trailers, with the empty line after them, for a sink that wants them apart from the content.
    trailers: Vec<u8>,
    /// How many bytes at the front of the buffer may be written.
    cleared: usize,
    /// What is written after those bytes.
    tail: &'static [u8],
    /// Bytes read.
    taken: u64,
    /// Bytes written, the head included.
    sent: u64,
    /// Body bytes written.
    body_sent: u64,
    waiting: Waiting,
    /// Bytes that were moved within the buffer.
    #[cfg(test)]
    shifted: u64,
}

impl Pump {
    /// A pump that sends `head`, then a body of this framing, of which `buffer` may hold the first part.
    #[must_use]
    pub fn new(head: Vec<u8>, framing: Framing, coding: Coding, buffer: Option<Buffer>) -> Self {
        Self {
            head,
            head_sent: 0,
            scanner: BodyScanner::new(framing),
            frames: None,
            ending: false,
            most: u64::MAX,
            coding,
            buffer,
            splice: None,
            splice_sought: false,
            unflushed: false,
            ends: false,
            trailers: Vec::new(),
            cleared: 0,
            tail: b"",
            taken: 0,
            sent: 0,
            body_sent: 0,
            waiting: Waiting::Source,
            #[cfg(test)]
            shifted: 0,
        }
    }

    /// Fails as soon as more content than this has arrived, and sends nothing beyond it. `None`: no limit.
    pub fn limit_body(&mut self, most: Option<u64>) {
        self.most = most.unwrap_or(u64::MAX);
    }

    /// What it waits for, after a poll that returned `Pending`.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        self.waiting
    }

    /// Bytes written, the head included.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Body bytes written.
    #[must_use]
    pub fn body_sent(&self) -> u64 {
        self.body_sent
    }

    /// Whether the whole body has been read.
    #[must_use]
    pub fn body_complete(&self) -> bool {
        self.scanner.is_done()
    }

    /// Whether the head and everything cleared so far has been written.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.memory_is_flushed()
            && !self.unflushed
            && self.splice.as_ref().is_none_or(|splice| splice.is_flushed())
    }

    fn memory_is_flushed(&self) -> bool {
        self.head_sent == self.head.len() && self.cleared == 0 && self.tail.is_empty()
    }

    /// Bytes written, and of the head those that are still to be written.
    #[must_use]
    pub fn sent_with_head(&self) -> u64 {
        self.sent + (self.head.len() - self.head_sent) as u64
    }

    /// The head to send next, for appending.
    pub fn head(&mut self) -> &mut Vec<u8> {
        &mut self.head
    }

    /// The body that follows the head, of which `buffer` may hold the first part.
    pub fn begin_body(&mut self, framing: Framing, coding: Coding, buffer: Option<Buffer>) {
        self.scanner = BodyScanner::new(framing);
        self.most = u64::MAX;
        self.coding = coding;
        self.buffer = buffer;
        self.splice_sought = false;
        self.cleared = 0;
        self.ends = true;
    }

    /// From now on, WebSocket frames are moved.
    pub fn follow_frames(&mut self) {
        self.frames = Some(Box::default());
    }

    /// Finishes the current frame, and begins no other.
    pub fn end_at_boundary(&mut self) {
        self.ending = true;
    }

    /// Whether everything up to the end of a frame is written, so that another frame may follow.
    #[must_use]
    pub fn may_add_frame(&self) -> bool {
        self.is_flushed()
            && self.frames.as_ref().is_some_and(|frames| frames.at_boundary() && !frames.closed())
    }

    /// The trailers, if the sink wants them.
    fn trailers(&self) -> &[u8] {
        self.trailers.strip_suffix(b"\r\n").unwrap_or_default()
    }

    fn is_at_its_end(&self) -> bool {
        self.scanner.is_done()
            || self.ending && self.frames.as_ref().is_none_or(|frames| frames.at_boundary())
    }

    /// Starts over for another attempt. Only allowed while none of the body has been sent.
    pub fn rewind(&mut self) {
        self.head_sent = 0;
        self.sent = 0;
    }

    /// Takes what was read past the body's end, and the head's memory.
    pub fn into_parts(self) -> (Option<Buffer>, Vec<u8>) {
        (self.buffer, self.head)
    }

    /// What was read past the body's end.
    pub fn surplus(&mut self) -> &mut Option<Buffer> {
        &mut self.buffer
    }

    /// Moves what it can. Ready when head and body are completely written.
    ///
    /// # Errors
    /// See [`PumpError`]. What was read before the error has been written or is lost.
    pub fn poll<F: PumpSource, T: PumpSink>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
    ) -> Poll<Result<(), PumpError>> {
        let turn_ends = self.taken + TURN_BYTES;
        loop {
            self.clear()?;
            ready!(self.poll_write(cx, to)).map_err(PumpError::Write)?;
            if self.is_at_its_end() {
                ready!(self.poll_end(cx, to)).map_err(PumpError::Write)?;
                self.splice = None;
                return Poll::Ready(Ok(()));
            }
            if self.taken >= turn_ends {
                self.waiting = Waiting::Source;
                give_way(cx);
                return Poll::Pending;
            }
            self.seek_splice(from, to);
            let taken = ready!(self.poll_read(cx, from)).map_err(PumpError::Read)?;
            self.taken += taken as u64;
            if taken == 0 {
                self.scanner.end_of_input().map_err(|_| PumpError::Truncated)?;
                if self.coding == Coding::Chunk {
                    self.end_chunks(from);
                }
            }
        }
    }

    /// Finds out how much of what was read belongs to the body. Chunk framing that the receiver must not see is removed
    /// in one pass that moves each byte at most once, however many chunks there are.
    fn clear(&mut self) -> Result<(), PumpError> {
        let Some(buffer) = &mut self.buffer else { return Ok(()) };
        let written = self.cleared == 0;
        let mut seen = self.cleared;
        while seen < buffer.filled().len() && !self.scanner.is_done() {
            let step = if let Some(frames) = &mut self.frames {
                match frames.follow(&buffer.filled()[seen..], self.ending) {
                    0 => break,
                    n => Ok(Step::Data(n)),
                }
            } else if matches!(self.coding, Coding::Unchunk | Coding::Frame) {
                self.scanner.step(&buffer.filled()[seen..])
            } else {
                self.scanner.take(&buffer.filled()[seen..]).map(Step::Data)
            };
            match step.map_err(|_| PumpError::BadBody)? {
                Step::Data(n) => {
                    #[cfg(test)]
                    (self.shifted += if seen == self.cleared { 0 } else { n as u64 });
                    buffer.move_forward(seen, self.cleared, n);
                    self.cleared += n;
                    seen += n;
                }
                Step::Trailer(n) if self.coding == Coding::Frame => {
                    self.trailers.extend_from_slice(&buffer.filled()[seen..seen + n]);
                    seen += n;
                }
                Step::Frame(n) | Step::Trailer(n) => seen += n,
            }
            if self.scanner.content() > self.most {
                return Err(PumpError::TooLarge);
            }
        }
        #[cfg(test)]
        (self.shifted += if seen == self.cleared { 0 } else { (buffer.filled().len() - seen) as u64 });
        buffer.remove(self.cleared, seen);
        if self.coding == Coding::Chunk && written && self.cleared > 0 {
            self.begin_chunk();
        }
        self.drop_empty();
        Ok(())
    }

    /// Frames the writable bytes as a chunk.
    fn begin_chunk(&mut self) {
        self.drop_sent_head();
        write_hex(&mut self.head, self.cleared as u64);
        self.head.extend_from_slice(CHUNK_END);
        self.tail = CHUNK_END;
    }

    /// Ends a body that is sent in chunks. Everything before has been written.
    fn end_chunks<F: PumpSource>(&mut self, from: &mut F) {
        self.drop_sent_head();
        self.head.extend_from_slice(LAST_CHUNK);
        from.write_trailers(&mut self.head);
        self.head.extend_from_slice(CHUNK_END);
    }

    fn drop_sent_head(&mut self) {
        if self.head_sent == self.head.len() {
            self.head.clear();
            self.head_sent = 0;
        }
    }

    /// Returns an empty buffer.
    fn drop_empty(&mut self) {
        if self.buffer.as_ref().is_some_and(Buffer::is_empty) {
            self.buffer = None;
        }
    }

    /// Writes the head and the writable bytes, in one system call if there are both.
    fn poll_write<T: PumpSink>(&mut self, cx: &mut Context<'_>, to: &mut T) -> Poll<io::Result<()>> {
        while !self.memory_is_flushed() {
            let parts = Parts {
                head: &self.head[self.head_sent..],
                content: self.buffer.as_ref().map_or(&[][..], |buffer| &buffer.filled()[..self.cleared]),
                tail: self.tail,
                last: self.ends && self.scanner.is_done() && self.trailers().is_empty(),
            };
            let Poll::Ready(result) = to.poll_write(cx, parts) else {
                self.waiting = Waiting::Sink;
                return Poll::Pending;
            };
            let written = result?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote(written);
            self.unflushed = to.buffers();
        }
        if self.unflushed {
            if to.poll_flush(cx)?.is_pending() {
                self.waiting = Waiting::Sink;
                return Poll::Pending;
            }
            self.unflushed = false;
        }
        self.poll_drain(cx)
    }

    /// Ends the message, if it is one.
    fn poll_end<T: PumpSink>(&mut self, cx: &mut Context<'_>, to: &mut T) -> Poll<io::Result<()>> {
        if self.ends && to.poll_end(cx, self.trailers())?.is_pending() {
            self.waiting = Waiting::Sink;
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is in the splice's pipe.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(splice) = &mut self.splice else { return Poll::Ready(Ok(())) };
        while !splice.is_flushed() {
            let Poll::Ready(result) = splice.poll_drain(cx) else {
                self.waiting = Waiting::Sink;
                return Poll::Pending;
            };
            let written = result? as u64;
            self.sent += written;
            self.body_sent += written;
        }
        Poll::Ready(Ok(()))
    }

    /// Starts splicing if it's worthwhile. Never with the first bytes of a body: until one is sent, all are kept for
    /// another attempt.
    fn seek_splice<F: PumpSource, T: PumpSink>(&mut self, from: &F, to: &T) {
        let left = self.scanner.announced();
        if left < splice::WORTHWHILE || self.body_sent == 0 || self.buffer.is_some() || self.splice_sought {
            return;
        }
        self.splice_sought = true;
        if self.coding == Coding::AsItIs && self.scanner.content().saturating_add(left) <= self.most {
            self.splice = from.plain().zip(to.plain()).and_then(|(from, to)| Splice::open(from, to));
        }
    }

    fn wrote(&mut self, written: usize) {
        self.sent += written as u64;
        let of_head = written.min(self.head.len() - self.head_sent);
        let of_body = (written - of_head).min(self.cleared);
        self.tail = self.tail.get(written - of_head - of_body..).unwrap_or_default();
        self.head_sent += of_head;
        self.body_sent += of_body as u64;
        self.cleared -= of_body;
        if let Some(buffer) = &mut self.buffer {
            buffer.consume(of_body);
        }
        self.drop_empty();
    }

    fn poll_read<F: PumpSource>(&mut self, cx: &mut Context<'_>, from: &mut F) -> Poll<io::Result<usize>> {
        let result = match &mut self.splice {
            Some(splice) => splice.poll_fill(cx, self.scanner.announced()).map_ok(|taken| {
                self.scanner.skip(taken as u64);
                taken
            }),
            None => from.poll_fill(cx, &mut self.buffer),
        };
        if result.is_pending() {
            self.waiting = Waiting::Source;
        }
        result
    }
}

/// Wakes this task again after other tasks have had their turn and the sockets have been polled. Waking it directly
/// isn't enough: the runtime polls the sockets only after dozens of ready tasks, and this one may be all of them.
pub fn give_way(cx: &mut Context<'_>) {
    // The first poll registers the waker and is never ready.
    let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
}

#[cfg(test)]
mod tests;
