//! Both directions of an exchange at once, on one task: the request is sent while the response arrives, so early
//! answers, `100 Continue`, echoing backends and tunnels need nothing special.
//!
//! One clock serves all timeouts: the time since a byte last moved, compared with the limit of the side that is
//! awaited.

mod deadlines;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pingora::protocols::Stream;
use tokio::io::AsyncWrite as _;
use tokio::time::Instant;

use super::Lease;
use super::broadcast::{StopStage, Subscription};
use super::client::{ClientLink, Watched};
use super::lazy_timer::LazyTimer;
use super::pace::Pace;
use super::pump::ends::PumpSource as _;
use super::pump::{Pump, PumpError, Waiting};
use super::websocket;
use crate::observe::termination::Termination;
use uh_http1::body::Framing;
use uh_http1::buffer::Buffer;
use uh_http1::field::HeadScanner;
use uh_http1::response::{self, Coding, Recipient, ResponseHead};

/// The most interim responses to one request: no app sends more than a few, and each is kept until it is written.
const MAX_INTERIM: u32 = 64;

/// How long to wait for the backend's `100 Continue` before uh-proxy sends its own: many apps ignore the expectation,
/// and clients wait for a second before they send their body anyway. Long enough for a rejection to arrive first.
const CONTINUE_AFTER: Duration = Duration::from_millis(300);

/// After a complete response, how long the backend may go without accepting any of the rest of the request.
const REST_OF_REQUEST: Duration = Duration::from_secs(2);

/// Why an exchange with a backend failed.
#[derive(Debug)]
pub enum ExchangeFailure {
    /// The client left, or its body is broken or too large, or it is too slow.
    Client(Termination),
    /// The connection ended before the response head was complete.
    UpstreamClosed {
        /// Whether the response had begun.
        begun: bool,
    },
    /// The response is invalid.
    UpstreamProtocol(&'static str),
    /// The connection ended after the response head, before its end.
    UpstreamBroke,
    /// The backend timed out.
    UpstreamTimeout,
    /// Cut by a drain or at shutdown.
    Cut(Termination),
}

/// What happens to a request that isn't complete when its response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestOfRequest {
    /// The backend keeps reading, since it keeps its connection.
    Wanted,
    /// The backend closes.
    Unwanted,
}

/// The protocol in a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// WebSocket frames: a close frame can be inserted between them.
    WebSocket,
    /// Anything else: opaque bytes.
    Other,
}

/// What the relay needs from its connection.
pub struct RelayContext<'a, L> {
    /// The client.
    pub client: &'a mut L,
    /// The backend.
    pub upstream: &'a mut Stream,
    /// The exchange's lease on its activation.
    pub lease: &'a Lease,
    /// Notified when the process stops or a drain cuts.
    pub subscription: &'a mut Subscription,
    /// The connection's timer.
    pub timer: &'a mut LazyTimer,
}

/// What an exchange has from its connection before it is connected to a backend.
pub struct Unconnected<'a, L> {
    /// The client.
    pub client: &'a mut L,
    /// The exchange's lease on its activation.
    pub lease: &'a Lease,
    /// Notified when the process stops or a drain cuts.
    pub subscription: &'a mut Subscription,
    /// The connection's timer.
    pub timer: &'a mut LazyTimer,
}

/// A tunnel that is being closed: its current frames have a moment to finish.
#[derive(Debug, Clone, Copy)]
struct Leaving {
    why: Termination,
    until: Instant,
}

