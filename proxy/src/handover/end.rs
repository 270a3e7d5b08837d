//! The end of a process that another one has replaced: until then, it may lead again. It waits until that one knows what
//! happened to the last requests, and until callers of the admin API have their replies.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Between the admin thread, which follows, and the main thread, which ends the process.
#[derive(Debug, Default)]
pub(crate) struct End {
    is_following: AtomicBool,
    wanted: Notify,
    calls: AtomicUsize,
    way_back: Mutex<WayBack>,
    is_expected: AtomicBool,
}

/// Whether this process can lead again, once another one leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum WayBack {
    /// If the other one ends, or wants it to.
    #[default]
    Open,
    /// It is about to.
    Taken,
    /// It ends.
    Closed,
}

impl End {
    /// Begins to follow.
    pub(crate) fn following(&self) -> Following<'_> {
        self.is_following.store(true, Ordering::Release);
        Following(self)
    }

    /// Begins to lead again, unless this process ends already.
    pub(crate) fn take_way_back(&self) -> bool {
        let mut way = self.way_back.lock();
        let is_open = *way == WayBack::Open;
        if is_open {
            *way = WayBack::Taken;
        }
        is_open
    }

    /// It leads again, or couldn't: whatever happens next, it is as at the start.
    pub(crate) fn open_way_back(&self) {
        *self.way_back.lock() = WayBack::Open;
    }

    /// This process ends, unless it is about to lead again. Returns whether it does.
    pub(crate) fn close_way_back(&self) -> bool {
        let mut way = self.way_back.lock();
        if *way == WayBack::Open {
            *way = WayBack::Closed;
        }
        *way == WayBack::Closed
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        *self.way_back.lock() == WayBack::Closed
    }

    /// Whether the process that this one has replaced is to take the lead back.
    pub(crate) fn expect_back(&self, is_expected: bool) {
        self.is_expected.store(is_expected, Ordering::Release);
    }

    /// Whether it is.
    pub(crate) fn expects_back(&self) -> bool {
        self.is_expected.load(Ordering::Acquire)
    }

    /// A call of the admin API has begun. It counts as long as the value lives.
    pub(crate) fn call(&self) -> Call<'_> {
        self.calls.fetch_add(1, Ordering::AcqRel);
        Call(self)
    }

    /// Whether a caller waits for a reply.
    pub(crate) fn has_calls(&self) -> bool {
        self.calls.load(Ordering::Acquire) > 0
    }

    /// All requests are over: has the admin thread report that. Returns whether it will.
    pub(crate) fn report(&self) -> bool {
        let is_following = self.is_following.load(Ordering::Acquire);
        if is_following {
            self.wanted.notify_one();
        }
        is_following
    }
}

/// A call of the admin API.
pub(crate) struct Call<'a>(&'a End);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Says that this process follows, as long as it lives.
pub(crate) struct Following<'a>(&'a End);

impl Following<'_> {
    /// Waits until the last report is wanted.
    pub(crate) async fn wait(&self) {
        self.0.wanted.notified().await;
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.is_following.store(false, Ordering::Release);
    }
}
