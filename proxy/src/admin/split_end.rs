//! Splits that end by themselves: their time is up, or their backend is unhealthy or worse than the active one.
//!
//! Times on disk are the clock's, which may be set. So how long a split still lasts is computed once, when it is first
//! seen or renewed, and then measured by a clock that can't be set.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};
use uh_protocol::ServiceName;
use uh_switching::board::SplitEnd;
use uh_switching::{Health, OneSplit, Salt, Split, Term};

use super::audit::Audit;
use super::control::Control;
use crate::front::LiveService;

/// Why a split ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Its caller didn't renew it in time.
    Lease,
    /// Nobody changed it for as long as one may be left to itself.
    HoldTimeout,
    /// None of its backend's endpoints passes its probes.
    Unhealthy,
    /// Its trial has found it worse.
    Worse,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Lease => "the lease wasn't renewed in time",
            Self::HoldTimeout => "split.hold_timeout is over",
            Self::Unhealthy => "its backend is unhealthy",
            Self::Worse => "the trial found its backend worse",
        }
    }
}

/// When a split ends, as long as it isn't renewed.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    salt: Salt,
    until: Timestamp,
    at: Instant,
}

impl Control {
    /// Ends splits, indefinitely.
    pub(crate) async fn end_splits(self: Arc<Self>) {
        let mut deadlines = BTreeMap::new();
        loop {
            // Before the look: what changes after it ends the wait.
            let changed = self.board.changed();
            self.end_overdue_splits(&mut deadlines);
            let next = deadlines.values().map(|deadline: &Deadline| deadline.at).min();
            let next = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = self.split_health.notified() => {}
                () = next => {}
            }
        }
    }

    fn end_overdue_splits(self: &Arc<Self>, deadlines: &mut BTreeMap<ServiceName, Deadline>) {
        let live = self.board.live();
        let has_split =
            |name: &ServiceName| live.service(name.as_str()).is_some_and(|s| s.state.split.is_some());
        deadlines.retain(|name, _| has_split(name));
        let mut ended = Vec::new();
        for service in &live.services {
            let Some(split) = &service.state.split else { continue };
            let name = &service.state.config.name;
            let current = (split.assignment.salt, split.until);
            let known = deadlines.get(name).copied().filter(|known| (known.salt, known.until) == current);
            let deadline = known.unwrap_or_else(|| deadline(split));
            deadlines.insert(name.clone(), deadline);
            if let Some(reason) = self.reason(service, split, deadline) {
                let until = (reason != Reason::Unhealthy).then_some(split.until);
                ended.push((name.clone(), OneSplit { salt: split.assignment.salt, until }, reason));
            }
        }
        // A holder of the live routing keeps its activations.
        drop(live);
        for (name, only, reason) in ended {
            deadlines.remove(&name);
            self.end_by_itself(&name, only, reason);
        }
    }

    fn reason(&self, service: &LiveService, split: &Split, deadline: Deadline) -> Option<Reason> {
        if Instant::now() >= deadline.at {
            return Some(match split.term {
                Term::Lease(_) => Reason::Lease,
                Term::Hold(_) => Reason::HoldTimeout,
            });
        }
        let backend = service.backend(&split.new.backend)?;
        (self.board.health(backend) == Health::Unhealthy).then_some(Reason::Unhealthy)
    }

    /// Traffic moves at once. Nothing here waits for the disk, or a broken one would delay the end of other splits. Returns
    /// whether there was such a split.
    pub(super) fn end_by_itself(
        self: &Arc<Self>,
        service: &ServiceName,
        only: OneSplit,
        reason: Reason,
    ) -> bool {
        let end = SplitEnd { only: Some(only), ..SplitEnd::default() };
        let Ok(done) = self.board.end_split(service.as_str(), &end) else { return false };
        if !done.moved {
            return false;
        }
        let (control, service) = (Arc::clone(self), service.clone());
        tokio::spawn(async move {
            let audit = Audit::split_ended(reason.as_str(), service.as_str());
            let _ = control.settle_split(audit, &done).await;
            control.close_tunnels_of(service.as_str(), &done);
        });
        true
    }
}

fn deadline(split: &Split) -> Deadline {
    let left = Duration::try_from(split.until.duration_since(Timestamp::now())).unwrap_or_default();
    // The clock may have been set back since it was written.
    let left = left.min(split.term.length());
    Deadline { salt: split.assignment.salt, until: split.until, at: Instant::now() + left }
}
