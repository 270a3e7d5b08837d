//! What is in flight, and the end of it.
//!
//! Every connection and every tunnel holds a [`Work`] for as long as it lives; the [`Drain`] counts them. A tunnel
//! takes its own before the connection it came from lets go, so the count never touches zero in between. This module
//! never ends any work itself: what is still there at the deadline is cut by the process leaving.

use std::time::Duration;

use tokio::sync::watch;

/// Knows whether the app is leaving and how much it still has to finish.
#[derive(Debug)]
pub struct Drain {
    started: watch::Sender<bool>,
}

/// One connection or tunnel in flight; dropping it says that it is done.
#[derive(Debug)]
pub struct Work {
    started: watch::Receiver<bool>,
}

/// How a drain ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All work was finished in time.
    Clean,
    /// This many connections and tunnels were still in flight.
    Cut(usize),
}

impl Default for Drain {
    fn default() -> Self {
        Self { started: watch::Sender::new(false) }
    }
}

impl Drain {
    /// Counts one more connection or tunnel.
    pub fn begin_work(&self) -> Work {
        Work { started: self.started.subscribe() }
    }

    /// Tells all work, present and to come, that the app is leaving.
    pub fn start(&self) {
        self.started.send_replace(true);
    }

    /// Whether [`Drain::start`] was called.
    pub fn has_started(&self) -> bool {
        *self.started.borrow()
    }

    /// How many connections and tunnels are alive. Idle ones count only until they have seen that the drain started.
    pub fn in_flight(&self) -> usize {
        self.started.receiver_count()
    }

    /// Waits until no work is left, at most `timeout`.
    pub async fn finish(&self, timeout: Duration) -> Outcome {
        match tokio::time::timeout(timeout, self.started.closed()).await {
            Ok(()) => Outcome::Clean,
            Err(_) => Outcome::Cut(self.in_flight()),
        }
    }
}

impl Work {
    /// Waits until the drain starts.
    pub async fn drain_started(&mut self) {
        // The error says that the `Drain` is gone, which no work outlives by long: then it is time to leave too.
        let _ = self.started.wait_for(|started| *started).await;
    }
}
