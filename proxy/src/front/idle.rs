//! Idle keep-alive client connections, so that the one that has been idle longest can be evicted for a new one when all
//! slots are taken.
//!
//! Each connection has a slot: a number that records since when it is idle. A request costs two atomic operations on
//! it. Locks are only taken when a connection opens, first becomes idle, or closes, and when one must be evicted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};

use parking_lot::Mutex;

/// The connection carries a request, or has not carried one yet.
const BUSY: u64 = 0;

/// It was evicted.
const EVICTED: u64 = u64::MAX;

/// Slots are allocated in blocks, so that a new connection usually allocates nothing.
const BLOCK: usize = 256;

/// How many of the oldest connections one search collects, so that a flood of new ones doesn't search once each.
const BATCH: usize = 64;

/// After a search without a result, how long to wait before the next one.
const PAUSE_MS: u64 = 10;

/// More workers than that share shards: a slot has two bytes for its shard's number.
const MOST_SHARDS: usize = 1 << 16;

type Block = [AtomicU64; BLOCK];

/// The slots of all connections, by worker.
#[derive(Debug)]
pub(crate) struct IdleClients {
    shards: Box<[Mutex<Shard>]>,
    search: Mutex<Search>,
}

#[derive(Debug, Default)]
struct Shard {
    blocks: Vec<Arc<Block>>,
    /// The waker of each slot's task.
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

#[derive(Debug, Default)]
struct Search {
    /// The connections that were idle longest at the last search, oldest first.
    candidates: VecDeque<EvictionCandidate>,
    paused_until_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct EvictionCandidate {
    since: u64,
    shard: usize,
    slot: usize,
}

/// One connection's slot. Freed when this is dropped.
#[derive(Debug)]
pub(crate) struct IdleSlot {
    idle_clients: Arc<IdleClients>,
    block: Arc<Block>,
    slot: u32,
    shard: u16,
    /// Whether the connection's waker is known.
    known: bool,
}

/// Whether a closed connection still owned its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// It is free.
    Free,
    /// The connection was evicted, and a new one has the place.
    Taken,
}

impl IdleClients {
    /// For this many workers.
    #[must_use]
    pub(crate) fn new(workers: usize) -> Self {
        Self { shards: (0..workers.max(1)).map(|_| Mutex::default()).collect(), search: Mutex::default() }
    }

    /// A slot for a connection of this worker.
    pub(crate) fn slot(self: &Arc<Self>, worker: usize) -> IdleSlot {
        let index = worker % self.shards.len().min(MOST_SHARDS);
        let mut shard = self.shards[index].lock();
        let slot = shard.free.pop().unwrap_or_else(|| {
            shard.wakers.push(None);
            shard.wakers.len() - 1
        });
        if shard.blocks.len() * BLOCK <= slot {
            shard.blocks.push(Arc::new([const { AtomicU64::new(BUSY) }; BLOCK]));
        }
        let block = Arc::clone(&shard.blocks[slot / BLOCK]);
        let (slot, shard) = (u32::try_from(slot).unwrap_or(u32::MAX), index as u16);
        IdleSlot { idle_clients: Arc::clone(self), block, slot, shard, known: false }
    }

    /// Evicts the connection that has been idle longest, if there is one. The caller gets its place.
    pub(crate) fn evict_oldest(&self, now_ms: u64) -> bool {
        let mut search = self.search.lock();
        if self.evict_one_of(&mut search.candidates) {
            return true;
        }
        // Those found before are already evicted or busy.
        if now_ms < search.paused_until_ms {
            return false;
        }
        self.find_oldest(&mut search.candidates);
        let evicted = self.evict_one_of(&mut search.candidates);
        if !evicted {
            search.paused_until_ms = now_ms + PAUSE_MS;
        }
        evicted
    }

    fn evict_one_of(&self, candidates: &mut VecDeque<EvictionCandidate>) -> bool {
        std::iter::from_fn(|| candidates.pop_front()).any(|oldest| self.evict(oldest))
    }

