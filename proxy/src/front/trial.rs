//! What a trial counts. While the traffic of a service is split, the failures and slow requests of both sides are
//! compared: [`uh_trial`] decides, and `admin/trial.rs` asks it and acts.
//!
//! A good request costs two additions to counters of its worker. Only a client's first failure takes a lock.

mod part;
mod report;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use uh_protocol::status::TrialStatus;
use uh_protocol::{BackendName, ServiceName};
use uh_switching::{Assigned, Judging, Salt};
use uh_trial::trial::WARM_UP;
use uh_trial::{Counts, History, Kind, Routes, Seen, Side, SideCounts, Weight};

use crate::observe::metrics::TrialReading;
pub(crate) use part::{FailureKind, ForTrial, InSplit, InTrial, TrialPart, Who};

/// How many ids of failed requests on the new side are kept as evidence.
const REQUEST_IDS: usize = 5;

/// The trials of all services, at most one each. Requests find theirs by the salt of the split.
#[derive(Debug, Default)]
pub(crate) struct Trials {
    open: ArcSwap<Vec<Arc<OpenTrial>>>,
    /// What was found by the last trial of a service that has none now.
    ended: Mutex<BTreeMap<ServiceName, EndedTrial>>,
}

/// What is left of a trial.
#[derive(Debug)]
struct EndedTrial {
    status: TrialStatus,
    reading: TrialReading,
}

impl Trials {
    /// The open trials.
    pub(crate) fn open(&self) -> Arc<Vec<Arc<OpenTrial>>> {
        self.open.load_full()
    }

    /// Replaces the open trials. Of those that aren't among them any more, the result is kept, until the service has
    /// another one or is gone. For the admin side.
    pub(crate) fn replace(&self, trials: Vec<Arc<OpenTrial>>, is_service: impl Fn(&ServiceName) -> bool) {
        let mut ended = self.ended.lock();
        let trials = Arc::new(trials);
        let before = self.open.swap(Arc::clone(&trials));
        let is_over = |trial: &&Arc<OpenTrial>| !trials.iter().any(|other| Arc::ptr_eq(other, trial));
        for trial in before.iter().filter(is_over) {
            let result = EndedTrial { status: trial.status(true), reading: trial.read() };
            ended.insert(trial.service.clone(), result);
            trial.shared.seen.store(None);
        }
        let is_open = |name: &ServiceName| trials.iter().any(|trial| trial.service == *name);
        ended.retain(|name, _| is_service(name) && !is_open(name));
    }

    /// For the status: the trial of a service's split, or else of its last one. `salt`: the split's, if there is one.
    pub(crate) fn status(&self, service: &ServiceName, salt: Option<Salt>) -> Option<TrialStatus> {
        let open = self.open.load();
        if let Some(trial) = open.iter().find(|trial| trial.service == *service) {
            return Some(trial.status(salt != Some(trial.shared.salt)));
        }
        self.ended.lock().get(service).map(|ended| ended.status.clone())
    }

    /// For a scrape.
    pub(crate) fn read(&self) -> Vec<TrialReading> {
        // In this order, no trial is in both.
        let ended = self.ended.lock();
        let open = self.open.load();
        let ended = ended.values().map(|ended| ended.reading.clone());
        open.iter().map(|trial| trial.read()).chain(ended).collect()
    }

    /// The part in a trial of a request that a split has assigned, and that a backend is asked `at` this time.
    pub(crate) fn enter(&self, assigned: Assigned, who: Who, worker: usize, at: Instant) -> Option<InTrial> {
        let open = self.open.load();
        let trial = open.iter().find(|trial| trial.shared.salt == assigned.by.salt)?;
        let lane = trial.lanes.get(worker % trial.lanes.len())?;
        Some(InTrial::new(Arc::clone(lane), assigned, who, at))
    }
}

/// One trial.
#[derive(Debug)]
pub(crate) struct OpenTrial {
    /// The service.
    pub service: ServiceName,
    /// The backend of the new side.
    pub backend: BackendName,
    /// Whether its verdict was logged.
    said: AtomicBool,
    /// What all workers share.
    pub shared: Arc<Shared>,
    lanes: Box<[Arc<TrialLane>]>,
}

/// What all workers share of a trial.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Which split it belongs to.
    pub salt: Salt,
    began: Instant,
    /// When the first request was sent to the new version: the warm-up begins.
    first_on_new: OnceLock<Instant>,
    /// Which side of the split is the new one of the trial: the suspect.
    suspect: uh_switching::Side,
    /// For how long slowness doesn't count.
    warm_up: Duration,
    /// Unset as long as too little is known of the old version.
    pub patience: OnceLock<Patience>,
    /// By [`Kind`]: the clients with a bad event. Nearly all of a trial's memory, so it is freed when the trial ends:
    /// tunnels and other long requests hold the rest until they are over.
    seen: ArcSwapOption<[Seen; 2]>,
    judged: Mutex<Judged>,
    /// By side and [`FailureKind`].
    bad_requests: [[AtomicU64; FailureKind::ALL.len()]; 2],
}

