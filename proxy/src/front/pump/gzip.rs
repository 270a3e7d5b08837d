//! Compresses content on its way through memory, in small steps.
//!
//! What is read goes into a compressor, and what comes out of it waits in a buffer of its own, which is lent only while
//! it holds something. No more is read until that has left. When the source has nothing more for now, everything
//! compressed so far is flushed, so that a client never waits for what has arrived here.
//!
//! A compressor takes some 300 KiB for as long as its response lasts. So a worker has only so many of them; a response
//! that finds none left isn't compressed.

use std::cell::RefCell;
use std::io;

use zlib_rs::{Deflate, DeflateFlush, Status};

use uh_http1::buffer::Buffer;

/// Responses that a worker compresses at the same time: 40 MiB. Clients that read slowly keep theirs for long.
pub(in crate::front) const MOST: usize = 128;

/// Compressors that a worker keeps for the next response: making one means asking the system for its memory.
const KEPT: usize = 8;

/// What is compressed on a thread before other tasks get their turn, by all that compress together: some 200 µs.
const TURN_BYTES: usize = 16 << 10;

/// And by each of them at least. Below that, the turns would cost more than the work.
const STEP_BYTES: usize = 2 << 10;

/// A window of 32 KiB, in the format of gzip.
const WINDOW_BITS: u8 = 15 + 16;

thread_local! {
    static STOCK: RefCell<Stock> = const { RefCell::new(Stock { kept: Vec::new(), lent: 0 }) };
}

/// A worker's compressors.
struct Stock {
    kept: Vec<Compressor>,
    lent: usize,
}

struct Compressor {
    deflate: Deflate,
    level: u8,
}

/// Whether this worker may compress another response.
pub(in crate::front) fn has_room() -> bool {
    STOCK.with_borrow(|stock| stock.lent < MOST)
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It takes content. `held`: some of it may not be out yet.
    Open { held: bool },
    /// What it holds is coming out.
    Flushing,
    /// The content is complete, and the rest is coming out.
    Ending,
    /// All is out.
    Done,
}

/// Compresses one body.
pub(super) struct Gzip {
    /// `None` once it is returned.
    compressor: Option<Compressor>,
    output: Option<Buffer>,
    state: State,
    /// The same after the compressor has been returned.
    taken: u64,
    made: u64,
}

impl std::fmt::Debug for Gzip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gzip").field("state", &self.state).field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl Gzip {
    /// At a level from 1, fast, to 9, small.
    pub(super) fn new(level: u8) -> Self {
        let kept = STOCK.with_borrow_mut(|stock| {
            stock.lent += 1;
            let of_level = stock.kept.iter().position(|kept| kept.level == level);
            of_level.map(|at| stock.kept.swap_remove(at))
        });
        let compressor = kept.unwrap_or_else(|| Compressor {
            deflate: Deflate::new(i32::from(level), true, WINDOW_BITS),
            level,
        });
        Self {
            compressor: Some(compressor),
            output: None,
            state: State::Open { held: false },
            taken: 0,
            made: 0,
        }
    }

    /// What may leave.
    pub(super) fn output(&self) -> &[u8] {
        self.output.as_ref().map_or(&[], Buffer::filled)
    }

    /// This much of it has left.
    pub(super) fn consume(&mut self, bytes: usize) {
        if let Some(output) = &mut self.output {
            output.consume(bytes);
        }
        self.drop_empty();
    }

    /// Whether all is out. It may not have left yet.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes of content before and after.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.taken, self.made)
    }

    /// What may be compressed before other tasks get their turn.
    pub(super) fn turn_bytes() -> usize {
        let lent = STOCK.with_borrow(|stock| stock.lent).max(1);
        (TURN_BYTES / lent).max(STEP_BYTES)
    }

    /// Compresses some of the content, and returns how much. `complete`: no more content follows. Does nothing until the
    /// output has left.
    ///
    /// # Errors
    /// The compressor fails, which it shouldn't.
    pub(super) fn step(&mut self, content: &[u8], complete: bool) -> io::Result<usize> {
        if !self.output().is_empty() {
            return Ok(0);
        }
        let part = &content[..content.len().min(Self::turn_bytes())];
        let ends = complete && part.len() == content.len();
        match self.state {
            State::Open { .. } if ends => {
                self.state = State::Ending;
                self.run(part, DeflateFlush::Finish)
            }
            State::Open { .. } if part.is_empty() => Ok(0),
            State::Open { .. } => {
                self.state = State::Open { held: true };
                self.run(part, DeflateFlush::NoFlush)
            }
            State::Flushing => self.run_flush().map(|()| 0),
            State::Ending => self.run(content, DeflateFlush::Finish),
            State::Done => Ok(0),
        }
    }

    /// The source has nothing more for now: whether something comes out that was held.
    ///
    /// # Errors
    /// The compressor fails, which it shouldn't.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        if self.state == (State::Open { held: true }) {
            self.state = State::Flushing;
            self.run_flush()?;
        }
        Ok(!self.output().is_empty())
    }

    fn run_flush(&mut self) -> io::Result<()> {
        self.run(b"", DeflateFlush::SyncFlush)?;
        // If it has filled the buffer, more may follow.
        if self.output.as_mut().is_none_or(|output| !output.room().is_empty()) {
            self.state = State::Open { held: false };
        }
        Ok(())
    }

    /// Returns how much of the input was taken.
    fn run(&mut self, input: &[u8], flush: DeflateFlush) -> io::Result<usize> {
        let Some(Compressor { deflate, .. }) = &mut self.compressor else { return Ok(0) };
        let output = self.output.get_or_insert_with(Buffer::take);
        let result = deflate.compress(input, output.room(), flush);
        let taken = usize::try_from(deflate.total_in() - self.taken).unwrap_or(usize::MAX);
        let made = usize::try_from(deflate.total_out() - self.made).unwrap_or(usize::MAX);
        (self.taken, self.made) = (deflate.total_in(), deflate.total_out());
        output.grow(made);
        self.drop_empty();
        match result {
            Ok(Status::StreamEnd) => {
                self.state = State::Done;
                self.give_back();
            }
            // A flush right after another one makes nothing.
            Ok(Status::Ok | Status::BufError) if taken + made > 0 || self.state == State::Flushing => {}
            Ok(_) => return Err(io::Error::other("the compressor makes no progress")),
            Err(error) => return Err(io::Error::other(error.as_str())),
        }
        Ok(taken)
    }

    fn drop_empty(&mut self) {
        if self.output.as_ref().is_some_and(Buffer::is_empty) {
            self.output = None;
        }
    }

    fn give_back(&mut self) {
        let Some(mut compressor) = self.compressor.take() else { return };
        // A thread that is ending has no stock any more.
        let _ = STOCK.try_with(|stock| {
            let mut stock = stock.borrow_mut();
            stock.lent = stock.lent.saturating_sub(1);
            if stock.kept.len() < KEPT {
                compressor.deflate.reset();
                stock.kept.push(compressor);
            }
        });
    }
}

impl Drop for Gzip {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests;
