//! Counts open work, and wakes the tasks that wait for the count to reach zero.
//!
//! Count and waiters are under one lock, so a waiter is woken exactly when the last work ends. `tests/loom` compiles
//! this file with a model checker's lock and tries every interleaving.

use std::future::poll_fn;
use std::sync::PoisonError;
use std::task::{Poll, Waker};

use super::sync::{Arc, Mutex, MutexGuard};

/// Counts open work.
#[derive(Debug, Default)]
pub(super) struct WorkCounter(Mutex<CounterState>);

#[derive(Debug, Default)]
struct CounterState {
    left: usize,
    waiting: Vec<Waker>,
}

/// One piece of open work, until it is dropped.
#[derive(Debug)]
pub(super) struct WorkGuard(Arc<WorkCounter>);

impl WorkCounter {
    /// Counts one more.
    pub(super) fn begin(counter: &Arc<Self>) -> WorkGuard {
        counter.lock().left += 1;
        WorkGuard(Arc::clone(counter))
    }

    /// How many are counted.
    pub(super) fn left(&self) -> usize {
        self.lock().left
    }

    /// Waits until none is left.
    pub(super) async fn over(&self) {
        poll_fn(|context| self.poll_over(context.waker())).await;
    }

    /// Whether none is left. If some is, the waker is woken when none is.
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

    fn lock(&self) -> MutexGuard<'_, CounterState> {
        // Counting doesn't panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WorkGuard {
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
