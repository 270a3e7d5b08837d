//! A request that is asked of a second backend, whose response may take the place of the first one's.
//!
//! The response that there is waits: its head is held, and its body stays in its connection.

use std::future::poll_fn;
use std::task::Poll;

use super::{Awaiting, ExchangeFailure, Progress, Relay, RelayContext};
use crate::front::client::ClientLink;

/// The head of the response that waits, as it would be sent to the client.
pub(crate) struct HeldResponse(Vec<u8>);

impl Relay {
    /// Whether the client has got none of the response: not even an interim one.
    #[must_use]
    pub(crate) fn may_hold_response(&self) -> bool {
        self.down.sent() == 0 && self.before_answer == 0
    }

    /// Holds the response whose head has arrived. Only while [`Relay::may_hold_response`].
    pub(crate) fn hold_response(&mut self) -> HeldResponse {
        HeldResponse(std::mem::take(self.down.head()))
    }

    /// Sends the rest of the request to the backend that has already answered, so that it is known and kept. Returns
    /// whether it could be sent.
    ///
    /// # Errors
    /// See [`ExchangeFailure`].
    pub(crate) async fn finish_request<L: ClientLink>(
        &mut self,
        around: &mut RelayContext<'_, L>,
    ) -> Result<bool, ExchangeFailure> {
        poll_fn(|cx| {
            around.subscription.poll(cx);
            self.poll_request(cx, around)?;
            match self.request {
                Progress::Sent(_) => return Poll::Ready(Ok(true)),
                Progress::Refused(_) => return Poll::Ready(Ok(false)),
                Progress::Sending if !self.up.keeps_body() => return Poll::Ready(Ok(false)),
                Progress::Sending => {}
            }
            self.check(cx, &mut around.caller())?;
            self.waits();
            Poll::Pending
        })
        .await
    }

    /// The request, which was sent completely, is to be sent again, to another backend. Once.
    pub(crate) fn ask_again(&mut self) {
        self.asked_again = true;
        // What was read past it is the pump's already.
        self.buffered = None;
        self.up.send_again();
        self.begin_attempt();
        self.awaiting = Some(Awaiting::default());
    }

    /// The held response is the answer after all.
    pub(crate) fn answer_after_all(&mut self, held: HeldResponse) {
        *self.down.head() = held.0;
        if self.asked_again {
            self.request = Progress::Sent(self.now());
            self.awaiting = None;
        }
    }
}