/// The two directions of an exchange, and the progress of each.
#[derive(Debug)]
pub struct Relay {
    /// Client to backend.
    pub up: Pump,
    /// Backend to client.
    pub down: Pump,
    up_done: bool,
    /// The backend accepts no more of the request; its response may still arrive.
    up_broken: bool,
    /// When the client closed its sending side, if it has; it may still read.
    ended: Option<Instant>,
    /// It did so before the backend's response arrived.
    ended_first: bool,
    /// Everything it sent before has been read.
    end_read: bool,
    /// When the client was last checked without reading from it.
    looked: Option<Instant>,
    /// The final response head has arrived.
    answered: bool,
    /// Bytes sent to the client before that head: interim responses.
    before_answer: u64,
    /// When the last part of the request was sent. From then on only the backend is awaited.
    asked: Option<Instant>,
    /// The exchange was counted as overdue.
    overdue: bool,
    /// The client has received `100 Continue` from uh-proxy or the backend. It gets no other.
    continued: bool,
    tunnel: bool,
    /// The tunnel's position in the spread when its backend's tunnels are closed, from 0 to 1.
    share: f32,
    /// The tunnel is being closed.
    leaving: Option<Leaving>,
    /// The backend was notified that the client has closed its side of the tunnel.
    upstream_told: bool,
    last_move: Instant,
    moved: u64,
    /// How fast the client sends.
    up_pace: Pace,
    /// How fast it reads.
    down_pace: Pace,
    /// What the client had acknowledged at the last check.
    taken: u64,
}

impl Relay {
    /// At the start of an exchange.
    #[must_use]
    pub fn new(up: Pump, down: Pump, now: Instant) -> Self {
        Self {
            up,
            down,
            up_done: false,
            up_broken: false,
            ended: None,
            ended_first: false,
            end_read: false,
            looked: None,
            answered: false,
            before_answer: 0,
            asked: None,
            overdue: false,
            continued: false,
            tunnel: false,
            share: 0.0,
            leaving: None,
            upstream_told: false,
            last_move: now,
            moved: 0,
            up_pace: Pace::default(),
            down_pace: Pace::default(),
            taken: 0,
        }
    }

    /// Whether the whole request was sent.
    #[must_use]
    pub fn request_done(&self) -> bool {
        self.up_done
    }

    /// Whether the backend refused part of the request.
    #[must_use]
    pub fn request_broken(&self) -> bool {
        self.up_broken
    }

    /// When a byte last moved; at first, the start time.
    #[must_use]
    pub fn last_move(&self) -> Instant {
        self.last_move
    }

    /// Whether the client has closed its sending side.
    #[must_use]
    pub fn client_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Whether it did so before the backend's response arrived.
    #[must_use]
    pub fn client_ended_first(&self) -> bool {
        self.ended_first
    }

    /// The client has closed its sending side.
    pub fn note_client_ended(&mut self, when: Instant) {
        if self.ended.is_none() {
            self.ended = Some(when);
            self.ended_first = !self.answered;
        }
    }

    /// Whether the client has received only complete interim responses so far, so that any final response may follow.
    #[must_use]
    pub fn is_untold(&self) -> bool {
        self.down.sent() == self.before_answer
    }

    /// Whether the client has begun to close: what the backend does then may be its reaction.
    #[must_use]
    pub fn client_leaves(&self) -> bool {
        self.client_ended() || self.tunnel && self.up_done
    }

    /// Resets for an attempt on another connection. Only allowed while none of the body has been sent.
    pub fn rewind(&mut self) {
        self.up.rewind();
        self.up_done = false;
        self.up_broken = false;
        self.asked = None;
        self.up_pace = Pace::default();
        self.last_move = Instant::now();
        self.moved = self.down.sent();
    }