    fn evict(&self, oldest: EvictionCandidate) -> bool {
        let shard = self.shards[oldest.shard].lock();
        let state = &shard.blocks[oldest.slot / BLOCK][oldest.slot % BLOCK];
        let evicted =
            state.compare_exchange(oldest.since, EVICTED, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let waker = shard.wakers[oldest.slot].clone().filter(|_| evicted);
        drop(shard);
        if let Some(waker) = waker {
            waker.wake();
        }
        evicted
    }

    fn find_oldest(&self, candidates: &mut VecDeque<EvictionCandidate>) {
        let mut all = Vec::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let shard = shard.lock();
            let states = shard.blocks.iter().flat_map(|block| block.iter()).enumerate();
            let idle = states.map(|(slot, state)| (slot, state.load(Ordering::Relaxed)));
            let idle = idle.filter(|&(_, since)| since != BUSY && since != EVICTED);
            all.extend(idle.map(|(slot, since)| EvictionCandidate { since, shard: index, slot }));
        }
        if all.len() > BATCH {
            all.select_nth_unstable(BATCH);
            all.truncate(BATCH);
        }
        all.sort_unstable();
        candidates.extend(all);
    }
}

impl IdleSlot {
    fn shard(&self) -> &Mutex<Shard> {
        &self.idle_clients.shards[usize::from(self.shard)]
    }

    fn state(&self) -> &AtomicU64 {
        &self.block[self.slot as usize % BLOCK]
    }

    /// The connection is now idle.
    pub(crate) fn set_idle(&mut self, now_ms: u64, cx: &Context<'_>) {
        if !std::mem::replace(&mut self.known, true) {
            // Always the same task, so always the same waker.
            self.shard().lock().wakers[self.slot as usize] = Some(cx.waker().clone());
        }
        // Only its own task makes a connection idle, so nothing can be overwritten here.
        self.state().store((now_ms + 1).min(EVICTED - 1), Ordering::Release);
    }

    /// The next request arrives. `false`: too late, the connection was evicted.
    pub(crate) fn set_busy(&self) -> bool {
        let since = self.state().load(Ordering::Relaxed);
        since != EVICTED
            && self.state().compare_exchange(since, BUSY, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether the connection was evicted.
    #[must_use]
    pub(crate) fn is_evicted(&self) -> bool {
        self.state().load(Ordering::Acquire) == EVICTED
    }

    /// The connection closes. Call once, before the slot is dropped.
    pub(crate) fn release(&self) -> Left {
        match self.state().swap(BUSY, Ordering::AcqRel) {
            EVICTED => Left::Taken,
            _ => Left::Free,
        }
    }
}

impl Drop for IdleSlot {
    fn drop(&mut self) {
        self.state().store(BUSY, Ordering::Release);
        let mut shard = self.shard().lock();
        let slot = self.slot as usize;
        let waker = shard.wakers[slot].take();
        shard.free.push(slot);
        drop(shard);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_idle(slot: &mut IdleSlot, at: u64) {
        slot.set_idle(at, &Context::from_waker(Waker::noop()));
    }

    #[test]
    fn the_longest_idle_connection_is_evicted_first_whichever_its_worker() {
        let idle_clients = Arc::new(IdleClients::new(2));
        let mut slots: Vec<IdleSlot> = (0..600).map(|n| idle_clients.slot(n)).collect();
        assert!(!idle_clients.evict_oldest(0), "nobody is idle");
        for (n, slot) in slots.iter_mut().enumerate() {
            set_idle(slot, 1000 - n as u64);
        }
        for n in (0..600).rev() {
            assert!(idle_clients.evict_oldest(100), "{n}");
            assert!(
                slots[n].is_evicted() && !slots[n].set_busy() && slots[n].release() == Left::Taken,
                "{n}"
            );
        }
        assert!(!idle_clients.evict_oldest(100));
    }

    #[test]
    fn who_has_something_to_do_is_never_evicted() {
        let idle_clients = Arc::new(IdleClients::new(1));
        let (mut busy, mut idle) = (idle_clients.slot(0), idle_clients.slot(0));
        set_idle(&mut busy, 1);
        set_idle(&mut idle, 2);
        assert!(busy.set_busy());
        assert!(idle_clients.evict_oldest(3) && idle.is_evicted() && !busy.is_evicted());
        assert!(!idle_clients.evict_oldest(3));
        set_idle(&mut busy, 4);
        assert!(!idle_clients.evict_oldest(5), "right after a search in vain");
        assert!(idle_clients.evict_oldest(3 + PAUSE_MS));
        assert!(!busy.set_busy());
    }

    #[test]
    fn a_slot_is_reused_without_its_previous_state() {
        let idle_clients = Arc::new(IdleClients::new(1));
        let mut first = idle_clients.slot(0);
        set_idle(&mut first, 1);
        let place = first.slot;
        drop(first);
        assert!(!idle_clients.evict_oldest(1));
        let mut second = idle_clients.slot(0);
        assert_eq!(second.slot, place);
        set_idle(&mut second, 20);
        assert_eq!(second.release(), Left::Free);
    }
}
