//! One exchange, step by step: who answers, reach an endpoint, await the response, relay both bodies, release; and then,
//! for every exchange alike, count it and write its line to the log.

mod course;

use std::time::Duration;

use tokio::time::Instant;

use super::Lease;
use super::answer::{Answer, Form};
use super::broadcast::StopStage;
use super::client::{Client, ClientLink};
use super::connection::AfterExchange;
use super::error_answer::ErrorAnswer;
use super::pump::Pump;
use super::reach::{Answered, allowed_upgrade, reach, release};
use super::record::ExchangeRecord;
use super::relay::{ExchangeFailure, Protocol, Relay, RelayContext, RestOfRequest, Tunnel};
use super::upstream::Upstream;
use crate::observe::broken::Broken;
use crate::observe::termination::Termination;
use course::{Course, OwnAnswer};
use uh_http1::body::Framing;
use uh_http1::prefix;
use uh_http1::request::{RequestHead, is_websocket, write_upgrade};
use uh_http1::response::{Coding, ResponseHead};

/// How long to wait for a client that has closed its sending side to acknowledge its response: longer than most round
/// trips, and short enough not to delay a drain.
const DELIVERY_TIME: Duration = Duration::from_millis(250);

/// How often that is checked.
const DELIVERY_LOOK: Duration = Duration::from_millis(5);

/// How an exchange goes on.
pub enum Outcome {
    /// It is over, counted and logged.
    Ended(AfterExchange),
    /// It has become a tunnel.
    Tunnel(Box<OpenTunnel>),
}

/// Runs one exchange, then counts and logs it.
pub async fn run<L: ClientLink>(client: &mut Client<L>, request: RequestHead) -> Outcome {
    let mut exchange = Exchange { client, request: &request, record: ExchangeRecord::new() };
    let (next, lease, service) = match course::decide(exchange.client, &request) {
        Course::Backend { mut lease, health_in_maintenance } => {
            exchange.record.health_in_maintenance = health_in_maintenance;
            match exchange.forward(&mut lease).await {
                Forwarded::Ended(next) => (next, Some(lease), None),
                Forwarded::Tunnel(tunnel, upstream) => {
                    let record = exchange.record;
                    return Outcome::Tunnel(Box::new(OpenTunnel {
                        tunnel,
                        upstream,
                        lease,
                        request,
                        record,
                    }));
                }
            }
        }
        Course::Own { service, answer } => (Box::pin(exchange.answer(&answer)).await, None, service),
    };
    exchange.record.close(exchange.client, &request, lease.as_ref(), service.as_deref());
    Outcome::Ended(next)
}

/// An exchange that has become a tunnel, which may last for days: it is run apart from the exchange, whose memory is then
/// free.
pub struct OpenTunnel {
    tunnel: Box<Tunnel>,
    upstream: Upstream,
    lease: Lease,
    request: RequestHead,
    record: ExchangeRecord,
}

impl OpenTunnel {
    /// Runs it until it ends or is closed, then counts and logs the exchange.
    pub async fn run<L: ClientLink>(mut self: Box<Self>, client: &mut Client<L>) -> AfterExchange {
        let result = self.tunnel.run(&mut client.around(&mut self.upstream, &self.lease)).await;
        Box::pin(self.end(client, result)).await
    }

    async fn end<L: ClientLink>(
        mut self: Box<Self>,
        client: &mut Client<L>,
        result: Result<(), ExchangeFailure>,
    ) -> AfterExchange {
        let mut exchange = Exchange { client, request: &self.request, record: self.record };
        let next = exchange.tunnel_ended(&self.lease, &mut self.tunnel, result).await;
        exchange.record.close(exchange.client, &self.request, Some(&self.lease), None);
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
    request: &'a RequestHead,
    record: ExchangeRecord,
}

impl<L: ClientLink> Exchange<'_, L> {
    /// Forwards the request and relays the response. What is rare is boxed, so that it takes no room in the task of every
    /// request. `lease` is the lease on the activation that finally answered.
    async fn forward(&mut self, lease: &mut Lease) -> Forwarded {
        let limits = &lease.owner().service.limits;
        let most = limits.body_bytes;
        self.client.body_rate = limits.min_body_rate;
        if let (Framing::Length(length), Some(most)) = (self.request.framing, most)
            && length > most
        {
            let refusal = ExchangeFailure::Client(Termination::TooLarge).refusal();
            return Forwarded::Ended(Box::pin(self.refuse(&refusal, false)).await);
        }
        let mut relay = self.begin(lease);
        relay.up.limit_body(most);
        let answered = reach(self.client, self.request, lease, &mut relay, &mut self.record).await;
        let Answered { mut upstream, response, body } = match answered {
            Ok(answered) => answered,
            Err(refusal) => {
                return Forwarded::Ended(Box::pin(self.not_answered(lease, &mut relay, &refusal)).await);
            }
        };
        self.record.answered(response.status, relay.last_move());
        relay.down.begin_body(response.framing, response.coding, body);
        if response.is_tunnel() {
            return Forwarded::Tunnel(self.open_tunnel(lease, relay), upstream);
        }
        let rest = self.rest_of_request(&response, &relay);
        let result = relay.bodies(&mut self.client.around(&mut upstream, lease), rest).await;
        self.record.bytes = relay.down.body_sent();
        Forwarded::Ended(match result {
            Ok(()) => {
                release(lease, upstream, &response, &mut relay);
                self.complete(&response, &mut relay).await
            }
            Err(failure) => Box::pin(self.broken(lease, &response, &mut relay, &failure)).await,
        })
    }

