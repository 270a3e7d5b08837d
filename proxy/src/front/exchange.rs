//! One exchange, step by step: who answers, reach an endpoint, await the response, relay both bodies, release; and then,
//! for every exchange alike, count it and write its line to the log.

mod buffering;
mod by_rule;
mod course;
mod file;
mod previous;
mod rescue;

use std::time::Duration;

use tokio::time::Instant;

use super::Lease;
use super::admission::ClientNetwork;
use super::answer::{Answer, Form};
use super::applied::{Applied, Choice};
use super::broadcast::StopStage;
use super::bypass::is_health_check;
use super::client::{Client, ClientLink};
use super::connection::AfterExchange;
use super::error_answer::ErrorAnswer;
use super::preview::PRIVATE;
use super::pump::Pump;
use super::reach::{Answered, allowed_upgrade, reach, release};
use super::record::ExchangeRecord;
use super::relay::{ExchangeFailure, Protocol, Relay, RelayContext, RestOfRequest, Tunnel};
use super::request_buffer::BufferedBody;
use super::scratch::Scratch;
use super::sticky;
use super::trial::{ForTrial, InSplit, InTrial, TrialPart, Who};
use super::upstream::Upstream;
use crate::config::{PathSettings, Replacement};
use crate::observe::broken::Broken;
use crate::observe::termination::Termination;
use course::{Course, OwnAnswer};
use previous::{NOT_FOUND, Question};
use uh_http1::body::Framing;
use uh_http1::compression::Content;
use uh_http1::field;
use uh_http1::prefix;
use uh_http1::request::{RequestHead, is_websocket, write_upgrade};
use uh_http1::response::{Coding, ResponseHead};
use uh_switching::{Assigned, ClientKey};

/// How long to wait for a client that has closed its sending side to acknowledge its response: longer than most round
/// trips, and short enough not to delay a drain.
const DELIVERY_TIME: Duration = Duration::from_millis(250);

/// How often that is checked.
const DELIVERY_LOOK: Duration = Duration::from_millis(5);

/// How an exchange goes on.
pub(crate) enum Outcome {
    /// It is over, counted and logged.
    Ended(AfterExchange),
    /// It has become a tunnel.
    Tunnel(Box<OpenTunnel>),
}

/// Runs one exchange, then counts and logs it.
pub(crate) async fn run<L: ClientLink>(client: &mut Client<L>, mut request: RequestHead) -> Outcome {
    let (applied, record) = (Applied::default(), ExchangeRecord::new());
    let mut exchange = Exchange { client, request: &mut request, applied, buffered: None, record };
    let course = course::decide(exchange.client, exchange.request, exchange.record.started.into_std());
    let course = match course {
        Course::Backend { lease, assigned, applied, health_in_maintenance }
            if let Some(rules) = applied.settings(&lease).buffer =>
        {
            Box::pin(exchange.buffer_first(rules, (lease, assigned), applied, health_in_maintenance)).await
        }
        course => course,
    };
    let (next, lease) = match course {
        Course::Backend { mut lease, assigned, applied, health_in_maintenance } => {
            exchange.applied = applied;
            exchange.record.trial.split = assigned.map(|assigned| exchange.in_split(&lease, assigned));
            exchange.record.health_in_maintenance = health_in_maintenance;
            match exchange.forward(&mut lease).await {
                Forwarded::Ended(next) => (next, Some(lease)),
                Forwarded::Tunnel(tunnel, upstream) => {
                    let Exchange { applied, record, .. } = exchange;
                    return Outcome::Tunnel(Box::new(OpenTunnel {
                        tunnel,
                        upstream,
                        lease,
                        request,
                        applied,
                        record,
                    }));
                }
            }
        }
        Course::Own { applied, answer } => {
            exchange.applied = applied;
            (Box::pin(exchange.answer(&answer)).await, None)
        }
    };
    exchange.record.close(exchange.client, exchange.request, lease.as_ref(), &exchange.applied);
    Outcome::Ended(next)
}

/// An exchange that has become a tunnel, which may last for days: it is run apart from the exchange, whose memory is then
/// free.
pub(crate) struct OpenTunnel {
    tunnel: Box<Tunnel>,
    upstream: Upstream,
    lease: Lease,
    request: RequestHead,
    applied: Applied,
    record: ExchangeRecord,
}

