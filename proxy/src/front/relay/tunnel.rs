//! A tunnel, such as a WebSocket: opaque bytes in both directions, with a schedule for closing many of them politely.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWrite as _;
use tokio::time::Instant;

use super::{ExchangeFailure, Relay, RelayContext};
use crate::front::broadcast::StopStage;
use crate::front::client::ClientLink;
use crate::front::pump::{Pump, PumpError};
use crate::front::websocket::{self, Frames};
use crate::observe::termination::Termination;
use uh_http1::body::Framing;
use uh_http1::response::Coding;

/// After a client has closed its side of a tunnel, how long the backend may be silent before the tunnel is closed.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// When a tunnel is closed, how long its current frame may take to finish.
const LAST_FRAME: Duration = Duration::from_millis(500);

/// The protocol in a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// WebSocket frames: a close frame can be inserted between them.
    WebSocket,
    /// Anything else: opaque bytes.
    Other,
}

/// The client's side of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientSide {
    Open,
    /// The client has closed it. The backend may still send its last data.
    Closed,
    /// And the backend has been notified.
    Passed,
    /// The backend accepts no more.
    Refused,
}

/// A tunnel that is being closed: its current frames have a moment to finish.
#[derive(Debug, Clone, Copy)]
struct Leaving {
    why: Termination,
    until: Instant,
}

/// A WebSocket of which a close frame was seen.
#[derive(Debug, Clone, Copy)]
struct Closing {
    /// The client has begun: the first close frame was its, or it had ended its side before.
    by_client: bool,
    at: Instant,
}

/// How an app has closed a tunnel, before its client began to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClosedByApp {
    /// When.
    pub at: Instant,
    /// Because of an error of its own.
    pub internal_error: bool,
}

/// An exchange that has become a tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// Client to backend.
    pub up: Pump,
    /// Backend to client.
    pub down: Pump,
    client_side: ClientSide,
    /// The client had closed its side before the tunnel was open, and whether before the response.
    ended_early: Option<bool>,
    /// Bytes sent to the client before the response that opened the tunnel.
    before_answer: u64,
    /// Its position in the spread when its backend's tunnels are closed, from 0 to 1.
    share: f32,
    leaving: Option<Leaving>,
    closing: Option<Closing>,
    last_move: Instant,
    moved: u64,
}

impl Relay {
    /// From now on the connection is a tunnel: what the client has already sent is the first part of it.
    #[must_use]
    pub(crate) fn into_tunnel(mut self, protocol: Protocol) -> Box<Tunnel> {
        let early = self.up.surplus().take();
        self.up.begin_body(Framing::UntilClose, Coding::AsItIs, None, early);
        if protocol == Protocol::WebSocket {
            self.down.follow_frames();
            self.up.follow_frames();
        }
        Box::new(Tunnel {
            client_side: ClientSide::Open,
            ended_early: self.ended.map(|end| end.unanswered),
            before_answer: self.before_answer,
            share: fastrand::f32(),
            leaving: None,
            closing: None,
            last_move: self.last_move,
            moved: self.moved,
            up: self.up,
            down: self.down,
        })
    }
}

impl Tunnel {
    /// Moves bytes until the backend closes, or its time to do so after the client's close is over.
    ///
    /// # Errors
    /// See [`ExchangeFailure`].
    pub(crate) async fn run<L: ClientLink>(
        &mut self,
        around: &mut RelayContext<'_, L>,
    ) -> Result<(), ExchangeFailure> {
        poll_fn(|cx| self.poll(cx, around)).await
    }

    /// When a byte last moved.
    #[must_use]
    pub(crate) fn last_move(&self) -> Instant {
        self.last_move
    }

