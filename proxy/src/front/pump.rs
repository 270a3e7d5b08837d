//! Moves one message from one end to another: first a head written here, then the body as it arrives.
//!
//! ```text
//! source ─▶ framing in ─▶ content ─▶ framing out ─▶ sink
//!    └────────────── splice, or sendfile ────────────┘   the rest of a large body, to a plain socket
//! ```
//!
//! Reads only when everything read before is written, so a slow reader slows the sender down (back-pressure). Holds a
//! buffer only while there are bytes in it. Two pumps over the same two streams, polled by one task, are a full-duplex
//! relay without locks or channels. Only the beginning of a large body goes through user memory: see [`splice`].

mod content;
pub(crate) mod ends;
mod framing_in;
mod framing_out;
pub(super) mod gzip;
pub(super) mod kept;

use std::future::Future as _;
use std::io;
use std::task::{Context, Poll, ready};

use content::Content;
use ends::{Parts, PumpSink, PumpSource, Sending};
use framing_in::FramingIn;
use framing_out::FramingOut;
use gzip::Gzip;
use kept::KeptBody;

use super::splice::{self, Splice};
use super::websocket::Frames;
use uh_http1::body::Framing;
use uh_http1::buffer::Buffer;
use uh_http1::response::Coding;

/// What a pump that makes no progress waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// More to read.
    Source,
    /// Room to write.
    Sink,
}

/// Why a pump stopped before the end.
#[derive(Debug)]
pub(crate) enum PumpError {
    /// Reading failed.
    Read,
    /// The sender closed before its message was complete.
    Truncated,
    /// The sender's framing is broken.
    BadBody,
    /// The body exceeds its limit.
    TooLarge,
    /// Writing failed.
    Write,
}

/// How much may be read before other tasks on this thread get their turn: two buffers, some 30 µs. Otherwise a
/// connection with a lot to move would delay all others, and a thousand of them for seconds. Counted at the input,
/// since that is the work, however little of it goes out.
const TURN_BYTES: u64 = 128 << 10;

/// One direction of an exchange.
#[derive(Debug)]
pub(crate) struct Pump {
    head: Vec<u8>,
    head_sent: usize,
    framing_in: FramingIn,
    content: Content,
    framing_out: FramingOut,
    /// A copy of what was sent of the body, if it may have to be sent once more.
    kept: Option<Box<KeptBody>>,
    /// The splice for the rest of a large body.
    splice: Option<Box<Splice>>,
    /// Whether a splice was attempted. It is attempted once.
    splice_sought: bool,
    /// What was written may still wait at the sink, to be flushed.
    unflushed: bool,
    /// The source sends by itself, and the sink takes no more.
    sink_full: bool,
    /// The message ends with this body. Not while only interim heads are moved: the response is still to come.
    ends: bool,
    /// Bytes read.
    taken: u64,
    /// Bytes written, the head included.
    sent: u64,
    /// Body bytes written.
    body_sent: u64,
    waiting: Waiting,
}

impl Pump {
    /// A pump that sends `head`, then a body of this framing, of which `buffer` may hold the first part.
    #[must_use]
    pub(crate) fn new(head: Vec<u8>, framing: Framing, coding: Coding, buffer: Option<Buffer>) -> Self {
        Self {
            head,
            head_sent: 0,
            framing_in: FramingIn::new(framing, coding),
            content: Content::new(buffer),
            framing_out: FramingOut::new(coding),
            kept: None,
            splice: None,
            splice_sought: false,
            unflushed: false,
            sink_full: false,
            ends: false,
            taken: 0,
            sent: 0,
            body_sent: 0,
            waiting: Waiting::Source,
        }
    }

    /// Fails as soon as more content than this has arrived, and sends nothing beyond it. `None`: no limit.
    pub(crate) fn limit_body(&mut self, most: Option<u64>) {
        self.framing_in.limit(most);
    }

    /// What it waits for, after a poll that returned `Pending`.
    #[must_use]
    pub(crate) fn waiting(&self) -> Waiting {
        self.waiting
    }

    /// Bytes written, the head included.
    #[must_use]
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Body bytes written.
    #[must_use]
    pub(crate) fn body_sent(&self) -> u64 {
        self.body_sent
    }

    /// Whether the whole body has been read.
    #[must_use]
    pub(crate) fn body_complete(&self) -> bool {
        self.framing_in.is_done()
    }

    /// Whether the head and everything cleared so far has been written.
    #[must_use]
    pub(crate) fn is_flushed(&self) -> bool {
        self.memory_is_flushed()
            && !self.unflushed
            && !self.sink_full
            && self.splice.as_ref().is_none_or(|splice| splice.is_flushed())
    }

    fn memory_is_flushed(&self) -> bool {
        self.head_sent == self.head.len() && self.content.has_left() && self.framing_out.has_left()
    }

