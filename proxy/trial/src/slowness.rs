//! From which duration on a request is slow, or overdue: a percentile of the old version's, as a bound of a histogram, so
//! that it is known exactly how many requests of the old version took longer.

use crate::share::Share;

/// Of the old version's requests, at least this share isn't slow.
const NOT_SLOW: f64 = 0.95;

/// And at least this share isn't overdue.
const NOT_OVERDUE: f64 = 0.99;

/// When a request counts as slow, or as overdue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowBound {
    /// In the unit of the histogram's bounds. A request that takes longer counts.
    pub bound: u64,
    /// The old version's requests by that bound.
    pub history: Share,
}

/// The smallest bound of a histogram that 95 % of the requests don't exceed. `cumulative` counts, for each bound, the
/// requests that took at most so long, and then all requests. `None`: nothing was counted, or more than 5 % exceed every
/// bound.
#[must_use]
pub fn slow_bound(bounds: &[u64], cumulative: &[u64]) -> Option<SlowBound> {
    bound(bounds, cumulative, NOT_SLOW)
}

/// The same for requests that are overdue: 99 % don't exceed it. An answer that takes longer is as bad as none.
#[must_use]
pub fn overdue_bound(bounds: &[u64], cumulative: &[u64]) -> Option<SlowBound> {
    bound(bounds, cumulative, NOT_OVERDUE)
}

fn bound(bounds: &[u64], cumulative: &[u64], share: f64) -> Option<SlowBound> {
    let all = cumulative.get(bounds.len()).copied().filter(|all| *all > 0)?;
    let at = bounds.iter().zip(cumulative).find(|(_, within)| **within as f64 >= share * all as f64);
    at.map(|(bound, within)| SlowBound {
        bound: *bound,
        history: Share::new(all.saturating_sub(*within), all),
    })
}
