//! Broadcasts shutdown and drain to every connection of a worker.
//!
//! A connection listens for the next broadcast from its first poll to its last.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Context;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;

use crate::config::{Service, TunnelsAtDrain};
use uh_switching::CloseSchedule;

/// How far the process is with stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopStage {
    /// Not at all.
    Running,
    /// No new exchanges; those in flight finish.
    Stopping,
    /// Exchanges in flight are cut.
    Cutting,
}

/// The deadlines of a shutdown.
#[derive(Debug, Clone, Copy)]
pub struct StopDeadlines {
    /// When stopping began.
    pub begun: Instant,
    /// Until then, an idle connection may still send a request.
    pub idle_until: Instant,
    /// Then, what is still in flight is cut.
    pub cut_at: Instant,
    /// How many tunnels there were when stopping began.
    pub tunnels: u64,
}

/// How long before the cut the last tunnel's turn to close is.
const TUNNEL_MARGIN: Duration = Duration::from_millis(500);

impl StopDeadlines {
    /// The deadlines of a shutdown that begins now.
    #[must_use]
    pub fn new(now: Instant, idle_grace: Duration, timeout: Duration, tunnels: u64) -> Self {
        Self { begun: now, idle_until: now + idle_grace.min(timeout), cut_at: now + timeout, tunnels }
    }

    /// When the tunnels of a service are closed: at once if a drain would do so, otherwise as late as possible with
    /// time left for a close frame.
    #[must_use]
    pub fn close_schedule(&self, service: &Service) -> CloseSchedule {
        let last = self.cut_at - TUNNEL_MARGIN.min(self.cut_at - self.begun);
        let over = CloseSchedule::length(self.tunnels, service.tunnel_close_spread).min(last - self.begun);
        match service.tunnels_at_drain {
            TunnelsAtDrain::Close => CloseSchedule { from: self.begun, over },
            TunnelsAtDrain::Keep | TunnelsAtDrain::Drain => CloseSchedule { from: last - over, over },
        }
    }
}

/// Wakes every connection of a worker.
#[derive(Debug, Default)]
pub struct Broadcast {
    stage: AtomicU8,
    timetable: OnceLock<StopDeadlines>,
    notify: Arc<Notify>,
}

impl Broadcast {
    /// Wakes every connection to check its state.
    pub fn wake_all(&self) {
        self.notify.notify_waiters();
    }

    /// Begins the shutdown, and wakes every connection.
    pub fn stop(&self, timetable: StopDeadlines) {
        self.timetable.get_or_init(|| timetable);
        self.advance(StopStage::Stopping);
    }

    /// Cuts what is in flight, and wakes every connection.
    pub fn cut(&self) {
        self.advance(StopStage::Cutting);
    }

    fn advance(&self, stage: StopStage) {
        self.stage.fetch_max(stage as u8, Ordering::Release);
        self.wake_all();
    }

    /// How far the process is with stopping.
    pub fn stage(&self) -> StopStage {
        match self.stage.load(Ordering::Acquire) {
            0 => StopStage::Running,
            1 => StopStage::Stopping,
            _ => StopStage::Cutting,
        }
    }
}

/// One connection's subscription.
#[derive(Debug)]
pub struct Subscription {
    broadcast: Arc<Broadcast>,
    waiting: Pin<Box<OwnedNotified>>,
}

impl Subscription {
    /// For one connection. [`Subscription::poll`] must be called at every poll of its task, before it checks its state.
    #[must_use]
    pub fn new(broadcast: Arc<Broadcast>) -> Self {
        let waiting = Box::pin(Arc::clone(&broadcast.notify).notified_owned());
        Self { broadcast, waiting }
    }

    /// Makes sure that the next broadcast wakes the task.
    pub fn poll(&mut self, cx: &mut Context<'_>) {
        while self.waiting.as_mut().poll(cx).is_ready() {
            self.waiting = Box::pin(Arc::clone(&self.broadcast.notify).notified_owned());
        }
    }

    /// How far the process is with stopping.
    #[must_use]
    pub fn stage(&self) -> StopStage {
        self.broadcast.stage()
    }

    /// The deadlines, once the process is stopping.
    #[must_use]
    pub fn timetable(&self) -> Option<&StopDeadlines> {
        self.broadcast.timetable.get()
    }
}
