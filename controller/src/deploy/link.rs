//! How a deploy and the watch that runs at the same time reach each other: the deploy says when traffic has moved, the
//! watch says when there is no point in waiting for the old version any longer.

use std::cell::Cell;

use tokio::sync::Notify;

/// Between one operation and one watch.
#[derive(Debug, Default)]
pub struct Link {
    switched: Notify,
    hurry: Notify,
    over: Cell<bool>,
}

impl Link {
    /// Traffic has moved: from now on there is something to watch.
    pub fn switched(&self) {
        self.switched.notify_one();
    }

    /// Waits until traffic has moved.
    pub async fn wait_for_switch(&self) {
        self.switched.notified().await;
    }

    /// The new version is bad and has to go: the operation ends as soon as it can.
    pub fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Waits until somebody hurries; without a link, forever.
    pub async fn hurried(link: Option<&Self>) {
        match link {
            Some(link) => link.hurry.notified().await,
            None => std::future::pending().await,
        }
    }

    /// The operation is over: whoever watches is the only one that looks at the instance.
    pub fn set_over(&self) {
        self.over.set(true);
    }

    /// Whether the operation is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.get()
    }
}
