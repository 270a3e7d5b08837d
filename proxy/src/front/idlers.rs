//! Idle keep-alive client connections, so that the one that has been idle longest can make room for a newcomer when all
//! places are taken.
//!
//! Each connection has a seat: one number that says since when it is idle. A request costs two atomic operations on it.
//! The locks are taken when a connection comes, first becomes idle, and goes, and when somebody looks for room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};

use parking_lot::Mutex;

/// The connection carries a request, or has not carried one yet.
const BUSY: u64 = 0;

/// Its place was given to another one.
const EVICTED: u64 = u64::MAX;

/// Seats are made in blocks, so that a connection that takes one allocates nothing as a rule.
const BLOCK: usize = 256;

/// How many of the oldest one search finds, so that a flood of newcomers does not search once for each.
const FOUND: usize = 64;

/// After a search that found nobody, how long none is made.
const PAUSE_MS: u64 = 10;

type Block = [AtomicU64; BLOCK];

/// The seats of all connections, by worker.
#[derive(Debug)]
pub struct Idlers {
    shards: Box<[Mutex<Shard>]>,
    search: Mutex<Search>,
}

#[derive(Debug, Default)]
struct Shard {
    blocks: Vec<Arc<Block>>,
    /// For each seat, who is to be woken there.
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

#[derive(Debug, Default)]
struct Search {
    /// Those that were idle longest when they were looked for, the oldest first.
    found: VecDeque<Found>,
    paused_until_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    since: u64,
    shard: usize,
    seat: usize,
}

/// One connection's seat. It is free again when this is dropped.
#[derive(Debug)]
pub struct Seat {
    idlers: Arc<Idlers>,
    block: Arc<Block>,
    shard: usize,
    seat: usize,
    /// Whether the connection's waker is known.
    known: bool,
}

/// What became of a place when its connection went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It is free.
    Free,
    /// A newcomer has had it since the connection was evicted.
    Taken,
}

impl Idlers {
    /// For this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { shards: (0..workers.max(1)).map(|_| Mutex::default()).collect(), search: Mutex::default() }
    }

    /// A seat for a connection of this worker.
    pub fn seat(self: &Arc<Self>, worker: usize) -> Seat {
        let index = worker % self.shards.len();
        let mut shard = self.shards[index].lock();
        let seat = shard.free.pop().unwrap_or_else(|| {
            shard.wakers.push(None);
            shard.wakers.len() - 1
        });
        if shard.blocks.len() * BLOCK <= seat {
            shard.blocks.push(Arc::new([const { AtomicU64::new(BUSY) }; BLOCK]));
        }
        let block = Arc::clone(&shard.blocks[seat / BLOCK]);
        Seat { idlers: Arc::clone(self), block, shard: index, seat, known: false }
    }

    /// Evicts the connection that has been idle longest, if there is one. Its place is the caller's.
    pub fn evict_oldest(&self, now_ms: u64) -> bool {
        let mut search = self.search.lock();
        if self.evict_one_of(&mut search.found) {
            return true;
        }
        // Those found before are evicted already, or have got something to do.
        if now_ms < search.paused_until_ms {
            return false;
        }
        self.find_oldest(&mut search.found);
        let evicted = self.evict_one_of(&mut search.found);
        if !evicted {
            search.paused_until_ms = now_ms + PAUSE_MS;
        }
        evicted
    }

    fn evict_one_of(&self, found: &mut VecDeque<Found>) -> bool {
        std::iter::from_fn(|| found.pop_front()).any(|found| self.evict(found))
    }

    fn evict(&self, found: Found) -> bool {
        let shard = self.shards[found.shard].lock();
        let state = &shard.blocks[found.seat / BLOCK][found.seat % BLOCK];
        let evicted =
            state.compare_exchange(found.since, EVICTED, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let waker = shard.wakers[found.seat].clone().filter(|_| evicted);
        drop(shard);
        if let Some(waker) = waker {
            waker.wake();
        }
        evicted
    }

    fn find_oldest(&self, found: &mut VecDeque<Found>) {
        let mut all = Vec::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let shard = shard.lock();
            let states = shard.blocks.iter().flat_map(|block| block.iter()).enumerate();
            let idle = states.map(|(seat, state)| (seat, state.load(Ordering::Relaxed)));
            let idle = idle.filter(|&(_, since)| since != BUSY && since != EVICTED);
            all.extend(idle.map(|(seat, since)| Found { since, shard: index, seat }));
        }
        if all.len() > FOUND {
            all.select_nth_unstable(FOUND);
            all.truncate(FOUND);
        }
        all.sort_unstable();
        found.extend(all);
    }
}

