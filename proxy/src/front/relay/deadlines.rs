//! Deadlines of an exchange in which nothing moves.

use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::{Awaiting, ExchangeFailure, Progress, Relay, Unconnected};
use crate::config::{Limits, PathSettings, Timeouts};
use crate::front::Lease;
use crate::front::broadcast::{StopStage, Subscription};
use crate::front::client::ClientLink;
use crate::front::client::presence::Presence;
use crate::front::pump::{Pump, Waiting};
use crate::observe::termination::Termination;

/// How often a client that isn't being read from is checked while nothing moves. A read would notice its close
/// immediately.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is due next in an exchange in which nothing moves.
#[derive(Debug, Clone, Copy, Default)]
struct Due {
    /// It counts as overdue.
    overdue: Option<Instant>,
    /// It ends, because its client has left.
    leaves: Option<Instant>,
    /// The client is checked.
    look: Option<Instant>,
    /// It counts as slow in a trial.
    slow: Option<Instant>,
    /// It counts as overdue in a trial.
    late: Option<Instant>,
}

impl Due {
    fn earliest(self) -> Option<Instant> {
        [self.overdue, self.leaves, self.look, self.slow, self.late].into_iter().flatten().min()
    }
}

impl Relay {
    /// Nothing moves: checks the deadlines and whether the exchange is to be cut.
    pub(super) fn check<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        caller: &mut Unconnected<'_, L>,
    ) -> Result<(), ExchangeFailure> {
        check_cut(caller.lease, caller.subscription)?;
        if !self.this_poll.client_watched {
            check_cancelled(cx, caller.client)?;
        }
        loop {
            let PathSettings { timeouts, limits, .. } = caller.settings;
            let (limit, failure) = self.limit(timeouts);
            let paced = self.pace(limits, caller.client)?;
            let deadline = self.last_move + limit;
            let late = timeouts.overdue.and_then(|_| self.overdue_at(caller.trial.overdue_after()));
            let due = Due { slow: caller.trial.slow_at(), late, ..self.due::<L>(timeouts) };
            let next = [paced, due.earliest()].into_iter().flatten().fold(deadline, Instant::min);
            if !caller.timer.poll_expired(cx, next) {
                return Ok(());
            }
            let now = Instant::now();
            self.meet(due, now, caller)?;
            // A client that acknowledged data gets its full time again; if checked twice in a row, it has acknowledged
            // none.
            let deadline = self.last_move + limit;
            if now >= deadline && !self.client_takes(caller.client) {
                return Err(failure);
            }
        }
    }

    /// While a connection to the backend is being opened: checks whether the exchange is to be cut, its client has
    /// left, or it is overdue.
    ///
    /// # Errors
    /// It is over.
    pub(crate) fn check_unconnected<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        caller: &mut Unconnected<'_, L>,
    ) -> Result<(), ExchangeFailure> {
        check_cut(caller.lease, caller.subscription)?;
        check_cancelled(cx, caller.client)?;
        loop {
            let timeouts = &caller.settings.timeouts;
            let overdue = timeouts.overdue.filter(|_| self.may_be_overdue());
            let late = overdue.and_then(|_| caller.trial.overdue_after());
            let due = Due {
                overdue: overdue.map(|overdue| self.last_move + overdue),
                late: late.map(|late| self.last_move + late),
                leaves: self.leaves_at(timeouts.half_closed),
                look: (L::NEEDS_LOOKS && !self.client_ended()).then(|| self.next_look()),
                slow: caller.trial.slow_at(),
            };
            let Some(next) = due.earliest() else { return Ok(()) };
            if !caller.timer.poll_expired(cx, next) {
                return Ok(());
            }
            self.meet(due, Instant::now(), caller)?;
        }
    }

    /// Does what is due.
    fn meet<L: ClientLink>(
        &mut self,
        due: Due,
        now: Instant,
        caller: &mut Unconnected<'_, L>,
    ) -> Result<(), ExchangeFailure> {
        let has_come = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        if has_come(due.slow) {
            caller.trial.is_slow();
        }
        if has_come(due.late) {
            caller.trial.is_late();
        }
        if has_come(due.overdue) {
            self.awaiting = self.awaiting.map(|awaiting| Awaiting { overdue: true, ..awaiting });
            caller.lease.owner().meters.lane(caller.lease.worker()).is_overdue();
            caller.trial.is_overdue();
        }
        if has_come(due.look) {
            self.look(caller.client, now)?;
        }
        if has_come(due.leaves) && !self.client_takes(caller.client) {
            return Err(ExchangeFailure::Client(Termination::ClientGone));
        }
        Ok(())
    }

    /// Enforces the client's minimum rates. Returns when to check again. An exchange that never waits for its client
    /// doesn't read the clock here.
    fn pace<L: ClientLink>(
        &mut self,
        limits: &Limits,
        client: &L,
    ) -> Result<Option<Instant>, ExchangeFailure> {
        let sends = self.awaits_body() && limits.min_body_rate > 0;
        let reads = !self.down.is_flushed() && limits.min_response_rate > 0;
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
            slow: None,
            late: None,
        }
    }

    /// When the exchange counts as overdue: the backend has had the request for that long, or accepts none of it, and
    /// hasn't answered. `None` once it was counted.
    fn overdue_at(&self, overdue: Option<Duration>) -> Option<Instant> {
        if !self.may_be_overdue() {
            return None;
        }
        let since = match self.request {
            Progress::Sent(at) | Progress::Refused(at) => at,
            Progress::Sending if self.up.waiting() == Waiting::Sink => self.last_move,
            Progress::Sending => return None,
        };
        Some(since + overdue?)
    }

    /// Whether the response is awaited, and the exchange wasn't counted as overdue before.
    fn may_be_overdue(&self) -> bool {
        self.awaiting.is_some_and(|awaiting| !awaiting.overdue)
    }

    /// When the exchange ends because its client has closed its sending side and nothing has moved since.
    fn leaves_at(&self, half_closed: Option<Duration>) -> Option<Instant> {
        Some(self.ended?.at.max(self.last_move) + half_closed?)
    }

    /// When to check a client that isn't being read from: the backend accepts none of its request, or the read-ahead
    /// buffer is full.
    fn look_at(&mut self) -> Option<Instant> {
        let reads = match self.request {
            Progress::Refused(_) => false,
            Progress::Sent(_) => self.up.surplus().as_mut().is_none_or(|ahead| !ahead.room().is_empty()),
            Progress::Sending => self.awaits_body(),
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
        self.is_sending() && !only_waits
    }

    /// Whether more of the request is awaited from the client.
    fn awaits_body(&self) -> bool {
        self.is_sending()
            && self.up.waiting() == Waiting::Source
            && self.buffered.as_ref().is_none_or(|body| body.awaits_client())
    }

    fn is_sending(&self) -> bool {
        matches!(self.request, Progress::Sending)
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
        if self.down.is_flushed() {
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
        if !self.down.is_flushed() {
            (timeouts.client, client)
        } else if !self.is_sending() {
            (timeouts.read, ExchangeFailure::UpstreamTimeout)
        } else if self.up.waiting() == Waiting::Sink {
            (timeouts.write, ExchangeFailure::UpstreamTimeout)
        } else if self.awaits_body() {
            (timeouts.client, client)
        } else {
            (timeouts.read, ExchangeFailure::Storage)
        }
    }
}

/// Whether the exchange is to be cut.
fn check_cut(lease: &Lease, subscription: &Subscription) -> Result<(), ExchangeFailure> {
    if lease.is_cut() {
        Err(ExchangeFailure::Cut(Termination::Drain))
    } else if subscription.stage() == StopStage::Cutting {
        Err(ExchangeFailure::Cut(Termination::Stop))
    } else {
        Ok(())
    }
}

/// Whether the client has cancelled the exchange.
fn check_cancelled<L: ClientLink>(cx: &mut Context<'_>, client: &mut L) -> Result<(), ExchangeFailure> {
    if client.poll_cancelled(cx) { Err(ExchangeFailure::Client(Termination::ClientGone)) } else { Ok(()) }
}

/// What the client has acknowledged; if the system doesn't report that, what was written.
fn taken<L: ClientLink>(client: &L, down: &Pump) -> u64 {
    client.taken().unwrap_or_else(|| down.sent())
}
