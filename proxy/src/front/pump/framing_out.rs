//! The framing in which a body leaves: chunks, where uh-proxy makes them.

use super::ends::PumpSource;
use uh_http1::field::write_hex;
use uh_http1::response::Coding;

/// The end of a line, of a chunk, and of a chunked body.
const LINE_END: &[u8] = b"\r\n";

/// The last chunk. Trailers and an empty line follow.
const LAST_CHUNK: &[u8] = b"0\r\n";

/// Puts content into chunks, if the receiver must see them.
#[derive(Debug)]
pub(super) struct FramingOut {
    chunks: bool,
    /// What goes before the content: a chunk's size.
    before: Vec<u8>,
    before_sent: usize,
    /// What goes after it.
    after: &'static [u8],
}

impl FramingOut {
    pub(super) fn new(coding: Coding) -> Self {
        Self { chunks: coding == Coding::Chunk, before: Vec::new(), before_sent: 0, after: b"" }
    }

    pub(super) fn before(&self) -> &[u8] {
        &self.before[self.before_sent..]
    }

    pub(super) fn after(&self) -> &[u8] {
        self.after
    }

    pub(super) fn has_left(&self) -> bool {
        self.before_sent == self.before.len() && self.after.is_empty()
    }

    /// Frames so much content as a chunk. Everything before has left.
    pub(super) fn begin_chunk(&mut self, content: usize) {
        if !self.chunks || content == 0 {
            return;
        }
        self.restart();
        write_hex(&mut self.before, content as u64);
        self.before.extend_from_slice(LINE_END);
        self.after = LINE_END;
    }

    /// The content is over. Everything before has left.
    pub(super) fn end<F: PumpSource>(&mut self, from: &mut F) {
        if !self.chunks {
            return;
        }
        self.restart();
        self.before.extend_from_slice(LAST_CHUNK);
        from.write_trailers(&mut self.before);
        self.before.extend_from_slice(LINE_END);
    }

    /// Of so many bytes that have left: how many were before the content.
    pub(super) fn consume_before(&mut self, bytes: usize) -> usize {
        let consumed = bytes.min(self.before.len() - self.before_sent);
        self.before_sent += consumed;
        consumed
    }

    pub(super) fn consume_after(&mut self, bytes: usize) {
        self.after = self.after.get(bytes..).unwrap_or_default();
    }

    /// Starts over for another attempt, while no content has left.
    pub(super) fn rewind(&mut self) {
        self.before_sent = 0;
    }

    fn restart(&mut self) {
        self.before.clear();
        self.before_sent = 0;
    }
}
