//! What wakes a connection's task, and for which of its parts: the connection itself, one of its streams, or all of them.
//! Waking takes no lock, and wakes the task only if it neither runs nor was woken before.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Wake, Waker};

/// Streams of a block.
const BLOCK: usize = u64::BITS as usize;

/// What the wakers of a connection share.
#[derive(Debug)]
struct Task {
    /// Known from its first poll on. It stays the same.
    waker: OnceLock<Waker>,
    /// It runs, or is about to: whatever becomes ready now will be seen.
    awake: AtomicBool,
    /// The connection is ready.
    connection: AtomicBool,
    /// Everything is.
    all: AtomicBool,
}

impl Default for Task {
    /// Not polled yet: that is to come, and then everything is ready.
    fn default() -> Self {
        let [awake, connection, all] = [true, false, true].map(AtomicBool::new);
        Self { waker: OnceLock::new(), awake, connection, all }
    }
}

impl Task {
    fn wake(&self) {
        // In one order with the flags of what is ready, or it could be woken by neither side: see `Wakers::rests`.
        if !self.awake.swap(true, Ordering::SeqCst)
            && let Some(waker) = self.waker.get()
        {
            waker.wake_by_ref();
        }
    }
}

/// Which streams are ready, a bit each.
#[derive(Debug)]
struct Block {
    task: Arc<Task>,
    ready: AtomicU64,
}

/// The connection's waker.
struct OfConnection(Arc<Task>);

impl Wake for OfConnection {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.0.connection.swap(true, Ordering::SeqCst) {
            self.0.wake();
        }
    }
}

/// A waker for everything.
struct OfAll(Arc<Task>);

impl Wake for OfAll {
    fn wake(self: Arc<Self>) {
        self.0.all.store(true, Ordering::SeqCst);
        self.0.wake();
    }
}

/// A stream's waker.
struct OfStream {
    block: Arc<Block>,
    bit: u64,
}

impl Wake for OfStream {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.block.ready.fetch_or(self.bit, Ordering::SeqCst) & self.bit == 0 {
            self.block.task.wake();
        }
    }
}

/// The parts of a connection that are ready to be polled.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    task: Arc<Task>,
    blocks: Vec<Arc<Block>>,
    /// The stream after the last one that was found ready: they take turns.
    next: usize,
}

impl Wakers {
    /// The waker of the connection.
    pub(super) fn of_connection(&self) -> Waker {
        Arc::new(OfConnection(Arc::clone(&self.task))).into()
    }

    /// A waker for the connection and all its streams.
    pub(super) fn of_all(&self) -> Waker {
        Arc::new(OfAll(Arc::clone(&self.task))).into()
    }

    /// The waker of the stream with this number.
    pub(super) fn of_stream(&mut self, stream: usize) -> Waker {
        while self.blocks.len() * BLOCK <= stream {
            self.blocks.push(Arc::new(Block { task: Arc::clone(&self.task), ready: AtomicU64::new(0) }));
        }
        let block = Arc::clone(&self.blocks[stream / BLOCK]);
        Arc::new(OfStream { block, bit: 1 << (stream % BLOCK) }).into()
    }

    /// The task is polled. Returns whether everything is to be polled: the first time, and where it wasn't woken by these
    /// wakers, or by the one for all.
    pub(super) fn begin(&self, cx: &Context<'_>) -> bool {
        self.task.waker.get_or_init(|| cx.waker().clone());
        let by_another = !self.task.awake.swap(true, Ordering::SeqCst);
        by_another | (self.task.all.load(Ordering::SeqCst) && self.task.all.swap(false, Ordering::SeqCst))
    }

    /// This stream is ready.
    pub(super) fn ready(&self, stream: usize) {
        if let Some(block) = self.blocks.get(stream / BLOCK) {
            block.ready.fetch_or(1 << (stream % BLOCK), Ordering::SeqCst);
        }
    }

    /// The connection is ready.
    pub(super) fn connection_ready(&self) {
        self.task.connection.store(true, Ordering::SeqCst);
    }

    /// Whether the connection is ready. It isn't any more.
    pub(super) fn take_connection(&self) -> bool {
        self.task.connection.load(Ordering::SeqCst) && self.task.connection.swap(false, Ordering::SeqCst)
    }

