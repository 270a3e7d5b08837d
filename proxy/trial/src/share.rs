//! The two sides of a trial, the weight between them, and counted shares.

/// Which version serves a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The version that served everybody before.
    Old,
    /// The version on trial.
    New,
}

impl Side {
    /// Both, in the order of their index.
    pub const ALL: [Self; 2] = [Self::Old, Self::New];

    /// The text in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
        }
    }
}

/// The share of clients that the new version serves, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Weight(f64);

impl Weight {
    /// Nobody.
    pub const NONE: Self = Self(0.0);
    /// Half of them: what the coin test can use best.
    pub const HALF: Self = Self(0.5);
    /// Everybody.
    pub const ALL: Self = Self(1.0);

    /// From a share. What is outside of 0 to 1 counts as the nearer end, and what is no number as 0.
    #[must_use]
    pub fn new(share: f64) -> Self {
        if share.is_nan() { Self::NONE } else { Self(share.clamp(0.0, 1.0)) }
    }

    /// As a share from 0 to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        self.0
    }

    /// Whether both sides have clients, so that they can be compared.
    #[must_use]
    pub fn divides(self) -> bool {
        self.0 > 0.0 && self.0 < 1.0
    }
}

/// How many of a number of requests were bad: failed, or slow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Never more than `all`.
    bad: u64,
    all: u64,
}

impl Share {
    /// `bad` of `all`. More bad ones than there are count as all.
    #[must_use]
    pub fn new(bad: u64, all: u64) -> Self {
        Self { bad: bad.min(all), all }
    }

    /// The bad ones.
    #[must_use]
    pub fn bad(self) -> u64 {
        self.bad
    }

    /// All requests.
    #[must_use]
    pub fn all(self) -> u64 {
        self.all
    }

    /// From 0 to 1; 0 of none is 0.
    #[must_use]
    pub fn rate(self) -> f64 {
        if self.all == 0 { 0.0 } else { self.bad as f64 / self.all as f64 }
    }

    /// The interval that holds the true rate, `z` standard deviations to each side: from 0 to 1 if nothing was counted.
    ///
    /// This is Agresti and Coull's interval. It has the centre of Wilson's and is a little wider, so it is on the safe
    /// side, also for few requests and for rates near 0.
    #[must_use]
    pub fn interval(self, z: f64) -> (f64, f64) {
        if self.all == 0 {
            return (0.0, 1.0);
        }
        let (k, n) = (self.bad as f64, self.all as f64 + z * z);
        let centre = (k + z * z / 2.0) / n;
        let half = z * (centre * (1.0 - centre) / n).sqrt();
        ((centre - half).max(0.0), (centre + half).min(1.0))
    }
}