impl OpenTunnel {
    /// Runs it until it ends or is closed, then counts and logs the exchange.
    pub(crate) async fn run<L: ClientLink>(mut self: Box<Self>, client: &mut Client<L>) -> AfterExchange {
        let settings = self.applied.settings(&self.lease);
        let part = (&self.request, &mut self.record.trial);
        let mut around = client.around(&mut self.upstream, &self.lease, settings, part);
        let result = self.tunnel.run(&mut around).await;
        Box::pin(self.end(client, result)).await
    }

    async fn end<L: ClientLink>(
        mut self: Box<Self>,
        client: &mut Client<L>,
        result: Result<(), ExchangeFailure>,
    ) -> AfterExchange {
        let (applied, record) = (self.applied, self.record);
        let request = &mut self.request;
        let mut exchange = Exchange { client, request, applied, buffered: None, record };
        let next = exchange.tunnel_ended(&self.lease, &mut self.tunnel, result).await;
        exchange.record.close(exchange.client, exchange.request, Some(&self.lease), &exchange.applied);
        next
    }
}

/// The same for a request that is forwarded.
enum Forwarded {
    Ended(AfterExchange),
    Tunnel(Box<Tunnel>, Upstream),
}

/// A request, its client, and what is to be logged about them.
struct Exchange<'a, L> {
    client: &'a mut Client<L>,
    request: &'a mut RequestHead,
    applied: Applied,
    /// Its body, if it was buffered and isn't being sent yet.
    buffered: Option<Box<BufferedBody>>,
    record: ExchangeRecord,
}

