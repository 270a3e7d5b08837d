//! One judge: the coin test and the history test of one kind of bad events, and the conditions under which they decide.

use std::time::Duration;

use crate::coin::CoinTest;
use crate::history::HistoryTest;
use crate::share::{Share, Side, Weight};
use crate::windows::{Ended, WindowTest};

/// A decision must be seen again this much later.
pub const SEEN_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// When a judge decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// `α`: at most this share of healthy versions is stopped by each test.
    pub error: f64,
    /// E₁ that the history test needs. In an outage, when its own guarantee is void, at most 1 of so many healthy versions
    /// is stopped.
    pub seconded: f64,
    /// Whether E₁ is the smaller of the coin's evidence and that of windows: a pause of a process makes many clients slow, and
    /// is one event.
    pub windows: bool,
    /// E₂ at which half of the clients are given back if there is no control group that is large enough.
    pub suspicious: f64,
    /// Clients that fail on the new side.
    pub clients: u64,
    /// How much higher than the old version's the rate must be, as a share.
    pub excess: f64,
    /// And how many times as high.
    pub ratio: f64,
}

impl Rule {
    /// For failures.
    pub const FAILURES: Self = Self {
        error: 5e-5,
        seconded: 200.0,
        windows: false,
        suspicious: 1000.0,
        clients: 3,
        excess: 0.005,
        ratio: 1.5,
    };
    /// For slow requests. A starved machine is more frequent than an outage, and lasts for the whole trial.
    pub const SLOWNESS: Self = Self { seconded: 2000.0, windows: true, excess: 0.03, ..Self::FAILURES };

    /// The logarithm of the evidence that decides. There are two tests, and each has half of `α`.
    fn ln_decides(&self) -> f64 {
        (2.0 / self.error).ln()
    }
}

/// Which test decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The coin test alone.
    Coin,
    /// The history test, seconded by the coin test.
    History,
}

/// What is known so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Requests on the new version in the trial.
    pub new: Share,
    /// Requests on the old version in the trial.
    pub old: Share,
    /// Requests on the old version before.
    pub before: Share,
    /// Clients that failed on the new version.
    pub clients_new: u64,
    /// Clients that failed on the old version.
    pub clients_old: u64,
    /// Natural logarithm of the coin test's evidence: of E₁, unless windows say less.
    pub ln_coin: f64,
    /// Natural logarithm of the window test's evidence, where there is one.
    pub ln_windows: Option<f64>,
    /// Natural logarithm of E₂, less what repeated cross-checks cost.
    pub ln_history: f64,
}

impl Figures {
    /// The rate to compare with: the larger of the old version's now and before.
    #[must_use]
    pub fn reference(&self) -> f64 {
        self.old.rate().max(self.before.rate())
    }
}

/// What a judge thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// There is too little evidence for anything.
    Undecided,
    /// Too many clients are on the new version to compare: half of them should be on each side for a while.
    Suspicious,
    /// The new version is worse.
    Bad(By),
}

/// Judges one kind of bad events.
#[derive(Debug, Clone)]
pub struct Judge {
    rule: Rule,
    before: Share,
    coin: CoinTest,
    history: HistoryTest,
    windows: WindowTest,
    /// Where the history test began: requests and failing clients on the new side.
    base: (u64, u64),
    /// Whether the new side had more than half of the clients at the last look.
    above_half: Option<bool>,
    /// How often the history test began again after a suspicion. Each of its runs could err.
    restarts: u32,
    /// When the evidence was first enough, if it still was at the last look.
    enough_since: Option<Duration>,
}

impl Judge {
    /// Before the first event. `before`: the old version's requests of the last minutes.
    #[must_use]
    pub fn new(rule: Rule, before: Share) -> Self {
        Self {
            rule,
            before,
            coin: CoinTest::default(),
            history: HistoryTest::new(before),
            windows: WindowTest::default(),
            base: (0, 0),
            above_half: None,
            restarts: 0,
            enough_since: None,
        }
    }

    /// The first bad event of a client. `weight` is the one that its request was assigned with.
    pub fn record(&mut self, side: Side, weight: Weight) {
        self.coin.record(side, weight);
    }

    /// Looks at what has ended, for judges with windows. Before each [`Self::look`].
    pub fn look_at_windows(&mut self, at: Duration, weight: Weight, ended: Ended) {
        self.windows.look(at, weight, ended);
    }

    /// Looks at the evidence. `at`: since the trial began; `weight`: the present one; `new` and `old`: all requests since
    /// the trial began.
    pub fn look(&mut self, at: Duration, weight: Weight, new: Share, old: Share) -> Decision {
        let above_half = weight > Weight::HALF;
        if self.above_half.replace(above_half).is_some_and(|before| before != above_half) {
            self.restart_history(new);
        }
        if let Some(by) = self.decides(new, old, above_half) {
            let since = *self.enough_since.get_or_insert(at);
            let again = at.saturating_sub(since) >= SEEN_AGAIN_AFTER;
            return if again { Decision::Bad(by) } else { Decision::Undecided };
        }
        self.enough_since = None;
        if above_half && self.is_suspicious(new) {
            self.restarts = self.restarts.saturating_add(1);
            self.restart_history(new);
            return Decision::Suspicious;
        }
        Decision::Undecided
    }

    /// What is known. `new` and `old`: all requests since the trial began.
    #[must_use]
    pub fn figures(&self, new: Share, old: Share) -> Figures {
        Figures {
            new,
            old,
            before: self.before,
            clients_new: self.coin.clients(Side::New),
            clients_old: self.coin.clients(Side::Old),
            ln_coin: self.coin.ln_evidence(),
            ln_windows: self.rule.windows.then(|| self.windows.ln_evidence()),
            ln_history: self.ln_history(new),
        }
    }

    /// The test that decides, if one does. What is cheap is checked first: most looks find nothing material.
    fn decides(&self, new: Share, old: Share, above_half: bool) -> Option<By> {
        let (rate, reference) = (new.rate(), old.rate().max(self.before.rate()));
        let material = self.coin.clients(Side::New) >= self.rule.clients
            && rate - reference >= self.rule.excess
            && rate >= self.rule.ratio * reference;
        if !material {
            return None;
        }
        let (same_moment, enough) = (self.ln_same_moment(), self.rule.ln_decides());
        if same_moment >= enough {
            return Some(By::Coin);
        }
        let seconded = !above_half && same_moment >= self.rule.seconded.ln();
        (seconded && self.ln_history(new) >= enough).then_some(By::History)
    }

    /// The natural logarithm of E₁.
    fn ln_same_moment(&self) -> f64 {
        let coin = self.coin.ln_evidence();
        if self.rule.windows { coin.min(self.windows.ln_evidence()) } else { coin }
    }

    fn is_suspicious(&self, new: Share) -> bool {
        // At or below the allowed rate, E₂ is at most 1.
        self.since_restart(new).rate() > self.history.allowed()
            && self.ln_history(new) >= self.rule.suspicious.ln()
    }

    fn ln_history(&self, new: Share) -> f64 {
        self.history.ln_evidence(self.since_restart(new)) - f64::from(self.restarts).ln_1p()
    }

    /// The requests that the history test sees. Each client counts once here, too, so that a few clients who retry don't
    /// look like many failures.
    fn since_restart(&self, new: Share) -> Share {
        let (requests, clients) = self.base;
        let bad = self.coin.clients(Side::New).saturating_sub(clients);
        Share::new(bad, new.all().saturating_sub(requests))
    }

    fn restart_history(&mut self, new: Share) {
        self.base = (new.all(), self.coin.clients(Side::New));
    }
}
