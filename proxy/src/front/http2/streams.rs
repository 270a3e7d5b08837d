//! The streams of a connection. They run inside its task, so beginning one spawns nothing, and its memory, its waker and
//! its timer serve one stream after another.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use super::stream::{Ended, Reused, Served};
use super::wakers::Wakers;

/// A connection's streams. `serve` makes the future of one.
pub(super) struct Streams<S, F> {
    serve: S,
    places: Vec<Place<F>>,
    free: Vec<usize>,
}

/// Where one stream after another is served.
struct Place<F> {
    /// The stream, if there is one.
    stream: Pin<Box<Option<F>>>,
    waker: Waker,
    /// For the next stream.
    reused: Option<Reused>,
}

impl<S, F: Future<Output = Served>> Streams<S, F> {
    /// None yet.
    pub(super) fn new(serve: S) -> Self {
        Self { serve, places: Vec::new(), free: Vec::new() }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// Begins one. It is ready to be polled.
    pub(super) fn begin<N>(&mut self, stream: N, wakers: &mut Wakers)
    where
        S: Fn(N, Option<Reused>) -> F,
    {
        let index = self.free.pop().unwrap_or_else(|| {
            let waker = wakers.of_stream(self.places.len());
            self.places.push(Place { stream: Box::pin(None), waker, reused: None });
            self.places.len() - 1
        });
        let place = &mut self.places[index];
        place.stream.set(Some((self.serve)(stream, place.reused.take())));
        wakers.ready(index);
    }

    /// Polls one. `Some`: it has ended, and when the last byte of a complete response was written.
    pub(super) fn poll(&mut self, index: usize) -> Option<(Ended, Option<Instant>)> {
        let place = self.places.get_mut(index)?;
        // A place may be woken for a stream that was there before.
        let stream = place.stream.as_mut().as_pin_mut()?;
        let cx = &mut Context::from_waker(&place.waker);
        let ended = match catch_unwind(AssertUnwindSafe(|| stream.poll(cx))) {
            Ok(Poll::Pending) => return None,
            Ok(Poll::Ready(served)) => {
                place.reused = served.reused;
                (served.ended, served.moved)
            }
            // As in a task of its own, this ends no other stream. It has been logged.
            Err(_) => (Ended::InOrder, None),
        };
        place.stream.set(None);
        self.free.push(index);
        Some(ended)
    }

    /// All are to be polled.
    pub(super) fn all_ready(&self, wakers: &Wakers) {
        (0..self.places.len()).for_each(|index| wakers.ready(index));
    }

    /// Whether there is memory that no stream needs now.
    pub(super) fn hold_memory(&self) -> bool {
        !self.free.is_empty()
    }

    /// Frees it, if there are no streams.
    pub(super) fn free_memory(&mut self) {
        if self.is_empty() {
            (self.places, self.free) = (Vec::new(), Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    type Serving = Pin<Box<dyn Future<Output = Served>>>;

    fn ends(ended: Ended) -> Serving {
        Box::pin(ready(Served { ended, moved: None, reused: None }))
    }

    fn streams() -> Streams<impl Fn(Serving, Option<Reused>) -> Serving, Serving> {
        Streams::new(|serving, _| serving)
    }

    #[test]
    fn one_place_serves_one_stream_after_another() {
        let (mut streams, mut wakers) = (streams(), Wakers::default());
        for ended in [Ended::InOrder, Ended::Cancelled, Ended::InOrder] {
            assert!(streams.is_empty());
            streams.begin(ends(ended), &mut wakers);
            assert!(!streams.is_empty());
            assert_eq!(wakers.take_stream(), Some(0));
            assert_eq!(
                (streams.poll(0), streams.poll(0)),
                (Some((ended, None)), None),
                "and then it is woken in vain"
            );
        }
        assert!(streams.hold_memory());
        streams.free_memory();
        assert!(!streams.hold_memory() && streams.is_empty());
        assert_eq!(streams.poll(0), None, "a waker may outlive its place");
    }

    #[test]
    fn a_stream_that_panics_ends_no_other() {
        let (mut streams, mut wakers) = (streams(), Wakers::default());
        streams.begin(Box::pin(pending()), &mut wakers);
        streams.begin(Box::pin(async { panic!("on purpose") }), &mut wakers);
        streams.begin(ends(Ended::InOrder), &mut wakers);
        let polled = [0, 1, 2].map(|index| streams.poll(index));
        assert_eq!(polled, [None, Some((Ended::InOrder, None)), Some((Ended::InOrder, None))]);
        assert!(!streams.is_empty());
        streams.free_memory();
        assert!(!streams.is_empty(), "not while one is served");
    }
}
