//! The connection under `h2`: counts what the client sends, takes turns with the other tasks of its thread, and ends in
//! good order.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::budget::Budget;
use super::frames::{FrameKind, FrameScanner};
use super::gather::Gather;
use crate::front::lazy_timer::LazyTimer;
use crate::front::pump::give_way;
use crate::front::worker::Worker;
use crate::observe::http2::Direction;

/// How much is read before other tasks on this thread get their turn, as for HTTP/1: otherwise a client that sends a lot
/// of small frames would delay them all.
const TURN_BYTES: usize = 64 << 10;

/// How much of that a frame costs in addition to its bytes: handling it takes about as long as copying so much.
const FRAME_COST: usize = 1 << 10;

/// The same of a frame that may begin a request.
const REQUEST_COST: usize = 3 << 10;

/// After the last frame was sent, how long to read on and discard what arrives: a socket that is closed with unread input
/// is reset, and the client would lose what was sent, such as the reason for the end (RFC 9113 §6.8).
const LINGER_TIME: Duration = Duration::from_secs(1);

/// How much is discarded at most.
const LINGER_BYTES: usize = 1 << 20;

/// How many bytes of a response are worth one window update.
const BYTES_PER_UPDATE: u64 = 1 << 10;

/// How many control frames come with a request, for free: priorities, its window, its end.
const CONTROL_PER_REQUEST: u32 = 8;

/// `REFUSED_STREAM` (RFC 9113 §7): there are as many streams as the client may open.
const REFUSED: u32 = 7;

/// What a session and its connection know of each other. They are the same task.
#[derive(Debug, Default)]
pub(super) struct WireState {
    /// The client has sent more frames than allowed that are good for nothing: nothing more is read.
    flooded: AtomicBool,
    /// What was read in this turn, by its cost.
    turn: AtomicUsize,
    /// Bytes that the client's side was sent.
    written: AtomicU64,
    /// Something that was written waits for a flush.
    holds: AtomicBool,
    /// There was nothing more to read, and `input` is woken when there is. On its own, since `input` refers to it.
    silent: Arc<AtomicBool>,
    /// What is woken by input, once the session is there.
    input: OnceLock<Waker>,
    /// Frames that may have completed the header list of a request, since the session has accepted all requests.
    heads: AtomicUsize,
    /// The last frame that was read isn't complete.
    in_frame: AtomicBool,
}

impl WireState {
    /// The session's task begins another turn.
    pub(super) fn begin_turn(&self) {
        self.turn.store(0, Ordering::Relaxed);
    }

    /// From now on, input wakes this. The connection is polled for many reasons; for input, it looks only if there may be
    /// some.
    pub(super) fn notify_of_input(&self, connection: Waker) {
        let silent = Arc::clone(&self.silent);
        let _ = self.input.set(Arc::new(OfInput { silent, connection }).into());
        self.may_have_input();
    }

    /// The connection looks for input when it is polled again.
    pub(super) fn may_have_input(&self) {
        self.silent.store(false, Ordering::SeqCst);
    }

    /// The session has accepted a request. Returns whether there may be another.
    pub(super) fn accepted_one(&self) -> bool {
        let heads = self.heads.load(Ordering::Relaxed).saturating_sub(1);
        self.heads.store(heads, Ordering::Relaxed);
        heads > 0
    }

    /// There was no request to accept.
    pub(super) fn accepted_all(&self) {
        // Otherwise, not all that was read was looked at.
        if self.silent.load(Ordering::Relaxed) {
            let rest = self.in_frame.load(Ordering::Relaxed);
            self.heads.store(rest.into(), Ordering::Relaxed);
        }
    }

    /// Whether the client has sent too many frames that are good for nothing.
    pub(super) fn is_flooded(&self) -> bool {
        self.flooded.load(Ordering::Relaxed)
    }

