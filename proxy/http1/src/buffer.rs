//! Read buffers, lent by the worker thread only while they hold bytes.
//!
//! A waiting connection holds no buffer, so ten thousand idle clients cost ten thousand small structs.

use std::cell::RefCell;

/// Size of every buffer: large enough that big bodies cost few system calls, small enough to stay in the cache.
pub const BUFFER_BYTES: usize = 64 << 10;

/// Buffers kept by a thread for reuse; the rest are returned to the allocator.
const MAX_KEPT: usize = 64;

thread_local! {
    static KEPT: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A fixed buffer with a filled part in the middle: `start..end` is what was read but not used yet.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// An empty buffer from this thread's stock.
    #[must_use]
    pub fn take() -> Self {
        let kept = KEPT.with(|kept| kept.borrow_mut().pop());
        Self { bytes: kept.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice()), start: 0, end: 0 }
    }

    /// What was read but not used yet.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Free space at the end. Empty buffers start again at the front.
    pub fn room(&mut self) -> &mut [u8] {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// Marks `n` bytes of [`Buffer::room`] as filled.
    pub fn grow(&mut self, n: usize) {
        self.end = (self.end + n).min(self.bytes.len());
    }

    /// Marks the first `n` bytes as used.
    pub fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    /// Moves `n` bytes of the filled part forward, from the offset `from` to the offset `to`. What was there is
    /// overwritten.
    pub fn move_forward(&mut self, from: usize, to: usize, n: usize) {
        if from != to {
            let from = self.start + from;
            self.bytes.copy_within(from..from + n, self.start + to);
        }
    }

    /// Removes the bytes `from..to` of the filled part, and moves everything after them. For many pieces, use
    /// [`Buffer::move_forward`].
    pub fn remove(&mut self, from: usize, to: usize) {
        if from < to {
            let (from, to) = (self.start + from, self.start + to);
            self.bytes.copy_within(to..self.end, from);
            self.end -= to - from;
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // A thread that is ending has no stock any more, so the buffer is freed.
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < MAX_KEPT {
                kept.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut buffer = Buffer::take();
        buffer.room()[..6].copy_from_slice(b"abcdef");
        buffer.grow(6);
        buffer.consume(1);
        buffer.move_forward(3, 1, 2);
        assert_eq!(buffer.filled(), b"befef");
        buffer.remove(3, 5);
        buffer.remove(3, 3);
        assert_eq!(buffer.filled(), b"bef");
        buffer.consume(3);
        assert!(buffer.is_empty());
        assert_eq!(buffer.room().len(), BUFFER_BYTES);
    }
}
