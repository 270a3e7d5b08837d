//! Deadlines of an exchange in which nothing moves.

use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::{ExchangeFailure, Leaving, Relay, RelayContext, Unconnected};
use crate::config::{Limits, Timeouts};
use crate::front::Lease;
use crate::front::broadcast::StopStage;
use crate::front::client::ClientLink;
use crate::front::client::presence::Presence;
use crate::front::pump::{Pump, Waiting};
use crate::observe::termination::Termination;

/// After a client has closed its side of a tunnel, how long the backend may be silent before the tunnel is closed.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How often a client that isn't being read from is checked while nothing moves. A read would notice its close
/// immediately.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// When a tunnel is closed, how long its current frame may take to finish.
const LAST_FRAME: Duration = Duration::from_millis(500);

/// What is due next in an exchange in which nothing moves. Nothing of a tunnel is: it has limits of its
/// own.
#[derive(Debug, Clone, Copy, Default)]
struct Due {
    /// It counts as overdue.
    overdue: Option<Instant>,
    /// It ends, because its client has left.
    leaves: Option<Instant>,
    /// The client is checked.
    look: Option<Instant>,
}

impl Due {
    fn earliest(self) -> Option<Instant> {
        [self.overdue, self.leaves, self.look].into_iter().flatten().min()
    }
}

