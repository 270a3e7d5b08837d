//! A stream as the link to its client. Flow control is the back-pressure: the window is opened again for what has been
//! written to the backend, and a response takes as much as the client's window allows.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use super::head::{self, Content};
use super::response;
use crate::front::client::presence::Presence;
use crate::front::client::{ClientLink, Watched};
use crate::front::pump::ends::{Parts, PumpSink, PumpSource};
use uh_http1::body::Framing;
use uh_http1::buffer::Buffer;
use uh_http1::request::RequestHead;
use uh_http1::response::Coding;

/// The most content that is handed over at once, so that streams take turns.
const MOST_AT_ONCE: usize = 64 << 10;

/// A map of more fields isn't kept for the response.
const MOST_KEPT_FIELDS: usize = 64;

/// One stream.
pub(super) struct StreamLink {
    body: RecvStream,
    /// The request has no body.
    bodyless: bool,
    /// The first stream of its connection.
    first: bool,
    /// What was received and isn't in a buffer yet.
    pending: Bytes,
    /// What is in buffers, and still counts against the window.
    unreleased: usize,
    /// The trailers of the request, as field lines.
    trailers: Vec<u8>,
    respond: SendResponse<Bytes>,
    /// The map of the request's fields, to be used again for those of the response.
    fields: HeaderMap,
    /// Once the final head was sent.
    send: Option<SendStream<Bytes>>,
    /// Bytes of the response that were taken.
    taken: u64,
    /// The response is complete.
    ended: bool,
    /// The client has cancelled the request, or its connection is gone.
    gone: Option<Gone>,
}

/// How a client has left a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// It has reset the stream.
    Reset,
    /// Its connection is gone.
    Connection,
}

impl Gone {
    /// `None`: the error isn't the client's, but that of a call.
    fn of(error: &h2::Error) -> Option<Self> {
        if error.is_reset() {
            Some(Self::Reset)
        } else {
            (error.is_io() || error.is_go_away()).then_some(Self::Connection)
        }
    }
}

/// How far a stream is with its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseProgress {
    /// No final head was sent.
    Unanswered,
    /// The head was sent, but not all of the rest.
    Answering,
    /// All of it was sent.
    Complete,
}

impl StreamLink {
    /// A stream whose header list has arrived, the `first` of its connection or not. `fields` isn't needed any more, but
    /// for its memory.
    pub(super) fn new(
        (body, content): (RecvStream, Content),
        respond: SendResponse<Bytes>,
        mut fields: HeaderMap,
        first: bool,
    ) -> Self {
        fields.clear();
        if fields.capacity() > MOST_KEPT_FIELDS {
            fields = HeaderMap::new();
        }
        Self {
            body,
            bodyless: content == Content::None,
            first,
            pending: Bytes::new(),
            unreleased: 0,
            trailers: Vec::new(),
            respond,
            fields,
            send: None,
            taken: 0,
            ended: false,
            gone: None,
        }
    }

    /// How far the response is.
    pub(super) fn progress(&self) -> ResponseProgress {
        match &self.send {
            _ if self.ended => ResponseProgress::Complete,
            Some(_) => ResponseProgress::Answering,
            None => ResponseProgress::Unanswered,
        }
    }

    /// Whether the client has left, and how.
    pub(super) fn gone(&self) -> Option<Gone> {
        self.gone
    }

    /// Whether the whole request has arrived.
    pub(super) fn request_is_read(&self) -> bool {
        self.bodyless || self.pending.is_empty() && self.body.is_end_stream()
    }

    /// Breaks the stream off.
    pub(super) fn reset(&mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }

