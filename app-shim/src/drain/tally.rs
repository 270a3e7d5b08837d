//! How much there is to finish, and who waits until all of it is.
//!
//! Both are under one lock: whoever finds something left is woken by the last of it, and nobody is woken before.
//! `tests/loom` compiles this file with a model checker's lock, and tries every interleaving.

use std::future::poll_fn;
use std::sync::PoisonError;
use std::task::{Poll, Waker};

use super::sync::{Arc, Mutex, MutexGuard};

/// Counts what there is to finish.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    left: usize,
    waiting: Vec<Waker>,
}

/// One thing to finish; dropping it says that it is done.
#[derive(Debug)]
pub(super) struct Held(Arc<Tally>);

impl Tally {
    /// Counts one more.
    pub(super) fn begin(tally: &Arc<Self>) -> Held {
        tally.lock().left += 1;
        Held(Arc::clone(tally))
    }

    /// How many are counted.
    pub(super) fn left(&self) -> usize {
        self.lock().left
    }

    /// Waits until none is left.
    pub(super) async fn over(&self) {
        poll_fn(|context| self.poll_over(context.waker())).await;
    }

    /// Whether none is left; if some are, the waker is told when there is none.
    pub(super) fn poll_over(&self, waker: &Waker) -> Poll<()> {
        let mut counted = self.lock();
        if counted.left == 0 {
            return Poll::Ready(());
        }
        if !counted.waiting.iter().any(|waiting| waiting.will_wake(waker)) {
            counted.waiting.push(waker.clone());
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        // Counting does not panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counted = self.0.lock();
        counted.left -= 1;
        if counted.left == 0 {
            let waiting = std::mem::take(&mut counted.waiting);
            drop(counted);
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}