    /// Sends the request, and reads the response head into `spare`; interim responses are passed on. The head for the
    /// client is appended to the response pump; the rest of `spare` is the start of the body.
    ///
    /// # Errors
    /// See [`ExchangeFailure`].
    pub async fn await_response<L: ClientLink>(
        &mut self,
        around: &mut RelayContext<'_, L>,
        to: Recipient<'_>,
        spare: &mut Option<Buffer>,
    ) -> Result<ResponseHead, ExchangeFailure> {
        let mut scanner = HeadScanner::of_response();
        let must_read_body = to.request.expects_continue;
        let mut interim = 0;
        poll_fn(|cx| {
            around.subscription.poll(cx);
            loop {
                self.poll_request(cx, around)?;
                // A client that still waits for "100 Continue" when the final response arrives may or may not send its
                // body: it's unknown where its next request begins, so the connection is closed after this one.
                let unread = must_read_body && self.up.body_sent() == 0;
                let running = around.subscription.stage() == StopStage::Running;
                // A request sent before the client closed its side is still answered.
                let over = self.client_ended() && self.up.surplus().is_none();
                let keep_alive = to.keep_alive && !unread && !over && running;
                let to = Recipient { keep_alive, ..to };
                if let Some(head) = self.scan_head(&mut scanner, to, spare)? {
                    if !head.is_interim() {
                        self.answered = true;
                        return Poll::Ready(Ok(head));
                    }
                    interim += 1;
                    if interim > MAX_INTERIM {
                        return Poll::Ready(Err(ExchangeFailure::UpstreamProtocol(
                            "too many interim responses",
                        )));
                    }
                    scanner = HeadScanner::of_response();
                    continue;
                }
                let _flushed = self.poll_down(cx, around)?;
                match around.upstream.poll_fill(cx, spare) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(closed(spare, interim))),
                    Poll::Ready(Ok(_)) => self.last_move = Instant::now(),
                    Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::FileTooLarge => {
                        return Poll::Ready(Err(ExchangeFailure::UpstreamProtocol(
                            "the response head is too large",
                        )));
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(closed(spare, interim))),
                    Poll::Pending => {
                        if must_read_body && self.continue_is_due(cx, around.timer) {
                            continue;
                        }
                        self.check(cx, around)?;
                        return Poll::Pending;
                    }
                }
            }
        })
        .await
    }

    /// Relays both bodies until the response is complete; then, if the backend still accepts it, the rest of the
    /// request. In a tunnel: until the backend closes, or its time to do so after the client's close is over.
    ///
    /// # Errors
    /// See [`ExchangeFailure`].
    pub async fn bodies<L: ClientLink>(
        &mut self,
        around: &mut RelayContext<'_, L>,
        rest: RestOfRequest,
    ) -> Result<(), ExchangeFailure> {
        poll_fn(|cx| {
            around.subscription.poll(cx);
            self.poll_request(cx, around)?;
            if self.tunnel && self.up_done && !self.upstream_told {
                // The client has closed its side of the tunnel: notify the backend, which may still send its last data.
                self.upstream_told = Pin::new(&mut *around.upstream).poll_shutdown(cx).is_ready();
            }
            let down = self.poll_down(cx, around)?;
            let up_over = self.tunnel || self.up_done || self.up_broken || rest == RestOfRequest::Unwanted;
            if down.is_ready() && up_over {
                return Poll::Ready(
                    self.leaving.map_or(Ok(()), |leaving| Err(ExchangeFailure::Cut(leaving.why))),
                );
            }
            // A backend that keeps its connection should keep reading after an early response. If it doesn't, the
            // client must still get the response, which it may read only after its upload.
            let stuck = down.is_ready() && self.up.waiting() == Waiting::Sink;
            if stuck && around.timer.poll_expired(cx, self.last_move + REST_OF_REQUEST) {
                return Poll::Ready(Ok(()));
            }
            let stayed = self.leaving.is_none();
            self.check(cx, around)?;
            if stayed && self.leaving.is_some() {
                // Check again immediately: it may already be between two frames.
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await
    }

    /// From now on the connection is a tunnel; `from_client` is what the client has already sent into it.
    pub fn becomes_tunnel(&mut self, protocol: Protocol) {
        let early = self.up.surplus().take();
        self.up.begin_body(Framing::UntilClose, Coding::AsItIs, early);
        self.up_done = false;
        self.tunnel = true;
        self.share = fastrand::f32();
        self.up.limit_body(None);
        if protocol == Protocol::WebSocket {
            self.down.follow_frames();
        }
    }

    /// The close frame for a client whose tunnel is being closed, if one can still be sent.
    #[must_use]
    pub fn last_words(&self) -> Option<&'static [u8]> {
        (self.leaving.is_some() && self.down.may_add_frame()).then_some(websocket::GOING_AWAY)
    }

    /// Moves the request. Once it is done, checks whether the client is still there.
    fn poll_request<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        around: &mut RelayContext<'_, L>,
    ) -> Result<(), ExchangeFailure> {
        if self.up_broken {
            return Ok(());
        }
        if self.up_done {
            return self.watch_client(cx, around);
        }
        let polled = self.up.poll(cx, around.client, around.upstream);
        self.note_moves();
        match polled {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(())) if self.tunnel => {
                self.up_done = true;
                // The backend's time for its last data starts now, however long the tunnel was quiet before.
                self.last_move = Instant::now();
                Ok(())
            }
            Poll::Ready(Ok(())) => {
                self.up_done = true;
                self.asked = Some(self.last_move);
                // In the same poll, or nothing would wake this task when the client leaves.
                self.watch_client(cx, around)
            }
            Poll::Ready(Err(PumpError::Write(_))) => {
                // The backend may have answered and closed without reading the rest: its response decides.
                self.up_broken = true;
                self.asked = Some(self.last_move);
                Ok(())
            }
            Poll::Ready(Err(PumpError::BadBody)) => Err(ExchangeFailure::Client(Termination::BadRequest)),
            Poll::Ready(Err(PumpError::TooLarge)) => Err(ExchangeFailure::Client(Termination::TooLarge)),
            Poll::Ready(Err(PumpError::Read(_) | PumpError::Truncated)) => {
                Err(ExchangeFailure::Client(Termination::ClientGone))
            }
        }
    }

    /// Checks whether the client is still there, and makes sure that this task is woken when it leaves.
    fn watch_client<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        around: &mut RelayContext<'_, L>,
    ) -> Result<(), ExchangeFailure> {
        if self.end_read {
            return Ok(());
        }
        match around.client.watch(cx, self.up.surplus()) {
            Watched::Here => Ok(()),
            Watched::Ended => {
                self.end_read = true;
                self.note_client_ended(Instant::now());
                Ok(())
            }
            Watched::Gone => Err(ExchangeFailure::Client(Termination::ClientGone)),
        }
    }

    /// Moves the response as far as it has arrived.
    fn poll_down<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        around: &mut RelayContext<'_, L>,
    ) -> Result<Poll<()>, ExchangeFailure> {
        let polled = self.down.poll(cx, around.upstream, around.client);
        self.note_moves();
        match polled {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Ok(())) => Ok(Poll::Ready(())),
            Poll::Ready(Err(PumpError::Write(_))) => Err(ExchangeFailure::Client(Termination::ClientGone)),
            Poll::Ready(Err(PumpError::BadBody)) => {
                Err(ExchangeFailure::UpstreamProtocol("malformed chunks in the response body"))
            }
            Poll::Ready(Err(_)) => Err(ExchangeFailure::UpstreamBroke),
        }
    }

    /// Sends `100 Continue` to a client that waits for it, if the backend doesn't.
    fn continue_is_due(&mut self, cx: &mut Context<'_>, timer: &mut LazyTimer) -> bool {
        if self.continued || self.up.body_sent() > 0 || self.up.sent() == 0 {
            return false;
        }
        let due = timer.poll_expired(cx, self.last_move + CONTINUE_AFTER);
        if due {
            self.continued = true;
            self.down.head().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        due
    }

    fn note_moves(&mut self) {
        let moved = self.up.sent() + self.down.sent();
        if moved != self.moved {
            self.moved = moved;
            self.last_move = Instant::now();
        }
    }

    fn scan_head(
        &mut self,
        scanner: &mut HeadScanner,
        to: Recipient<'_>,
        spare: &mut Option<Buffer>,
    ) -> Result<Option<ResponseHead>, ExchangeFailure> {
        let Some(buffer) = spare else { return Ok(None) };
        let bare =
            |_| ExchangeFailure::UpstreamProtocol("a line of the response head ends in a bare line feed");
        let Some(range) = scanner.scan(buffer.filled()).map_err(bare)? else { return Ok(None) };
        let end = range.end;
        let before = self.down.head().len();
        self.before_answer = self.down.sent_with_head();
        let head = response::translate(&buffer.filled()[range], to, self.down.head());
        let head = head.map_err(|e| ExchangeFailure::UpstreamProtocol(e.0))?;
        if head.status == 100 && std::mem::replace(&mut self.continued, true) {
            self.down.head().truncate(before);
        }
        buffer.consume(end);
        if buffer.is_empty() {
            *spare = None;
        }
        Ok(Some(head))
    }
}

/// The backend has closed. After an interim response it must have received the request.
fn closed(spare: &Option<Buffer>, interim: u32) -> ExchangeFailure {
    ExchangeFailure::UpstreamClosed { begun: spare.is_some() || interim > 0 }
}
