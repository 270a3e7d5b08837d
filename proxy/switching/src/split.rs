//! A split: a share of a service's clients goes to a second backend, the others stay on the active one.
//!
//! A client is on the new side if `H(salt, key) / 2^64 < weight`. So it stays on its side as long as the weight does, a
//! larger weight only moves clients to the new side, and nothing is stored for any of them. Every proxy with the same salt
//! decides alike. A new split has a new salt, so that it isn't always the same clients who see a version first.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use siphasher::sip::SipHasher13;
use uh_protocol::BackendName;

use crate::snapshot::Active;

/// A share of all clients: more than none, at most all. In millionths, which is finer than anyone can measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u32);

/// All clients.
const WHOLE: u32 = 1_000_000;

/// A millionth, in percent.
const STEP_PERCENT: f64 = 0.0001;

/// Why a number isn't a weight.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum BadWeight {
    /// It isn't a share.
    #[error("{0} isn't a weight: use a percentage from 0 to 100")]
    OutOfRange(f64),
    /// It is finer than [`Weight`] can be.
    #[error("{0} is too fine a weight: use at most four decimals, such as 0.0001")]
    TooFine(f64),
}

impl Weight {
    /// So many millionths of all clients; `None`: none of them, or more than there are.
    #[must_use]
    pub fn from_millionths(millionths: u32) -> Option<Self> {
        (1..=WHOLE).contains(&millionths).then_some(Self(millionths))
    }

    /// From 0 to 1,000,000.
    #[must_use]
    pub fn millionths(self) -> u32 {
        self.0
    }

    /// A percentage of all clients; `None`: 0 %.
    ///
    /// # Errors
    /// It isn't from 0 to 100, or too fine.
    pub fn from_percent(percent: f64) -> Result<Option<Self>, BadWeight> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(BadWeight::OutOfRange(percent));
        }
        let steps = percent / STEP_PERCENT;
        let millionths = steps.round();
        // What isn't exact in binary, such as 0.3, is off by much less.
        if (steps - millionths).abs() > 0.001 {
            return Err(BadWeight::TooFine(percent));
        }
        Ok(Self::from_millionths(millionths as u32))
    }

    /// The percentage of all clients.
    #[must_use]
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }

    /// The share of all clients, from 0 to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }

    /// Whether a client with this hash is on the new side: `hash / 2^64 < weight`, exactly.
    #[must_use]
    fn takes(self, hash: u64) -> bool {
        ((u128::from(hash) * u128::from(WHOLE)) >> 64) < u128::from(self.0)
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent())
    }
}

/// What makes a split choose other clients than the next one: 128 random bits. As text, 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt(u128);

impl Salt {
    /// With these bits.
    #[must_use]
    pub const fn new(bits: u128) -> Self {
        Self(bits)
    }

    /// Where a client is, among all of them.
    fn hash(self, key: ClientKey) -> u64 {
        let (kind, bits) = match key {
            ClientKey::V4(address) => (4, u128::from(address)),
            ClientKey::V6(network) => (6, u128::from(network)),
            ClientKey::Cookie(id) => (1, id),
        };
        let mut bytes = [kind; 17];
        bytes[1..].copy_from_slice(&bits.to_le_bytes());
        SipHasher13::new_with_key(&self.0.to_le_bytes()).hash(&bytes)
    }
}

impl fmt::Display for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Salt {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let bits = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        bits.map(Self).ok_or("a salt has 32 hexadecimal digits")
    }
}

/// What a client is recognised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientKey {
    /// An IPv4 address.
    V4(u32),
    /// The first 64 bits of an IPv6 address: what one connection to the Internet gets.
    V6(u64),
    /// The random id in a cookie.
    Cookie(u128),
}

/// Where a split sends a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// To the active backend.
    Old,
    /// To the backend of the split.
    New,
}

/// How a split decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// The share of clients on the new side.
    pub weight: Weight,
    /// Which ones.
    pub salt: Salt,
}

impl Assignment {
    /// The side of a client.
    #[must_use]
    pub fn side(self, key: ClientKey) -> Side {
        if self.weight.takes(self.salt.hash(key)) { Side::New } else { Side::Old }
    }
}

/// How a split has assigned a request. An exchange keeps it until its end: whatever compares both sides needs to know
/// which client was on which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assigned {
    /// Its client.
    pub key: ClientKey,
    /// Where its client is.
    pub side: Side,
    /// What decided that. Its salt also says which split it was.
    pub by: Assignment,
}

/// Why a split ends unless it is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// Its caller renews it as long as the caller lives.
    Lease(Duration),
    /// It was left to itself, which is only allowed for so long.
    Hold(Duration),
}

impl Term {
    /// How long it lasts from its last renewal.
    #[must_use]
    pub fn length(self) -> Duration {
        match self {
            Self::Lease(length) | Self::Hold(length) => length,
        }
    }

    /// When it ends if it is renewed at this time.
    #[must_use]
    pub fn until(self, renewed: Timestamp) -> Timestamp {
        let length = SignedDuration::try_from(self.length()).unwrap_or(SignedDuration::MAX);
        renewed.saturating_add(length).unwrap_or(Timestamp::MAX)
    }
}

/// What the trial of a split knows from its beginning. It stays as it is while the split lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judging {
    /// Which side may be worse than the other one.
    pub suspect: Side,
    /// For how long slowness isn't judged; `None`: as long as usual.
    pub warm_up: Option<Duration>,
}

impl Default for Judging {
    fn default() -> Self {
        Self { suspect: Side::New, warm_up: None }
    }
}

/// A split of a service's traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The new side: its backend, which isn't the active one, and the generation since when it gets requests like this.
    pub new: Active,
    /// Which clients go there.
    pub assignment: Assignment,
    /// When it began.
    pub began: Timestamp,
    /// How long it lasts.
    pub term: Term,
    /// When it ends unless it is renewed.
    pub until: Timestamp,
    /// How it is judged.
    pub judging: Judging,
}

impl Split {
    /// What of it must survive a restart.
    #[must_use]
    pub fn record(&self) -> SplitRecord {
        let Self { new, assignment, began, term, until, judging } = self;
        let (to, assignment) = (new.backend.clone(), *assignment);
        SplitRecord { to, assignment, began: *began, term: *term, until: *until, judging: *judging }
    }
}

/// What must survive a restart of a [`Split`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitRecord {
    /// The backend of the new side.
    pub to: BackendName,
    /// Which clients go there.
    pub assignment: Assignment,
    /// When it began.
    pub began: Timestamp,
    /// How long it lasts.
    pub term: Term,
    /// When it ends unless it is renewed.
    pub until: Timestamp,
    /// How it is judged.
    pub judging: Judging,
}

impl SplitRecord {
    /// As a split that goes on in this generation.
    pub(crate) fn split(&self, since: u64) -> Split {
        let Self { to, assignment, began, term, until, judging } = self;
        let new = Active { backend: to.clone(), since };
        let (began, term, until) = (*began, *term, *until);
        Split { new, assignment: *assignment, began, term, until, judging: *judging }
    }
}

#[cfg(test)]
mod tests;
