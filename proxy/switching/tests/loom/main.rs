//! The counting core under a model checker: every interleaving of picks, releases and a switch. The source file is the
//! real one; only its atomics and `Arc` are loom's.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test, around a file of the library"
)]

/// What the library's `sync` is, for the model checker.
mod sync {
    pub use loom::sync::Arc;
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
}

#[path = "../../src/lease.rs"]
mod lease;

use lease::{Activation, LedgerOwner};
use loom::sync::RwLock;
use loom::thread;
use sync::{Arc, AtomicBool, AtomicUsize, Ordering};

/// Reports its drain, and knows how many exchanges are running.
struct Owner {
    drained: Arc<AtomicBool>,
    running: Arc<AtomicUsize>,
}

impl LedgerOwner for Owner {
    fn drained(&self) {
        assert_eq!(self.running.load(Ordering::SeqCst), 0, "drained with an exchange running");
        assert!(!self.drained.swap(true, Ordering::SeqCst), "drained twice");
    }
}

type Slot = Arc<RwLock<Arc<Activation<Owner, ()>>>>;

fn activation(workers: usize) -> (Arc<Activation<Owner, ()>>, Arc<AtomicBool>) {
    let drained = Arc::new(AtomicBool::new(false));
    let owner = Owner { drained: Arc::clone(&drained), running: Arc::new(AtomicUsize::new(0)) };
    (Arc::new(Activation::new(owner, workers, || ())), drained)
}

/// One exchange. The read lock replaces `ArcSwap::load`: a swap waits until readers hold their own references.
fn exchange(slot: &Slot, worker: usize) {
    let lease = slot.read().unwrap().lease(worker);
    let owner = lease.owner();
    owner.running.fetch_add(1, Ordering::SeqCst);
    assert!(!owner.drained.load(Ordering::SeqCst), "an exchange started after the drain was reported");
    owner.running.fetch_sub(1, Ordering::SeqCst);
}

#[test]
fn no_exchange_runs_on_a_drained_activation() {
    loom::model(|| {
        let (blue, blue_drained) = activation(2);
        let (green, green_drained) = activation(2);
        let slot: Slot = Arc::new(RwLock::new(blue));
        let ledger = Arc::clone(slot.read().unwrap().ledger());
        let pickers: Vec<_> = (0..2)
            .map(|worker| {
                let slot = Arc::clone(&slot);
                thread::spawn(move || exchange(&slot, worker))
            })
            .collect();
        let old = std::mem::replace(&mut *slot.write().unwrap(), green);
        drop(old);
        for picker in pickers {
            picker.join().unwrap();
        }
        assert!(
            ledger.is_drained() && blue_drained.load(Ordering::SeqCst),
            "nothing is left, but it is not drained"
        );
        assert_eq!(ledger.requests() + ledger.tunnels(), 0);
        assert!(!green_drained.load(Ordering::SeqCst), "drained while active");
    });
}

/// The mistake that the design avoids, choosing and counting in two steps, to show that the model would find it.
#[test]
#[should_panic(expected = "drained")]
fn a_pick_in_two_steps_would_be_caught() {
    loom::model(|| {
        let count = Arc::new(AtomicUsize::new(0));
        let switched = Arc::new(AtomicBool::new(false));
        let drained = Arc::new(AtomicBool::new(false));
        let picker = {
            let (count, switched, drained) =
                (Arc::clone(&count), Arc::clone(&switched), Arc::clone(&drained));
            thread::spawn(move || {
                if !switched.load(Ordering::SeqCst) {
                    count.fetch_add(1, Ordering::SeqCst);
                    assert!(
                        !drained.load(Ordering::SeqCst),
                        "an exchange started after the drain was reported: drained"
                    );
                    count.fetch_sub(1, Ordering::SeqCst);
                }
            })
        };
        switched.store(true, Ordering::SeqCst);
        if count.load(Ordering::SeqCst) == 0 {
            drained.store(true, Ordering::SeqCst);
        }
        picker.join().unwrap();
    });
}
