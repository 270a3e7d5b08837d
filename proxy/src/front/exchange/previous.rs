//! A request that the active backend has nothing for, asked of the one before it: a page that was loaded before a switch
//! goes on to ask for that version's files, and to send its server actions.
//!
//! While traffic is split, its new side asks the active backend in the same way.
//!
//! Only while the previous backend stands by. A request without a body is asked if it is a `GET` or `HEAD`; one with a body
//! only if the active backend has said that it didn't execute it. The exchange holds a lease on the previous backend, as on
//! the active one, so its stop waits for the answer. If it has nothing either, the client gets the active backend's answer.

use super::{Exchange, request_is_read};
use crate::config::{AskPrevious, Files};
use crate::front::Lease;
use crate::front::client::ClientLink;
use crate::front::connection::AfterExchange;
use crate::front::files::{FileFound, SelectedFile};
use crate::front::pick::pick_previous;
use crate::front::pump::kept;
use crate::front::reach::{Answered, Miss, reach_previous};
use crate::front::relay::Relay;
use crate::observe::previous::ActionResult;
use uh_http1::body::Framing;
use uh_http1::field::values;
use uh_http1::request::RequestHead;

/// The status for which the previous backend is asked.
pub(super) const NOT_FOUND: u16 = 404;

/// The field of a request by which a Next.js page calls a server action: its value is the action's ID, which differs from
/// build to build.
const ACTION: &[u8] = b"next-action";

/// The field with which Next.js says that it doesn't know the action, so that it hasn't executed it.
const ACTION_NOT_FOUND: &[u8] = b"x-nextjs-action-not-found";

/// What the previous backend is asked for if the active one answers with 404.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// What a `GET` or `HEAD` asks for.
    Representation,
    /// To execute a server action, if the active backend doesn't know it.
    Action,
}

impl Question {
    /// For this request, if it may be asked of two backends.
    pub(super) fn of(ask: &AskPrevious, request: &RequestHead, head: &[u8]) -> Option<Self> {
        if ask.on_404 && request.method.is_read() && request_is_read(request) {
            return Some(Self::Representation);
        }
        let is_action = || request.method.is_post() && values(head, ACTION).next().is_some();
        (ask.actions && is_action()).then_some(Self::Action)
    }

    /// Before the request is sent: keeps its body, if that will be needed.
    pub(super) fn prepare(self, request: &RequestHead, relay: &mut Relay) {
        let too_large = matches!(request.framing, Framing::Length(length) if length > kept::MAX_BYTES as u64);
        if self == Self::Action && !too_large {
            relay.up.keep_body();
        }
    }
}

