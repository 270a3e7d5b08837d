//! The end of a drain under a model checker: every interleaving of connections that begin and end, a port that closes, and
//! whoever waits for the end of it all. The source file that counts is the real one; only its `Arc` and its lock are loom's.
#![allow(dead_code, clippy::unwrap_used, reason = "a test, around a file of the library")]

/// What the library's `drain::sync` is, for the model checker.
mod sync {
    pub(super) use loom::sync::{Arc, Mutex, MutexGuard};
}

#[path = "../../src/drain/tally.rs"]
mod tally;

use std::task::{Poll, Wake, Waker};

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread::{self, JoinHandle, Thread};
use sync::Arc;
use tally::{Held, Tally};

/// The server and its clients. `answered` is what really became of them.
#[derive(Clone, Default)]
struct World {
    tally: Arc<Tally>,
    answered: Arc<AtomicUsize>,
}

impl World {
    fn begin(&self) -> Held {
        Tally::begin(&self.tally)
    }

    /// A connection's task: its exchange is answered, and then it lets go.
    fn serve(&self, work: Held) {
        self.answered.fetch_add(1, Ordering::SeqCst);
        drop(work);
    }

    fn spawn(&self, task: impl FnOnce(&Self) + 'static) -> JoinHandle<()> {
        let world = self.clone();
        thread::spawn(move || task(&world))
    }

    /// Whoever drains: waits for the end, and then leaves, which cuts what is not answered.
    fn finish(&self, clients: usize) {
        wait(|waker| self.tally.poll_over(waker));
        assert_eq!(self.answered.load(Ordering::SeqCst), clients, "drained, and an exchange was cut");
        assert_eq!(self.tally.left(), 0);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}

/// What a runtime does with a future. A wake-up that is lost leaves the model with nobody who can go on, which loom reports.
fn wait(mut poll: impl FnMut(&Waker) -> Poll<()>) {
    let waker = Waker::from(std::sync::Arc::new(Unpark(thread::current())));
    while poll(&waker).is_pending() {
        thread::park();
    }
}

/// The order in which `server::serve` does it: the port is work until the last connection that was made has been taken over.
#[test]
fn drained_is_told_when_the_last_work_ends_and_not_before() {
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

/// A second order to stop gives up one wait, and another one may begin.
#[test]
fn everybody_who_waits_is_told() {
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

/// A tunnel is work of its own before the connection that it comes from lets go.
#[test]
fn a_tunnel_that_takes_over_from_its_connection_is_waited_for() {
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

/// The mistake that the order avoids, to show that the model would find it.
#[test]
#[should_panic(expected = "an exchange was cut")]
fn a_port_that_lets_go_before_it_has_taken_over_would_be_caught() {
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

/// The mistake that the one lock avoids: looking, and then asking to be woken.
#[test]
#[should_panic(expected = "deadlock")]
fn a_wait_in_two_steps_would_be_caught() {
    loom::model(|| {
        // Leaked: what loom counts can't be dropped when it gives up.
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