    /// Discards more of the request. Ready with how much; with 0 at its end, or when the client has left.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        self.release();
        let held = std::mem::take(&mut self.pending);
        if !held.is_empty() {
            self.unreleased = held.len();
            return Poll::Ready(held.len());
        }
        match ready!(self.body.poll_data(cx)) {
            Some(Ok(data)) => {
                self.unreleased = data.len();
                Poll::Ready(data.len().max(1))
            }
            Some(Err(_)) | None => Poll::Ready(0),
        }
    }

    /// Opens the window for what has left the buffers.
    fn release(&mut self) {
        let released = std::mem::take(&mut self.unreleased);
        if released > 0 {
            // Fails only if the stream is gone.
            let _ = self.body.flow_control().release_capacity(released);
        }
    }

    fn note_gone(&mut self, error: &h2::Error) -> io::Error {
        self.gone = self.gone.or(Gone::of(error));
        io::ErrorKind::ConnectionReset.into()
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> bool {
        if self.gone.is_some() {
            return true;
        }
        if self.ended {
            return false;
        }
        let polled = match &mut self.send {
            Some(send) => send.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        self.gone = match polled {
            Poll::Pending => None,
            Poll::Ready(Ok(_)) => Some(Gone::Reset),
            Poll::Ready(Err(error)) => Gone::of(&error),
        };
        self.gone.is_some()
    }

    /// Sends a head, and returns its length.
    fn send_head(&mut self, parts: &Parts<'_>) -> io::Result<usize> {
        let broken = || io::Error::from(io::ErrorKind::InvalidData);
        let fields = std::mem::take(&mut self.fields);
        let (response, length) = response::head(parts.head, fields, self.first).ok_or_else(broken)?;
        if response.status().is_informational() {
            self.respond.send_informational(response).map_err(|error| self.note_gone(&error))?;
            return Ok(length);
        }
        let ends = parts.last && parts.content.is_empty() && length == parts.head.len();
        match self.respond.send_response(response, ends) {
            Ok(send) => {
                self.send = Some(send);
                self.ended = ends;
                Ok(length)
            }
            Err(error) => Err(self.note_gone(&error)),
        }
    }

    /// Sends as much content as the client's window allows.
    fn poll_send_content(
        &mut self,
        cx: &mut Context<'_>,
        content: &[u8],
        last: bool,
    ) -> Poll<io::Result<usize>> {
        let Some(send) = &mut self.send else { return Poll::Ready(Err(io::ErrorKind::InvalidData.into())) };
        let wanted = content.len().min(MOST_AT_ONCE);
        send.reserve_capacity(wanted);
        let mut capacity = send.capacity();
        while capacity == 0 {
            capacity = match ready!(send.poll_capacity(cx)) {
                Some(Ok(capacity)) => capacity,
                Some(Err(error)) => return Poll::Ready(Err(self.note_gone(&error))),
                None => {
                    // The stream was reset, or its connection is gone.
                    let _ = self.poll_gone(cx);
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
            };
        }
        let taken = wanted.min(capacity);
        let ends = last && taken == content.len();
        match send.send_data(Bytes::copy_from_slice(&content[..taken]), ends) {
            Ok(()) => {
                self.taken += taken as u64;
                self.ended = ends;
                Poll::Ready(Ok(taken))
            }
            Err(error) => Poll::Ready(Err(self.note_gone(&error))),
        }
    }
}

impl PumpSource for StreamLink {
    fn poll_fill(&mut self, cx: &mut Context<'_>, slot: &mut Option<Buffer>) -> Poll<io::Result<usize>> {
        // A pump reads only when everything that was read before has been written.
        self.release();
        let mut buffer = slot.take().unwrap_or_else(Buffer::take);
        let mut read = 0;
        let result = loop {
            let room = buffer.room();
            if room.is_empty() && read == 0 {
                break Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
            }
            let part = self.pending.len().min(room.len());
            room[..part].copy_from_slice(&self.pending[..part]);
            self.pending.advance(part);
            buffer.grow(part);
            read += part;
            self.unreleased += part;
            if !self.pending.is_empty() {
                break Poll::Ready(Ok(read));
            }
            match self.body.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => self.pending = data,
                Poll::Ready(Some(Err(error))) => break Poll::Ready(Err(self.note_gone(&error))),
                Poll::Ready(None) if read == 0 => break self.poll_trailers(cx),
                Poll::Pending if read == 0 => break Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break Poll::Ready(Ok(read)),
            }
        };
        if !buffer.is_empty() {
            *slot = Some(buffer);
        }
        result
    }

    fn write_trailers(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.trailers);
    }
}

impl StreamLink {
    /// At the end of the content: ready with 0 once it is known whether trailers follow.
    fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match ready!(self.body.poll_trailers(cx)) {
            Ok(Some(trailers)) => head::write_trailers(&trailers, &mut self.trailers),
            Ok(None) => {}
            Err(error) => return Poll::Ready(Err(self.note_gone(&error))),
        }
        Poll::Ready(Ok(0))
    }
}

impl PumpSink for StreamLink {
    fn poll_write(&mut self, cx: &mut Context<'_>, parts: Parts<'_>) -> Poll<io::Result<usize>> {
        if self.gone.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if parts.head.is_empty() && parts.content.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if parts.head.is_empty() {
            return self.poll_send_content(cx, parts.content, parts.last);
        }
        let of_head = self.send_head(&parts)?;
        if of_head < parts.head.len() || parts.content.is_empty() {
            return Poll::Ready(Ok(of_head));
        }
        match self.poll_send_content(cx, parts.content, parts.last) {
            Poll::Ready(Ok(of_content)) => Poll::Ready(Ok(of_head + of_content)),
            // The next call reports it.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(Ok(of_head)),
        }
    }

    fn poll_end(&mut self, _cx: &mut Context<'_>, trailers: &[u8]) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        let Some(send) = &mut self.send else { return Poll::Ready(Err(io::ErrorKind::InvalidData.into())) };
        let trailers = response::trailers(trailers).filter(|trailers| !trailers.is_empty());
        let sent = match trailers {
            Some(trailers) => send.send_trailers(trailers),
            None => send.send_data(Bytes::new(), true),
        };
        self.ended = sent.is_ok();
        Poll::Ready(sent.map_err(|error| self.note_gone(&error)))
    }
}

impl ClientLink for StreamLink {
    const HTTP2: bool = true;

    const NEEDS_LOOKS: bool = false;

    fn request_body(request: &RequestHead) -> (Framing, Coding) {
        match request.framing {
            // Its frames mark where it ends.
            Framing::Chunked => (Framing::UntilClose, Coding::Chunk),
            framing => (framing, Coding::AsItIs),
        }
    }

    fn watch(&mut self, cx: &mut Context<'_>, _ahead: &mut Option<Buffer>) -> Watched {
        if self.poll_gone(cx) { Watched::Gone } else { Watched::Here }
    }

    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> bool {
        self.poll_gone(cx)
    }

    fn presence(&self) -> Presence {
        if self.gone.is_some() { Presence::Gone } else { Presence::There }
    }

    fn taken(&self) -> Option<u64> {
        Some(self.taken)
    }

    fn has_taken_all(&self) -> Option<bool> {
        Some(true)
    }
}