impl<L: ClientLink> Exchange<'_, L> {
    /// A lease on the previous backend, if it may be asked now.
    fn previous(&mut self, lease: &Lease) -> Option<Lease> {
        let previous = pick_previous(self.client, self.request, lease)?;
        self.applied.goes_on(lease, &previous);
        Some(previous)
    }

    /// A file of the previous backend, where the app isn't to be asked.
    pub(super) async fn previous_file(
        &mut self,
        lease: &Lease,
        relay: &mut Relay,
        files: &Files,
    ) -> Option<(Lease, SelectedFile)> {
        let previous = self.previous(lease)?;
        match self.find(&previous, relay, files).await {
            Ok(FileFound::File(file)) => {
                note(&previous, true);
                Some((previous, file))
            }
            _ => {
                note(&previous, false);
                None
            }
        }
    }

    /// The active backend has answered with 404: asks the previous one, if it may be asked. Whoever then answers, `lease`
    /// is on that backend.
    ///
    /// # Errors
    /// The client has got another answer: a file of the previous backend, or an error.
    pub(super) async fn ask_previous(
        &mut self,
        question: Question,
        lease: &mut Lease,
        relay: &mut Relay,
        files: Option<&Files>,
        answered: Answered,
    ) -> Result<Answered, AfterExchange> {
        if !relay.may_hold_response() {
            return Ok(answered);
        }
        match question {
            Question::Representation if relay.request_done() => {
                self.ask_for_representation(lease, relay, files, answered).await
            }
            Question::Action if is_unknown_action(&answered, relay) => {
                self.ask_to_act(lease, relay, answered).await
            }
            _ => Ok(answered),
        }
    }

    async fn ask_for_representation(
        &mut self,
        lease: &mut Lease,
        relay: &mut Relay,
        files: Option<&Files>,
        answered: Answered,
    ) -> Result<Answered, AfterExchange> {
        let Some(mut previous) = self.previous(lease) else { return Ok(answered) };
        if let Some(files) = files
            && let Ok(FileFound::File(file)) = self.find(&previous, relay, files).await
        {
            note(&previous, true);
            *lease = previous;
            self.record.trial.take_part();
            drop(relay.hold_response());
            return Err(self.send_file(lease, relay, file).await);
        }
        let endpoint = self.record.endpoint;
        let held = relay.hold_response();
        relay.ask_again();
        let (client, applied, record) = (&mut *self.client, &mut self.applied, &mut self.record);
        let again = reach_previous(client, self.request, &mut previous, applied, relay, record).await.ok();
        let again = again.filter(|again| again.response.status < 400);
        note(&previous, again.is_some());
        if let Some(again) = again {
            *lease = previous;
            self.record.trial.take_part();
            return Ok(again);
        }
        self.record.endpoint = endpoint;
        relay.answer_after_all(held);
        Ok(answered)
    }

    /// Sends a server action to the previous backend, once. What that answers is the answer, unless it doesn't know the
    /// action either. If it doesn't answer, it may have executed the action: the client gets an error, as for any request
    /// that isn't safe to repeat.
    async fn ask_to_act(
        &mut self,
        lease: &mut Lease,
        relay: &mut Relay,
        mut answered: Answered,
    ) -> Result<Answered, AfterExchange> {
        let Some(mut previous) = self.previous(lease) else { return Ok(answered) };
        let endpoint = self.record.endpoint;
        let held = relay.hold_response();
        let settings = self.applied.settings(lease);
        let part = (&*self.request, &mut self.record.trial);
        let mut around = self.client.around(&mut answered.upstream, lease, settings, part);
        let finished = relay.finish_request(&mut around).await;
        if !matches!(finished, Ok(true)) || !relay.up.keeps_body() {
            note_action(&previous, ActionResult::NotKept);
            relay.answer_after_all(held);
            return Ok(answered);
        }
        relay.ask_again();
        let (client, applied, record) = (&mut *self.client, &mut self.applied, &mut self.record);
        let result = match reach_previous(client, self.request, &mut previous, applied, relay, record).await {
            Ok(again) if is_unknown_action(&again, relay) => ActionResult::Missing,
            Ok(again) => {
                note_action(&previous, ActionResult::Answered);
                *lease = previous;
                self.record.trial.take_part();
                return Ok(again);
            }
            Err(Miss::Unsent(_)) => ActionResult::Failed,
            Err(Miss::Unanswered { failure, .. }) => {
                note_action(&previous, ActionResult::Failed);
                *lease = previous;
                self.record.trial.take_part();
                return Err(self.not_answered(lease, relay, &failure.refusal()).await);
            }
        };
        note_action(&previous, result);
        self.record.endpoint = endpoint;
        relay.answer_after_all(held);
        Ok(answered)
    }
}

/// Whether this response, whose head is the next one for the client, says that an action wasn't executed because it isn't
/// known.
fn is_unknown_action(answered: &Answered, relay: &mut Relay) -> bool {
    let says_so = |head| values(head, ACTION_NOT_FOUND).any(|value| value == b"1");
    answered.response.status == NOT_FOUND && says_so(relay.down.head())
}

fn note(previous: &Lease, answered: bool) {
    previous.owner().meters.lane(previous.worker()).previous.asked(answered);
}

fn note_action(previous: &Lease, result: ActionResult) {
    previous.owner().meters.lane(previous.worker()).previous.action(result);
}