    /// Bytes sent to the client.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        self.down.body_sent()
    }

    /// Whether the client has not even received the response that opens the tunnel.
    #[must_use]
    pub(crate) fn is_untold(&self) -> bool {
        self.down.sent() == self.before_answer
    }

    /// Whether the client has begun to close: what the backend does then may be its reaction.
    #[must_use]
    pub(crate) fn client_leaves(&self) -> bool {
        self.closing.map_or_else(|| self.client_has_ended(), |closing| closing.by_client)
    }

    fn client_has_ended(&self) -> bool {
        self.ended_early.is_some() || matches!(self.client_side, ClientSide::Closed | ClientSide::Passed)
    }

    /// How the app has closed it, if it was the first to: with a close frame, or by closing its connection. `over`: it has
    /// done that.
    #[must_use]
    pub(crate) fn closed_by_app(&self, over: bool) -> Option<ClosedByApp> {
        if self.client_leaves() || self.leaving.is_some() {
            return None;
        }
        let Some(closing) = self.closing else {
            return over.then(|| ClosedByApp { at: Instant::now(), internal_error: false });
        };
        let code = self.down.frames().and_then(Frames::close_code);
        Some(ClosedByApp { at: closing.at, internal_error: code == Some(websocket::INTERNAL_ERROR) })
    }

    /// Whether the client had closed its side before the backend's response arrived.
    #[must_use]
    pub(crate) fn client_ended_first(&self) -> bool {
        self.ended_early == Some(true)
    }

    /// The close frame for a client whose tunnel is being closed, if one can still be sent.
    #[must_use]
    pub(crate) fn last_words(&self) -> Option<&'static [u8]> {
        (self.leaving.is_some() && self.down.may_add_frame()).then_some(websocket::GOING_AWAY)
    }

    fn poll<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        around: &mut RelayContext<'_, L>,
    ) -> Poll<Result<(), ExchangeFailure>> {
        around.subscription.poll(cx);
        self.poll_up(cx, around)?;
        if self.client_side == ClientSide::Closed
            && Pin::new(&mut *around.upstream).poll_shutdown(cx).is_ready()
        {
            self.client_side = ClientSide::Passed;
        }
        let polled = self.down.poll(cx, around.upstream, around.client);
        self.note_moves();
        if let Poll::Ready(end) = polled {
            end.map_err(|error| ExchangeFailure::of_response(&error))?;
            return Poll::Ready(
                self.leaving.map_or(Ok(()), |leaving| Err(ExchangeFailure::Cut(leaving.why))),
            );
        }
        self.check(cx, around)?;
        Poll::Pending
    }

    fn poll_up<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        around: &mut RelayContext<'_, L>,
    ) -> Result<(), ExchangeFailure> {
        if self.client_side != ClientSide::Open {
            return Ok(());
        }
        let polled = self.up.poll(cx, around.client, around.upstream);
        self.note_moves();
        match polled {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(())) => {
                self.client_side = ClientSide::Closed;
                // The backend's time for its last data starts now, however long the tunnel was quiet before.
                self.last_move = Instant::now();
                Ok(())
            }
            Poll::Ready(Err(PumpError::Write)) => {
                self.client_side = ClientSide::Refused;
                Ok(())
            }
            Poll::Ready(Err(_)) => Err(ExchangeFailure::Client(Termination::ClientGone)),
        }
    }

    fn note_moves(&mut self) {
        let moved = self.up.sent() + self.down.sent();
        if moved == self.moved {
            return;
        }
        self.moved = moved;
        self.last_move = Instant::now();
        let closed = |pump: &Pump| pump.frames().is_some_and(Frames::closed);
        if self.closing.is_none() && (closed(&self.up) || closed(&self.down)) {
            let by_client = closed(&self.up) || self.client_has_ended();
            self.closing = Some(Closing { by_client, at: self.last_move });
        }
    }

    /// Nothing moves: checks whether it is this tunnel's turn to be closed, and whether it was quiet for too long.
    fn check<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        around: &mut RelayContext<'_, L>,
    ) -> Result<(), ExchangeFailure> {
        if around.client.poll_cancelled(cx) {
            return Err(ExchangeFailure::Client(Termination::ClientGone));
        }
        self.check_close_schedule(cx, around)?;
        let (limit, why) = match self.client_side {
            ClientSide::Closed | ClientSide::Passed => (LAST_WORDS, Termination::ClientGone),
            ClientSide::Open | ClientSide::Refused => {
                (around.settings.timeouts.tunnel_idle, Termination::ClientTimeout)
            }
        };
        let late = around.timer.poll_expired(cx, self.last_move + limit);
        if late { Err(ExchangeFailure::Client(why)) } else { Ok(()) }
    }

    /// Begins to close a tunnel at its turn, and cuts one that doesn't finish.
    fn check_close_schedule<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        around: &mut RelayContext<'_, L>,
    ) -> Result<(), ExchangeFailure> {
        if let Some(leaving) = self.leaving {
            let late = around.timer.poll_expired(cx, leaving.until);
            return if late { Err(ExchangeFailure::Cut(leaving.why)) } else { Ok(()) };
        }
        let Some((turn, why)) = self.turn(around) else { return Ok(()) };
        if around.timer.poll_expired(cx, turn) {
            self.leaving = Some(Leaving { why, until: Instant::now() + LAST_FRAME });
            self.down.end_at_boundary();
            // Check again immediately: it may already be between two frames.
            cx.waker().wake_by_ref();
        }
        Ok(())
    }

    /// When and why the tunnel is to be closed, if that is decided.
    fn turn<L: ClientLink>(&self, around: &RelayContext<'_, L>) -> Option<(Instant, Termination)> {
        let info = around.lease.owner();
        let of_drain = info
            .close_schedule
            .get()
            .map(|close_schedule| (close_schedule.turn(self.share), Termination::Drain));
        let of_stop = around.subscription.timetable().map(|timetable| {
            let turn = match around.subscription.stage() {
                StopStage::Cutting => timetable.begun,
                StopStage::Running | StopStage::Stopping => {
                    timetable.close_schedule(&info.service).turn(self.share)
                }
            };
            (turn, Termination::Stop)
        });
        of_drain.into_iter().chain(of_stop).min_by_key(|(turn, _)| *turn)
    }
}