impl<L: ClientLink> Exchange<'_, L> {
    /// Forwards the request and relays the response. What is rare is boxed, so that it takes no room in the task of every
    /// request. `lease` is the lease on the activation that finally answered.
    async fn forward(&mut self, lease: &mut Lease) -> Forwarded {
        let limits = &self.applied.settings(lease).limits;
        let most = limits.body_bytes;
        self.client.body_rate = limits.min_body_rate;
        if let (Framing::Length(length), Some(most)) = (self.request.framing, most)
            && length > most
        {
            let refusal = ExchangeFailure::Client(Termination::TooLarge).refusal();
            return Forwarded::Ended(Box::pin(self.refuse(Some(lease), &refusal, false)).await);
        }
        match self.applied.choice {
            Choice::Routed => {}
            Choice::Named => lease.owner().meters.lane(lease.worker()).previous.named(),
            Choice::Preview => lease.owner().meters.lane(lease.worker()).previewed(),
        }
        let mut relay = self.begin(lease);
        relay.up.limit_body(most);
        let settings = self.applied.settings(lease);
        let files = settings.files.clone();
        let question = match self.applied.is_preview() {
            false => Question::of(&settings.previous, self.request, self.client.request_head()),
            true => None,
        };
        if let Some(files) = &files
            && let Some(next) = Box::pin(self.file(lease, &mut relay, files, question.is_some())).await
        {
            return Forwarded::Ended(next);
        }
        if let Some(question) = question {
            question.prepare(self.request, &mut relay);
        }
        let answered =
            reach(self.client, self.request, lease, &mut self.applied, &mut relay, &mut self.record).await;
        let answered = if self.may_be_rescued(lease, &relay, &answered) {
            match Box::pin(self.rescue(lease, &mut relay, files.as_deref(), answered)).await {
                Ok(answered) => answered,
                Err(next) => return Forwarded::Ended(next),
            }
        } else {
            answered
        };
        let rescued = self.record.rescued_from.is_some();
        let mut answered = match answered {
            Ok(answered) => answered,
            Err(refusal) => {
                return Forwarded::Ended(Box::pin(self.not_answered(lease, &mut relay, &refusal)).await);
            }
        };
        if self.applied.is_preview() {
            let head = relay.down.head();
            PRIVATE.apply(head, field::last_head(head));
        } else if lease.owner().service.sticky.is_some() && self.applied.choice == Choice::Routed && !rescued
        {
            sticky::remember(self.client, self.request, lease, answered.upstream.endpoint, &mut relay);
        }
        if let Some(question) = question.filter(|_| answered.response.status == NOT_FOUND && !rescued) {
            match Box::pin(self.ask_previous(question, lease, &mut relay, files.as_deref(), answered)).await {
                Ok(again) => answered = again,
                Err(next) => return Forwarded::Ended(next),
            }
        }
        relay.up.forget_body();
        let Answered { mut upstream, response, body } = answered;
        self.record.answered(response.status, relay.last_move());
        let level = self.compression_level(lease, &response);
        relay.down.begin_body(response.framing, response.coding, level, body);
        if response.is_tunnel() {
            return Forwarded::Tunnel(self.open_tunnel(lease, relay), upstream);
        }
        let rest = self.rest_of_request(&response, &relay);
        let settings = self.applied.settings(lease);
        let part = (&*self.request, &mut self.record.trial);
        let mut around = self.client.around(&mut upstream, lease, settings, part);
        let result = relay.bodies(&mut around, rest).await;
        self.record.bytes = relay.down.body_sent();
        if let Some((bytes_in, bytes_out)) = relay.down.compressed_bytes() {
            lease.owner().meters.lane(lease.worker()).compressed(bytes_in, bytes_out);
        }
        Forwarded::Ended(match result {
            Ok(()) => {
                release(lease, upstream, &response, &mut relay);
                self.complete(&response, &mut relay).await
            }
            Err(failure) => Box::pin(self.broken(lease, &response, &mut relay, &failure)).await,
        })
    }

    /// What is known of a request that a split has assigned.
    fn in_split(&self, lease: &Lease, assigned: Assigned) -> Box<InSplit> {
        Box::new(InSplit { assigned, part: self.in_trial(lease, assigned) })
    }

    /// The request's part in a trial. Health checks of a load balancer have none: there may be more of them than of all other
    /// requests. Neither have requests that name the other side's version, which answers them.
    fn in_trial(&self, lease: &Lease, assigned: Assigned) -> Option<InTrial> {
        if self.applied.choice != Choice::Routed {
            return None;
        }
        let (client, request) = (&*self.client, &*self.request);
        let (service, settings) = (&lease.owner().service, self.applied.settings(lease));
        if is_health_check(service, settings, request, client.request_head()) {
            return None;
        }
        // A client that is known by its address has it as its key.
        let address = match assigned.key {
            ClientKey::V4(address) => ClientNetwork::V4(address),
            ClientKey::V6(network) => ClientNetwork::V6(network),
            ClientKey::Cookie(_) => client.network(request),
        };
        let who = Who::new(address, assigned.key);
        client.worker.trials.enter(assigned, who, client.worker.index, self.record.asked.into_std())
    }

    /// Both directions, before the first byte. The request head and the first part of its body are sent in one write.
    fn begin(&mut self, lease: &Lease) -> Relay {
        let input = self.client.input.take();
        let (mut up, mut down) = self.client.scratch.as_mut().map_or_else(Default::default, |scratch| {
            (std::mem::take(scratch.upstream()), std::mem::take(scratch.response()))
        });
        let settings = self.applied.settings(lease);
        if let Some(Replacement { from, to }) = &settings.replacement {
            prefix::replace(&mut up, from, to);
        } else if let Some(stripped) = lease.owner().service.stripped_prefix() {
            prefix::strip(&mut up, stripped.as_bytes());
        }
        sticky::hide(&lease.owner().service, &mut up);
        settings.request_headers.edits().apply(&mut up, 0);
        if let Some(protocol) = allowed_upgrade(self.request, self.client.request_head(), lease) {
            write_upgrade(protocol.as_bytes(), &mut up);
        }
        down.clear();
        let buffered = self.buffered.take();
        let (framing, coding) =
            buffered.as_ref().map_or_else(|| L::request_body(self.request), |body| body.form());
        let up = Pump::new(up, framing, coding, input);
        let down = Pump::new(down, Framing::None, Coding::AsItIs, None);
        let mut relay = Relay::new(up, down, self.record.asked);
        if let Some(body) = buffered {
            relay.buffer(body);
        }
        relay
    }

    /// How hard to compress the response's body; `None`: it is passed on as it is.
    fn compression_level(&self, lease: &Lease, response: &ResponseHead) -> Option<u8> {
        match response.content {
            Content::Plain => None,
            Content::Gzip => Some(self.applied.settings(lease).compress.as_ref()?.level),
            Content::NoRoom => {
                lease.owner().meters.lane(lease.worker()).compression_skipped();
                None
            }
        }
    }

    /// Whether the rest of the request is still wanted once the response is complete.
    fn rest_of_request(&self, response: &ResponseHead, relay: &Relay) -> RestOfRequest {
        // A client that got a final answer instead of "100 Continue" may send no body at all: don't wait for it.
        let awaited = !self.request.expects_continue || relay.up.body_sent() > 0;
        if response.upstream_keep_alive && awaited { RestOfRequest::Wanted } else { RestOfRequest::Unwanted }
    }

    /// There is no response: an error is sent instead.
    async fn not_answered(
        &mut self,
        lease: &Lease,
        relay: &mut Relay,
        refusal: &ErrorAnswer,
    ) -> AfterExchange {
        self.record.note_broken(lease, refusal, refusal.broken);
        let read = relay.end_request() || request_is_read(self.request);
        self.give_back(&mut relay.up, &mut relay.down);
        self.refuse(Some(lease), refusal, read).await
    }

    /// The response is complete.
    async fn complete(&mut self, response: &ResponseHead, relay: &mut Relay) -> AfterExchange {
        self.record.ended = Some(relay.last_move());
        self.client.moved = self.record.ended;
        let (request_done, ended) = (relay.end_request(), relay.client_ended());
        let ended_first = relay.client_ended_first();
        self.give_back(&mut relay.up, &mut relay.down);
        if ended && !Box::pin(is_delivered(self.client)).await {
            self.record.client_gone(ended_first);
            return AfterExchange::Close;
        }
        let more = self.client.input.is_some();
        match request_done {
            // The rest of the request isn't wanted any more.
            false => AfterExchange::Linger,
            true if response.client_keep_alive && (!ended || more) => AfterExchange::KeepAlive,
            // The client has closed its sending side, so none of its data could cause a reset.
            true if self.request.is_last && !more => AfterExchange::Close,
            true => AfterExchange::Linger,
        }
    }

    /// The response broke off.
    async fn broken(
        &mut self,
        lease: &Lease,
        response: &ResponseHead,
        relay: &mut Relay,
        failure: &ExchangeFailure,
    ) -> AfterExchange {
        let untold = relay.is_untold();
        let refusal = self.note_failure(lease, failure, untold, relay.client_ended_first(), true);
        self.give_back(&mut relay.up, &mut relay.down);
        // Before the first byte, the client can be sent an error. After it, a truncated response must look truncated.
        match untold {
            true => self.refuse(Some(lease), &refusal, false).await,
            false if response.ends_with_connection() => AfterExchange::Reset,
            false => AfterExchange::Abandon,
        }
    }

    /// The response opens a tunnel.
    fn open_tunnel(&mut self, lease: &mut Lease, relay: Relay) -> Box<Tunnel> {
        lease.becomes_tunnel();
        if let Some(part) = self.record.trial.part() {
            part.ended();
        }
        let protocol = allowed_upgrade(self.request, self.client.request_head(), lease);
        let websocket = protocol.is_some_and(is_websocket);
        relay.into_tunnel(if websocket { Protocol::WebSocket } else { Protocol::Other })
    }

    /// A tunnel has ended, or it was closed.
    async fn tunnel_ended(
        &mut self,
        lease: &Lease,
        tunnel: &mut Tunnel,
        result: Result<(), ExchangeFailure>,
    ) -> AfterExchange {
        self.record.bytes = tunnel.bytes();
        if let Some(closed) = tunnel.closed_by_app(result.is_ok()) {
            self.record.tunnel_closed_by_app(closed);
        }
        let Err(failure) = result else {
            self.record.ended = Some(tunnel.last_move());
            self.give_back(&mut tunnel.up, &mut tunnel.down);
            return AfterExchange::Linger;
        };
        let untold = tunnel.is_untold();
        let (ended_first, blame) = (tunnel.client_ended_first(), !tunnel.client_leaves());
        let refusal = self.note_failure(lease, &failure, untold, ended_first, blame);
        let last_words = tunnel.last_words();
        self.give_back(&mut tunnel.up, &mut tunnel.down);
        match last_words {
            Some(frame) if self.client.send(b"", frame).await.is_ok() => AfterExchange::Linger,
            Some(_) => AfterExchange::Abandon,
            None if untold => self.refuse(Some(lease), &refusal, false).await,
            None => AfterExchange::Abandon,
        }
    }

    /// Records why it failed. `untold`: the client has not received any of the response; `blame`: what the backend did
    /// was its own doing.
    fn note_failure(
        &mut self,
        lease: &Lease,
        failure: &ExchangeFailure,
        untold: bool,
        ended_first: bool,
        blame: bool,
    ) -> ErrorAnswer {
        let refusal = failure.refusal();
        self.record.termination = refusal.termination;
        if refusal.termination == Termination::ClientGone {
            self.record.client_gone(ended_first);
        }
        if blame {
            let broken = if untold { refusal.broken } else { refusal.broken.map(Broken::within_response) };
            self.record.note_broken(lease, &refusal, broken);
        }
        refusal
    }

    /// Returns to the client what the relay borrowed: memory, and bytes read past the request.
    fn give_back(&mut self, up: &mut Pump, down: &mut Pump) {
        self.client.input = up.surplus().take();
        if let Some(scratch) = &mut self.client.scratch {
            *scratch.upstream() = std::mem::take(up.head());
            *scratch.response() = std::mem::take(down.head());
        }
    }

    /// Answers where no backend is involved.
    async fn answer(&mut self, answer: &OwnAnswer) -> AfterExchange {
        if let OwnAnswer::NotBuffered(refusal) = answer {
            return self.refuse(None, refusal, false).await;
        }
        let (answer, termination) = answer.answer(self.applied.any_settings(None));
        let buffered = self.buffered.take();
        let read = request_is_read(self.request) || buffered.as_ref().is_some_and(|body| body.is_complete());
        self.client.input = self.client.input.take().or(buffered.and_then(|mut body| body.take_surplus()));
        let written = self.write(None, answer, read);
        self.record.termination = termination;
        self.send(written).await
    }

    /// Answers instead of the backend.
    async fn refuse(
        &mut self,
        lease: Option<&Lease>,
        refusal: &ErrorAnswer,
        request_read: bool,
    ) -> AfterExchange {
        self.record.status = refusal.status;
        self.record.termination = refusal.termination;
        if refusal.termination == Termination::ClientGone {
            return AfterExchange::Close;
        }
        let no_backend = matches!(refusal.status, 502 | 504);
        let status = if self.record.health_in_maintenance && no_backend { 200 } else { refusal.status };
        let answer = Answer { status, detail: refusal.detail, ..Answer::default() };
        let written = self.write(lease, answer, request_read);
        self.send(written).await
    }

    /// Writes one of uh-proxy's own answers, in the form that the client prefers.
    fn write(&self, lease: Option<&Lease>, answer: Answer<'_>, request_read: bool) -> WrittenAnswer {
        let head = self.client.request_head();
        let stopping = self.client.subscription.stage() != StopStage::Running;
        let cut = self.record.is_cut();
        let keep_alive = request_read && self.request.keep_alive && !stopping && !cut;
        let mut bytes = Vec::with_capacity(512);
        let settings = self.applied.any_settings(lease);
        let answer = Answer {
            request_id: self.request.id.text(head),
            keep_alive,
            head_only: self.request.method.is_head(),
            form: Form::preferred(head),
            hsts: self.client.settings.hsts(self.request.scheme),
            edits: settings.map(|settings| settings.response_headers.edits()),
            last_edits: self.applied.is_preview().then(|| &*PRIVATE),
            ..answer
        };
        let content = answer.write(&self.client.settings.pages, &mut bytes);
        WrittenAnswer { status: answer.status, bytes, content, keep_alive }
    }

    /// Sends one of uh-proxy's own answers.
    async fn send(&mut self, answer: WrittenAnswer) -> AfterExchange {
        self.record.status = answer.status;
        self.record.bytes = answer.content;
        match self.client.send_answer(&answer.bytes, answer.content).await {
            Ok(()) if answer.keep_alive => AfterExchange::KeepAlive,
            Ok(()) => AfterExchange::Linger,
            Err(_) => AfterExchange::Close,
        }
    }
}

