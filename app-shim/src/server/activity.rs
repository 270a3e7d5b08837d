//! Tracks what happens on one connection, so that it can be closed without losing a request or response.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::drain::Exchange;

/// Shared by a connection's stream, its exchanges and the task that closes it.
#[derive(Debug, Default)]
pub(super) struct Activity {
    started: AtomicUsize,
    over: AtomicUsize,
    /// Bytes arrived after an exchange: an incomplete head.
    head_started: AtomicBool,
    /// Bytes arrived within the last exchange: a body, which may be incomplete.
    body_seen: AtomicBool,
}

/// An exchange on a connection, counted by both the connection and the drain.
#[derive(Debug)]
pub(super) struct ActiveExchange {
    activity: Arc<Activity>,
    _exchange: Exchange,
}

impl Activity {
    fn is_busy(&self) -> bool {
        self.over.load(Ordering::Relaxed) != self.started.load(Ordering::Relaxed)
    }

    /// Records that bytes arrived.
    pub(super) fn record_bytes(&self) {
        let flag = if self.is_busy() { &self.body_seen } else { &self.head_started };
        flag.store(true, Ordering::Relaxed);
    }

    /// Whether the client may still be sending the body of the last request.
    pub(super) fn may_be_sending(&self) -> bool {
        self.body_seen.load(Ordering::Relaxed)
    }

    /// Whether the connection is idle, and has been since the last call with the same `seen`.
    pub(super) fn was_quiet_since(&self, seen: &mut Option<usize>) -> bool {
        let started = self.started.load(Ordering::Relaxed);
        let idle = !self.is_busy() && !self.head_started.load(Ordering::Relaxed);
        seen.replace(started) == Some(started) && idle
    }
}

impl ActiveExchange {
    pub(super) fn begin(activity: &Arc<Activity>, exchange: Exchange) -> Self {
        activity.head_started.store(false, Ordering::Relaxed);
        activity.body_seen.store(false, Ordering::Relaxed);
        activity.started.fetch_add(1, Ordering::Relaxed);
        Self { activity: Arc::clone(activity), _exchange: exchange }
    }
}

impl Drop for ActiveExchange {
    fn drop(&mut self) {
        self.activity.over.fetch_add(1, Ordering::Relaxed);
    }
}
