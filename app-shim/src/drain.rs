//! Counts what is in flight, and waits for it to finish.
//!
//! Every connection and tunnel holds a [`Work`] while it is open; every exchange holds an [`Exchange`] until the last
//! byte of its response is handed over. A drain ends when no work is left, so that the last bytes are written too.
//! Logs and metrics report exchanges and tunnels. This module never ends any work itself: what is left at the
//! deadline is cut when the process exits.

mod counter;
mod sync;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use counter::{WorkCounter, WorkGuard};

/// Whether the drain has started, and how much work is left.
#[derive(Debug)]
pub struct Drain {
    /// The deadline, once the drain has started.
    deadline: watch::Sender<Option<Instant>>,
    work: Arc<WorkCounter>,
    exchanges: AtomicUsize,
    tunnels: AtomicUsize,
}

/// An open connection or tunnel, until it is dropped.
#[derive(Debug)]
pub struct Work {
    deadline: watch::Receiver<Option<Instant>>,
    _held: WorkGuard,
}

/// An exchange in flight, until it is dropped.
#[derive(Debug)]
pub struct Exchange(Arc<Drain>);

/// A tunnel in flight. It is work of its own: begin it before the connection it comes from closes, so that the count
/// never reaches zero in between.
#[derive(Debug)]
pub struct Tunnel {
    drain: Arc<Drain>,
    work: Work,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainOutcome {
    /// All work was finished in time.
    Clean,
    /// This many exchanges and tunnels were still in flight.
    Cut(usize),
}

impl DrainOutcome {
    /// The outcome with this many left in flight.
    #[must_use]
    pub fn of(left: usize) -> Self {
        if left == 0 { Self::Clean } else { Self::Cut(left) }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            deadline: watch::Sender::new(None),
            work: Arc::default(),
            exchanges: AtomicUsize::new(0),
            tunnels: AtomicUsize::new(0),
        }
    }
}

impl Drain {
    /// Counts one more connection.
    pub fn begin_work(&self) -> Work {
        Work { deadline: self.deadline.subscribe(), _held: WorkCounter::begin(&self.work) }
    }

    /// Counts one more exchange.
    pub fn begin_exchange(self: &Arc<Self>) -> Exchange {
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        Exchange(Arc::clone(self))
    }

    /// Counts one more tunnel.
    pub fn begin_tunnel(self: &Arc<Self>) -> Tunnel {
        self.tunnels.fetch_add(1, Ordering::Relaxed);
        Tunnel { drain: Arc::clone(self), work: self.begin_work() }
    }

    /// Starts the drain for all work, present and future, with this timeout. Only the first call counts.
    pub fn start(&self, timeout: Duration) {
        self.deadline.send_if_modified(|deadline| {
            let first = deadline.is_none();
            deadline.get_or_insert_with(|| Instant::now() + timeout);
            first
        });
    }

    /// Whether [`Drain::start`] was called.
    pub fn has_started(&self) -> bool {
        self.deadline.borrow().is_some()
    }

    /// How many exchanges and tunnels are in flight.
    pub fn in_flight(&self) -> usize {
        self.exchanges.load(Ordering::Relaxed) + self.tunnels()
    }

    /// How many tunnels are open.
    pub fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Relaxed)
    }

    /// How many connections and tunnels are open, including idle ones.
    pub fn connections(&self) -> usize {
        self.work.left()
    }

    /// Waits until no work is left, or until the deadline. Before the drain has started there is no deadline.
    pub async fn finish(&self) -> DrainOutcome {
        let deadline = *self.deadline.borrow();
        let over = self.work.over();
        let Some(deadline) = deadline else {
            over.await;
            return DrainOutcome::Clean;
        };
        match tokio::time::timeout_at(deadline, over).await {
            Ok(()) => DrainOutcome::Clean,
            // Closing a connection without an exchange loses nothing.
            Err(_) => DrainOutcome::of(self.in_flight()),
        }
    }
}

impl Work {
    /// Waits until the drain starts, and returns its deadline. Cancel-safe.
    pub async fn drain_started(&mut self) -> Instant {
        match self.deadline.wait_for(Option::is_some).await {
            Ok(deadline) => deadline.unwrap_or_else(Instant::now),
            // The `Drain` is gone, so the process is exiting.
            Err(_) => Instant::now(),
        }
    }
}

impl Tunnel {
    /// Waits until the drain starts, and returns its deadline. Cancel-safe.
    pub async fn drain_started(&mut self) -> Instant {
        self.work.drain_started().await
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.exchanges.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.drain.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_its_last_work() {
        let drain = Arc::new(Drain::default());
        let (connection, tunnel) = (drain.begin_work(), drain.begin_tunnel());
        let exchange = drain.begin_exchange();
        assert_eq!((drain.in_flight(), drain.tunnels(), drain.connections()), (2, 1, 2));
        drain.start(LONG);
        let finishing = tokio::spawn({
            let drain = Arc::clone(&drain);
            async move { drain.finish().await }
        });
        drop((connection, exchange));
        tokio::task::yield_now().await;
        assert!(!finishing.is_finished());
        drop(tunnel);
        assert_eq!(finishing.await.unwrap(), DrainOutcome::Clean);
        assert_eq!(drain.in_flight(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_at_the_deadline_is_counted() {
        let drain = Arc::new(Drain::default());
        let _work = drain.begin_work();
        let exchange = drain.begin_exchange();
        drain.start(Duration::from_secs(3));
        drain.start(LONG);
        let started_at = Instant::now();
        assert_eq!(drain.finish().await, DrainOutcome::Cut(1));
        assert_eq!(started_at.elapsed().as_secs(), 3, "the first start counts");
        drop(exchange);
        assert_eq!(
            drain.finish().await,
            DrainOutcome::Clean,
            "a connection without an exchange loses nothing"
        );
    }

    #[tokio::test]
    async fn work_that_begins_after_the_drain_has_started_sees_it() {
        let drain = Arc::new(Drain::default());
        drain.start(LONG);
        drain.begin_work().drain_started().await;
        drain.begin_tunnel().drain_started().await;
    }
}
