//! Both directions of an exchange at once, on one task: the request is sent while the response arrives, so early
//! answers, `100 Continue` and echoing backends need nothing special. A response that opens a tunnel turns the
//! [`Relay`] into a [`Tunnel`].
//!
//! One clock serves all timeouts: the time since a byte last moved, compared with the limit of the side that is
//! awaited.

mod again;
mod deadlines;
mod file;
mod response;
mod tunnel;

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use pingora::protocols::Stream;
use tokio::time::Instant;

use super::Lease;
use super::broadcast::Subscription;
use super::client::{ClientLink, Watched};
use super::lazy_timer::LazyTimer;
use super::pace::Pace;
use super::pump::{Pump, PumpError, Waiting};
use super::request_buffer::{BufferedBody, Replay};
use super::split::NewCookie;
use super::trial::TrialPart;
use crate::config::PathSettings;
use crate::observe::termination::Termination;
pub(crate) use tunnel::{ClosedByApp, Protocol, Tunnel};

/// After a complete response, how long the backend may go without accepting any of the rest of the request.
const REST_OF_REQUEST: Duration = Duration::from_secs(2);

/// Why an exchange with a backend failed.
#[derive(Debug)]
pub(crate) enum ExchangeFailure {
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
    /// A buffered request can't be written to the disk in time, or can't be read again.
    Storage,
    /// Cut by a drain or at shutdown.
    Cut(Termination),
}

impl ExchangeFailure {
    /// Why no more of a response could be moved.
    fn of_response(error: &PumpError) -> Self {
        match error {
            PumpError::Write => Self::Client(Termination::ClientGone),
            PumpError::BadBody => Self::UpstreamProtocol("malformed chunks in the response body"),
            PumpError::Read | PumpError::Truncated | PumpError::TooLarge => Self::UpstreamBroke,
        }
    }
}

/// What happens to a request that isn't complete when its response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestOfRequest {
    /// The backend keeps reading, since it keeps its connection.
    Wanted,
    /// The backend closes.
    Unwanted,
}

/// What the relay needs from its client.
pub(crate) struct RelayContext<'a, L> {
    /// Carries the bytes of the client.
    pub client: &'a mut L,
    /// The backend.
    pub upstream: &'a mut Stream,
    /// The exchange's lease on its activation.
    pub lease: &'a Lease,
    /// The settings of the exchange.
    pub settings: &'a PathSettings,
    /// The cookie that the client may get with the response.
    pub cookie: Option<NewCookie<'a>>,
    /// The exchange's part in a trial.
    pub trial: TrialPart<'a>,
    /// Notified when the process stops or a drain cuts.
    pub subscription: &'a mut Subscription,
    /// The client's timer.
    pub timer: &'a mut LazyTimer,
}

/// What an exchange has from its client without a connection to a backend: it has none yet, or doesn't need one.
pub(crate) struct Unconnected<'a, L> {
    /// Carries the bytes of the client.
    pub client: &'a mut L,
    /// The exchange's lease on its activation.
    pub lease: &'a Lease,
    /// The settings of the exchange.
    pub settings: &'a PathSettings,
    /// The exchange's part in a trial.
    pub trial: TrialPart<'a>,
    /// Notified when the process stops or a drain cuts.
    pub subscription: &'a mut Subscription,
    /// The client's timer.
    pub timer: &'a mut LazyTimer,
}

impl<L> RelayContext<'_, L> {
    /// The same without the backend.
    fn caller(&mut self) -> Unconnected<'_, L> {
        Unconnected {
            client: self.client,
            lease: self.lease,
            settings: self.settings,
            trial: self.trial.lend(),
            subscription: self.subscription,
            timer: self.timer,
        }
    }
}

/// How far the request is.
#[derive(Debug, Clone, Copy)]
enum Progress {
    /// Some of it is still to be read or sent.
    Sending,
    /// All of it was sent. From then on only the backend is awaited.
    Sent(Instant),
    /// The backend accepts no more of it since then; its response may still arrive.
    Refused(Instant),
}

/// The final response head has not arrived yet.
#[derive(Debug, Clone, Copy, Default)]
struct Awaiting {
    /// The exchange was counted as overdue.
    overdue: bool,
    /// The client has received `100 Continue` from uh-proxy or the backend. It gets no other.
    continued: bool,
}

