//! Idle upstream connections. A pool belongs to one worker's lane of one activation and goes with it: a backend that
//! is deployed anew can't inherit a connection to its predecessor.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead as _, ReadBuf};

use super::upstream::Upstream;
use crate::switching::{Backend, Health, LanePayload};

/// The most idle connections that a worker keeps for one endpoint. More than that are closed after use.
const MAX_IDLE: usize = 512;

/// The idle connections of one worker to one activation's endpoints.
///
/// Only its worker uses the shelves, but for the moment in which a switch clears them: the lock is never waited for.
/// Where it is taken, the pool counts as empty.
#[derive(Debug)]
pub struct IdlePool {
    shelves: Box<[Shelf]>,
    next: AtomicUsize,
    retired: AtomicBool,
    graveyard: Arc<Graveyard>,
}

/// Connections that are of no use any more and wait to be closed. Closing dozens of them takes a millisecond, which a
/// switch would rather spend on the first requests to the new backend.
#[derive(Debug, Default)]
pub struct Graveyard(Mutex<Vec<Stream>>);

impl Graveyard {
    fn bury(&self, idle: impl Iterator<Item = Idle>) {
        self.0.lock().extend(idle.map(|idle| idle.upstream.stream));
    }

    /// Closes what has come together.
    pub fn clear(&self) {
        let streams = std::mem::take(&mut *self.0.lock());
        drop(streams);
    }
}

/// The idle connections to one endpoint, and their number, to be read without the lock.
#[derive(Debug, Default)]
struct Shelf {
    idle: Mutex<Vec<Idle>>,
    count: AtomicUsize,
}

impl Shelf {
    /// Works on the connections, unless somebody else does.
    fn try_with<T>(&self, work: impl FnOnce(&mut Vec<Idle>) -> T) -> Option<T> {
        let mut idle = self.idle.try_lock()?;
        let result = work(&mut idle);
        self.count.store(idle.len(), Ordering::Relaxed);
        Some(result)
    }
}

#[derive(Debug)]
struct Idle {
    upstream: Upstream,
    until: Instant,
}

impl IdlePool {
    /// An empty pool for a backend.
    #[must_use]
    pub fn new(backend: &Backend, graveyard: Arc<Graveyard>) -> Self {
        Self {
            shelves: backend.endpoints.iter().map(|_| Shelf::default()).collect(),
            next: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
            graveyard,
        }
    }

    /// The endpoints to try, in turn: healthy ones first, then those that are not, for they may be all there is.
    pub fn order<'a>(&self, backend: &'a Backend) -> impl Iterator<Item = usize> + use<'a> {
        let count = backend.endpoints.len().max(1);
        let first = if count == 1 { 0 } else { self.next.fetch_add(1, Ordering::Relaxed) % count };
        let turn = move || (0..count).map(move |step| (first + step) % count);
        let is_bad = |endpoint: &usize| {
            backend.endpoints.get(*endpoint).is_some_and(|endpoint| endpoint.health() == Health::Unhealthy)
        };
        let good = turn().filter(move |endpoint| !is_bad(endpoint));
        good.chain(turn().filter(move |endpoint| is_bad(endpoint)))
    }

    /// The connection to this endpoint that was used last, if one is alive and within its time.
    pub fn take(&self, endpoint: usize, now: Instant) -> Option<Upstream> {
        self.shelves.get(endpoint)?.try_with(|shelf| {
            while let Some(mut idle) = shelf.pop() {
                if idle.until > now && is_quiet(&mut idle.upstream.stream) {
                    idle.upstream.reused = true;
                    return Some(idle.upstream);
                }
            }
            None
        })?
    }

    /// Keeps a connection for the next exchange. Closes it if the activation is over or there are enough.
    pub fn put(&self, upstream: Upstream, keep: Duration, now: Instant) {
        if self.retired.load(Ordering::Acquire) || keep.is_zero() {
            return;
        }
        let Some(shelf) = self.shelves.get(upstream.endpoint) else { return };
        shelf.try_with(|shelf| {
            // Looked at again under the lock, which `retire` takes after it has set the flag.
            if shelf.len() < MAX_IDLE && !self.retired.load(Ordering::Acquire) {
                shelf.push(Idle { upstream, until: now + keep });
            }
        });
    }

    /// Closes connections that are past their time or were closed by the other side.
    pub fn sweep(&self, now: Instant) {
        for shelf in &self.shelves {
            shelf.try_with(|shelf| {
                shelf.retain_mut(|idle| idle.until > now && is_quiet(&mut idle.upstream.stream));
            });
        }
    }
}

impl LanePayload for IdlePool {
    fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        for shelf in &self.shelves {
            self.graveyard.bury(shelf.idle.lock().drain(..));
            shelf.count.store(0, Ordering::Relaxed);
        }
    }

    fn idle(&self) -> usize {
        self.shelves.iter().map(|shelf| shelf.count.load(Ordering::Relaxed)).sum()
    }
}

/// Whether an idle connection has nothing to say. Told by the socket's readiness, without a system call; if there is
/// something, it is the end of the stream or bytes that nobody asked for.
fn is_quiet(stream: &mut Stream) -> bool {
    let mut byte = [0];
    Pin::new(stream)
        .poll_read(&mut Context::from_waker(Waker::noop()), &mut ReadBuf::new(&mut byte))
        .is_pending()
}
