//! The framing in which a body arrives: where it ends, and what of it is content.

use super::PumpError;
use crate::front::websocket::Frames;
use uh_http1::body::{BodyScanner, Framing, Step};
use uh_http1::buffer::Buffer;
use uh_http1::response::Coding;

/// Takes the framing off a body, if the receiver must not see it.
#[derive(Debug)]
pub(super) struct FramingIn {
    scanner: BodyScanner,
    coding: Coding,
    /// In a WebSocket tunnel: where its frames begin and end.
    frames: Option<Box<Frames>>,
    /// Don't begin another frame.
    ending: bool,
    /// The largest allowed content.
    most: u64,
    /// The trailers, with the empty line after them, if they leave apart from the content.
    trailers: Vec<u8>,
    /// Bytes that were moved within the buffer.
    #[cfg(test)]
    pub(super) shifted: u64,
}

impl FramingIn {
    pub(super) fn new(framing: Framing, coding: Coding) -> Self {
        Self {
            scanner: BodyScanner::new(framing),
            coding,
            frames: None,
            ending: false,
            most: u64::MAX,
            trailers: Vec::new(),
            #[cfg(test)]
            shifted: 0,
        }
    }

    /// Fails as soon as more content than this has arrived.
    pub(super) fn limit(&mut self, most: Option<u64>) {
        self.most = most.unwrap_or(u64::MAX);
    }

    /// From now on, WebSocket frames arrive.
    pub(super) fn follow_frames(&mut self) {
        self.frames = Some(Box::default());
    }

    /// Ends at the next boundary of frames.
    pub(super) fn end_at_boundary(&mut self) {
        self.ending = true;
    }

    /// Whether another frame may follow what has arrived.
    pub(super) fn may_add_frame(&self) -> bool {
        self.frames.as_ref().is_some_and(|frames| frames.at_boundary() && !frames.closed())
    }

    /// The frames that have arrived, if they are followed.
    pub(super) fn frames(&self) -> Option<&Frames> {
        self.frames.as_deref()
    }

    /// Whether the whole body has arrived.
    pub(super) fn is_done(&self) -> bool {
        self.scanner.is_done()
    }

    /// Whether nothing more is to be moved.
    pub(super) fn is_over(&self) -> bool {
        self.is_done() || self.ending && self.frames.as_ref().is_none_or(|frames| frames.at_boundary())
    }

    /// The trailers, as field lines, if they leave apart from the content.
    pub(super) fn trailers(&self) -> &[u8] {
        self.trailers.strip_suffix(b"\r\n").unwrap_or_default()
    }

    /// How many bytes are still to come that may pass without a look at them.
    pub(super) fn opaque(&self) -> u64 {
        let left = self.scanner.announced();
        let allowed = self.scanner.content().saturating_add(left) <= self.most;
        if allowed && self.coding == Coding::AsItIs { left } else { 0 }
    }

    /// This many of the [`FramingIn::opaque`] bytes have passed.
    pub(super) fn skip(&mut self, bytes: usize) {
        self.scanner.skip(bytes as u64);
    }

    /// The sender has closed.
    pub(super) fn end_of_input(&mut self) -> Result<(), PumpError> {
        self.scanner.end_of_input().map_err(|_| PumpError::Truncated)
    }

    /// Finds out how much of what was read belongs to the body, and returns how many bytes at the front of the buffer
    /// may leave: `cleared` of them were known before. Framing that the receiver must not see is removed in one pass
    /// that moves each byte at most once, however many chunks there are.
    pub(super) fn clear(&mut self, buffer: &mut Buffer, cleared: usize) -> Result<usize, PumpError> {
        let (mut seen, mut cleared) = (cleared, cleared);
        while seen < buffer.filled().len() && !self.is_done() {
            match self.step(&buffer.filled()[seen..])? {
                Step::Data(0) => break,
                Step::Data(n) => {
                    self.note_shift(seen != cleared, n);
                    buffer.move_forward(seen, cleared, n);
                    cleared += n;
                    seen += n;
                }
                Step::Trailer(n) if matches!(self.coding, Coding::Frame | Coding::Chunk) => {
                    self.trailers.extend_from_slice(&buffer.filled()[seen..seen + n]);
                    seen += n;
                }
                Step::Frame(n) | Step::Trailer(n) => seen += n,
            }
            if self.scanner.content() > self.most {
                return Err(PumpError::TooLarge);
            }
        }
        self.note_shift(seen != cleared, buffer.filled().len() - seen);
        buffer.remove(cleared, seen);
        Ok(cleared)
    }

    /// One run of what may leave, or of what may not.
    fn step(&mut self, input: &[u8]) -> Result<Step, PumpError> {
        if let Some(frames) = &mut self.frames {
            return Ok(Step::Data(frames.follow(input, self.ending)));
        }
        let step = match self.coding {
            Coding::Unchunk | Coding::Frame | Coding::Chunk => self.scanner.step(input),
            Coding::AsItIs => self.scanner.take(input).map(Step::Data),
        };
        step.map_err(|_| PumpError::BadBody)
    }

    #[cfg(test)]
    fn note_shift(&mut self, moved: bool, bytes: usize) {
        self.shifted += if moved { bytes as u64 } else { 0 };
    }

    #[cfg(not(test))]
    fn note_shift(&mut self, _moved: bool, _bytes: usize) {}
}