/// The client has closed its sending side; it may still read.
#[derive(Debug, Clone, Copy)]
struct ClientEnd {
    at: Instant,
    /// It did so before the backend's response arrived.
    unanswered: bool,
}

/// What has been found out in the current poll of the task, and need not be found out again before it waits.
#[derive(Debug, Default)]
struct ThisPoll {
    /// The time.
    now: Option<Instant>,
    /// The client is there, and wakes this task when that changes.
    client_watched: bool,
    /// The backend has sent nothing, and wakes this task when it does.
    upstream_quiet: bool,
}

/// The two directions of an exchange, and the progress of each.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Client to backend.
    pub up: Pump,
    /// Backend to client.
    pub down: Pump,
    /// What the request's body is read from first, if it is buffered.
    buffered: Option<Box<BufferedBody>>,
    request: Progress,
    /// `None` once the final response head has arrived.
    awaiting: Option<Awaiting>,
    ended: Option<ClientEnd>,
    /// Everything that the client sent before it ended has been read.
    end_read: bool,
    /// When the client was last checked without reading from it.
    looked: Option<Instant>,
    /// The request was begun once more, at another backend.
    asked_again: bool,
    /// Bytes sent to the client before the final response head: interim responses.
    before_answer: u64,
    last_move: Instant,
    this_poll: ThisPoll,
    moved: u64,
    /// How fast the client sends.
    up_pace: Pace,
    /// How fast it reads.
    down_pace: Pace,
    /// What the client had acknowledged at the last check.
    taken: u64,
}

impl Relay {
    /// At the start of an exchange, which is now.
    #[must_use]
    pub(crate) fn new(up: Pump, down: Pump, now: Instant) -> Self {
        Self {
            up,
            down,
            buffered: None,
            request: Progress::Sending,
            awaiting: Some(Awaiting::default()),
            ended: None,
            end_read: false,
            looked: None,
            asked_again: false,
            before_answer: 0,
            last_move: now,
            this_poll: ThisPoll { now: Some(now), ..ThisPoll::default() },
            moved: 0,
            up_pace: Pace::default(),
            down_pace: Pace::default(),
            taken: 0,
        }
    }

    /// The request's body is buffered, wholly or in part.
    pub(crate) fn buffer(&mut self, body: Box<BufferedBody>) {
        self.buffered = Some(body);
    }

    /// The exchange is over, or none of the request is needed any more: whether all of it was read from the client. Then
    /// what was read past it is the pump's surplus.
    pub(crate) fn end_request(&mut self) -> bool {
        let done = self.request_done();
        let Some(mut body) = self.buffered.take().filter(|body| body.is_complete()) else { return done };
        if !done {
            *self.up.surplus() = body.take_surplus();
        }
        true
    }

    /// Whether the whole request was sent.
    #[must_use]
    pub(crate) fn request_done(&self) -> bool {
        matches!(self.request, Progress::Sent(_))
    }

    /// When a byte last moved; at first, the start time.
    #[must_use]
    pub(crate) fn last_move(&self) -> Instant {
        self.last_move
    }

    /// The time, read once in each poll of the task: what moves in one of them moves at the same time.
    fn now(&mut self) -> Instant {
        *self.this_poll.now.get_or_insert_with(Instant::now)
    }

    /// The backend's connection has nothing to read, and wakes this task when it has.
    pub(crate) fn upstream_is_quiet(&mut self) {
        self.this_poll.upstream_quiet = true;
    }

    /// The task waits: from now on, anything may have changed. Must be called whenever it does.
    pub(crate) fn waits(&mut self) {
        self.this_poll = ThisPoll::default();
    }

    /// Whether the client has closed its sending side.
    #[must_use]
    pub(crate) fn client_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Whether it did so before the backend's response arrived.
    #[must_use]
    pub(crate) fn client_ended_first(&self) -> bool {
        self.ended.is_some_and(|end| end.unanswered)
    }

    /// The client has closed its sending side.
    fn note_client_ended(&mut self, at: Instant) {
        let unanswered = self.awaiting.is_some();
        self.ended.get_or_insert(ClientEnd { at, unanswered });
    }

    /// Whether the client has received only complete interim responses so far, so that any final response may follow.
    #[must_use]
    pub(crate) fn is_untold(&self) -> bool {
        self.down.sent() == self.before_answer
    }

