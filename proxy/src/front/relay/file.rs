//! A response that is a file: nothing is sent to a backend. Everything else is as for any response: the client's minimum
//! rate and deadlines, and whether it is still there.

use std::future::poll_fn;
use std::task::Poll;

use super::{ExchangeFailure, Progress, Relay, Unconnected};
use crate::front::broadcast::Subscription;
use crate::front::client::ClientLink;
use crate::front::pump::ends::PumpSource;
use uh_http1::edits::FieldEdits;
use uh_http1::response::{BadResponse, Recipient, ResponseHead, translate};

impl Relay {
    /// Answers with this head, as if a backend had sent it, and edited as its responses are.
    ///
    /// # Errors
    /// It isn't a response head.
    pub(crate) fn answer(
        &mut self,
        head: &[u8],
        to: Recipient<'_>,
        edits: &FieldEdits,
        subscription: &Subscription,
    ) -> Result<ResponseHead, BadResponse> {
        self.request = Progress::Sent(self.now());
        self.awaiting = None;
        let keep_alive = self.may_keep_alive(to, subscription);
        let before = self.down.head().len();
        let response = translate(head, Recipient { keep_alive, ..to }, self.down.head())?;
        edits.apply(self.down.head(), before);
        Ok(response)
    }

    /// Sends the body of that response.
    ///
    /// # Errors
    /// See [`ExchangeFailure`].
    pub(crate) async fn send<L: ClientLink, F: PumpSource>(
        &mut self,
        caller: &mut Unconnected<'_, L>,
        from: &mut F,
    ) -> Result<(), ExchangeFailure> {
        poll_fn(|cx| {
            caller.subscription.poll(cx);
            self.watch_client(cx, caller.client)?;
            let polled = self.down.poll(cx, from, caller.client);
            self.note_moves();
            if let Poll::Ready(end) = polled {
                return Poll::Ready(end.map_err(|error| ExchangeFailure::of_response(&error)));
            }
            self.check(cx, caller)?;
            self.waits();
            Poll::Pending
        })
        .await
    }
}
