//! One HTTP/2 connection: accepts streams, and ends when it is idle, evicted, abused, or when uh-proxy stops.
//!
//! One task drives it and its streams: see [`Streams`].

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::unconstrained;
use tokio::time::Instant;

use super::budget::Budget;
use super::handshake::handshake;
use super::shared::{OpenConnection, OpenStream, SharedSession};
use super::stream::{self, Ended, NewStream, Reused, Served};
use super::streams::Streams;
use super::wakers::Wakers;
use super::wire::{Wire, WireState};
use crate::front::admission::ConnectionSlot;
use crate::front::broadcast::{StopStage, Subscription};
use crate::front::connection::{Arrival, OpenGuard};
use crate::front::lazy_timer::LazyTimer;
use crate::front::pool::millis;
use crate::front::pump::give_way;
use crate::front::settings::Settings;
use crate::observe::http2::GoAwayReason;
use crate::tls::TlsSession;

/// How many streams are polled before other tasks on this thread get their turn.
const TURN_STREAMS: usize = 32;

/// After this time, other tasks get their turn, too. Each stream may move two buffers.
const TURN_TIME: Duration = Duration::from_micros(250);

/// The clock is read after so many streams.
const TIMED_STREAMS: usize = 4;

/// How long an idle connection keeps the memory of its streams: clients often pause between two requests.
const MEMORY_KEPT: Duration = Duration::from_secs(1);

/// After a connection was ended, how long the last frames may take to be sent.
const END_TIME: Duration = Duration::from_secs(2);

/// The same when uh-proxy cuts what is in flight.
const CUT_TIME: Duration = Duration::from_millis(500);

/// Serves an HTTP/2 connection until it closes.
pub(in crate::front) async fn serve<S>(arrival: Arrival, stream: S, tls: Option<Arc<TlsSession>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let Arrival { worker, settings, ip, address, place, open } = arrival;
    let place = match place {
        Ok(place) => place,
        // An answer would take a handshake of its own.
        Err(reason) => return worker.admission.refuse(reason, &address),
    };
    let limits = &settings.limits;
    // A trusted proxy stands for all the clients behind it.
    let counted = (!settings.headers.trusts(ip)).then_some(ip);
    let limited = counted.zip(limits.requests_in_flight_per_address);
    let requests = limited.map(|(ip, most)| worker.admission.requests_of(ip, most));
    let (wire, wire_state) = Wire::new(stream, Arc::clone(&worker), limits.h2_control_frames);
    let _counted = OpenConnection::new(&worker);
    let begun = Instant::now();
    let subscription = Subscription::new(Arc::clone(&worker.broadcast));
    let deadline = begun + limits.header_timeout;
    let Some(connection) = handshake(limits, wire, &wire_state, subscription, deadline).await else { return };
    let wakers = Wakers::default();
    wire_state.notify_of_input(wakers.of_connection());
    let session = Http2Session {
        connection,
        subscription: Subscription::new(Arc::clone(&worker.broadcast)),
        wakers,
        streams: Streams::new(stream::serve),
        shared: Arc::new(SharedSession { ip, address, tls, requests, worker }),
        wire: wire_state,
        place,
        timer: LazyTimer::default(),
        cancelled: Budget::new(begun.into_std()),
        abused: false,
        accepted: 0,
        quiet_since: Some(begun),
        resting: false,
        written: 0,
        announced: false,
        ends_at: None,
        current: Arc::clone(&settings),
        settings,
        _open: open,
    };
    // It ends its turns itself. A budget that ran out between two streams would make sockets seem silent that aren't.
    unconstrained(session.run()).await;
}

/// A connection after the prefaces.
struct Http2Session<W, S, F> {
    connection: Connection<Wire<W>, Bytes>,
    wakers: Wakers,
    streams: Streams<S, F>,
    shared: Arc<SharedSession>,
    wire: Arc<WireState>,
    place: ConnectionSlot,
    subscription: Subscription,
    timer: LazyTimer,
    /// Requests that were cancelled before they were answered.
    cancelled: Budget,
    /// More were cancelled than allowed.
    abused: bool,
    /// Streams so far.
    accepted: u32,
    /// In force when the connection came: its limits.
    settings: Arc<Settings>,
    /// In force when the last stream came.
    current: Arc<Settings>,
    /// Since when no stream has been served, or the client has taken nothing of what is still to be sent; `None`: one is
    /// being served.
    quiet_since: Option<Instant>,
    /// The connection counts as idle, and may be evicted.
    resting: bool,
    /// What has been written so far.
    written: u64,
    /// A GOAWAY frame has asked the client to open no more streams.
    announced: bool,
    /// The connection was ended; by then it is closed, whatever the client does.
    ends_at: Option<Instant>,
    _open: OpenGuard,
}

