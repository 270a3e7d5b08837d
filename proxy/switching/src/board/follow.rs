//! Hand-over: a switchboard that decides nothing, because another process leads.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Switchboard;
use crate::live::Fittings;
use crate::record::RoutingRecord;
use crate::snapshot::Snapshot;

impl<F: Fittings> Switchboard<F> {
    /// Refuses every change from now on, and returns the routing that the last one has left.
    pub fn freeze(&self) -> Arc<Snapshot<F::Service>> {
        // A change that has begun is completed first.
        let _changes = self.ledgers.lock();
        self.frozen.store(true, Ordering::Release);
        // Who waits for a drain here is to ask the other process.
        self.changed.notify_waiters();
        self.snapshot()
    }

    /// Whether changes are refused.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// Allows changes again.
    pub fn unfreeze(&self) {
        let _changes = self.ledgers.lock();
        self.frozen.store(false, Ordering::Release);
        // What has tried meanwhile tries again.
        self.changed.notify_waiters();
    }

    /// Puts another process's routing in force. What it leaves as it was keeps its activations. When this returns, no request
    /// is picked by the old routing any more.
    pub fn follow(&self, record: &RoutingRecord) {
        let mut ledgers = self.ledgers.lock();
        let live = self.live.load_full();
        let next = self.make(&mut ledgers, &live, live.snapshot.following(record));
        drop(live);
        drop(self.live.swap(Arc::new(next)));
        self.changed.notify_waiters();
    }
}