    /// Whether something that was written waits for a flush, which comes when the connection is polled again. Never while
    /// the socket takes nothing.
    pub(super) fn holds(&self) -> bool {
        self.holds.load(Ordering::Relaxed)
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// Woken by input.
struct OfInput {
    silent: Arc<AtomicBool>,
    connection: Waker,
}

impl Wake for OfInput {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.silent.store(false, Ordering::SeqCst);
        self.connection.wake_by_ref();
    }
}

/// A client connection under `h2`.
pub(super) struct Wire<S> {
    stream: Gather<S>,
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
            stream: Gather::new(stream),
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
        let (mut exceeded, mut cost, mut heads) = (false, bytes.len(), 0);
        self.received.scan(bytes, |kind| {
            cost += if kind == FrameKind::Headers { REQUEST_COST } else { FRAME_COST };
            // A CONTINUATION frame is a control frame.
            heads += usize::from(matches!(kind, FrameKind::Headers | FrameKind::Control));
            match kind {
                FrameKind::Headers => control.earn(CONTROL_PER_REQUEST),
                FrameKind::Content => {}
                FrameKind::Reset(code) => meters.was_reset(Direction::Received, code),
                FrameKind::WindowUpdate if *unpaid >= BYTES_PER_UPDATE => *unpaid -= BYTES_PER_UPDATE,
                FrameKind::WindowUpdate | FrameKind::Control => {
                    exceeded |= control.spend(1, most, Instant::now).is_err();
                }
            }
        });
        self.state.heads.fetch_add(heads, Ordering::Relaxed);
        self.state.in_frame.store(self.received.is_in_frame(), Ordering::Relaxed);
        self.state.turn.fetch_add(cost, Ordering::Relaxed);
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
        if result.is_pending() {
            // The socket takes no more: it wakes the task.
            self.state.holds.store(false, Ordering::Relaxed);
        }
        if let Poll::Ready(Ok(written)) = result {
            self.unpaid += written as u64;
            self.state.written.fetch_add(written as u64, Ordering::Relaxed);
            let meters = &self.worker.meters.worker(self.worker.index).http2;
            let (control, most) = (&mut self.control, self.most_control);
            let (mut left, mut exceeded) = (written, false);
            for part in parts {
                let of_part = left.min(part.len());
                left -= of_part;
                self.sent.scan(&part[..of_part], |kind| {
                    if let FrameKind::Reset(code) = kind {
                        meters.was_reset(Direction::Sent, code);
                        // A request that is refused isn't worth more than a control frame, and earns none.
                        let cost = if code == REFUSED { 1 + CONTROL_PER_REQUEST } else { 0 };
                        exceeded |= cost > 0 && control.spend(cost, most, Instant::now).is_err();
                    }
                });
            }
            if exceeded {
                self.state.flooded.store(true, Ordering::Relaxed);
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
        // What is held leaves before the end.
        self.state.holds.store(false, Ordering::Relaxed);
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
        if self.state.is_flooded() || self.state.silent.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        if self.state.turn.load(Ordering::Relaxed) >= TURN_BYTES {
            give_way(cx);
            return Poll::Pending;
        }
        let this = &mut *self;
        let before = buf.filled().len();
        let result = match this.state.input.get() {
            Some(input) => {
                // Before it looks: input that arrives meanwhile takes it back.
                this.state.silent.store(true, Ordering::SeqCst);
                Pin::new(&mut this.stream).poll_read(&mut Context::from_waker(input), buf)
            }
            None => Pin::new(&mut this.stream).poll_read(cx, buf),
        };
        if result.is_ready() {
            this.state.may_have_input();
            this.count(&buf.filled()[before..]);
        }
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
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.state.holds.store(self.stream.holds() && !result.is_pending(), Ordering::Relaxed);
        result
    }

    /// Closes the sending side, and reads on until the client closes its own.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_linger(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_gone_leaves_nothing_behind() {
        let state = Arc::new(WireState::default());
        state.notify_of_input(Waker::noop().clone());
        let gone = Arc::downgrade(&state);
        drop(state);
        assert!(gone.upgrade().is_none(), "what is woken by input keeps the state");
    }

    #[test]
    fn input_takes_back_that_there_is_none() {
        let state = WireState::default();
        state.notify_of_input(Waker::noop().clone());
        state.silent.store(true, Ordering::SeqCst);
        state.input.get().unwrap().wake_by_ref();
        assert!(!state.silent.load(Ordering::SeqCst));
    }
}
