//! Reading the next request head of a connection, and waiting for it.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::Connection;
use crate::front::admission::ConnectionSlot;
use crate::front::broadcast::StopStage;
use crate::front::client::Client;
use crate::front::client::http1::Http1;
use crate::front::pool::millis;
use crate::front::pump::ends::PumpSource as _;
use crate::front::scratch::Scratch;
use uh_http1::field::HeadScanner;
use uh_http1::request::BadRequest;

/// How long the rest of a request head may take once the process is stopping.
const HURRIED_HEAD_TIME: Duration = Duration::from_secs(1);

pub(super) enum HeadRead {
    Complete,
    Closed,
    Dismissed,
    Evicted,
    TimedOut,
    Bad(BadRequest),
}

/// A head that is being read, or awaited.
struct HeadReader<'a> {
    client: &'a mut Client<Http1>,
    /// The connection's place, if it can be evicted.
    place: Option<&'a mut ConnectionSlot>,
    scanner: HeadScanner,
    /// When reading began, in milliseconds on this process's clock.
    since_ms: u64,
    deadline: Instant,
    /// The first byte has arrived.
    begun: bool,
    /// It has just arrived, and the deadline isn't set yet: most heads arrive as a whole and need none.
    fresh: bool,
    /// The connection is known to be idle.
    resting: bool,
    /// The process is stopping, and the rest has little time.
    hurried: bool,
}

impl Connection {
    /// Reads a request head into the scratch. The first byte has the idle timeout; the rest has one total deadline.
    pub(super) async fn read_head(&mut self) -> HeadRead {
        let limits = &self.client.settings.limits;
        let first = self.exchanges == 0;
        let first_wait = if first { limits.header_timeout } else { limits.idle_timeout };
        let started = self.client.moved.take().unwrap_or_else(Instant::now);
        let mut reader = HeadReader {
            client: &mut self.client,
            // Only between two requests can a connection be evicted.
            place: self.place.as_mut().ok().filter(|_| !first),
            scanner: HeadScanner::default(),
            since_ms: millis(started.into_std()),
            deadline: started + first_wait,
            begun: false,
            fresh: false,
            resting: false,
            hurried: false,
        };
        poll_fn(|cx| reader.poll(cx)).await
    }
}

impl HeadReader<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<HeadRead> {
        self.client.subscription.poll(cx);
        loop {
            match self.take_input() {
                Ok(true) => return Poll::Ready(HeadRead::Complete),
                Ok(false) => {}
                Err(bad) => return Poll::Ready(HeadRead::Bad(bad)),
            }
            match self.client.link.poll_fill(cx, &mut self.client.input) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(HeadRead::Closed),
                Poll::Ready(Ok(_)) if self.is_too_late() => return Poll::Ready(HeadRead::Evicted),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        self.check(cx)
    }

    /// Something arrives. Whether the connection has been evicted before.
    fn is_too_late(&mut self) -> bool {
        std::mem::take(&mut self.resting) && self.place.as_ref().is_some_and(|place| !place.slot.set_busy())
    }

    /// Moves input to the head, up to its end. Returns whether the head is complete.
    fn take_input(&mut self) -> Result<bool, BadRequest> {
        let Some(buffer) = &mut self.client.input else { return Ok(false) };
        let head = self.client.scratch.get_or_insert_with(Scratch::take).request();
        let before = head.len();
        let unseen = buffer.filled();
        // Before it is split into lines: other protocols, such as a TLS hello, may have a line feed anywhere.
        let first = unseen.first().copied().filter(|_| before == 0);
        if let Some(bad) = first.and_then(BadRequest::by_first_byte) {
            return Err(bad);
        }
        let found = if before == 0 {
            // Most heads arrive in one piece. What follows, such as a body, isn't copied.
            let found = self.scanner.scan(unseen);
            let range = found.as_ref().ok().and_then(Option::as_ref);
            head.extend_from_slice(&unseen[..range.map_or(unseen.len(), |range| range.end)]);
            found
        } else {
            head.extend_from_slice(unseen);
            self.scanner.scan(head)
        };
        let bare = |_| BadRequest::Malformed("a line of the request head ends in a bare line feed");
        let found = found.map_err(bare)?;
        let end = found.as_ref().map_or(head.len(), |range| range.end);
        buffer.consume(end - before);
        if buffer.is_empty() {
            self.client.input = None;
        }
        self.begin()?;
        let limits = &self.client.settings.limits;
        if end > limits.header_bytes || self.scanner.fields() > limits.header_fields {
            return Err(BadRequest::TooLarge);
        }
        let (Some(range), Some(scratch)) = (found, &mut self.client.scratch) else { return Ok(false) };
        let head = scratch.request();
        head.truncate(range.end);
        head.drain(..range.start);
        Ok(true)
    }

    /// Once the first byte of the head has arrived: checks it, and takes the settings for the request.
    fn begin(&mut self) -> Result<(), BadRequest> {
        let head = self.client.request_head();
        if self.begun || !self.scanner.has_begun(head.len()) {
            return Ok(());
        }
        self.begun = true;
        let first = head.get(self.scanner.start()).copied();
        if let Some(bad) = first.and_then(BadRequest::by_first_byte) {
            return Err(bad);
        }
        self.client.worker.settings.refresh(&mut self.client.settings);
        self.fresh = true;
        Ok(())
    }

    /// Nothing arrives: checks whether the connection was evicted, and its deadlines.
    fn check(&mut self, cx: &mut Context<'_>) -> Poll<HeadRead> {
        if std::mem::take(&mut self.fresh) {
            self.deadline = Instant::now() + self.client.settings.limits.header_timeout;
        }
        if let (false, Some(place)) = (self.begun, &mut self.place) {
            if !std::mem::replace(&mut self.resting, true) {
                place.slot.set_idle(self.since_ms, cx);
            } else if place.slot.is_evicted() {
                return Poll::Ready(HeadRead::Evicted);
            }
        }
        let subscription = &self.client.subscription;
        let stage = subscription.stage();
        if stage == StopStage::Cutting {
            return Poll::Ready(HeadRead::Closed);
        }
        if let (StopStage::Stopping, Some(timetable)) = (stage, subscription.timetable()) {
            if !self.begun {
                self.deadline = self.deadline.min(timetable.idle_until);
            } else if !std::mem::replace(&mut self.hurried, true) {
                self.deadline = self.deadline.min(Instant::now() + HURRIED_HEAD_TIME);
            }
        }
        match self.client.timer.poll_expired(cx, self.deadline) {
            true if self.begun => Poll::Ready(HeadRead::TimedOut),
            true => Poll::Ready(HeadRead::Dismissed),
            false => Poll::Pending,
        }
    }
}
