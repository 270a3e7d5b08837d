//! The end of a drain under a model checker: every interleaving of connections that open and close, a port that
//! closes, and the tasks that wait for the end. The source file that counts is the real one; only its `Arc` and lock
//! are loom's.
#![allow(dead_code, clippy::unwrap_used, reason = "a test, around a file of the library")]

/// Replaces the library's `drain::sync`.
mod sync {
    pub(super) use loom::sync::{Arc, Mutex, MutexGuard};
}

#[path = "../../src/drain/counter.rs"]
mod counter;

use std::task::{Poll, Wake, Waker};

use counter::{WorkCounter, WorkGuard};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread::{self, JoinHandle, Thread};
use sync::Arc;

/// The server and its clients. `answered` counts the responses actually sent.
#[derive(Clone, Default)]
struct World {
    counter: Arc<WorkCounter>,
    answered: Arc<AtomicUsize>,
}

impl World {
    fn begin(&self) -> WorkGuard {
        WorkCounter::begin(&self.counter)
    }

    /// A connection's task: it answers its exchange, then ends.
    fn serve(&self, work: WorkGuard) {
        self.answered.fetch_add(1, Ordering::SeqCst);
        drop(work);
    }

    fn spawn(&self, task: impl FnOnce(&Self) + 'static) -> JoinHandle<()> {
        let world = self.clone();
        thread::spawn(move || task(&world))
    }

    /// The draining task: waits for the end and then exits, which cuts unanswered requests.
    fn finish(&self, clients: usize) {
        wait(|waker| self.counter.poll_over(waker));
        assert_eq!(self.answered.load(Ordering::SeqCst), clients, "drained, and an exchange was cut");
        assert_eq!(self.counter.left(), 0);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future like an async runtime. A lost wake-up deadlocks the model, which loom reports.
fn wait(mut poll: impl FnMut(&Waker) -> Poll<()>) {
    let waker = Waker::from(std::sync::Arc::new(Unpark(thread::current())));
    while poll(&waker).is_pending() {
        thread::park();
    }
}

/// The order used by `server::serve`: the port is work until the last established connection is taken over.
#[test]
fn the_drain_ends_with_the_last_work_and_not_before() {
    loom::model(|| {
        let world = World::default();
        let (port, early) = (world.begin(), world.begin());
        let early = world.spawn(|world| world.serve(early));
        let closing = world.spawn(|world| {
            let taken_over = world.begin();
            drop(port);
            world.serve(taken_over);
        });
        world.finish(2);
        early.join().unwrap();
        closing.join().unwrap();
    });
}

/// A second signal cancels one wait, and another one may start.
#[test]
fn every_waiting_task_is_woken() {
    loom::model(|| {
        let world = World::default();
        let work = world.begin();
        let serving = world.spawn(|world| world.serve(work));
        let other = world.spawn(|world| world.finish(1));
        world.finish(1);
        serving.join().unwrap();
        other.join().unwrap();
    });
}

/// A tunnel is work of its own before its connection ends.
#[test]
fn a_drain_waits_for_a_tunnel_that_takes_over_from_its_connection() {
    loom::model(|| {
        let world = World::default();
        let connection = world.begin();
        let upgrading = world.spawn(|world| {
            let tunnel = world.begin();
            drop(connection);
            world.serve(tunnel);
        });
        world.finish(1);
        upgrading.join().unwrap();
    });
}

/// The mistake that this order prevents, to show that the model would find it.
#[test]
#[should_panic(expected = "an exchange was cut")]
fn a_port_that_ends_its_work_before_taking_over_would_be_caught() {
    loom::model(|| {
        let world = World::default();
        let port = world.begin();
        let closing = world.spawn(|world| {
            drop(port);
            world.serve(world.begin());
        });
        world.finish(1);
        closing.join().unwrap();
    });
}

/// The mistake that the single lock prevents: checking the count, then registering the waker separately.
#[test]
#[should_panic(expected = "deadlock")]
fn a_wait_in_two_steps_would_be_caught() {
    loom::model(|| {
        // Leaked: loom's objects can't be dropped when it gives up.
        let left: &AtomicUsize = Box::leak(Box::new(AtomicUsize::new(1)));
        let waiting: &sync::Mutex<Option<Waker>> = Box::leak(Box::default());
        thread::spawn(|| {
            left.fetch_sub(1, Ordering::SeqCst);
            if let Some(waker) = waiting.lock().unwrap().take() {
                waker.wake();
            }
        });
        wait(|waker| {
            if left.load(Ordering::SeqCst) == 0 {
                return Poll::Ready(());
            }
            *waiting.lock().unwrap() = Some(waker.clone());
            Poll::Pending
        });
    });
}
