//! A request that fails on the new side of a split before its client has got a byte, asked of the old side: opt-in, by
//! `split.rescue`. It stays the new side's failure.
//!
//! Only a `GET` or `HEAD` without a body, since the new side may have acted on it, and only once.

use tokio::time::Instant;
use uh_switching::Side;

use super::{Exchange, request_is_read};
use crate::config::Files;
use crate::front::Lease;
use crate::front::applied::Choice;
use crate::front::client::ClientLink;
use crate::front::connection::AfterExchange;
use crate::front::error_answer::ErrorAnswer;
use crate::front::files::FileFound;
use crate::front::pick::pick_old_side;
use crate::front::reach::{Answered, reach_previous};
use crate::front::relay::Relay;

/// From this status on, a response is a failure.
const FAILED: u16 = 500;

impl<L: ClientLink> Exchange<'_, L> {
    /// Whether this has failed on the new side of a split, and may be asked of the old one.
    pub(super) fn may_be_rescued(
        &self,
        lease: &Lease,
        relay: &Relay,
        reached: &Result<Answered, ErrorAnswer>,
    ) -> bool {
        let failed = match reached {
            Ok(answered) => answered.response.status >= FAILED && relay.request_done(),
            Err(refusal) => refusal.broken.is_some(),
        };
        failed
            && self.record.trial.assigned().is_some_and(|assigned| assigned.side == Side::New)
            && lease.owner().service.split.rescue
            && self.applied.choice == Choice::Routed
            && self.request.method.is_read()
            && request_is_read(self.request)
            && relay.may_hold_response()
    }

    /// Asks the old side. Its answer is the answer, whatever it is; if it has none, the new side's is. `lease` is on the
    /// side that has answered.
    ///
    /// # Errors
    /// The client has got another answer: a file of the old side.
    pub(super) async fn rescue(
        &mut self,
        lease: &mut Lease,
        relay: &mut Relay,
        files: Option<&Files>,
        reached: Result<Answered, ErrorAnswer>,
    ) -> Result<Result<Answered, ErrorAnswer>, AfterExchange> {
        let Some(mut old) = pick_old_side(self.client, self.request, lease) else { return Ok(reached) };
        // Without an answer, the last move was at the beginning.
        let failed_at = if reached.is_ok() { relay.last_move() } else { Instant::now() };
        let failed = self.record.leave_new_side(failed_at);
        self.applied.goes_on(lease, &old);
        let held = relay.hold_response();
        let file = match files {
            Some(files) => self.find(&old, relay, files).await.ok(),
            None => None,
        };
        let answered = if let Some(FileFound::File(file)) = file {
            Ok(Err(file))
        } else {
            match &reached {
                Ok(_) => relay.ask_again(),
                Err(_) => relay.rewind(),
            }
            let (client, applied, record) = (&mut *self.client, &mut self.applied, &mut self.record);
            reach_previous(client, self.request, &mut old, applied, relay, record).await.map(Ok)
        };
        let meters = lease.owner().meters.lane(lease.worker());
        let Ok(answered) = answered else {
            meters.rescued(false);
            self.record.return_to_new_side(failed);
            relay.answer_after_all(held);
            return Ok(reached);
        };
        meters.rescued(answered.as_ref().map_or(true, |answered| answered.response.status < FAILED));
        let reached = reached.as_ref().map(|answered| answered.response.status);
        self.record.was_rescued(failed, (self.client, self.request), (lease, &self.applied), reached);
        *lease = old;
        match answered {
            Ok(answered) => Ok(Ok(answered)),
            Err(file) => Err(self.send_file(lease, relay, file).await),
        }
    }
}