    /// Bytes of the body before and after it was compressed, if it is.
    #[must_use]
    pub(crate) fn compressed_bytes(&self) -> Option<(u64, u64)> {
        self.content.compressed_bytes()
    }

    /// Bytes written, and of the head those that are still to be written.
    #[must_use]
    pub(crate) fn sent_with_head(&self) -> u64 {
        self.sent + (self.head.len() - self.head_sent) as u64
    }

    /// The head to send next, for appending.
    pub(crate) fn head(&mut self) -> &mut Vec<u8> {
        &mut self.head
    }

    /// The body that follows the head, of which `buffer` may hold the first part. `gzip`: it is compressed at this level.
    pub(crate) fn begin_body(
        &mut self,
        framing: Framing,
        coding: Coding,
        gzip: Option<u8>,
        buffer: Option<Buffer>,
    ) {
        self.framing_in = FramingIn::new(framing, coding);
        self.content = match gzip {
            Some(level) if framing != Framing::None => Content::compressed(buffer, level),
            _ => Content::new(buffer),
        };
        // The response to a HEAD request has the fields of a body, and none.
        self.framing_out = FramingOut::new(if framing == Framing::None { Coding::AsItIs } else { coding });
        self.splice_sought = false;
        self.ends = true;
    }

    /// From now on, WebSocket frames are moved.
    pub(crate) fn follow_frames(&mut self) {
        self.framing_in.follow_frames();
    }

    /// Finishes the current frame, and begins no other.
    pub(crate) fn end_at_boundary(&mut self) {
        self.framing_in.end_at_boundary();
    }

    /// Whether everything up to the end of a frame is written, so that another frame may follow.
    #[must_use]
    pub(crate) fn may_add_frame(&self) -> bool {
        self.is_flushed() && self.framing_in.may_add_frame()
    }

    /// The WebSocket frames that have been moved, if they are followed.
    #[must_use]
    pub(crate) fn frames(&self) -> Option<&Frames> {
        self.framing_in.frames()
    }

    /// Starts over for another attempt. Only allowed while none of the body has been sent.
    pub(crate) fn rewind(&mut self) {
        self.head_sent = 0;
        self.framing_out.rewind();
        self.sent = 0;
    }

    /// Keeps a copy of the body, if there is room for one, so that the message can be sent once more. Before any of it is
    /// sent.
    pub(crate) fn keep_body(&mut self) {
        self.kept = KeptBody::begin().map(Box::new);
    }

    /// Whether everything that was sent of the body is kept.
    #[must_use]
    pub(crate) fn keeps_body(&self) -> bool {
        // What was spliced isn't.
        self.kept.as_ref().is_some_and(|kept| (kept.bytes().len() + self.head_sent) as u64 == self.sent)
    }

    /// Keeps no copy of the body any longer.
    pub(crate) fn forget_body(&mut self) {
        self.kept = None;
    }

    /// Starts over with a message that was sent completely: its head, and its body if [`Pump::keeps_body`].
    pub(crate) fn send_again(&mut self) {
        if let Some(kept) = self.kept.take() {
            self.head.extend_from_slice(kept.bytes());
        }
        self.head_sent = 0;
        self.sent = 0;
    }

    /// What was read past the body's end.
    pub(crate) fn surplus(&mut self) -> &mut Option<Buffer> {
        self.content.input()
    }