impl Seat {
    fn state(&self) -> &AtomicU64 {
        &self.block[self.seat % BLOCK]
    }

    /// The connection waits for its next request from now on.
    pub fn rests(&mut self, now_ms: u64, cx: &Context<'_>) {
        if !std::mem::replace(&mut self.known, true) {
            // Always the same task, so always the same waker.
            self.idlers.shards[self.shard].lock().wakers[self.seat] = Some(cx.waker().clone());
        }
        // Only its own task makes a connection idle, so nothing can be overwritten here.
        self.state().store((now_ms + 1).min(EVICTED - 1), Ordering::Release);
    }

    /// The next request comes. `false`: too late, the connection was evicted.
    pub fn resumes(&self) -> bool {
        let since = self.state().load(Ordering::Relaxed);
        since != EVICTED
            && self.state().compare_exchange(since, BUSY, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether the connection was evicted.
    #[must_use]
    pub fn is_evicted(&self) -> bool {
        self.state().load(Ordering::Acquire) == EVICTED
    }

    /// The connection goes. To be called once, before the seat is dropped.
    pub fn leave(&self) -> Left {
        match self.state().swap(BUSY, Ordering::AcqRel) {
            EVICTED => Left::Taken,
            _ => Left::Free,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.state().store(BUSY, Ordering::Release);
        let mut shard = self.idlers.shards[self.shard].lock();
        let waker = shard.wakers[self.seat].take();
        shard.free.push(self.seat);
        drop(shard);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rests(seat: &mut Seat, at: u64) {
        seat.rests(at, &Context::from_waker(Waker::noop()));
    }

    #[test]
    fn the_one_that_has_been_idle_longest_goes_first_whoever_its_worker_is() {
        let idlers = Arc::new(Idlers::new(2));
        let mut seats: Vec<Seat> = (0..600).map(|n| idlers.seat(n)).collect();
        assert!(!idlers.evict_oldest(0), "nobody is idle");
        for (n, seat) in seats.iter_mut().enumerate() {
            rests(seat, 1000 - n as u64);
        }
        for n in (0..600).rev() {
            assert!(idlers.evict_oldest(100), "{n}");
            assert!(seats[n].is_evicted() && !seats[n].resumes() && seats[n].leave() == Left::Taken, "{n}");
        }
        assert!(!idlers.evict_oldest(100));
    }

    #[test]
    fn who_has_something_to_do_is_never_evicted() {
        let idlers = Arc::new(Idlers::new(1));
        let (mut busy, mut idle) = (idlers.seat(0), idlers.seat(0));
        rests(&mut busy, 1);
        rests(&mut idle, 2);
        assert!(busy.resumes());
        assert!(idlers.evict_oldest(3) && idle.is_evicted() && !busy.is_evicted());
        assert!(!idlers.evict_oldest(3));
        rests(&mut busy, 4);
        assert!(!idlers.evict_oldest(5), "right after a search in vain");
        assert!(idlers.evict_oldest(3 + PAUSE_MS));
        assert!(!busy.resumes());
    }

    #[test]
    fn a_seat_is_used_again_and_says_nothing_of_who_had_it() {
        let idlers = Arc::new(Idlers::new(1));
        let mut first = idlers.seat(0);
        rests(&mut first, 1);
        let place = first.seat;
        drop(first);
        assert!(!idlers.evict_oldest(1));
        let mut second = idlers.seat(0);
        assert_eq!(second.seat, place);
        rests(&mut second, 20);
        assert_eq!(second.leave(), Left::Free);
    }
}
