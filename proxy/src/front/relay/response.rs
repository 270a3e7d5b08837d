//! Awaiting the response's head, while the request is sent and interim responses are passed on.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{ExchangeFailure, Relay, RelayContext};
use crate::front::broadcast::{StopStage, Subscription};
use crate::front::client::ClientLink;
use crate::front::lazy_timer::LazyTimer;
use crate::front::pump::ends::PumpSource as _;
use uh_http1::buffer::Buffer;
use uh_http1::field::HeadScanner;
use uh_http1::response::{self, Recipient, ResponseHead};

/// The most interim responses to one request: no app sends more than a few, and each is kept until it is written.
const MAX_INTERIM: u32 = 64;

/// How long to wait for the backend's `100 Continue` before uh-proxy sends its own: many apps ignore the expectation,
/// and clients wait for a second before they send their body anyway. Long enough for a rejection to arrive first.
const CONTINUE_AFTER: Duration = Duration::from_millis(300);

/// A response head that is awaited.
struct Awaited<'a, 'b> {
    to: Recipient<'a>,
    scanner: HeadScanner,
    /// What has arrived of it, and what follows it.
    spare: &'b mut Option<Buffer>,
    /// How many interim heads came before it.
    interim: u32,
}

impl Relay {
    /// Sends the request, and reads the response head into `spare`; interim responses are passed on. The head for the
    /// client is appended to the response pump; the rest of `spare` is the start of the body.
    ///
    /// # Errors
    /// See [`ExchangeFailure`].
    pub(crate) async fn await_response<L: ClientLink>(
        &mut self,
        around: &mut RelayContext<'_, L>,
        to: Recipient<'_>,
        spare: &mut Option<Buffer>,
    ) -> Result<ResponseHead, ExchangeFailure> {
        let mut awaited = Awaited { to, scanner: HeadScanner::of_response(), spare, interim: 0 };
        poll_fn(|cx| self.poll_response(cx, around, &mut awaited)).await
    }

    fn poll_response<L: ClientLink>(
        &mut self,
        cx: &mut Context<'_>,
        around: &mut RelayContext<'_, L>,
        awaited: &mut Awaited<'_, '_>,
    ) -> Poll<Result<ResponseHead, ExchangeFailure>> {
        around.subscription.poll(cx);
        loop {
            self.poll_request(cx, around)?;
            if let Some(head) = self.scan_head(awaited, around)? {
                if !head.is_interim() {
                    self.awaiting = None;
                    return Poll::Ready(Ok(head));
                }
                awaited.next()?;
                continue;
            }
            let _flushed = self.poll_down(cx, around)?;
            let filled = if std::mem::take(&mut self.this_poll.upstream_quiet) {
                Poll::Pending
            } else {
                around.upstream.poll_fill(cx, awaited.spare)
            };
            match filled {
                Poll::Ready(Ok(n)) if n > 0 => self.last_move = self.now(),
                Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::FileTooLarge => {
                    let why = "the response head is too large";
                    return Poll::Ready(Err(ExchangeFailure::UpstreamProtocol(why)));
                }
                Poll::Ready(_) => return Poll::Ready(Err(awaited.closed())),
                Poll::Pending => {
                    if awaited.to.request.expects_continue && self.continue_is_due(cx, around.timer) {
                        continue;
                    }
                    self.check(cx, &mut around.caller())?;
                    self.waits();
                    return Poll::Pending;
                }
            }
        }
    }

    /// Whether the client's connection may be kept after a response that arrives now.
    pub(super) fn may_keep_alive(&mut self, to: Recipient<'_>, subscription: &Subscription) -> bool {
        // A client that still waits for "100 Continue" when the final response arrives may or may not send its body:
        // it's unknown where its next request begins, so the connection is closed after this one.
        let unread = to.request.expects_continue && self.up.body_sent() == 0;
        // A request sent before the client closed its side is still answered.
        let over = self.client_ended() && self.up.surplus().is_none();
        to.keep_alive && !unread && !over && subscription.stage() == StopStage::Running
    }

    /// Sends `100 Continue` to a client that waits for it, if the backend doesn't.
    fn continue_is_due(&mut self, cx: &mut Context<'_>, timer: &mut LazyTimer) -> bool {
        let Some(awaiting) = &mut self.awaiting else { return false };
        if awaiting.continued || self.up.body_sent() > 0 || self.up.sent() == 0 {
            return false;
        }
        let due = timer.poll_expired(cx, self.last_move + CONTINUE_AFTER);
        if due {
            awaiting.continued = true;
            self.down.head().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        due
    }

    fn scan_head<L>(
        &mut self,
        awaited: &mut Awaited<'_, '_>,
        around: &RelayContext<'_, L>,
    ) -> Result<Option<ResponseHead>, ExchangeFailure> {
        let Some(buffer) = awaited.spare else { return Ok(None) };
        let bare =
            |_| ExchangeFailure::UpstreamProtocol("a line of the response head ends in a bare line feed");
        let Some(range) = awaited.scanner.scan(buffer.filled()).map_err(bare)? else { return Ok(None) };
        let end = range.end;
        let keep_alive = self.may_keep_alive(awaited.to, around.subscription);
        let before = self.down.head().len();
        self.before_answer = self.down.sent_with_head();
        let to = Recipient { keep_alive, ..awaited.to };
        let head = response::translate(&buffer.filled()[range], to, self.down.head());
        let head = head.map_err(|e| ExchangeFailure::UpstreamProtocol(e.0))?;
        if !head.is_interim() {
            around.settings.response_headers.edits().apply(self.down.head(), before);
            if let Some(cookie) = around.cookie {
                cookie.add(&head, before, self.down.head());
            }
        }
        if head.status == 100
            && let Some(awaiting) = &mut self.awaiting
            && std::mem::replace(&mut awaiting.continued, true)
        {
            self.down.head().truncate(before);
        }
        // The first backend's response may still be the answer, and must not follow hints of another one.
        if head.is_interim() && self.asked_again {
            self.down.head().truncate(before);
        }
        buffer.consume(end);
        if buffer.is_empty() {
            *awaited.spare = None;
        }
        Ok(Some(head))
    }
}

impl Awaited<'_, '_> {
    /// After an interim head, another one is awaited.
    fn next(&mut self) -> Result<(), ExchangeFailure> {
        self.interim += 1;
        self.scanner = HeadScanner::of_response();
        if self.interim > MAX_INTERIM {
            return Err(ExchangeFailure::UpstreamProtocol("too many interim responses"));
        }
        Ok(())
    }

    /// The backend has closed. After an interim response it must have received the request.
    fn closed(&self) -> ExchangeFailure {
        ExchangeFailure::UpstreamClosed { begun: self.spare.is_some() || self.interim > 0 }
    }
}
