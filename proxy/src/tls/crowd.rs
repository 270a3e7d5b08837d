//! How many handshakes a worker has in progress, and how many of them compute in one turn of its event loop.
//!
//! A handshake costs as much CPU time as ten requests. A thousand clients that connect at once must not hold up those
//! that are connected, so a few handshakes take their expensive step, and then everybody else has a turn.
//!
//! A client that begins a handshake and doesn't go on costs memory. When there are too many, the oldest is closed: an
//! honest one is complete after two round trips, so what is old is most likely not honest.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::yield_now;

/// How many handshakes take their expensive step in one turn of the event loop: together less than a millisecond.
const AT_ONCE: usize = 2;

/// The handshakes of one worker.
#[derive(Debug)]
pub struct Crowd {
    next: AtomicU64,
    /// The oldest first. Of each, what closes it.
    in_progress: Mutex<VecDeque<(u64, oneshot::Sender<()>)>>,
    turns: Semaphore,
}

/// A place among the handshakes in progress.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Crowd>,
    number: u64,
    evicted: oneshot::Receiver<()>,
}

impl Default for Crowd {
    fn default() -> Self {
        Self { next: AtomicU64::new(0), in_progress: Mutex::default(), turns: Semaphore::new(AT_ONCE) }
    }
}

impl Crowd {
    /// A place for one more handshake, of which there may be so many. If there are, the oldest loses its place.
    pub fn enter(self: &Arc<Self>, most: usize) -> Place {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (evict, evicted) = oneshot::channel();
        let mut in_progress = self.in_progress.lock();
        while in_progress.len() >= most.max(1) {
            let oldest = in_progress.pop_front();
            // One that is over at this moment needs no word.
            oldest.map(|(_, evict)| evict.send(()));
        }
        in_progress.push_back((number, evict));
        drop(in_progress);
        Place { crowd: Arc::clone(self), number, evicted }
    }

    /// Awaits a handshake whose first step is an expensive one, and waits for its turn before that.
    pub async fn in_turn<F: Future + Unpin>(&self, mut handshake: F) -> F::Output {
        if let Ok(turn) = self.turns.acquire().await {
            let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut handshake).poll(cx))).await;
            if let Poll::Ready(output) = first {
                return output;
            }
            // Until everything that is ready by now has had its turn, and the sockets have been looked at.
            yield_now().await;
            drop(turn);
        }
        handshake.await
    }
}

impl Place {
    /// Whether the place is another one's by now. If not, the task is woken when it is.
    pub fn poll_evicted(&mut self, cx: &mut Context<'_>) -> bool {
        matches!(Pin::new(&mut self.evicted).poll(cx), Poll::Ready(Ok(())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut in_progress = self.crowd.in_progress.lock();
        // They are in the order of their numbers.
        if let Ok(at) = in_progress.binary_search_by_key(&self.number, |(number, _)| *number) {
            in_progress.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(place: &mut Place) -> bool {
        place.evicted.try_recv().is_ok()
    }

    #[test]
    fn the_oldest_handshake_makes_room_and_those_that_are_over_count_no_more() {
        let crowd = Arc::new(Crowd::default());
        let mut first = crowd.enter(2);
        let second = crowd.enter(2);
        assert!(!is_evicted(&mut first));
        drop(second);
        let mut third = crowd.enter(2);
        assert!(!is_evicted(&mut first), "there was room");
        let mut fourth = crowd.enter(2);
        assert!(is_evicted(&mut first));
        drop(first);
        assert!(!is_evicted(&mut third) && !is_evicted(&mut fourth));
        assert_eq!(crowd.in_progress.lock().len(), 2);
    }

    #[tokio::test]
    async fn others_have_a_turn_between_the_expensive_steps() {
        let crowd = Arc::new(Crowd::default());
        let log = Arc::new(Mutex::new(Vec::new()));
        let step = |name: &'static str| {
            let (crowd, log) = (Arc::clone(&crowd), Arc::clone(&log));
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
            tokio::spawn(async move { crowd.in_turn(handshake).await })
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
