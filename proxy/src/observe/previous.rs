//! What happens to requests that are asked of a previous backend: the closed sets of labels of
//! `uh_proxy_previous_asked_total` and `uh_proxy_previous_actions_total`, and the counters.

use std::sync::atomic::AtomicU64;

use super::meters::add;

/// What has happened to a request that the active backend has nothing for.
pub(crate) const ASKED_RESULTS: [&str; 2] = ["missing", "answered"];

/// What has happened to a server action that the active backend doesn't know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ActionResult {
    /// The previous backend has executed it.
    Answered,
    /// It doesn't know it either.
    Missing,
    /// It could not be reached, or didn't answer.
    Failed,
    /// It wasn't asked, since the body of the request was too large to be kept, or too many were kept.
    NotKept,
}

/// All results, by their index.
pub(crate) const ACTION_RESULTS: [&str; 4] = ["answered", "missing", "failed", "not_kept"];

/// One worker's counters of what was asked of one backend as the previous one.
#[derive(Debug, Default)]
pub(crate) struct PreviousCounters {
    pub(super) asked: [AtomicU64; ASKED_RESULTS.len()],
    pub(super) actions: [AtomicU64; ACTION_RESULTS.len()],
    pub(super) named: AtomicU64,
}

impl PreviousCounters {
    /// Counts a request that the active backend had nothing for, and whether it had an answer here.
    pub(crate) fn asked(&self, answered: bool) {
        add(&self.asked[usize::from(answered)], 1);
    }

    /// Counts a server action that the active backend didn't know.
    pub(crate) fn action(&self, result: ActionResult) {
        add(&self.actions[result as usize], 1);
    }

    /// Counts a request that named the deployment id of this backend.
    pub(crate) fn named(&self) {
        add(&self.named, 1);
    }
}

/// What a scrape reads of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousReading {
    /// By [`ASKED_RESULTS`].
    pub asked: [u64; ASKED_RESULTS.len()],
    /// By [`ACTION_RESULTS`].
    pub actions: [u64; ACTION_RESULTS.len()],
    /// Requests that named its deployment id.
    pub named: u64,
}
