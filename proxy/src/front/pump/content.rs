//! The content of a body between two framings, on its way through memory.
//!
//! Most content isn't changed: what may leave is what has arrived, in place, without a copy. Content that is compressed
//! leaves from a buffer of its own.

use std::io;

use uh_http1::buffer::Buffer;

use super::gzip::Gzip;

/// Content that has arrived and has not left yet.
#[derive(Debug)]
pub(super) struct Content {
    /// What may leave, followed by what hasn't been looked at or doesn't belong to the body.
    buffer: Option<Buffer>,
    /// How many bytes at the front may leave, or be compressed.
    cleared: usize,
    /// What compresses it, if anything does.
    gzip: Option<Box<Gzip>>,
}

impl Content {
    pub(super) fn new(buffer: Option<Buffer>) -> Self {
        Self { buffer, cleared: 0, gzip: None }
    }

    /// The same, to be compressed at this level.
    pub(super) fn compressed(buffer: Option<Buffer>, level: u8) -> Self {
        Self { gzip: Some(Box::new(Gzip::new(level))), ..Self::new(buffer) }
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
        self.gzip.as_ref().map_or(self.cleared == 0, |gzip| gzip.output().is_empty())
    }

    /// What may leave.
    pub(super) fn ready(&self) -> &[u8] {
        match (&self.gzip, &self.buffer) {
            (Some(gzip), _) => gzip.output(),
            (None, Some(buffer)) => &buffer.filled()[..self.cleared],
            (None, None) => &[],
        }
    }

    /// Whether nothing will be ready any more that isn't ready now. The content is complete.
    pub(super) fn is_final(&self) -> bool {
        self.gzip.as_ref().is_none_or(|gzip| gzip.is_done())
    }

    /// Whether more is to be compressed before more is read.
    pub(super) fn has_work(&self) -> bool {
        self.gzip.is_some() && self.cleared > 0
    }

    /// Bytes of content before and after it was compressed, if it is.
    pub(super) fn compressed_bytes(&self) -> Option<(u64, u64)> {
        self.gzip.as_ref().map(|gzip| gzip.bytes())
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

    /// Compresses some of what may be, if it is to be compressed, and returns how much. `complete`: no more content follows.
    ///
    /// # Errors
    /// See [`Gzip::step`].
    pub(super) fn compress(&mut self, complete: bool) -> io::Result<usize> {
        let Self { buffer, cleared, gzip: Some(gzip) } = self else { return Ok(0) };
        let content = buffer.as_ref().map_or(&[][..], |buffer| &buffer.filled()[..*cleared]);
        let taken = gzip.step(content, complete)?;
        self.remove(taken);
        Ok(taken)
    }

    /// The source has nothing more for now: whether something that was held is ready now.
    ///
    /// # Errors
    /// See [`Gzip::flush`].
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        self.gzip.as_mut().map_or(Ok(false), |gzip| gzip.flush())
    }

    /// This many bytes have left.
    pub(super) fn consume(&mut self, bytes: usize) {
        match &mut self.gzip {
            Some(gzip) => gzip.consume(bytes),
            None => self.remove(bytes),
        }
    }

    fn remove(&mut self, bytes: usize) {
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
