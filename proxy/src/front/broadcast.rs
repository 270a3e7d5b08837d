//! Broadcasts shutdown and drain to every connection of a worker.
//!
//! A connection listens from its first poll to its last. Only then is a lock taken: a request costs nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::{Service, TunnelsAtDrain};
use uh_switching::CloseSchedule;

/// How far the process is with stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StopStage {
    /// Not at all.
    Running,
    /// No new exchanges; those in flight finish.
    Stopping,
    /// Exchanges in flight are cut.
    Cutting,
}

/// The deadlines of a shutdown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StopDeadlines {
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
    pub(crate) fn new(now: Instant, idle_grace: Duration, timeout: Duration, tunnels: u64) -> Self {
        Self { begun: now, idle_until: now + idle_grace.min(timeout), cut_at: now + timeout, tunnels }
    }

    /// When the tunnels of a service are closed: at once if a drain would do so, otherwise as late as possible with
    /// time left for a close frame.
    #[must_use]
    pub(crate) fn close_schedule(&self, service: &Service) -> CloseSchedule {
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
pub(crate) struct Broadcast {
    stage: AtomicU8,
    timetable: Mutex<Option<StopDeadlines>>,
    listeners: Mutex<Listeners>,
}

/// The wakers of the connections that listen, each at a place of its own.
#[derive(Debug, Default)]
struct Listeners {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Listeners {
    fn add(&mut self, waker: Waker) -> usize {
        let place = self.free.pop().unwrap_or(self.wakers.len());
        if place == self.wakers.len() {
            self.wakers.push(None);
        }
        self.wakers[place] = Some(waker);
        place
    }

    fn remove(&mut self, place: usize) -> Option<Waker> {
        self.free.push(place);
        self.wakers[place].take()
    }
}

impl Broadcast {
    /// Wakes every connection to check its state.
    pub(crate) fn wake_all(&self) {
        // Woken without the lock, which a new connection may be waiting for.
        let wakers: Vec<Waker> = self.listeners.lock().wakers.iter().flatten().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Begins the shutdown, and wakes every connection.
    pub(crate) fn stop(&self, timetable: StopDeadlines) {
        self.timetable.lock().get_or_insert(timetable);
        self.advance(StopStage::Stopping);
    }

    /// Cuts what is in flight, and wakes every connection.
    pub(crate) fn cut(&self) {
        self.advance(StopStage::Cutting);
    }

    /// Takes the shutdown back. Connections that have begun to close do so.
    pub(crate) fn resume(&self) {
        self.stage.store(StopStage::Running as u8, Ordering::Release);
        *self.timetable.lock() = None;
    }

    fn advance(&self, stage: StopStage) {
        self.stage.fetch_max(stage as u8, Ordering::Release);
        self.wake_all();
    }

    /// How far the process is with stopping.
    pub(crate) fn stage(&self) -> StopStage {
        match self.stage.load(Ordering::Acquire) {
            0 => StopStage::Running,
            1 => StopStage::Stopping,
            _ => StopStage::Cutting,
        }
    }
}

/// One connection's subscription.
#[derive(Debug)]
pub(crate) struct Subscription {
    broadcast: Arc<Broadcast>,
    place: Place,
}

/// Where a subscription's waker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nowhere, until the first poll.
    Unknown,
    At(usize),
    /// Nowhere: another subscription wakes the task.
    Elsewhere,
}

impl Subscription {
    /// For one connection, which one task serves from beginning to end. [`Subscription::poll`] must be called in that task
    /// before it checks its state for the first time.
    #[must_use]
    pub(crate) fn new(broadcast: Arc<Broadcast>) -> Self {
        Self { broadcast, place: Place::Unknown }
    }

    /// For a part of a task that has a subscription of its own, and polls all its parts when that wakes it.
    #[must_use]
    pub(crate) fn of_part(broadcast: Arc<Broadcast>) -> Self {
        Self { broadcast, place: Place::Elsewhere }
    }

    /// Makes sure that every broadcast from now on wakes the task.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) {
        if self.place == Place::Unknown {
            self.place = Place::At(self.broadcast.listeners.lock().add(cx.waker().clone()));
        }
    }

    /// How far the process is with stopping.
    #[must_use]
    pub(crate) fn stage(&self) -> StopStage {
        self.broadcast.stage()
    }

    /// The deadlines, once the process is stopping.
    #[must_use]
    pub(crate) fn timetable(&self) -> Option<StopDeadlines> {
        // Without the lock, as long as there is none.
        if self.stage() == StopStage::Running { None } else { *self.broadcast.timetable.lock() }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Place::At(place) = self.place {
            let waker = self.broadcast.listeners.lock().remove(place);
            // Without the lock: it may be the last of its task.
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn every_broadcast_wakes_every_connection_that_listens_and_no_other() {
        let broadcast = Arc::<Broadcast>::default();
        let tasks: [Arc<Task>; 3] = Default::default();
        let [first, second, third] = &tasks;
        let listen = |task: &Arc<Task>| {
            let mut subscription = Subscription::new(Arc::clone(&broadcast));
            for _ in 0..3 {
                subscription.poll(&mut Context::from_waker(&Waker::from(Arc::clone(task))));
            }
            subscription
        };
        let woken = || [first, second, third].map(|task| task.0.load(Ordering::Relaxed));
        let leaves = listen(first);
        let _stays = listen(second);
        broadcast.wake_all();
        broadcast.wake_all();
        assert_eq!(woken(), [2, 2, 0]);
        drop(leaves);
        assert_eq!(Arc::strong_count(first), 1, "its task must not be kept");
        let _comes = listen(third);
        broadcast.cut();
        assert_eq!(woken(), [2, 3, 1]);
        assert_eq!(broadcast.listeners.lock().wakers.len(), 2, "a place is used again");
    }

    #[test]
    fn a_shutdown_that_was_taken_back_leaves_no_deadline_for_the_next_one() {
        let broadcast = Arc::<Broadcast>::default();
        let subscription = Subscription::new(Arc::clone(&broadcast));
        let (first, second) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let begun = || subscription.timetable().map(|timetable| timetable.begun);
        broadcast.stop(StopDeadlines::new(first, Duration::ZERO, Duration::ZERO, 0));
        broadcast.cut();
        assert_eq!((subscription.stage(), begun()), (StopStage::Cutting, Some(first)));
        broadcast.resume();
        assert_eq!((subscription.stage(), begun()), (StopStage::Running, None));
        broadcast.stop(StopDeadlines::new(second, Duration::ZERO, Duration::ZERO, 0));
        assert_eq!((subscription.stage(), begun()), (StopStage::Stopping, Some(second)));
    }
}
