//! One HTTP/2 connection: accepts streams, and ends when it is idle, evicted, abused, or when uh-proxy stops.
//!
//! A task of its own drives it. Each stream is a task on the same thread.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::budget::Budget;
use super::shared::{OpenConnection, OpenStream, SharedSession};
use super::stream;
use super::wire::{Wire, WireState};
use crate::config::ServerLimits;
use crate::front::admission::ConnectionSlot;
use crate::front::broadcast::{StopStage, Subscription};
use crate::front::connection::{Arrival, OpenGuard};
use crate::front::lazy_timer::LazyTimer;
use crate::front::pool::millis;
use crate::observe::http2::GoAwayReason;
use crate::tls::TlsSession;

/// What a stream may have waiting to be sent, in memory of our own: enough for a round of the event loop.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Streams that `h2` resets because their client breaks the protocol, before the connection is ended.
const MOST_BROKEN_STREAMS: usize = 100;

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
    let mut subscription = Subscription::new(Arc::clone(&worker.broadcast));
    let mut timer = LazyTimer::default();
    let (wire, wire_state) = Wire::new(stream, Arc::clone(&worker), limits.h2_control_frames);
    let _counted = OpenConnection::new(&worker);
    let begun = Instant::now();
    let Some(connection) =
        handshake(limits, wire, &wire_state, &mut subscription, &mut timer, begun + limits.header_timeout)
            .await
    else {
        return;
    };
    let shared = Arc::new(SharedSession {
        ip,
        address,
        tls,
        open: AtomicUsize::new(0),
        cancelled: Mutex::new(Budget::new(begun.into_std())),
        most_cancelled: limits.h2_cancelled_requests,
        abused: AtomicBool::new(false),
        waker: Mutex::default(),
        requests,
        worker,
    });
    let session = Http2Session {
        connection,
        shared,
        wire: wire_state,
        place,
        subscription,
        timer,
        accepted: 0,
        most_requests: limits.requests_per_connection,
        first_wait: limits.header_timeout,
        idle_timeout: limits.idle_timeout,
        quiet_since: Some(begun),
        resting: false,
        written: 0,
        announced: false,
        ends_at: None,
        _open: open,
    };
    session.run().await;
}

/// Exchanges the prefaces. `None`: the client doesn't speak HTTP/2, or not in time.
async fn handshake<S>(
    limits: &ServerLimits,
    wire: Wire<S>,
    wire_state: &WireState,
    subscription: &mut Subscription,
    timer: &mut LazyTimer,
    deadline: Instant,
) -> Option<Connection<Wire<S>, Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = Builder::new();
    builder
        .initial_window_size(limits.h2_stream_window)
        .initial_connection_window_size(limits.h2_connection_window)
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_local_error_reset_streams(Some(MOST_BROKEN_STREAMS))
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    let mut handshake = pin!(builder.handshake(wire));
    poll_fn(|cx| {
        subscription.poll(cx);
        wire_state.begin_turn();
        if let Poll::Ready(result) = handshake.as_mut().poll(cx) {
            return Poll::Ready(result.ok());
        }
        let over = subscription.stage() == StopStage::Cutting || timer.poll_expired(cx, deadline);
        if over { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// A connection after the prefaces.
struct Http2Session<S> {
    connection: Connection<Wire<S>, Bytes>,
    shared: Arc<SharedSession>,
    wire: Arc<WireState>,
    place: ConnectionSlot,
    subscription: Subscription,
    timer: LazyTimer,
    /// Streams so far.
    accepted: u32,
    most_requests: u32,
    first_wait: Duration,
    idle_timeout: Duration,
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

impl<S: AsyncRead + AsyncWrite + Unpin> Http2Session<S> {
    async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
        let Self { connection, shared, .. } = &mut self;
        if connection.has_streams() {
            tracing::debug!(client = &*shared.address, "HTTP/2 connection closed with open streams");
        }
        self.until_streams_end().await;
    }

    /// The connection is gone: its streams notice it, and log and count their requests.
    async fn until_streams_end(self) {
        let Self { connection, shared, _open: open, place, .. } = self;
        drop((connection, place));
        poll_fn(|cx| {
            shared.listen(cx);
            if shared.has_streams() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        drop(open);
    }

    /// Ready when the connection is closed, or is to be.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.subscription.poll(cx);
        self.shared.listen(cx);
        self.wire.begin_turn();
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.accept(request, respond);
                    continue;
                }
                Poll::Ready(Some(Err(error))) => {
                    self.note_error(&error);
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {}
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
        let settings = self.shared.worker.settings();
        let open = OpenStream::new(&self.shared);
        drop(tokio::spawn(stream::serve(open, settings, request, respond)));
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
        if self.shared.abused.load(Ordering::Relaxed) {
            return self.end(GoAwayReason::CancelledRequests);
        }
        if !self.announced {
            if stage != StopStage::Running {
                return self.announce(GoAwayReason::Stopping);
            }
            if self.accepted >= self.most_requests {
                return self.announce(GoAwayReason::RequestsPerConnection);
            }
        }
        if self.shared.has_streams() {
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
        let wait = if self.accepted == 0 { self.first_wait } else { self.idle_timeout };
        let mut deadline = since + wait;
        if let (StopStage::Stopping, Some(timetable), false) = (stage, self.subscription.timetable(), unsent)
        {
            deadline = deadline.min(timetable.idle_until);
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

/// What to do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Poll it once more.
    Poll,
    /// Drop it.
    Drop,
}