    /// A stream that is ready. It isn't any more.
    pub(super) fn take_stream(&mut self) -> Option<usize> {
        let (mut index, first) = (self.next / BLOCK, self.next % BLOCK);
        // The first block twice: from the next stream on, and up to it.
        for step in 0..=self.blocks.len() {
            let block = self.blocks.get(index)?;
            let ready = block.ready.load(Ordering::SeqCst);
            let ready = if step == 0 { ready & (u64::MAX << first) } else { ready };
            let after = if index + 1 == self.blocks.len() { 0 } else { index + 1 };
            if ready != 0 {
                let bit = ready.trailing_zeros() as usize;
                block.ready.fetch_and(!(1 << bit), Ordering::SeqCst);
                self.next = if bit + 1 == BLOCK { after * BLOCK } else { index * BLOCK + bit + 1 };
                return Some(index * BLOCK + bit);
            }
            index = after;
        }
        None
    }

    /// Whether nothing is ready. From now on the task is woken for whatever becomes ready.
    pub(super) fn rests(&self) -> bool {
        self.task.awake.store(false, Ordering::SeqCst);
        let ready = self.task.connection.load(Ordering::SeqCst)
            || self.task.all.load(Ordering::SeqCst)
            || self.blocks.iter().any(|block| block.ready.load(Ordering::SeqCst) != 0);
        if ready {
            self.task.awake.store(true, Ordering::SeqCst);
        }
        !ready
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn woken() -> (Arc<Woken>, Waker) {
        let woken = Arc::<Woken>::default();
        (Arc::clone(&woken), woken.into())
    }

    #[test]
    fn a_task_is_woken_once_and_only_while_it_rests() {
        let (woken, waker) = woken();
        let mut wakers = Wakers::default();
        let (connection, all) = (wakers.of_connection(), wakers.of_all());
        let streams = [3, 70].map(|stream| wakers.of_stream(stream));
        let times = || woken.0.load(Ordering::SeqCst);
        assert!(wakers.begin(&Context::from_waker(&waker)), "the first time");
        streams[0].wake_by_ref();
        connection.wake_by_ref();
        assert!(!wakers.rests(), "they are ready");
        assert!(wakers.take_connection() && !wakers.take_connection());
        assert_eq!((wakers.take_stream(), wakers.take_stream()), (Some(3), None));
        assert!(wakers.rests());
        assert_eq!(times(), 0);
        streams.iter().for_each(Waker::wake_by_ref);
        connection.wake_by_ref();
        assert_eq!(times(), 1);
        assert!(!wakers.begin(&Context::from_waker(&waker)));
        assert_eq!([(); 3].map(|()| wakers.take_stream()), [Some(70), Some(3), None]);
        assert!(wakers.take_connection() && wakers.rests());
        all.wake_by_ref();
        assert_eq!(times(), 2);
        assert!(wakers.begin(&Context::from_waker(&waker)) && wakers.rests());
        assert!(wakers.begin(&Context::from_waker(&waker)), "whoever woke it");
    }

    #[test]
    fn streams_take_turns() {
        let mut wakers = Wakers::default();
        let streams: Vec<Waker> = (0..130).map(|stream| wakers.of_stream(stream)).collect();
        let mut polled = [0; 130];
        for _ in 0..1000 {
            // Each wakes itself whenever it is polled.
            streams.iter().for_each(Waker::wake_by_ref);
            polled[wakers.take_stream().unwrap()] += 1;
        }
        assert!(polled.iter().all(|&polled| polled == 7 || polled == 8), "{polled:?}");
    }

    #[test]
    fn no_wake_is_lost_between_threads() {
        let (woken, waker) = woken();
        let mut wakers = Wakers::default();
        let stream = wakers.of_stream(0);
        let sent = Arc::new(AtomicUsize::new(0));
        let sender = {
            let sent = Arc::clone(&sent);
            std::thread::spawn(move || {
                for _ in 0..10_000 {
                    sent.fetch_add(1, Ordering::SeqCst);
                    stream.wake_by_ref();
                }
            })
        };
        let (start, mut seen, mut polls) = (Instant::now(), 0, 0);
        while seen < 10_000 {
            wakers.begin(&Context::from_waker(&waker));
            while wakers.take_stream().is_some() || !wakers.rests() {
                seen = sent.load(Ordering::SeqCst);
            }
            polls += 1;
            // Whenever it rests, it is woken once.
            while seen < 10_000 && woken.0.load(Ordering::SeqCst) < polls {
                assert!(start.elapsed() < Duration::from_secs(30), "after {seen}");
                std::thread::yield_now();
            }
        }
        sender.join().unwrap();
    }
}