impl<W, S, F> Http2Session<W, S, F>
where
    W: AsyncRead + AsyncWrite + Unpin,
    S: Fn(NewStream, Option<Reused>) -> F,
    F: Future<Output = Served>,
{
    async fn run(mut self) {
        // A broadcast is for the connection and all its streams.
        let (all, own) = (self.wakers.of_all(), self.wakers.of_connection());
        self.subscription.poll(&mut Context::from_waker(&all));
        poll_fn(|cx| self.poll(cx, &own)).await;
        let Self { connection, shared, .. } = &mut self;
        if connection.has_streams() {
            tracing::debug!(client = &*shared.address, "HTTP/2 connection closed with open streams");
        }
        self.until_streams_end().await;
    }

    /// The connection is gone: its streams notice it, and log and count their requests.
    async fn until_streams_end(self) {
        let Self { connection, mut streams, mut wakers, subscription, place, _open: open, .. } = self;
        drop((connection, place));
        streams.all_ready(&wakers);
        poll_fn(|cx| {
            if wakers.begin(cx) {
                streams.all_ready(&wakers);
            }
            for _ in 0..TURN_STREAMS {
                if streams.is_empty() {
                    return Poll::Ready(());
                }
                // What its end has woken it for doesn't matter any more.
                wakers.take_connection();
                match wakers.take_stream() {
                    Some(stream) => drop(streams.poll(stream)),
                    None if wakers.rests() => return Poll::Pending,
                    None => {}
                }
            }
            give_way(cx);
            Poll::Pending
        })
        .await;
        drop((subscription, open));
    }

    /// Ready when the connection is closed, or is to be. `own` is the connection's own waker.
    fn poll(&mut self, cx: &mut Context<'_>, own: &Waker) -> Poll<()> {
        if self.wakers.begin(cx) {
            self.wakers.connection_ready();
            self.streams.all_ready(&self.wakers);
            self.wire.may_have_input();
        }
        self.wire.begin_turn();
        let mut began = None;
        for polled in 1..=TURN_STREAMS {
            if polled % TIMED_STREAMS == 0 && is_over(&mut began) {
                break;
            }
            // Streams first: what they send leaves together.
            if let Some(stream) = self.wakers.take_stream() {
                if let Some((ended, at)) = self.streams.poll(stream) {
                    self.stream_ended(ended, at);
                }
            } else if self.wakers.take_connection() {
                if self.poll_connection(&mut Context::from_waker(own)).is_ready() {
                    return Poll::Ready(());
                }
            } else if self.wakers.rests() {
                return Poll::Pending;
            }
        }
        // However many streams are ready, what they send leaves, too.
        if self.wakers.take_connection() && self.poll_connection(&mut Context::from_waker(own)).is_ready() {
            return Poll::Ready(());
        }
        give_way(cx);
        Poll::Pending
    }

    /// Reads and writes frames. Ready when the connection is closed, or is to be.
    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.accept(request, respond);
                    // Each look for another polls the whole connection, which has been done.
                    if self.wire.accepted_one() {
                        continue;
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.note_error(&error);
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => self.wire.accepted_all(),
            }
            if self.wire.holds() {
                // What was gathered leaves when the connection is polled again.
                self.wakers.connection_ready();
            }
            match self.poll_end(cx) {
                // The frames that say so are sent when the connection is polled again.
                Poll::Ready(Next::Poll) => {}
                Poll::Ready(Next::Drop) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn accept(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        self.quiet_since = None;
        let evicted = std::mem::take(&mut self.resting) && !self.place.slot.set_busy();
        let cutting = self.subscription.stage() == StopStage::Cutting;
        if evicted || cutting || self.ends_at.is_some() {
            // Nothing was done for it: the client may send it again on another connection (RFC 9113 §8.7).
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        self.accepted = self.accepted.saturating_add(1);
        self.shared.worker.settings.refresh(&mut self.current);
        let settings = Arc::clone(&self.current);
        let open = OpenStream::new(&self.shared);
        let first = self.accepted == 1;
        self.streams.begin(NewStream { open, settings, request, respond, first }, &mut self.wakers);
    }

    /// `at`: when the last byte of a complete response was written.
    fn stream_ended(&mut self, ended: Ended, at: Option<Instant>) {
        if ended == Ended::Cancelled {
            let most = self.settings.limits.h2_cancelled_requests;
            self.abused |= self.cancelled.spend(1, most, std::time::Instant::now).is_err();
        }
        if self.abused || self.streams.is_empty() {
            // It may be time to end it, or it is idle.
            self.quiet_since = at;
            self.wakers.connection_ready();
        }
    }

    /// Whether it is time to end the connection, and how. Pending: not now.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let stage = self.subscription.stage();
        if let Some(ends_at) = self.ends_at {
            let ends_at =
                if stage == StopStage::Cutting { ends_at.min(Instant::now() + CUT_TIME) } else { ends_at };
            self.ends_at = Some(ends_at);
            return if self.timer.poll_expired(cx, ends_at) {
                Poll::Ready(Next::Drop)
            } else {
                Poll::Pending
            };
        }
        if self.wire.is_flooded() {
            return self.end(GoAwayReason::Flood);
        }
        if self.abused {
            return self.end(GoAwayReason::CancelledRequests);
        }
        if !self.announced {
            // A client that has just connected gets its answer first, as over HTTP/1: there may be nobody else to ask.
            if stage != StopStage::Running && self.accepted > 0 {
                return self.announce(GoAwayReason::Stopping);
            }
            if self.accepted >= self.settings.limits.requests_per_connection {
                return self.announce(GoAwayReason::RequestsPerConnection);
            }
        }
        if !self.streams.is_empty() {
            self.quiet_since = None;
            return Poll::Pending;
        }
        self.poll_quiet(cx, stage)
    }

    /// No stream is being served.
    fn poll_quiet(&mut self, cx: &mut Context<'_>, stage: StopStage) -> Poll<Next> {
        // A client that still takes the end of a response isn't idle.
        let unsent = self.connection.has_streams();
        let written = self.wire.written();
        let moves = std::mem::replace(&mut self.written, written) != written;
        let since = self.quiet_since.filter(|_| !(unsent && moves)).unwrap_or_else(Instant::now);
        self.quiet_since = Some(since);
        if self.accepted > 0 && !unsent && !self.resting {
            self.resting = true;
            self.place.slot.set_idle(millis(since.into_std()), cx);
        }
        if stage == StopStage::Cutting {
            return self.end(GoAwayReason::Stopping);
        }
        if self.resting && self.place.slot.is_evicted() {
            return self.end(GoAwayReason::Evicted);
        }
        let limits = &self.settings.limits;
        let wait = if self.accepted == 0 { limits.header_timeout } else { limits.idle_timeout };
        let mut deadline = since + wait;
        if let (StopStage::Stopping, Some(timetable), false) = (stage, self.subscription.timetable(), unsent)
        {
            deadline = deadline.min(timetable.idle_until);
        }
        if self.streams.hold_memory() {
            if !self.timer.poll_expired(cx, deadline.min(since + MEMORY_KEPT)) {
                return Poll::Pending;
            }
            self.streams.free_memory();
        }
        if !self.timer.poll_expired(cx, deadline) {
            return Poll::Pending;
        }
        let reason = if stage == StopStage::Running { GoAwayReason::Idle } else { GoAwayReason::Stopping };
        self.end(reason)
    }

    /// Tells the client to open no more streams. Those that are on their way are served (RFC 9113 §6.8).
    fn announce(&mut self, reason: GoAwayReason) -> Poll<Next> {
        self.announced = true;
        self.count(reason);
        self.connection.graceful_shutdown();
        Poll::Ready(Next::Poll)
    }

    /// Ends the connection.
    fn end(&mut self, reason: GoAwayReason) -> Poll<Next> {
        self.ends_at = Some(Instant::now() + END_TIME);
        if !self.announced {
            self.count(reason);
        }
        self.connection.abrupt_shutdown(reason.code());
        Poll::Ready(Next::Poll)
    }

    fn note_error(&mut self, error: &h2::Error) {
        tracing::debug!(client = &*self.shared.address, error = %uh_system::plain(error), "HTTP/2 connection failed");
        if self.ends_at.is_none() && error.is_library() && error.is_go_away() {
            let calm = error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
            self.count(if calm { GoAwayReason::Flood } else { GoAwayReason::ProtocolError });
        }
    }

    fn count(&self, reason: GoAwayReason) {
        let worker = &self.shared.worker;
        worker.meters.worker(worker.index).http2.went_away(reason);
    }
}

/// Whether a turn that began at the first call has taken long enough.
fn is_over(began: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    now.duration_since(*began.get_or_insert(now)) >= TURN_TIME
}

/// What to do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Poll it once more.
    Poll,
    /// Drop it.
    Drop,
}
