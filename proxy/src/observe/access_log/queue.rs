//! What goes from the workers to the writer thread: buffers, how much is on its way, and the way back.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// A worker flushes its buffer when it holds this much. Each hand-over wakes the writer thread, which costs as much as a
/// few requests: once per several hundred lines.
pub(super) const HAND_OVER_BYTES: usize = 128 << 10;

/// Room for the line that fills a buffer. A longer line only makes it grow.
pub(super) const LAST_LINE_BYTES: usize = 1 << 10;

/// A buffer larger than this is freed when traffic is low.
pub(super) const KEPT_BYTES: usize = 16 << 10;

/// What the queue may hold: some 15,000 lines.
const QUEUE_BYTES: u64 = 4 << 20;

/// What a worker has handed over.
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) lines: u64,
}

/// Lines handed to the writer thread and not written yet. What is left when the process ends is lost.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    lines: AtomicU64,
    bytes: AtomicU64,
}

impl Pending {
    /// How many there are, including the batch that is being written.
    #[must_use]
    pub(crate) fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    /// Counts a batch. Returns whether it may be queued: what is queued has a limit.
    pub(super) fn add(&self, batch: &Batch) -> bool {
        self.lines.fetch_add(batch.lines, Ordering::Relaxed);
        self.bytes.fetch_add(batch.bytes.len() as u64, Ordering::Relaxed) < QUEUE_BYTES
    }

    pub(super) fn subtract(&self, batch: &Batch) {
        self.bytes.fetch_sub(batch.bytes.len() as u64, Ordering::Relaxed);
        self.lines.fetch_sub(batch.lines, Ordering::Relaxed);
    }
}

/// Buffers that the writer thread has emptied, for the workers to use again. Nobody waits for its lock.
#[derive(Debug)]
pub(super) struct Spares {
    most: usize,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Spares {
    /// One for each worker at most.
    pub(super) fn new(workers: usize) -> Self {
        Self { most: workers.max(1), buffers: Mutex::default() }
    }

    /// An empty buffer.
    pub(super) fn take(&self) -> Vec<u8> {
        self.buffers.try_lock().and_then(|mut buffers| buffers.pop()).unwrap_or_default()
    }

    /// Keeps a buffer, unless it is much larger than the traffic needs.
    pub(super) fn put(&self, mut buffer: Vec<u8>) {
        let of_use = buffer.capacity() <= KEPT_BYTES || buffer.len() >= buffer.capacity() / 4;
        let ordinary = buffer.capacity() <= HAND_OVER_BYTES + LAST_LINE_BYTES;
        if let (true, Some(mut buffers)) = (of_use && ordinary, self.buffers.try_lock())
            && buffers.len() < self.most
        {
            buffer.clear();
            buffers.push(buffer);
        }
    }
}
