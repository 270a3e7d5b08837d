//! The framing in which a body leaves: chunks, where uh-proxy makes them.

use super::ends::PumpSource;
use super::framing_in::FramingIn;
use uh_http1::field::write_hex;
use uh_http1::response::Coding;

/// The end of a line, of a chunk, and of a chunked body.
const LINE_END: &[u8] = b"\r\n";

/// The last chunk. Trailers and an empty line follow.
const LAST_CHUNK: &[u8] = b"0\r\n";

/// Puts content into chunks, if the receiver must see them. Few must, so only for those there is anything to keep.
#[derive(Debug)]
pub(super) struct FramingOut(Option<Box<Chunk>>);

/// The framing of the current chunk.
#[derive(Debug, Default)]
struct Chunk {
    /// What goes before the content: the chunk's size.
    before: Vec<u8>,
    before_sent: usize,
    /// What goes after it.
    after: &'static [u8],
    /// The last chunk was made.
    ended: bool,
}

impl FramingOut {
    pub(super) fn new(coding: Coding) -> Self {
        Self((coding == Coding::Chunk).then(Box::default))
    }

    pub(super) fn before(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |chunk| &chunk.before[chunk.before_sent..])
    }

    pub(super) fn after(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |chunk| chunk.after)
    }

    pub(super) fn has_left(&self) -> bool {
        self.0.as_ref().is_none_or(|chunk| chunk.before_sent == chunk.before.len() && chunk.after.is_empty())
    }

    /// Frames so much content as a chunk. Everything before has left.
    pub(super) fn begin_chunk(&mut self, content: usize) {
        let (Some(chunk), false) = (&mut self.0, content == 0) else { return };
        chunk.restart();
        write_hex(&mut chunk.before, content as u64);
        chunk.before.extend_from_slice(LINE_END);
        chunk.after = LINE_END;
    }

    /// The content is over. Everything before has left. Returns whether something follows: the last chunk, and the
    /// trailers.
    pub(super) fn end<F: PumpSource>(&mut self, from: &mut F, framing_in: &FramingIn) -> bool {
        let Some(chunk) = &mut self.0 else { return false };
        if std::mem::replace(&mut chunk.ended, true) {
            return false;
        }
        chunk.restart();
        chunk.before.extend_from_slice(LAST_CHUNK);
        from.write_trailers(&mut chunk.before);
        chunk.before.extend_from_slice(framing_in.trailers());
        chunk.before.extend_from_slice(LINE_END);
        true
    }

    /// Of so many bytes that have left: how many were before the content.
    pub(super) fn consume_before(&mut self, bytes: usize) -> usize {
        let Some(chunk) = &mut self.0 else { return 0 };
        let consumed = bytes.min(chunk.before.len() - chunk.before_sent);
        chunk.before_sent += consumed;
        consumed
    }

    pub(super) fn consume_after(&mut self, bytes: usize) {
        if let Some(chunk) = &mut self.0 {
            chunk.after = chunk.after.get(bytes..).unwrap_or_default();
        }
    }

    /// Starts over for another attempt, while no content has left.
    pub(super) fn rewind(&mut self) {
        if let Some(chunk) = &mut self.0 {
            chunk.before_sent = 0;
        }
    }
}

impl Chunk {
    fn restart(&mut self) {
        self.before.clear();
        self.before_sent = 0;
    }
}
