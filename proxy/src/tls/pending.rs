//! A worker's handshakes in progress: limits how many there are, and how many compute in one turn of its event loop.
//!
//! A handshake costs as much CPU time as ten requests. A thousand clients that connect at once must not delay those that
//! are connected already, so only a few handshakes run their expensive step before all other tasks get a turn.
//!
//! A client that stalls in its handshake costs memory. At the limit, the oldest handshake is evicted: a well-behaved
//! client needs two round trips, so the oldest is the most likely to be stalled.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::yield_now;

/// Handshakes that run their expensive step in one turn of the event loop. Together they take less than a millisecond.
const AT_ONCE: usize = 2;

/// The handshakes in progress on one worker.
#[derive(Debug)]
pub(crate) struct PendingHandshakes {
    next: AtomicU64,
    /// Oldest first, each with the channel that evicts it.
    in_progress: Mutex<VecDeque<(u64, oneshot::Sender<()>)>>,
    turns: Semaphore,
}

/// One handshake in progress. Dropping it frees its slot.
#[derive(Debug)]
pub(crate) struct PendingHandshake {
    pending: Arc<PendingHandshakes>,
    number: u64,
    evicted: oneshot::Receiver<()>,
}

impl Default for PendingHandshakes {
    fn default() -> Self {
        Self { next: AtomicU64::new(0), in_progress: Mutex::default(), turns: Semaphore::new(AT_ONCE) }
    }
}

impl PendingHandshakes {
    /// Registers a handshake. If there are `most` already, the oldest is evicted.
    pub(crate) fn enter(self: &Arc<Self>, most: usize) -> PendingHandshake {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (evict, evicted) = oneshot::channel();
        let mut in_progress = self.in_progress.lock();
        while in_progress.len() >= most.max(1) {
            let oldest = in_progress.pop_front();
            // The receiver is gone if the handshake has just ended.
            oldest.map(|(_, evict)| evict.send(()));
        }
        in_progress.push_back((number, evict));
        drop(in_progress);
        PendingHandshake { pending: Arc::clone(self), number, evicted }
    }

    /// Waits for a turn, then runs a handshake whose first step is the expensive one.
    pub(crate) async fn in_turn<F: Future + Unpin>(&self, mut handshake: F) -> F::Output {
        if let Ok(turn) = self.turns.acquire().await {
            let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut handshake).poll(cx))).await;
            if let Poll::Ready(output) = first {
                return output;
            }
            // Hold the turn until all ready tasks have run and the sockets have been polled.
            yield_now().await;
            drop(turn);
        }
        handshake.await
    }
}

impl PendingHandshake {
    /// Whether the handshake was evicted. If not, the task is woken when it is.
    pub(crate) fn poll_evicted(&mut self, cx: &mut Context<'_>) -> bool {
        matches!(Pin::new(&mut self.evicted).poll(cx), Poll::Ready(Ok(())))
    }
}

impl Drop for PendingHandshake {
    fn drop(&mut self) {
        let mut in_progress = self.pending.in_progress.lock();
        // Entries are sorted by number.
        if let Ok(at) = in_progress.binary_search_by_key(&self.number, |(number, _)| *number) {
            in_progress.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(place: &mut PendingHandshake) -> bool {
        place.evicted.try_recv().is_ok()
    }

    #[test]
    fn the_oldest_handshake_is_evicted_and_completed_ones_free_their_slots() {
        let pending = Arc::new(PendingHandshakes::default());
        let mut first = pending.enter(2);
        let second = pending.enter(2);
        assert!(!is_evicted(&mut first));
        drop(second);
        let mut third = pending.enter(2);
        assert!(!is_evicted(&mut first), "there was room");
        let mut fourth = pending.enter(2);
        assert!(is_evicted(&mut first));
        drop(first);
        assert!(!is_evicted(&mut third) && !is_evicted(&mut fourth));
        assert_eq!(pending.in_progress.lock().len(), 2);
    }

    #[tokio::test]
    async fn other_tasks_run_between_the_expensive_steps() {
        let pending = Arc::new(PendingHandshakes::default());
        let log = Arc::new(Mutex::new(Vec::new()));
        let step = |name: &'static str| {
            let (pending, log) = (Arc::clone(&pending), Arc::clone(&log));
            let mut polls = 0;
            let handshake = poll_fn(move |cx| {
                polls += 1;
                if polls == 1 {
                    log.lock().push(name);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(())
            });
            tokio::spawn(async move { pending.in_turn(handshake).await })
        };
        let handshakes: Vec<_> = ["handshake"; 6].map(step).into();
        let other = {
            let log = Arc::clone(&log);
            tokio::spawn(async move { log.lock().push("other") })
        };
        for handshake in handshakes {
            handshake.await.unwrap();
        }
        other.await.unwrap();
        let log = log.lock();
        assert_eq!(log.iter().position(|name| *name == "other"), Some(AT_ONCE), "{log:?}");
    }
}
