//! The content of a body between two framings, on its way through memory.
//!
//! This is the identity: what may leave is what has arrived, in place, without a copy. A stage that changes content,
//! such as compression, would have a buffer of its own behind the same few methods.

use uh_http1::buffer::Buffer;

/// Content that has arrived and has not left yet.
#[derive(Debug)]
pub(super) struct Content {
    /// What may leave, followed by what hasn't been looked at or doesn't belong to the body.
    buffer: Option<Buffer>,
    /// How many bytes at the front may leave.
    cleared: usize,
}

impl Content {
    pub(super) fn new(buffer: Option<Buffer>) -> Self {
        Self { buffer, cleared: 0 }
    }

    /// Where more is read to. After the body, what was read past its end.
    pub(super) fn input(&mut self) -> &mut Option<Buffer> {
        &mut self.buffer
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_none()
    }

    /// Whether everything that may leave has left.
    pub(super) fn has_left(&self) -> bool {
        self.cleared == 0
    }

    /// What may leave.
    pub(super) fn ready(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer.filled()[..self.cleared])
    }

    /// Lets `look` find out how much of the input may leave: it gets the buffer and how much is known.
    pub(super) fn clear<E>(
        &mut self,
        look: impl FnOnce(&mut Buffer, usize) -> Result<usize, E>,
    ) -> Result<(), E> {
        if let Some(buffer) = &mut self.buffer {
            self.cleared = look(buffer, self.cleared)?;
            self.drop_empty();
        }
        Ok(())
    }

    /// This many bytes have left.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.cleared -= bytes.min(self.cleared);
        if let Some(buffer) = &mut self.buffer {
            buffer.consume(bytes);
        }
        self.drop_empty();
    }

    /// Returns an empty buffer to the stock.
    fn drop_empty(&mut self) {
        if self.buffer.as_ref().is_some_and(Buffer::is_empty) {
            self.buffer = None;
        }
    }
}
