//! A copy of a body as it was sent, for a request that may have to be sent once more.
//!
//! A copy takes memory for as long as the response is awaited. So it has a largest size, and a worker has only so many; a
//! body for which none is left isn't kept.

use std::cell::Cell;

/// The largest body that is kept, as it is sent: with the framing of its chunks. The arguments of a server action are a form's
/// fields or less. Files that are uploaded with it don't fit.
pub(in crate::front) const MAX_BYTES: usize = 64 << 10;

/// Bodies that a worker keeps at the same time: 16 MiB. A backend that answers slowly has many of them in flight.
const MOST: usize = 256;

thread_local! {
    static LENT: Cell<usize> = const { Cell::new(0) };
}

/// What was sent of a body so far.
#[derive(Debug)]
pub(super) struct KeptBody(Vec<u8>);

impl KeptBody {
    /// Of a body that begins now. `None`: this worker keeps as many as it may.
    pub(super) fn begin() -> Option<Self> {
        let lent = LENT.get();
        (lent < MOST).then(|| {
            LENT.set(lent + 1);
            Self(Vec::new())
        })
    }

    /// The first `sent` bytes of these parts were sent. Returns whether the body may still be kept.
    pub(super) fn add(&mut self, mut sent: usize, parts: [&[u8]; 3]) -> bool {
        if self.0.len() + sent > MAX_BYTES {
            return false;
        }
        for part in parts {
            let (part, _) = part.split_at(sent.min(part.len()));
            self.0.extend_from_slice(part);
            sent -= part.len();
        }
        true
    }

    /// What was sent.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for KeptBody {
    fn drop(&mut self) {
        LENT.set(LENT.get().saturating_sub(1));
    }
}
