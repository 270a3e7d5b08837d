//! A request's part in a trial: which side and client it counts for, and how it fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use uh_http1::request::RequestHead;
use uh_switching::{Assigned, ClientKey};
use uh_trial::{Kind, Seen, Side, Weight};

use super::{LaneCounts, REQUEST_IDS, TrialLane};
use crate::front::admission::ClientNetwork;

/// How a request fails in a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// The app answered with 5xx.
    Status,
    /// The backend couldn't be reached, or broke the exchange.
    Broken,
    /// The response's head was overdue.
    Overdue,
    /// The app closed a tunnel at once, or because of an error of its own.
    Tunnel,
    /// The client left without an answer after it had waited for longer than the slow bound.
    Left,
    /// The request took longer than the slow bound. It didn't fail.
    Slow,
}

impl FailureKind {
    /// All of them, by their index.
    pub(crate) const ALL: [Self; 6] =
        [Self::Status, Self::Broken, Self::Overdue, Self::Tunnel, Self::Left, Self::Slow];

    /// The value of the label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Broken => "broken",
            Self::Overdue => "overdue",
            Self::Tunnel => "tunnel",
            Self::Left => "left",
            Self::Slow => "slow",
        }
    }

    /// What it counts as.
    fn kind(self) -> Kind {
        if self == Self::Slow { Kind::Slowness } else { Kind::Failure }
    }
}

/// Who sent a request, for the question whether that client has failed before: what a split recognises it by, and its
/// address. All clients of one address are one unit: they may have got their cookies on the side of that address, so their
/// sides are one toss of the coin. And so a client that has failed before it had a cookie isn't counted again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who {
    address: u64,
    cookie: Option<u64>,
}

impl Who {
    /// A client at this address, recognised by this key.
    pub(in crate::front) fn new(address: ClientNetwork, key: ClientKey) -> Self {
        let address = match address {
            ClientNetwork::V4(address) => u64::from(address),
            ClientNetwork::V6(network) => network ^ (1 << 63),
        };
        // Of 128 random bits, 64 are enough to tell clients apart.
        let cookie = match key {
            ClientKey::Cookie(id) => Some((id ^ (id >> 64)) as u64),
            ClientKey::V4(_) | ClientKey::V6(_) => None,
        };
        Self { address, cookie }
    }

    /// Whether nothing of it was seen before. From now on all of it was.
    pub(super) fn is_new_to(self, seen: &Seen) -> bool {
        let address = seen.first(self.address);
        let cookie = self.cookie.is_none_or(|cookie| seen.first(cookie));
        address && cookie
    }
}

/// A request's part in a trial.
#[derive(Debug)]
pub(crate) struct InTrial {
    lane: Arc<TrialLane>,
    who: Who,
    side: Side,
    /// What the request was assigned with.
    weight: Weight,
    /// When the slow bound is passed; `None`: it was, or there is no bound.
    slow_at: Option<Instant>,
    /// It took longer than the slow bound.
    slow: bool,
    /// Its time counts: it began after the warm-up, when it was known what is slow.
    timed: bool,
    /// It was counted as failed.
    failed: bool,
    /// It was counted as a request.
    counted: bool,
}

impl InTrial {
    pub(super) fn new(lane: Arc<TrialLane>, assigned: Assigned, who: Who, at: Instant) -> Self {
        let slow_at = lane.shared.patience.get().and_then(|patience| at.checked_add(patience.slow_after));
        let (side, weight) = lane.shared.side(assigned);
        let timed = lane.shared.is_warm(side, at) && slow_at.is_some();
        Self { lane, who, side, weight, slow_at, slow: false, timed, failed: false, counted: false }
    }

    /// The request is tried again, perhaps on the other side. `None`: the trial is over.
    pub(crate) fn goes_on(self, again: Assigned) -> Option<Self> {
        let (side, weight) = self.lane.shared.side(again);
        (again.by.salt == self.lane.shared.salt).then_some(Self { side, weight, ..self })
    }

    /// It has taken longer than the slow bound, and may still be open.
    fn is_slow(&mut self) {
        if self.slow_at.take().is_none() {
            return;
        }
        self.slow = true;
        if self.timed {
            self.opened();
            add(&self.counts().slow);
            self.bad(FailureKind::Slow, None);
        }
    }

    /// How long it may be without a response head, unless it was counted as failed already.
    fn overdue_after(&self) -> Option<Duration> {
        self.lane.shared.patience.get().and_then(|patience| patience.overdue_after).filter(|_| !self.failed)
    }

    /// It has failed, and may still be open. Counted once.
    pub(crate) fn has_failed(&mut self, how: FailureKind, request: &RequestHead, head: &[u8]) {
        if !std::mem::replace(&mut self.failed, true) {
            self.opened();
            add(&self.counts().failed);
            self.bad(how, Some((request, head)));
        }
    }

