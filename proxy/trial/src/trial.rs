//! A trial: a judge of failures, a judge of slowness, and cross-checks.

use std::time::Duration;

use crate::bound::excluded;
use crate::judge::{By, Decision, Figures, Judge, Rule};
use crate::share::{Share, Side, Weight};
use crate::windows::Ended;

/// From the first request on the new version on, requests that begin within this time are never slow, on either side: caches
/// fill, code is compiled.
pub const WARM_UP: Duration = Duration::from_secs(10);

/// How long half of the clients stay on each side after a suspicion.
pub const CROSS_CHECK: Duration = Duration::from_secs(20);

/// The old version's requests before the trial.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    /// Of all requests, those that failed.
    pub failures: Share,
    /// Of all requests, those that took longer than the slow bound.
    pub slowness: Share,
}

/// A side's requests since the trial began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SideCounts {
    /// All that have ended, and those still open that were counted as slow or failed.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those whose time doesn't count: they began during the warm-up, or before it was known what is slow.
    pub untimed: u64,
    /// Of the others, those that took longer than the slow bound. Counted when the time has passed.
    pub slow: u64,
    /// The slow ones that have ended.
    pub slow_ended: u64,
}

impl SideCounts {
    /// Requests that have ended and whose time counts, and the slow ones of them.
    fn ended(self) -> Share {
        let open = self.slow.saturating_sub(self.slow_ended);
        Share::new(self.slow_ended, self.requests.saturating_sub(self.untimed).saturating_sub(open))
    }
}

/// Both sides' requests since the trial began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// The old version's.
    pub old: SideCounts,
    /// The new version's.
    pub new: SideCounts,
}

/// The two kinds of bad events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request failed.
    Failure,
    /// A request took longer than the slow bound.
    Slowness,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Failure, Self::Slowness];

    /// The text in metrics and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failures",
            Self::Slowness => "slowness",
        }
    }

    /// A side's requests that are judged, and the bad ones of them.
    #[must_use]
    pub fn of(self, counts: SideCounts) -> Share {
        match self {
            Self::Failure => Share::new(counts.failed, counts.requests),
            Self::Slowness => Share::new(counts.slow, counts.requests.saturating_sub(counts.untimed)),
        }
    }
}

/// What the trial thinks of the new version.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Status {
    /// There is too little evidence for anything.
    Undecided,
    /// A cross-check is under way: half of the clients should be on each side.
    Suspicious,
    /// The new version is worse. This is final.
    Bad {
        /// In what.
        kind: Kind,
        /// By which test.
        by: By,
        /// The figures at that moment.
        figures: Figures,
    },
}

/// The trial of one new version.
#[derive(Debug, Clone)]
pub struct Trial {
    failures: Judge,
    slowness: Judge,
    cross_check_until: Option<Duration>,
    bad: Option<Status>,
}

impl Trial {
    /// Before the first request.
    #[must_use]
    pub fn new(history: History) -> Self {
        Self {
            failures: Judge::new(Rule::FAILURES, history.failures),
            slowness: Judge::new(Rule::SLOWNESS, history.slowness),
            cross_check_until: None,
            bad: None,
        }
    }

    /// A client's first bad event of this kind. `weight` is the one that its request was assigned with.
    pub fn record(&mut self, kind: Kind, side: Side, weight: Weight) {
        match kind {
            Kind::Failure => self.failures.record(side, weight),
            Kind::Slowness => self.slowness.record(side, weight),
        }
    }

    /// Looks at the evidence, `at` so long after the trial began. `weight`: the present one. Call this about every 100 ms.
    pub fn look(&mut self, at: Duration, weight: Weight, counts: &Counts) -> Status {
        if let Some(bad) = self.bad {
            return bad;
        }
        let ended = Ended { new: counts.new.ended(), old: counts.old.ended() };
        self.slowness.look_at_windows(at, weight, ended);
        let checking = self.cross_check_until.is_some_and(|until| at < until);
        let mut suspicious = false;
        for kind in Kind::ALL {
            let (new, old) = shares(kind, counts);
            let judge = match kind {
                Kind::Failure => &mut self.failures,
                Kind::Slowness => &mut self.slowness,
            };
            match judge.look(at, weight, new, old) {
                Decision::Undecided => {}
                Decision::Suspicious => suspicious = true,
                Decision::Bad(by) => {
                    let bad = Status::Bad { kind, by, figures: judge.figures(new, old) };
                    self.bad = Some(bad);
                    return bad;
                }
            }
        }
        if suspicious && !checking {
            self.cross_check_until = Some(at.saturating_add(CROSS_CHECK));
        }
        if suspicious || checking { Status::Suspicious } else { Status::Undecided }
    }

    /// What is known about one kind of events.
    #[must_use]
    pub fn figures(&self, kind: Kind, counts: &Counts) -> Figures {
        let (new, old) = shares(kind, counts);
        match kind {
            Kind::Failure => self.failures.figures(new, old),
            Kind::Slowness => self.slowness.figures(new, old),
        }
    }

    /// The largest excess rate of the new version that isn't excluded, from 0 to 1: "not worse by more than this".
    #[must_use]
    pub fn excluded(&self, kind: Kind, counts: &Counts) -> f64 {
        let (new, old) = shares(kind, counts);
        excluded(new, old)
    }
}

/// The requests of both sides that count: new, then old.
fn shares(kind: Kind, counts: &Counts) -> (Share, Share) {
    (kind.of(counts.new), kind.of(counts.old))
}
