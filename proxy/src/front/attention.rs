//! How connections hear of what concerns them all: the process is stopping, or a drain cuts what is left.
//!
//! A connection waits for the next ring from its first poll to its last, whatever else it does.

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
use uh_switching::Farewell;

/// How far the process is with stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Not at all.
    Running,
    /// No new exchanges; those in flight finish.
    Stopping,
    /// Those in flight are cut.
    Cutting,
}

/// When what ends once the process is stopping.
#[derive(Debug, Clone, Copy)]
pub struct Timetable {
    /// When stopping began.
    pub begun: Instant,
    /// Until then, an idle connection may still bring a request.
    pub idle_until: Instant,
    /// Then, what is in flight is cut.
    pub cut_at: Instant,
    /// How many tunnels there were when stopping began.
    pub tunnels: u64,
}

/// How long before everything is cut the last tunnel's turn to be closed is.
const TUNNEL_MARGIN: Duration = Duration::from_millis(500);

impl Timetable {
    /// For a stop that begins now.
    #[must_use]
    pub fn new(now: Instant, idle_grace: Duration, timeout: Duration, tunnels: u64) -> Self {
        Self { begun: now, idle_until: now + idle_grace.min(timeout), cut_at: now + timeout, tunnels }
    }

    /// When the tunnels of a service are closed: at once if a drain would do so, and else as late as they can be while
    /// there is time for a word.
    #[must_use]
    pub fn farewell(&self, service: &Service) -> Farewell {
        let last = self.cut_at - TUNNEL_MARGIN.min(self.cut_at - self.begun);
        let over = Farewell::length(self.tunnels, service.tunnel_close_spread).min(last - self.begun);
        match service.tunnels_at_drain {
            TunnelsAtDrain::Close => Farewell { from: self.begun, over },
            TunnelsAtDrain::Keep | TunnelsAtDrain::Drain => Farewell { from: last - over, over },
        }
    }
}

/// Calls for the attention of every connection of a worker.
#[derive(Debug, Default)]
pub struct Bell {
    stage: AtomicU8,
    timetable: OnceLock<Timetable>,
    notify: Arc<Notify>,
}

impl Bell {
    /// Wakes every connection, so that it looks around.
    pub fn ring(&self) {
        self.notify.notify_waiters();
    }

    /// The process is stopping. Wakes every connection.
    pub fn stop(&self, timetable: Timetable) {
        self.timetable.get_or_init(|| timetable);
        self.advance(Stage::Stopping);
    }

    /// What is in flight is cut. Wakes every connection.
    pub fn cut(&self) {
        self.advance(Stage::Cutting);
    }

    fn advance(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::Release);
        self.ring();
    }

    /// How far the process is with stopping.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Running,
            1 => Stage::Stopping,
            _ => Stage::Cutting,
        }
    }
}

/// One connection's ear.
#[derive(Debug)]
pub struct Attention {
    bell: Arc<Bell>,
    waiting: Pin<Box<OwnedNotified>>,
}

impl Attention {
    /// For one connection. [`Attention::poll`] must be called at every poll of its task, before it looks around.
    #[must_use]
    pub fn new(bell: Arc<Bell>) -> Self {
        let waiting = Box::pin(Arc::clone(&bell.notify).notified_owned());
        Self { bell, waiting }
    }

    /// Makes sure that the next ring wakes the task.
    pub fn poll(&mut self, cx: &mut Context<'_>) {
        while self.waiting.as_mut().poll(cx).is_ready() {
            self.waiting = Box::pin(Arc::clone(&self.bell.notify).notified_owned());
        }
    }

    /// How far the process is with stopping.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.bell.stage()
    }

    /// When what ends, once the process is stopping.
    #[must_use]
    pub fn timetable(&self) -> Option<&Timetable> {
        self.bell.timetable.get()
    }
}
