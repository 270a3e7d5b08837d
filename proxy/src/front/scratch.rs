//! Buffers that a connection needs while it carries a request, lent by the worker thread and reused.

use std::cell::{Cell, RefCell};

use uh_http1::request::Places;

/// Sets kept by a thread for the next use.
const MAX_KEPT: usize = 256;

/// A set whose buffers have grown larger than this isn't kept.
const MAX_KEPT_BYTES: usize = 16 << 10;

thread_local! {
    #[allow(clippy::vec_box, reason = "a set is lent out and given back as the box it is")]
    static KEPT: RefCell<Vec<Box<Heads>>> = const { RefCell::new(Vec::new()) };

    /// One for all requests: a head is translated as soon as it is written.
    static PLACES: Cell<Places> = Cell::default();
}

/// The heads of one exchange.
#[derive(Debug, Default)]
struct Heads {
    request: Vec<u8>,
    /// Where its parts are, from when it is written here until it is translated.
    places: Places,
    upstream: Vec<u8>,
    response: Vec<u8>,
}

/// The heads of one exchange. Returned to the stock when it is over; one that is dropped earlier is freed.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    heads: Box<Heads>,
}

impl Scratch {
    /// An empty set from this thread's stock.
    #[must_use]
    pub(crate) fn take() -> Self {
        let heads = KEPT.with(|kept| kept.borrow_mut().pop());
        Self { heads: heads.unwrap_or_default() }
    }

    /// The client's request head, as it came.
    pub(crate) fn request(&mut self) -> &mut Vec<u8> {
        &mut self.heads.request
    }

    /// The client's request head, to be written, and the places of its parts.
    pub(crate) fn written_request(&mut self) -> (&mut Vec<u8>, &mut Places) {
        self.heads.places = PLACES.take();
        (&mut self.heads.request, &mut self.heads.places)
    }

    /// The places of the parts of a request head that was written.
    #[must_use]
    pub(crate) fn places(&self) -> &Places {
        &self.heads.places
    }

    /// They aren't needed any more: hundreds of requests may be in flight.
    pub(crate) fn return_places(&mut self) {
        PLACES.set(std::mem::take(&mut self.heads.places));
    }

    /// The request head, to read.
    #[must_use]
    pub(crate) fn request_head(&self) -> &[u8] {
        &self.heads.request
    }

    /// The buffer for the head to the backend, to take and return.
    pub(crate) fn upstream(&mut self) -> &mut Vec<u8> {
        &mut self.heads.upstream
    }

    /// The buffer for the head to the client, to take and return.
    pub(crate) fn response(&mut self) -> &mut Vec<u8> {
        &mut self.heads.response
    }

    /// Returns it to this thread's stock.
    pub(crate) fn give_back(self) {
        let mut heads = self.heads;
        for head in [&mut heads.request, &mut heads.upstream, &mut heads.response] {
            head.clear();
            if head.capacity() > MAX_KEPT_BYTES {
                return;
            }
        }
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < MAX_KEPT {
                kept.push(heads);
            }
        });
    }
}