    /// Whether it has taken longer than the slow bound `at` this time. Then it was counted.
    pub(crate) fn was_slow(&mut self, at: Instant) -> bool {
        if self.slow_at.is_some_and(|due| at > due) {
            self.is_slow();
        }
        self.slow
    }

    /// It counts as a request, once.
    fn opened(&mut self) {
        if !std::mem::replace(&mut self.counted, true) {
            add(&self.counts().requests);
            if !self.timed {
                add(&self.counts().untimed);
            }
        }
    }

    /// It is over, or has become a tunnel. A tunnel may last for days: only the time until it is open can be too long.
    pub(crate) fn ended(&mut self) {
        self.opened();
        self.slow_at = None;
        if self.slow && std::mem::take(&mut self.timed) {
            add(&self.counts().slow_ended);
        }
    }

    fn counts(&self) -> &LaneCounts {
        &self.lane.sides[self.side as usize]
    }

    fn bad(&self, how: FailureKind, request: Option<(&RequestHead, &[u8])>) {
        let (shared, side, kind) = (&self.lane.shared, self.side, how.kind());
        shared.bad_requests[side as usize][how as usize].fetch_add(1, Ordering::Relaxed);
        if !shared.is_first(kind, self.who) {
            return;
        }
        let mut judged = shared.judged.lock();
        judged.trial.record(kind, side, self.weight);
        let Some((request, head)) = request else { return };
        judged.routes.record(request.path.of_head(head), side, self.weight);
        if side == Side::New && judged.request_ids.len() < REQUEST_IDS {
            let id = std::str::from_utf8(request.id.text(head));
            judged.request_ids.extend(id.ok().map(str::to_owned));
        }
    }
}

/// Adds to a counter that only the calling thread writes.
fn add(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// What an exchange knows about the split of its service.
#[derive(Debug)]
pub(crate) struct InSplit {
    /// Where the split has put the client, and what the client is recognised by.
    pub assigned: Assigned,
    /// Its part in the trial of the split, if it has one.
    pub part: Option<InTrial>,
}

/// What an exchange knows about trials.
#[derive(Debug, Default)]
pub(crate) struct ForTrial {
    /// Only while traffic is split: apart, so that other exchanges have no room for it.
    pub split: Option<Box<InSplit>>,
    /// What the backend has done wrong, other than to answer with an error: also without a trial, since it is the history
    /// that the next one compares with.
    pub failure: Option<FailureKind>,
}

impl ForTrial {
    /// Where a split has put the client.
    pub(in crate::front) fn assigned(&self) -> Option<Assigned> {
        self.split.as_ref().map(|split| split.assigned)
    }

    /// Its part in a trial.
    pub(in crate::front) fn part(&mut self) -> Option<&mut InTrial> {
        self.split.as_mut()?.part.as_mut()
    }

    /// It has no part in a trial any more.
    pub(in crate::front) fn take_part(&mut self) -> Option<InTrial> {
        self.split.as_mut()?.part.take()
    }
}

/// The same, with the request, while an exchange waits.
pub(crate) struct TrialPart<'a> {
    /// What it knows.
    pub known: &'a mut ForTrial,
    /// The request.
    pub request: &'a RequestHead,
    /// Its head.
    pub head: &'a [u8],
}

impl TrialPart<'_> {
    /// The same for someone else, for a while.
    pub(crate) fn lend(&mut self) -> TrialPart<'_> {
        TrialPart { known: self.known, request: self.request, head: self.head }
    }

    /// When it counts as slow, unless it was counted already.
    pub(crate) fn slow_at(&self) -> Option<tokio::time::Instant> {
        self.known.split.as_ref()?.part.as_ref()?.slow_at.map(tokio::time::Instant::from_std)
    }

    /// It has taken longer than the slow bound.
    pub(crate) fn is_slow(&mut self) {
        if let Some(part) = self.known.part() {
            part.is_slow();
        }
    }

    /// How long it may be without a response head, in its trial. `None` once it has failed.
    pub(crate) fn overdue_after(&self) -> Option<Duration> {
        self.known.split.as_ref()?.part.as_ref()?.overdue_after()
    }

    /// The response's head is overdue, also for those who know of no trial.
    pub(crate) fn is_overdue(&mut self) {
        self.known.failure = Some(FailureKind::Overdue);
        self.is_late();
    }

    /// The response's head is overdue in its trial.
    pub(crate) fn is_late(&mut self) {
        if let Some(part) = self.known.part() {
            part.has_failed(FailureKind::Overdue, self.request, self.head);
        }
    }
}
