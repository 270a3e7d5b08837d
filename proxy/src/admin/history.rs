//! What active backends are known by: their counters of the last ten minutes, as long as they are active. A trial compares
//! its backend with that.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use uh_protocol::{BackendName, ServiceName};
use uh_switching::ServiceState;
use uh_trial::{History, Share, overdue_bound, slow_bound};

use super::control::Control;
use crate::config::Service;
use crate::front::trial::Patience;
use crate::observe::history::HistoryReading;
use crate::observe::meters::BOUNDS_US;

/// How often counters are noted, and how many notes are kept: of ten minutes.
pub(super) const NOTE_EVERY: Duration = Duration::from_secs(30);
const NOTES: usize = 21;

/// Nothing that takes less than 10 ms is slow: the place of that in [`BOUNDS_US`]. Nobody would notice.
const FIRST_BOUND: usize = 4;

/// In a trial, nothing is overdue before 2.5 s: the place of that in [`BOUNDS_US`]. A version that warms up may need a second.
const FIRST_OVERDUE: usize = 11;

/// From fewer requests, nobody can say what is slow.
const ENOUGH: u64 = 20;

/// What is known of the active backends, and when it was last noted.
pub(super) struct Past {
    known: BTreeMap<ServiceName, Known>,
    noted: Instant,
}

/// What is known of one of them.
struct Known {
    /// The generation in which it became active.
    since: u64,
    backend: BackendName,
    notes: VecDeque<HistoryReading>,
    /// What served before, and what was known of it when it was replaced: what a cross-check compares with.
    before: Option<(BackendName, History, Option<Patience>)>,
}

impl Past {
    /// Nothing is known.
    pub(super) fn new() -> Self {
        Self { known: BTreeMap::new(), noted: Instant::now() }
    }

    /// What is known of the backend that was active until the last switch. Nothing, if it isn't this one.
    pub(super) fn before(&self, service: &ServiceName, backend: &BackendName) -> (History, Option<Patience>) {
        let before = self.known.get(service).and_then(|known| known.before.as_ref());
        let before = before.filter(|(name, ..)| name == backend);
        before.map_or_else(Default::default, |(_, history, patience)| (*history, *patience))
    }
}

impl Control {
    /// Notes what is counted, regularly and whenever a backend becomes active.
    pub(super) fn note(&self, past: &mut Past) {
        let snapshot = self.board.snapshot();
        let due = past.noted.elapsed() >= NOTE_EVERY;
        if due {
            past.noted = Instant::now();
        }
        past.known.retain(|name, _| snapshot.service(name.as_str()).is_some());
        for state in &snapshot.services {
            let since = state.active.since;
            let (name, backend) = (&state.config.name, &state.active.backend);
            let known = past.known.entry(name.clone());
            let new = || Known { since, backend: backend.clone(), notes: VecDeque::new(), before: None };
            let known = known.or_insert_with(new);
            if known.since != since && known.backend == *backend {
                // Its endpoints have changed, and what served before is the same.
                *known = Known { before: known.before.take(), ..new() };
            } else if known.since != since {
                let first = known.notes.front().copied().unwrap_or_default();
                let (history, patience) = known_by(self.counted(name, &known.backend).since(&first));
                let before = Some((known.backend.clone(), history, patience));
                *known = Known { before, ..new() };
            }
            if due || known.notes.is_empty() {
                known.notes.push_back(self.counted(name, backend));
                if known.notes.len() > NOTES {
                    known.notes.pop_front();
                }
            }
        }
    }

    /// What the active backend of a service did since the first note of it, and for how long a request may take according
    /// to that. `None`: there were too few.
    pub(super) fn past_of(&self, state: &ServiceState<Service>, past: &Past) -> (History, Option<Patience>) {
        let first = past.known.get(&state.config.name).and_then(|known| known.notes.front().copied());
        known_by(self.counted(&state.config.name, &state.active.backend).since(&first.unwrap_or_default()))
    }

    fn counted(&self, service: &ServiceName, backend: &BackendName) -> HistoryReading {
        self.meters.backend(service, backend).history()
    }
}

/// What these counts say.
fn known_by(since: HistoryReading) -> (History, Option<Patience>) {
    let slow = Some(since.requests()).filter(|requests| *requests >= ENOUGH);
    let slow = slow.and_then(|_| slow_bound(&BOUNDS_US[FIRST_BOUND..], &since.durations[FIRST_BOUND..]));
    let overdue =
        slow.and_then(|_| overdue_bound(&BOUNDS_US[FIRST_OVERDUE..], &since.durations[FIRST_OVERDUE..]));
    // A response that took long may have begun soon: so at most so many were overdue.
    let failed =
        since.failed(slow.map(|slow| slow.bound)) + overdue.map_or(0, |overdue| overdue.history.bad());
    let history = History {
        failures: Share::new(failed.min(since.requests()), since.requests()),
        slowness: slow.map(|slow| slow.history).unwrap_or_default(),
    };
    let patience = slow.map(|slow| Patience {
        slow_after: Duration::from_micros(slow.bound),
        overdue_after: overdue.map(|overdue| Duration::from_micros(overdue.bound)),
    });
    (history, patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_faster_than_ten_milliseconds_is_slow() {
        assert_eq!(BOUNDS_US[FIRST_BOUND], 10_000);
    }

    #[test]
    fn nothing_faster_than_two_and_a_half_seconds_is_overdue() {
        assert_eq!(BOUNDS_US[FIRST_OVERDUE], 2_500_000);
    }
}
