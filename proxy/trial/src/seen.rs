//! Which clients have failed before, in memory of a fixed size.
//!
//! A Bloom filter: 4 of 4,194,304 bits (512 KiB) for each client. A client that was seen before is always recognised. A
//! new one may be mistaken for another: with a probability below 0.001 % after 50,000 clients, 0.1 % after 200,000, and
//! 15 % after a million ([`Seen::error`]). Then its failure is left out. The bits don't depend on the side, so failures
//! are left out on both sides alike: the tests stay valid, and see a little less.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of the filter: a power of two.
const BITS: u64 = 1 << 22;

/// Bits for each client.
const PROBES: u64 = 4;

/// The clients that were seen. Shared by threads without a lock.
pub struct Seen {
    words: Box<[AtomicU64]>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { words: (0..BITS / 64).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seen").finish_non_exhaustive()
    }
}

impl Seen {
    /// Whether this client wasn't seen before; from now on it was. If two threads ask for the same client at the same
    /// moment, it may be new to both.
    pub fn first(&self, client: u64) -> bool {
        let (mut hash, step) = (mix(client), mix(client ^ 0x9E37_79B9_7F4A_7C15) | 1);
        let mut new = false;
        for _ in 0..PROBES {
            let bit = hash % BITS;
            let mask = 1 << (bit % 64);
            let Some(word) = self.words.get((bit / 64) as usize) else { continue };
            // Most have been seen: reading leaves the cache line shared.
            if word.load(Ordering::Relaxed) & mask == 0 && word.fetch_or(mask, Ordering::Relaxed) & mask == 0
            {
                new = true;
            }
            hash = hash.wrapping_add(step);
        }
        new
    }

    /// The probability that a new client is mistaken for one of `clients` others, from 0 to 1.
    #[must_use]
    pub fn error(clients: u64) -> f64 {
        let full = 1.0 - (-(PROBES as f64) * clients as f64 / BITS as f64).exp();
        full.powi(PROBES as i32)
    }
}

/// Spreads every bit over all others (the finalizer of MurmurHash3): keys may have a structure of their own.
fn mix(mut key: u64) -> u64 {
    key = (key ^ (key >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    key = (key ^ (key >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    key ^ (key >> 33)
}
