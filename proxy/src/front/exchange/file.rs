//! A request that a file of the backend answers.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Instant, SystemTime};

use rustix::io::Errno;
use uh_system::plain;

use super::{Exchange, request_is_read};
use crate::config::Files;
use crate::front::Lease;
use crate::front::answer::Answer;
use crate::front::client::{Client, ClientLink};
use crate::front::connection::AfterExchange;
use crate::front::error_answer::ErrorAnswer;
use crate::front::files::{FileAnswer, FileFound, FileSearch, FileSearching, SelectedFile, answer};
use crate::front::pool::millis;
use crate::front::preview::PRIVATE;
use crate::front::reach::recipient;
use crate::front::relay::{ExchangeFailure, Relay, Unconnected};
use crate::front::scratch::Scratch;
use crate::front::split::NewCookie;
use crate::front::trial::TrialPart;
use crate::observe::broken::Broken;
use crate::observe::termination::Termination;
use uh_http1::response::Recipient;

impl<L: ClientLink> Exchange<'_, L> {
    /// Answers with a file of the lease's backend. `None`: the app is to answer. `previous`: if it isn't to, and there is
    /// no such file, the previous backend's may answer, whose lease it then is.
    pub(super) async fn file(
        &mut self,
        lease: &mut Lease,
        relay: &mut Relay,
        files: &Files,
        previous: bool,
    ) -> Option<AfterExchange> {
        if !self.request.method.is_read() || !request_is_read(self.request) {
            return if files.only { Some(self.not_a_read(lease, relay).await) } else { None };
        }
        let found = self.find(lease, relay, files).await;
        if let Ok(FileFound::NoRoot(error)) = found {
            warn_of_root(lease, files, error);
        }
        match found {
            Ok(FileFound::File(file)) => Some(self.send_file(lease, relay, file).await),
            Ok(FileFound::Slash) => Some(self.add_slash(lease, relay).await),
            Ok(FileFound::Nothing | FileFound::NoRoot(_)) if files.only => {
                if previous && let Some((other, file)) = self.previous_file(lease, relay, files).await {
                    *lease = other;
                    self.record.trial.take_part();
                    return Some(self.send_file(lease, relay, file).await);
                }
                let missing = Answer { status: 404, detail: "there is no such file", ..Answer::default() };
                Some(self.about_files(lease, relay, missing).await)
            }
            Ok(FileFound::Nothing | FileFound::NoRoot(_)) => None,
            Err(refusal) => Some(self.not_answered(lease, relay, &refusal).await),
        }
    }

    pub(super) async fn find(
        &mut self,
        lease: &Lease,
        relay: &mut Relay,
        files: &Files,
    ) -> Result<FileFound, ErrorAnswer> {
        let head = self.client.request_head();
        let root = files.root(lease.owner().backend.name());
        let path = files.below(self.request.path.of_head(head));
        let search = root.zip(path).and_then(|(root, path)| FileSearch::of(files, root, head, path));
        let Some(search) = search else { return Ok(FileFound::Nothing) };
        let found = match search.start() {
            FileSearching::Done(found) => found,
            FileSearching::Elsewhere(mut search) => {
                let settings = self.applied.settings(lease);
                let Client { link, subscription, timer, scratch, .. } = &mut *self.client;
                let head = scratch.as_ref().map_or(&[][..], Scratch::request_head);
                let trial = TrialPart { known: &mut self.record.trial, request: self.request, head };
                let mut caller = Unconnected { client: link, lease, settings, trial, subscription, timer };
                relay.waits();
                let searching = poll_fn(|cx| {
                    caller.subscription.poll(cx);
                    if let Poll::Ready(found) = Pin::new(&mut search).poll(cx) {
                        return Poll::Ready(Ok(found));
                    }
                    match relay.check_unconnected(cx, &mut caller) {
                        Ok(()) => Poll::Pending,
                        Err(failure) => Poll::Ready(Err(failure)),
                    }
                });
                let timeout = settings.timeouts.read;
                let timed = tokio::time::timeout(timeout, searching).await;
                let found = timed.unwrap_or(Err(ExchangeFailure::UpstreamTimeout));
                // A panic there has already been logged.
                found.map_err(|failure| failure.refusal())?.unwrap_or(Err(Errno::IO))
            }
        };
        found.map_err(unopened)
    }

    /// Sends it as if a backend had sent it.
    pub(super) async fn send_file(
        &mut self,
        lease: &Lease,
        relay: &mut Relay,
        file: SelectedFile,
    ) -> AfterExchange {
        let settings = self.applied.settings(lease);
        let Client { worker, link, subscription, timer, settings: server, scratch, .. } = &mut *self.client;
        let request_head = scratch.as_ref().map_or(&[][..], Scratch::request_head);
        let head_only = self.request.method.is_head();
        let FileAnswer { head, body: mut source } = answer(file, request_head, head_only, SystemTime::now());
        let (assigned, service) = (self.record.trial.assigned(), &lease.owner().service);
        let cookie = NewCookie::of(self.request, assigned, service, &worker.cookies);
        let to = recipient(self.request, request_head, server, settings, lease);
        let to = Recipient { seeks_page: cookie.is_some(), ..to };
        let start = relay.down.head().len();
        let response = match relay.answer(&head, to, settings.response_headers.edits(), subscription) {
            Ok(response) => response,
            Err(bad) => {
                let refusal = ExchangeFailure::UpstreamProtocol(bad.0).refusal();
                return self.not_answered(lease, relay, &refusal).await;
            }
        };
        if self.applied.is_preview() {
            PRIVATE.apply(relay.down.head(), start);
        }
        if let Some(cookie) = cookie {
            cookie.add(&response, start, relay.down.head());
        }
        self.record.status = response.status;
        self.record.termination = Termination::File;
        relay.down.begin_body(response.framing, response.coding, None, source.first());
        let (known, request) = (&mut self.record.trial, &*self.request);
        let trial = TrialPart { known, request, head: request_head };
        let mut caller = Unconnected { client: link, lease, settings, trial, subscription, timer };
        let result = relay.send(&mut caller, &mut source).await;
        self.record.bytes = relay.down.body_sent();
        match result {
            Ok(()) => self.complete(&response, relay).await,
            Err(failure) => self.broken(lease, &response, relay, &failure).await,
        }
    }

    /// A directory is asked for without its final slash: what its page links to would be looked for elsewhere.
    async fn add_slash(&mut self, lease: &Lease, relay: &mut Relay) -> AfterExchange {
        let target = self.request.path.of_head(self.client.request_head());
        let query = memchr::memchr(b'?', target).unwrap_or(target.len());
        let text = |part| String::from_utf8_lossy(part);
        // A path on this host: names have no empty segments, so it can't begin with two slashes.
        let location = format!("{}/{}", text(&target[..query]), text(&target[query..]));
        let detail = "the page has moved to the address in Location";
        let moved = Answer { status: 308, detail, location: Some(&location), ..Answer::default() };
        self.about_files(lease, relay, moved).await
    }

    async fn not_a_read(&mut self, lease: &Lease, relay: &mut Relay) -> AfterExchange {
        let detail = "this is a file: only GET and HEAD are allowed, without a body";
        let answer = Answer { status: 405, detail, allow: Some("GET, HEAD"), ..Answer::default() };
        self.about_files(lease, relay, answer).await
    }

    /// Sends one of uh-proxy's own answers about files.
    async fn about_files(&mut self, lease: &Lease, relay: &mut Relay, answer: Answer<'_>) -> AfterExchange {
        self.record.termination = Termination::File;
        self.give_back(&mut relay.up, &mut relay.down);
        let written = self.write(Some(lease), answer, request_is_read(self.request));
        self.send(written).await
    }
}

/// The answer if the file is there, perhaps, but can't be opened.
fn unopened(error: Errno) -> ErrorAnswer {
    ErrorAnswer {
        status: 503,
        detail: "the file could not be opened",
        termination: Termination::File,
        broken: Some(Broken::Unreachable),
        reason: Some(match error {
            Errno::MFILE | Errno::NFILE => "no descriptors are left to open a file",
            _ => "a file could not be opened",
        }),
    }
}

fn warn_of_root(lease: &Lease, files: &Files, error: Errno) {
    let info = lease.owner();
    let Some(root) = files.root(info.backend.name()) else { return };
    let Some(left_out) = info.meters.may_warn(millis(Instant::now())) else { return };
    let (service, backend) = (&info.service.name, info.backend.name());
    let error = plain(&std::io::Error::from(error)).to_string();
    tracing::warn!(%service, %backend, root = %root.display(), error, left_out, "cannot open the directory of files; requests are treated as if it were empty");
}