    /// Both directions, before the first byte. The request head and the first part of its body are sent in one write.
    fn begin(&mut self, lease: &Lease) -> Relay {
        let input = self.client.input.take();
        let (mut up, mut down) = self.client.scratch.as_mut().map_or_else(Default::default, |scratch| {
            (std::mem::take(scratch.upstream()), std::mem::take(scratch.response()))
        });
        if let Some(stripped) = lease.owner().service.stripped_prefix() {
            prefix::strip(&mut up, stripped.as_bytes());
        }
        if let Some(protocol) = allowed_upgrade(self.request, self.client.request_head(), lease) {
            write_upgrade(protocol.as_bytes(), &mut up);
        }
        down.clear();
        let (framing, coding) = L::request_body(self.request);
        let up = Pump::new(up, framing, coding, input);
        Relay::new(up, Pump::new(down, Framing::None, Coding::AsItIs, None), self.record.started)
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
        let read = relay.request_done() || request_is_read(self.request);
        self.give_back(&mut relay.up, &mut relay.down);
        self.refuse(refusal, read).await
    }

    /// The response is complete.
    async fn complete(&mut self, response: &ResponseHead, relay: &mut Relay) -> AfterExchange {
        self.record.ended = Some(relay.last_move());
        self.client.moved = self.record.ended;
        let (request_done, ended) = (relay.request_done(), relay.client_ended());
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
            true => self.refuse(&refusal, false).await,
            false if response.ends_with_connection() => AfterExchange::Reset,
            false => AfterExchange::Abandon,
        }
    }

    /// The response opens a tunnel.
    fn open_tunnel(&self, lease: &mut Lease, relay: Relay) -> Box<Tunnel> {
        lease.becomes_tunnel();
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
            None if untold => self.refuse(&refusal, false).await,
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
        let (answer, termination) = answer.answer();
        self.record.status = answer.status;
        self.record.termination = termination;
        self.send(answer, request_is_read(self.request)).await
    }

    /// Answers instead of the backend.
    async fn refuse(&mut self, refusal: &ErrorAnswer, request_read: bool) -> AfterExchange {
        self.record.status = refusal.status;
        self.record.termination = refusal.termination;
        if refusal.termination == Termination::ClientGone {
            return AfterExchange::Close;
        }
        let no_backend = matches!(refusal.status, 502 | 504);
        if self.record.health_in_maintenance && no_backend {
            self.record.status = 200;
        }
        let answer = Answer { status: self.record.status, detail: refusal.detail, ..Answer::default() };
        self.send(answer, request_read).await
    }

    /// Sends one of uh-proxy's own answers, in the form that the client prefers.
    async fn send(&mut self, answer: Answer<'_>, request_read: bool) -> AfterExchange {
        let head = self.client.request_head();
        let stopping = self.client.subscription.stage() != StopStage::Running;
        let cut = self.record.is_cut();
        let keep_alive = request_read && self.request.keep_alive && !stopping && !cut;
        let mut out = Vec::with_capacity(512);
        let answer = Answer {
            request_id: self.request.id.text(head),
            keep_alive,
            head_only: self.request.method.is_head(),
            form: Form::preferred(head),
            hsts: self.client.settings.hsts(self.request.scheme),
            ..answer
        };
        self.record.bytes = answer.write(&self.client.settings.pages, &mut out);
        match self.client.send_answer(&out, self.record.bytes).await {
            Ok(()) if keep_alive => AfterExchange::KeepAlive,
            Ok(()) => AfterExchange::Linger,
            Err(_) => AfterExchange::Close,
        }
    }
}

impl<L> Client<L> {
    /// What a relay needs, towards this backend.
    fn around<'a>(&'a mut self, upstream: &'a mut Upstream, lease: &'a Lease) -> RelayContext<'a, L> {
        RelayContext {
            client: &mut self.link,
            upstream: &mut upstream.stream,
            lease,
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