    /// Resets for an attempt on another connection. Only allowed while none of the body has been sent.
    pub(crate) fn rewind(&mut self) {
        self.up.rewind();
        self.begin_attempt();
    }

    /// The request is sent from its beginning.
    fn begin_attempt(&mut self) {
        self.request = Progress::Sending;
        self.up_pace = Pace::default();
        self.last_move = self.now();
        self.moved = self.down.sent();
    }

    /// Relays both bodies until the response is complete; then, if the backend still accepts it, the rest of the
    /// request.
    ///
    /// # Errors
    /// See [`ExchangeFailure`].
    pub(crate) async fn bodies<L: ClientLink>(
        &mut self,
        around: &mut RelayContext<'_, L>,
        rest: RestOfRequest,
    ) -> Result<(), ExchangeFailure> {
        poll_fn(|cx| {
            around.subscription.poll(cx);
            self.poll_request(cx, around)?;
            if self.poll_down(cx, around)?.is_ready() {
                let over = rest == RestOfRequest::Unwanted || !matches!(self.request, Progress::Sending);
                if over || self.is_stuck(cx, around.timer) {
                    return Poll::Ready(Ok(()));
                }
            }
            self.check(cx, &mut around.caller())?;
            self.waits();
            Poll::Pending
        })
        .await
    }

    /// Whether the backend accepts none of the rest of a request, although it has answered. A backend that keeps its
    /// connection should keep reading. If it doesn't, the client must still get the response, which it may read only
    /// after its upload.
    fn is_stuck(&mut self, cx: &mut Context<'_>, timer: &mut LazyTimer) -> bool {
        self.up.waiting() == Waiting::Sink && timer.poll_expired(cx, self.last_move + REST_OF_REQUEST)
    }

    /// Moves the request. Once it is done, checks whether the client is still there.
    fn poll_request<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        around: &mut RelayContext<'_, L>,
    ) -> Result<(), ExchangeFailure> {
        match self.request {
            Progress::Refused(_) => return Ok(()),
            Progress::Sent(_) => return self.watch_client(cx, around.client),
            Progress::Sending => {}
        }
        let polled = match &mut self.buffered {
            None => self.up.poll(cx, around.client, around.upstream),
            Some(body) => self.up.poll(cx, &mut Replay { body, client: around.client }, around.upstream),
        };
        self.note_moves();
        match polled {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(())) => {
                if let Some(body) = &mut self.buffered
                    && body.is_complete()
                {
                    *self.up.surplus() = body.take_surplus();
                }
                self.request = Progress::Sent(self.last_move);
                // In the same poll, or nothing would wake this task when the client leaves.
                self.watch_client(cx, around.client)
            }
            Poll::Ready(Err(PumpError::Write)) => {
                // The backend may have answered and closed without reading the rest: its response decides.
                self.request = Progress::Refused(self.last_move);
                Ok(())
            }
            Poll::Ready(Err(PumpError::BadBody)) => Err(ExchangeFailure::Client(Termination::BadRequest)),
            Poll::Ready(Err(PumpError::TooLarge)) => Err(ExchangeFailure::Client(Termination::TooLarge)),
            Poll::Ready(Err(PumpError::Read | PumpError::Truncated))
                if self.buffered.as_ref().is_some_and(|body| body.is_broken()) =>
            {
                Err(ExchangeFailure::Storage)
            }
            Poll::Ready(Err(PumpError::Read | PumpError::Truncated)) => {
                Err(ExchangeFailure::Client(Termination::ClientGone))
            }
        }
    }

    /// Checks whether the client is still there, and makes sure that this task is woken when it leaves.
    fn watch_client<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut L,
    ) -> Result<(), ExchangeFailure> {
        if self.end_read || self.this_poll.client_watched {
            return Ok(());
        }
        match client.watch(cx, self.up.surplus()) {
            Watched::Here => {
                self.this_poll.client_watched = true;
                Ok(())
            }
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
            Poll::Ready(Err(error)) => Err(ExchangeFailure::of_response(&error)),
        }
    }

    fn note_moves(&mut self) {
        let moved = self.up.sent() + self.down.sent();
        if moved != self.moved {
            self.moved = moved;
            self.last_move = self.now();
        }
    }
}
