//! Connects a deploy with the watch that runs in parallel: the deploy signals that traffic has moved, the watch
//! signals that waiting for the old version is pointless.

use std::cell::Cell;

use tokio::sync::Notify;

/// Connects one operation with one watch.
#[derive(Debug, Default)]
pub(crate) struct WatchLink {
    switched: Notify,
    hurry: Notify,
    over: Cell<bool>,
}

impl WatchLink {
    /// Signals that traffic has moved, so the watch can start.
    pub(crate) fn switched(&self) {
        self.switched.notify_one();
    }

    /// Waits until traffic has moved.
    pub(crate) async fn wait_for_switch(&self) {
        self.switched.notified().await;
    }

    /// Signals that the new version misbehaves, so the operation ends as soon as it can.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Waits until [`Self::hurry`] is called; without a link, indefinitely.
    pub(crate) async fn hurried(link: Option<&Self>) {
        match link {
            Some(link) => link.hurry.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Signals that the operation has ended: from now on only the watch checks the instance.
    pub(crate) fn set_over(&self) {
        self.over.set(true);
    }

    /// Whether the operation has ended.
    #[must_use]
    pub(crate) fn is_over(&self) -> bool {
        self.over.get()
    }
}