impl Relay {
    /// Nothing moves: checks the deadlines and whether the exchange is to be cut.
    pub(super) fn check<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        around: &mut RelayContext<'_, L>,
    ) -> Result<(), ExchangeFailure> {
        if self.tunnel {
            self.check_close_schedule(cx, around)?;
        } else if around.lease.is_cut() {
            return Err(ExchangeFailure::Cut(Termination::Drain));
        } else if around.subscription.stage() == StopStage::Cutting {
            return Err(ExchangeFailure::Cut(Termination::Stop));
        }
        if around.client.poll_cancelled(cx) {
            return Err(ExchangeFailure::Client(Termination::ClientGone));
        }
        loop {
            let service = &around.lease.owner().service;
            let (limit, failure) = self.limit(&service.timeouts);
            let paced = self.pace(&service.limits, around.client)?;
            let deadline = self.last_move + limit;
            let due = if self.tunnel { Due::default() } else { self.due::<L>(&service.timeouts) };
            let next = [paced, due.earliest()].into_iter().flatten().fold(deadline, Instant::min);
            if !around.timer.poll_expired(cx, next) {
                return Ok(());
            }
            let now = Instant::now();
            self.meet(due, now, around.client, around.lease)?;
            // A client that acknowledged data gets its full time again; if checked twice in a row, it has acknowledged
            // none.
            let deadline = self.last_move + limit;
            if now >= deadline && !self.client_takes(around.client) {
                return Err(failure);
            }
        }
    }

    /// While a connection to the backend is being opened: checks whether the exchange is to be cut, its client has
    /// left, or it is overdue.
    ///
    /// # Errors
    /// It is over.
    pub fn check_unconnected<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        caller: &mut Unconnected<'_, L>,
    ) -> Result<(), ExchangeFailure> {
        if caller.lease.is_cut() {
            return Err(ExchangeFailure::Cut(Termination::Drain));
        } else if caller.subscription.stage() == StopStage::Cutting {
            return Err(ExchangeFailure::Cut(Termination::Stop));
        } else if caller.client.poll_cancelled(cx) {
            return Err(ExchangeFailure::Client(Termination::ClientGone));
        }
        loop {
            let timeouts = &caller.lease.owner().service.timeouts;
            let unanswered = timeouts.overdue.filter(|_| !self.overdue);
            let due = Due {
                overdue: unanswered.map(|overdue| self.last_move + overdue),
                leaves: self.leaves_at(timeouts.half_closed),
                look: (L::NEEDS_LOOKS && !self.client_ended()).then(|| self.next_look()),
            };
            let Some(next) = due.earliest() else { return Ok(()) };
            if !caller.timer.poll_expired(cx, next) {
                return Ok(());
            }
            self.meet(due, Instant::now(), caller.client, caller.lease)?;
        }
    }

    /// Does what is due.
    fn meet<L: ClientLink>(
        &mut self,
        due: Due,
        now: Instant,
        client: &L,
        lease: &Lease,
    ) -> Result<(), ExchangeFailure> {
        let has_come = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        if has_come(due.overdue) {
            self.overdue = true;
            lease.owner().meters.lane(lease.worker()).is_overdue();
        }
        if has_come(due.look) {
            self.look(client, now)?;
        }
        if has_come(due.leaves) && !self.client_takes(client) {
            return Err(ExchangeFailure::Client(Termination::ClientGone));
        }
        Ok(())
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

    /// Enforces the client's minimum rates. Returns when to check again. An exchange that never waits for its client
    /// doesn't read the clock here.
    fn pace<L: ClientLink>(
        &mut self,
        limits: &Limits,
        client: &L,
    ) -> Result<Option<Instant>, ExchangeFailure> {
        let sends = !self.up_done && !self.up_broken && self.up.waiting() == Waiting::Source;
        let reads = !self.down.is_flushed();
        let sends = sends && !self.tunnel && limits.min_body_rate > 0;
        let reads = reads && !self.tunnel && limits.min_response_rate > 0;
        if !sends && !reads && !self.up_pace.is_waiting() && !self.down_pace.is_waiting() {
            return Ok(None);
        }
        let now = Instant::now();
        let slow = |_| ExchangeFailure::Client(Termination::ClientTimeout);
        let mut next = None;
        if sends {
            let waits = self.up_pace.waits(now, limits.min_body_rate, limits.rate_window, || self.up.sent());
            next = Some(waits.map_err(slow)?);
        } else {
            self.up_pace.stop(now);
        }
        if reads {
            let taken = || taken(client, &self.down);
            let waits = self.down_pace.waits(now, limits.min_response_rate, limits.rate_window, taken);
            let waits = waits.map_err(slow)?;
            next = Some(next.map_or(waits, |next| next.min(waits)));
        } else {
            self.down_pace.stop(now);
        }
        Ok(next)
    }

    fn due<L: ClientLink>(&mut self, timeouts: &Timeouts) -> Due {
        Due {
            overdue: self.overdue_at(timeouts.overdue),
            leaves: self.leaves_at(timeouts.half_closed),
            look: if L::NEEDS_LOOKS { self.look_at() } else { None },
        }
    }

    /// When the exchange counts as overdue: the backend has had the request for that long, or accepts none of it, and
    /// hasn't answered. `None` once it was counted.
    fn overdue_at(&self, overdue: Option<Duration>) -> Option<Instant> {
        if self.answered || self.overdue {
            return None;
        }
        let takes_nothing = || (self.up.waiting() == Waiting::Sink).then_some(self.last_move);
        Some(self.asked.or_else(takes_nothing)? + overdue?)
    }

    /// When the exchange ends because its client has closed its sending side and nothing has moved since.
    fn leaves_at(&self, half_closed: Option<Duration>) -> Option<Instant> {
        Some(self.ended?.max(self.last_move) + half_closed?)
    }

    /// When to check a client that isn't being read from: the backend accepts none of its request, or the read-ahead
    /// buffer is full.
    fn look_at(&mut self) -> Option<Instant> {
        let reads = if self.up_broken {
            false
        } else if self.up_done {
            self.up.surplus().as_mut().is_none_or(|ahead| !ahead.room().is_empty())
        } else {
            self.up.waiting() == Waiting::Source
        };
        if reads || self.client_ended() {
            return None;
        }
        Some(self.next_look())
    }

    fn next_look(&self) -> Instant {
        self.looked.map_or(self.last_move, |looked| looked.max(self.last_move)) + LOOK_EVERY
    }

    /// Whether some of the request is still to be sent. A request without a body that wasn't sent yet has nothing that
    /// its client could still be sending.
    fn still_sends(&self) -> bool {
        let only_waits = self.up.sent() == 0 && self.up.body_complete();
        !(self.up_done || self.up_broken || only_waits)
    }

    fn look<L: ClientLink>(&mut self, client: &L, now: Instant) -> Result<(), ExchangeFailure> {
        self.looked = Some(now);
        match client.presence() {
            Presence::There => {}
            // What it sent before may still be in the socket, so its time begins when the whole request has been sent.
            Presence::HalfClosed if self.still_sends() => {}
            Presence::HalfClosed => self.note_client_ended(now),
            Presence::Gone => return Err(ExchangeFailure::Client(Termination::ClientGone)),
        }
        Ok(())
    }

    /// Whether a client that can't be written to keeps reading from the socket's buffer, which may hold more than it
    /// can read within its timeout. Then its timeout starts again.
    fn client_takes<L: ClientLink>(&mut self, client: &L) -> bool {
        if self.tunnel || self.down.is_flushed() {
            return false;
        }
        let taken = taken(client, &self.down);
        let goes_on = taken > std::mem::replace(&mut self.taken, taken);
        if goes_on {
            self.last_move = Instant::now();
        }
        goes_on
    }

    /// Which side is awaited, and for how long.
    fn limit(&self, timeouts: &Timeouts) -> (Duration, ExchangeFailure) {
        let client = ExchangeFailure::Client(Termination::ClientTimeout);
        if self.tunnel && self.up_done {
            (LAST_WORDS, ExchangeFailure::Client(Termination::ClientGone))
        } else if self.tunnel {
            (timeouts.tunnel_idle, client)
        } else if !self.down.is_flushed() {
            (timeouts.client, client)
        } else if self.up_done || self.up_broken {
            (timeouts.read, ExchangeFailure::UpstreamTimeout)
        } else if self.up.waiting() == Waiting::Sink {
            (timeouts.write, ExchangeFailure::UpstreamTimeout)
        } else {
            (timeouts.client, client)
        }
    }
}

/// What the client has acknowledged; if the system doesn't report that, what was written.
fn taken<L: ClientLink>(client: &L, down: &Pump) -> u64 {
    client.taken().unwrap_or_else(|| down.sent())
}
