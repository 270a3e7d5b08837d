//! The connection under `h2`: counts what the client sends, takes turns with the other tasks of its thread, and ends in
//! good order.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::budget::Budget;
use super::frames::{FrameKind, FrameScanner};
use crate::front::lazy_timer::LazyTimer;
use crate::front::pump::give_way;
use crate::front::worker::Worker;
use crate::observe::http2::Direction;

/// How much is read before other tasks on this thread get their turn, as for HTTP/1: otherwise a client that sends a lot
/// of small frames would delay them all.
const TURN_BYTES: usize = 64 << 10;

/// How much of that a frame costs in addition to its bytes: handling it takes about as long as copying so much.
const FRAME_COST: usize = 256;

/// After the last frame was sent, how long to read on and discard what arrives: a socket that is closed with unread input
/// is reset, and the client would lose what was sent, such as the reason for the end (RFC 9113 §6.8).
const LINGER_TIME: Duration = Duration::from_secs(1);

/// How much is discarded at most.
const LINGER_BYTES: usize = 1 << 20;

/// How many bytes of a response are worth one window update.
const BYTES_PER_UPDATE: u64 = 1 << 10;

/// How many control frames come with a request, for free: priorities, its window, its end.
const CONTROL_PER_REQUEST: u32 = 8;

/// What a session and its connection know of each other. They are the same task.
#[derive(Debug, Default)]
pub(super) struct WireState {
    /// The client has sent more frames than allowed that are good for nothing: nothing more is read.
    flooded: AtomicBool,
    /// What was read in this turn, by its cost.
    turn: AtomicUsize,
    /// Bytes that the client's side was sent.
    written: AtomicU64,
}

impl WireState {
    /// The session's task begins another turn.
    pub(super) fn begin_turn(&self) {
        self.turn.store(0, Ordering::Relaxed);
    }

    /// Whether the client has sent too many frames that are good for nothing.
    pub(super) fn is_flooded(&self) -> bool {
        self.flooded.load(Ordering::Relaxed)
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// A client connection under `h2`.
pub(super) struct Wire<S> {
    stream: S,
    state: Arc<WireState>,
    worker: Arc<Worker>,
    received: FrameScanner,
    sent: FrameScanner,
    control: Budget,
    /// The most control frames in a [`super::budget::WINDOW`].
    most_control: u32,
    /// Bytes written that have paid for no window update yet.
    unpaid: u64,
    linger: Option<Linger>,
}

/// The end of a connection.
#[derive(Debug)]
struct Linger {
    until: tokio::time::Instant,
    timer: LazyTimer,
    shut: bool,
    left: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Over a stream of which nothing has been read.
    pub(super) fn new(stream: S, worker: Arc<Worker>, most_control: u32) -> (Self, Arc<WireState>) {
        let state = Arc::new(WireState::default());
        let wire = Self {
            stream,
            state: Arc::clone(&state),
            worker,
            received: FrameScanner::of_client(),
            sent: FrameScanner::of_server(),
            control: Budget::new(Instant::now()),
            most_control,
            unpaid: 0,
            linger: None,
        };
        (wire, state)
    }

    /// Counts the frames that begin in these bytes.
    fn count(&mut self, bytes: &[u8]) {
        let (control, most, unpaid) = (&mut self.control, self.most_control, &mut self.unpaid);
        let meters = &self.worker.meters.worker(self.worker.index).http2;
        let (mut exceeded, mut frames) = (false, 0);
        self.received.scan(bytes, |kind| {
            frames += 1;
            match kind {
                FrameKind::Headers => control.earn(CONTROL_PER_REQUEST),
                FrameKind::Content => {}
                FrameKind::Reset(code) => meters.was_reset(Direction::Received, code),
                FrameKind::WindowUpdate if *unpaid >= BYTES_PER_UPDATE => *unpaid -= BYTES_PER_UPDATE,
                FrameKind::WindowUpdate | FrameKind::Control => {
                    exceeded |= control.spend(most, Instant::now).is_err();
                }
            }
        });
        self.state.turn.fetch_add(bytes.len() + frames * FRAME_COST, Ordering::Relaxed);
        if exceeded {
            self.state.flooded.store(true, Ordering::Relaxed);
        }
    }

    /// Counts what was written of these parts.
    fn wrote<'a>(
        &mut self,
        parts: impl Iterator<Item = &'a [u8]>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = result {
            self.unpaid += written as u64;
            self.state.written.fetch_add(written as u64, Ordering::Relaxed);
            let meters = &self.worker.meters.worker(self.worker.index).http2;
            let mut left = written;
            for part in parts {
                let of_part = left.min(part.len());
                left -= of_part;
                self.sent.scan(&part[..of_part], |kind| {
                    if let FrameKind::Reset(code) = kind {
                        meters.was_reset(Direction::Sent, code);
                    }
                });
            }
        }
        result
    }

    /// Reads and discards, until the client closes. Ready when there is nothing more to wait for.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let linger = self.linger.get_or_insert_with(|| Linger {
            until: tokio::time::Instant::now() + LINGER_TIME,
            timer: LazyTimer::default(),
            shut: false,
            left: LINGER_BYTES,
        });
        if !linger.shut {
            match Pin::new(&mut self.stream).poll_shutdown(cx) {
                Poll::Ready(Ok(())) => linger.shut = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        let mut turn = TURN_BYTES;
        let mut waste = [0; 8 << 10];
        loop {
            let mut waste = ReadBuf::new(&mut waste);
            match Pin::new(&mut self.stream).poll_read(cx, &mut waste) {
                Poll::Ready(Ok(())) if waste.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {
                    let read = waste.filled().len();
                    linger.left = linger.left.saturating_sub(read);
                    turn = turn.saturating_sub(read);
                }
                Poll::Pending => break,
            }
            if linger.left == 0 {
                return Poll::Ready(Ok(()));
            }
            if turn == 0 {
                give_way(cx);
                break;
            }
        }
        if linger.timer.poll_expired(cx, linger.until) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.state.is_flooded() {
            return Poll::Pending;
        }
        if self.state.turn.load(Ordering::Relaxed) >= TURN_BYTES {
            give_way(cx);
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = &buf.filled()[before..];
        self.count(read);
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(std::iter::once(buf), result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.wrote(parts.iter().map(|part| &**part), result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes the sending side, and reads on until the client closes its own.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_linger(cx)
    }
}