/// How long requests may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    /// One that takes longer is slow.
    pub slow_after: Duration,
    /// One that has no response head after this time has failed, if [`Timeouts::overdue`](crate::config::Timeouts) doesn't come
    /// first. `None`: too many of the old version take longer.
    pub overdue_after: Option<Duration>,
}

/// What only first failures and the admin side touch.
#[derive(Debug)]
pub(crate) struct Judged {
    /// The statistics.
    pub trial: uh_trial::Trial,
    /// Where clients fail.
    pub routes: Routes,
    /// What was found at the last look.
    pub status: uh_trial::Status,
    /// Of requests that failed on the new side.
    pub request_ids: Vec<String>,
}

/// A worker's counters. Only that worker's thread writes them.
#[derive(Debug)]
#[repr(align(128))]
struct TrialLane {
    shared: Arc<Shared>,
    sides: [LaneCounts; 2],
}

#[derive(Debug, Default)]
struct LaneCounts {
    requests: AtomicU64,
    failed: AtomicU64,
    untimed: AtomicU64,
    slow: AtomicU64,
    slow_ended: AtomicU64,
}

impl OpenTrial {
    /// A trial of `backend`, which is the suspect of a split, that begins now. `patience`: how long requests may take, if
    /// that is known.
    pub(crate) fn new(
        (service, backend, salt): (ServiceName, BackendName, Salt),
        judging: Judging,
        history: History,
        patience: Option<Patience>,
        workers: usize,
    ) -> Self {
        let warm_up = judging.warm_up.unwrap_or(WARM_UP);
        let shared = Arc::new(Shared {
            salt,
            began: Instant::now(),
            first_on_new: OnceLock::new(),
            suspect: judging.suspect,
            warm_up,
            patience: patience.map(OnceLock::from).unwrap_or_default(),
            seen: ArcSwapOption::from_pointee(<[Seen; 2]>::default()),
            judged: Mutex::new(Judged {
                trial: uh_trial::Trial::new(history),
                routes: Routes::default(),
                status: uh_trial::Status::Undecided,
                request_ids: Vec::new(),
            }),
            bad_requests: Default::default(),
        });
        let lane = || Arc::new(TrialLane { shared: Arc::clone(&shared), sides: Default::default() });
        let lanes = (0..workers.max(1)).map(|_| lane()).collect();
        Self { service, backend, said: AtomicBool::new(false), shared, lanes }
    }

    /// How long it has been open.
    pub(crate) fn age(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// Whether its verdict wasn't logged yet. It is now.
    pub(crate) fn is_news(&self) -> bool {
        !self.said.swap(true, Ordering::Relaxed)
    }

    /// Both sides' requests so far.
    fn counts(&self) -> Counts {
        let of = |side: Side| {
            let sum = |counter: fn(&LaneCounts) -> &AtomicU64| {
                let of_lane =
                    |lane: &Arc<TrialLane>| counter(&lane.sides[side as usize]).load(Ordering::Relaxed);
                self.lanes.iter().map(of_lane).sum()
            };
            SideCounts {
                requests: sum(|counts| &counts.requests),
                failed: sum(|counts| &counts.failed),
                untimed: sum(|counts| &counts.untimed),
                slow: sum(|counts| &counts.slow),
                slow_ended: sum(|counts| &counts.slow_ended),
            }
        };
        Counts { old: of(Side::Old), new: of(Side::New) }
    }

    /// Looks at the evidence, and returns what was found. `share`: the split's present one.
    pub(crate) fn look(&self, share: f64) -> uh_trial::Status {
        let weight = self.shared.weight(share);
        let counts = self.counts();
        let mut judged = self.shared.judged.lock();
        judged.status = judged.trial.look(self.age(), weight, &counts);
        judged.status
    }

    /// Reads what only first failures write.
    pub(crate) fn judged<T>(&self, read: impl FnOnce(&Judged) -> T) -> T {
        read(&self.shared.judged.lock())
    }
}

impl Shared {
    /// The weight of the suspect, if its split has this share.
    fn weight(&self, share: f64) -> Weight {
        Weight::new(match self.suspect {
            uh_switching::Side::New => share,
            uh_switching::Side::Old => 1.0 - share,
        })
    }

    /// The side of the trial on which the split has put a request, and the weight.
    fn side(&self, assigned: Assigned) -> (Side, Weight) {
        let side = if assigned.side == self.suspect { Side::New } else { Side::Old };
        (side, self.weight(assigned.by.weight.share()))
    }

    /// Whether this is the client's first bad event of this kind. It is remembered. When the trial is over, none is.
    fn is_first(&self, kind: Kind, who: Who) -> bool {
        self.seen.load().as_ref().is_some_and(|seen| who.is_new_to(&seen[kind as usize]))
    }

    /// Whether the time counts that a request takes which is sent to this side `at` this time: not if it begins during the
    /// warm-up.
    fn is_warm(&self, side: Side, at: Instant) -> bool {
        let first = match side {
            Side::New => Some(self.first_on_new.get_or_init(|| at)),
            Side::Old => self.first_on_new.get(),
        };
        first.is_some_and(|first| at.saturating_duration_since(*first) >= self.warm_up)
    }
}

#[cfg(test)]
mod tests;