    /// Moves what it can. Ready when head and body are completely written.
    ///
    /// # Errors
    /// See [`PumpError`]. What was read before the error has been written or is lost.
    pub(crate) fn poll<F: PumpSource, T: PumpSink>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
    ) -> Poll<Result<(), PumpError>> {
        let turn_ends = self.taken + TURN_BYTES;
        let mut compressed = 0;
        loop {
            compressed += self.clear()?;
            ready!(self.poll_write(cx, to)).map_err(|_| PumpError::Write)?;
            if self.framing_in.is_over() && self.content.is_final() {
                if self.framing_out.end(from, &self.framing_in) {
                    continue;
                }
                ready!(self.poll_end(cx, to)).map_err(|_| PumpError::Write)?;
                self.splice = None;
                return Poll::Ready(Ok(()));
            }
            if self.taken >= turn_ends || compressed > 0 && compressed >= Gzip::turn_bytes() {
                self.waiting = Waiting::Source;
                give_way(cx);
                return Poll::Pending;
            }
            if self.framing_in.is_over() || self.content.has_work() {
                continue;
            }
            if let Some(sending) = self.poll_send(cx, from, to) {
                ready!(sending)?;
                continue;
            }
            self.seek_splice(from, to);
            let Poll::Ready(taken) = self.poll_read(cx, from) else {
                if self.flush()? {
                    continue;
                }
                return Poll::Pending;
            };
            let taken = taken.map_err(|_| PumpError::Read)?;
            self.taken += taken as u64;
            if taken == 0 {
                self.framing_in.end_of_input()?;
            }
        }
    }

    /// Lets a source that can do so send by itself.
    fn poll_send<F: PumpSource, T: PumpSink>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &T,
    ) -> Option<Poll<Result<(), PumpError>>> {
        let socket = to.plain().filter(|_| self.framing_in.opaque() > 0)?;
        let sending = from.poll_send(cx, socket)?;
        self.sink_full = false;
        Some(match sending {
            Sending::Moved(0) => Poll::Ready(self.framing_in.end_of_input()),
            Sending::Moved(moved) => {
                self.framing_in.skip(moved);
                let moved = moved as u64;
                self.taken += moved;
                self.sent += moved;
                self.body_sent += moved;
                Poll::Ready(Ok(()))
            }
            Sending::Waits(waiting) => {
                self.waiting = waiting;
                self.sink_full = waiting == Waiting::Sink;
                Poll::Pending
            }
            Sending::Failed(error) => Poll::Ready(Err(error)),
        })
    }

    /// Finds out how much of what was read may be written, and compresses some of it if it is to be compressed. Returns how
    /// much.
    fn clear(&mut self) -> Result<usize, PumpError> {
        let had_left = self.content.has_left();
        self.content.clear(|buffer, cleared| self.framing_in.clear(buffer, cleared))?;
        let compressed = self.content.compress(self.framing_in.is_done()).map_err(|_| PumpError::Read)?;
        if had_left {
            self.framing_out.begin_chunk(self.content.ready().len());
        }
        Ok(compressed)
    }

    /// The source has nothing more for now: whether something that was held can be written.
    fn flush(&mut self) -> Result<bool, PumpError> {
        let flushed = self.content.flush().map_err(|_| PumpError::Read)?;
        if flushed {
            self.framing_out.begin_chunk(self.content.ready().len());
        }
        Ok(flushed)
    }

    /// Writes the head and the writable bytes, in one system call if there are both.
    fn poll_write<T: PumpSink>(&mut self, cx: &mut Context<'_>, to: &mut T) -> Poll<io::Result<()>> {
        while !self.memory_is_flushed() {
            let parts = Parts {
                head: &self.head[self.head_sent..],
                before: self.framing_out.before(),
                content: self.content.ready(),
                after: self.framing_out.after(),
                last: self.ends
                    && self.framing_in.is_done()
                    && self.content.is_final()
                    && self.framing_in.trailers().is_empty(),
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

    /// Ends the message, if it is one.
    fn poll_end<T: PumpSink>(&mut self, cx: &mut Context<'_>, to: &mut T) -> Poll<io::Result<()>> {
        if self.ends && to.poll_end(cx, self.framing_in.trailers())?.is_pending() {
            self.waiting = Waiting::Sink;
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// Starts splicing if it's worthwhile. Never with the first bytes of a body: until one is sent, all are kept for
    /// another attempt.
    fn seek_splice<F: PumpSource, T: PumpSink>(&mut self, from: &F, to: &T) {
        let worthwhile = self.framing_in.opaque() >= splice::WORTHWHILE;
        if worthwhile && self.body_sent > 0 && self.content.is_empty() && !self.splice_sought {
            self.splice_sought = true;
            self.splice = from.plain().zip(to.plain()).and_then(|(from, to)| Splice::open(from, to));
        }
    }

    fn wrote(&mut self, written: usize) {
        self.sent += written as u64;
        let of_head = written.min(self.head.len() - self.head_sent);
        self.head_sent += of_head;
        let rest = written - of_head;
        if let Some(kept) = &mut self.kept {
            let parts = [self.framing_out.before(), self.content.ready(), self.framing_out.after()];
            if !kept.add(rest, parts) {
                self.kept = None;
            }
        }
        let rest = rest - self.framing_out.consume_before(rest);
        let of_content = rest.min(self.content.ready().len());
        self.content.consume(of_content);
        self.body_sent += of_content as u64;
        self.framing_out.consume_after(rest - of_content);
    }

    fn poll_read<F: PumpSource>(&mut self, cx: &mut Context<'_>, from: &mut F) -> Poll<io::Result<usize>> {
        let result = match &mut self.splice {
            Some(splice) => splice.poll_fill(cx, self.framing_in.opaque()).map_ok(|taken| {
                self.framing_in.skip(taken);
                taken
            }),
            None => from.poll_fill(cx, self.content.input()),
        };
        if result.is_pending() {
            self.waiting = Waiting::Source;
        }
        result
    }
}

/// Wakes this task again after other tasks have had their turn and the sockets have been polled. Waking it directly
/// isn't enough: the runtime polls the sockets only after dozens of ready tasks, and this one may be all of them.
pub(crate) fn give_way(cx: &mut Context<'_>) {
    // The first poll registers the waker and is never ready.
    let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
}

#[cfg(test)]
mod tests;