/// One of uh-proxy's own answers, as it is sent.
struct WrittenAnswer {
    status: u16,
    bytes: Vec<u8>,
    /// How many of them are its body.
    content: u64,
    keep_alive: bool,
}

impl<L> Client<L> {
    /// What a relay needs, towards this backend.
    fn around<'a>(
        &'a mut self,
        upstream: &'a mut Upstream,
        lease: &'a Lease,
        settings: &'a PathSettings,
        (request, known): (&'a RequestHead, &'a mut ForTrial),
    ) -> RelayContext<'a, L> {
        let head = self.scratch.as_ref().map_or(&[][..], Scratch::request_head);
        RelayContext {
            client: &mut self.link,
            upstream: &mut upstream.stream,
            lease,
            settings,
            cookie: None,
            trial: TrialPart { known, request, head },
            subscription: &mut self.subscription,
            timer: &mut self.timer,
        }
    }
}

/// Whether a client that has closed its sending side has received its response. A client that has left resets the
/// connection at the first byte; one that still reads acknowledges it.
async fn is_delivered<L: ClientLink>(client: &mut Client<L>) -> bool {
    let deadline = Instant::now() + DELIVERY_TIME;
    loop {
        if let Some(delivered) = client.link.has_taken_all() {
            return delivered;
        }
        if Instant::now() >= deadline {
            return true;
        }
        tokio::time::sleep(DELIVERY_LOOK).await;
    }
}

fn request_is_read(request: &RequestHead) -> bool {
    matches!(request.framing, Framing::None | Framing::Length(0))
}
