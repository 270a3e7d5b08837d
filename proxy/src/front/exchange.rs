//! One exchange, step by step: pick and count, reach an endpoint, await the response, relay both bodies, release.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::answer::{Answer, Form};
use super::broadcast::StopStage;
use super::bypass::{Pass, pass};
use super::challenge;
use super::client::{Client, ClientLink};
use super::connection::AfterExchange;
use super::error_answer::ErrorAnswer;
use super::pool::millis;
use super::pump::Pump;
use super::reach::{Answered, allowed_upgrade, pick, reach, release};
use super::record::ExchangeRecord;
use super::redirect;
use super::relay::{ExchangeFailure, Protocol, Relay, RelayContext, RestOfRequest};
use super::{Entry, Lease};
use crate::config::Service;
use crate::observe::broken::Broken;
use crate::observe::termination::Termination;
use uh_http1::body::Framing;
use uh_http1::prefix;
use uh_http1::request::{RequestHead, is_websocket, write_upgrade};
use uh_http1::response::Coding;
use uh_switching::Maintenance;

/// nginx's status for a client that left before it was answered. Only seen in the log and the counters.
const CLIENT_GONE: u16 = 499;

/// How long to wait for a client that has closed its sending side to acknowledge its response: longer than most round
/// trips, and short enough not to delay a drain.
const DELIVERY_TIME: Duration = Duration::from_millis(250);

/// How often that is checked.
const DELIVERY_LOOK: Duration = Duration::from_millis(5);

/// Runs one exchange, then logs and counts it.
pub async fn run<L: ClientLink>(client: &mut Client<L>, request: RequestHead) -> AfterExchange {
    let mut record = ExchangeRecord::new();
    if let Some(proof) = challenge::of(client, &request) {
        return Box::pin(challenge::answer(client, &request, &mut record, &proof)).await;
    }
    let mut lease = match enter(client, &request) {
        Entry::Open(lease) => {
            if let Some(next) = redirected(client, &request, &mut record, &lease.owner().service).await {
                return next;
            }
            lease
        }
        Entry::Nowhere => return no_route(client, &request, &mut record).await,
        Entry::Closed(service, maintenance) => {
            if let Some(next) = redirected(client, &request, &mut record, &service).await {
                return next;
            }
            let through = pass_through(client, &request, &service);
            let Some((pass, lease)) = through else {
                return closed(client, &request, &mut record, &service, &maintenance).await;
            };
            record.health_in_maintenance = pass == Pass::Health;
            lease
        }
    };
    let next = forward(client, &request, &mut record, &mut lease).await;
    let info = lease.owner();
    let meters = info.meters.lane(lease.worker());
    // A tunnel may last for days: its duration is the time until it was open.
    let took = if record.status == 101 { record.upstream_time } else { None };
    meters.exchange(request.method.index(), record.status, took.unwrap_or_else(|| record.took()));
    if matches!(record.termination, Termination::Drain | Termination::Stop) {
        meters.was_cut();
    }
    record.log(client, &request, Some(&info.service), Some(&info.backend));
    next
}

fn enter<L: ClientLink>(client: &Client<L>, request: &RequestHead) -> Entry {
    let Some(scratch) = &client.scratch else { return Entry::Nowhere };
    let head = scratch.request_head();
    client.worker.board.enter(request.host.of_head(head), request.path.of_head(head), client.worker.index)
}

async fn no_route<L: ClientLink>(
    client: &mut Client<L>,
    request: &RequestHead,
    record: &mut ExchangeRecord,
) -> AfterExchange {
    let refusal = ErrorAnswer {
        status: 404,
        detail: "no service is configured for this host and path",
        termination: Termination::NoRoute,
        broken: None,
        reason: None,
    };
    let next = refuse(client, request, record, &refusal, request_is_read(request)).await;
    client.worker.meters.worker(client.worker.index).unrouted.fetch_add(1, Ordering::Relaxed);
    record.log(client, request, None, None);
    next
}

/// Redirects the request if its service asks for that. No backend is involved.
async fn redirected<L: ClientLink>(
    client: &mut Client<L>,
    request: &RequestHead,
    record: &mut ExchangeRecord,
    service: &Service,
) -> Option<AfterExchange> {
    if !service.redirects() {
        return None;
    }
    let redirect = redirect::of(client, request, service)?;
    let next = Box::pin(redirect::answer(client, request, record, &redirect)).await;
    client.worker.meters.worker(client.worker.index).unrouted.fetch_add(1, Ordering::Relaxed);
    record.log(client, request, Some(service), None);
    Some(next)
}

/// A lease on the active backend of a service in maintenance, for a request that bypasses it.
fn pass_through<L: ClientLink>(
    client: &Client<L>,
    request: &RequestHead,
    service: &Service,
) -> Option<(Pass, Lease)> {
    let head = client.scratch.as_ref()?.request_head();
    let is_read = request.method.is_read();
    let address = request.client_address(head, &client.address);
    let pass = pass(service, head, is_read, request.path.of_head(head), address)?;
    Some((pass, pick(client, request)?))
}

/// Answers for a service in maintenance, without involving a backend.
async fn closed<L: ClientLink>(
    client: &mut Client<L>,
    request: &RequestHead,
    record: &mut ExchangeRecord,
    service: &Service,
    maintenance: &Maintenance,
) -> AfterExchange {
    record.status = 503;
    record.termination = Termination::Maintenance;
    let answer = Answer {
        status: 503,
        detail: &maintenance.message,
        retry_after_s: Some(maintenance.retry_after_s),
        maintenance: true,
        ..Answer::default()
    };
    let next = send_answer(client, request, record, answer, request_is_read(request)).await;
    client.worker.meters.worker(client.worker.index).unrouted.fetch_add(1, Ordering::Relaxed);
    record.log(client, request, Some(service), None);
    next
}

/// Forwards the request and relays the response. `lease` is the lease on the activation that finally answered.
async fn forward<L: ClientLink>(
    client: &mut Client<L>,
    request: &RequestHead,
    record: &mut ExchangeRecord,
    lease: &mut Lease,
) -> AfterExchange {
    let most = lease.owner().service.limits.body_bytes;
    client.body_rate = lease.owner().service.limits.min_body_rate;
    if let (Framing::Length(length), Some(most)) = (request.framing, most)
        && length > most
    {
        let refusal = ExchangeFailure::Client(Termination::TooLarge).refusal();
        return refuse(client, request, record, &refusal, false).await;
    }
    let mut relay = begin(client, request, lease, record.started);
    relay.up.limit_body(most);
    let answered = match reach(client, request, lease, &mut relay, record).await {
        Ok(answered) => answered,
        Err(refusal) => {
            note_broken(record, lease, &refusal, refusal.broken);
            let read = relay.request_done() || request_is_read(request);
            give_back(client, relay);
            return refuse(client, request, record, &refusal, read).await;
        }
    };
    let Answered { mut upstream, response, body } = answered;
    record.status = response.status;
    record.upstream_time = Some(relay.last_move().saturating_duration_since(record.started));
    relay.down.begin_body(response.framing, response.coding, body);
    if response.is_tunnel() {
        lease.becomes_tunnel();
        let websocket = allowed_upgrade(request, client.request_head(), lease).is_some_and(is_websocket);
        relay.becomes_tunnel(if websocket { Protocol::WebSocket } else { Protocol::Other });
    }
    let mut around = RelayContext {
        client: &mut client.link,
        upstream: &mut upstream.stream,
        lease,
        subscription: &mut client.subscription,
        timer: &mut client.timer,
    };
    // A client that got a final answer instead of "100 Continue" may send no body at all: don't wait for it.
    let awaited = !request.expects_continue || relay.up.body_sent() > 0;
    let wanted = response.upstream_keep_alive && awaited;
    let rest = if wanted { RestOfRequest::Wanted } else { RestOfRequest::Unwanted };
    let result = relay.bodies(&mut around, rest).await;
    record.bytes = relay.down.body_sent();
    if let Err(failure) = result {
        let untold = relay.is_untold();
        let refusal = failure.refusal();
        record.termination = refusal.termination;
        if refusal.termination == Termination::ClientGone && relay.client_ended_first() {
            record.status = CLIENT_GONE;
        }
        if !(response.is_tunnel() && relay.client_leaves()) {
            let broken = refusal.broken;
            let broken = if untold { broken } else { broken.map(Broken::within_response) };
            note_broken(record, lease, &refusal, broken);
        }
        let last_words = relay.last_words();
        give_back(client, relay);
        if let Some(frame) = last_words {
            return if client.send(b"", frame).await.is_ok() {
                AfterExchange::Linger
            } else {
                AfterExchange::Abandon
            };
        }
        // Before the first byte, the client can be sent an error. After it, a truncated response must look truncated.
        return match untold {
            true => refuse(client, request, record, &refusal, false).await,
            false if response.ends_with_connection() && !response.is_tunnel() => AfterExchange::Reset,
            false => AfterExchange::Abandon,
        };
    }
    record.ended = Some(relay.last_move());
    release(lease, upstream, &response, &mut relay);
    let request_done = relay.request_done();
    let ended = relay.client_ended();
    if ended && !response.is_tunnel() && !is_delivered(client).await {
        record.termination = Termination::ClientGone;
        if relay.client_ended_first() {
            record.status = CLIENT_GONE;
        }
        give_back(client, relay);
        return AfterExchange::Close;
    }
    give_back(client, relay);
    match (response.is_tunnel(), request_done) {
        // A tunnel has ended, or the response is complete before the request, whose rest isn't wanted any more.
        (true, _) | (false, false) => AfterExchange::Linger,
        (false, true) if response.client_keep_alive && (!ended || client.input.is_some()) => {
            AfterExchange::KeepAlive
        }
        // The client has closed its sending side, so none of its data could cause a reset.
        (false, true) if request.is_last && client.input.is_none() => AfterExchange::Close,
        (false, true) => AfterExchange::Linger,
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

/// Counts what the backend broke, before the client gets an error, and records why. A backend in maintenance that
/// doesn't answer a health check doesn't count.
fn note_broken(record: &mut ExchangeRecord, lease: &Lease, refusal: &ErrorAnswer, broken: Option<Broken>) {
    let info = lease.owner();
    record.reason = refusal.reason;
    let (Some(broken), false) = (broken, record.health_in_maintenance) else { return };
    info.meters.lane(lease.worker()).broke(broken);
    let Some(reason) = refusal.reason else { return };
    let Some(left_out) = info.meters.may_warn(millis(std::time::Instant::now())) else { return };
    let endpoint = record.endpoint.and_then(|at| info.backend.endpoints.get(at));
    let endpoint = endpoint.map_or("-", |endpoint| endpoint.text());
    let (service, backend) = (&info.service.name, info.backend.name());
    let what = match broken {
        Broken::Unreachable => "cannot connect to the backend; clients get 502 or 504",
        _ => "invalid response from the backend; the client gets 502 or a truncated response",
    };
    tracing::warn!(%service, %backend, endpoint, reason, left_out, "{what}");
}

/// Both directions, before the first byte. The request head and the first part of its body are sent in one write.
fn begin<L: ClientLink>(client: &mut Client<L>, request: &RequestHead, lease: &Lease, now: Instant) -> Relay {
    let input = client.input.take();
    let (mut up, mut down) = client.scratch.as_mut().map_or_else(Default::default, |scratch| {
        (std::mem::take(scratch.upstream()), std::mem::take(scratch.response()))
    });
    if let Some(stripped) = lease.owner().service.stripped_prefix() {
        prefix::strip(&mut up, stripped.as_bytes());
    }
    if let Some(protocol) = allowed_upgrade(request, client.request_head(), lease) {
        write_upgrade(protocol.as_bytes(), &mut up);
    }
    down.clear();
    let (framing, coding) = L::request_body(request);
    Relay::new(
        Pump::new(up, framing, coding, input),
        Pump::new(down, Framing::None, Coding::AsItIs, None),
        now,
    )
}

/// Returns to the connection what the relay borrowed: memory, and bytes read past the request.
fn give_back<L: ClientLink>(client: &mut Client<L>, relay: Relay) {
    let (input, up) = relay.up.into_parts();
    let (_, down) = relay.down.into_parts();
    client.input = input;
    if let Some(scratch) = &mut client.scratch {
        *scratch.upstream() = up;
        *scratch.response() = down;
    }
}

/// Answers instead of the backend.
async fn refuse<L: ClientLink>(
    client: &mut Client<L>,
    request: &RequestHead,
    record: &mut ExchangeRecord,
    refusal: &ErrorAnswer,
    request_read: bool,
) -> AfterExchange {
    record.status = refusal.status;
    record.termination = refusal.termination;
    if refusal.termination == Termination::ClientGone {
        return AfterExchange::Close;
    }
    let no_backend = matches!(refusal.status, 502 | 504);
    if record.health_in_maintenance && no_backend {
        record.status = 200;
    }
    let answer = Answer { status: record.status, detail: refusal.detail, ..Answer::default() };
    send_answer(client, request, record, answer, request_read).await
}

/// Sends one of uh-proxy's own answers, in the form that the client prefers.
pub(super) async fn send_answer<L: ClientLink>(
    client: &mut Client<L>,
    request: &RequestHead,
    record: &mut ExchangeRecord,
    answer: Answer<'_>,
    request_read: bool,
) -> AfterExchange {
    let Some(scratch) = &client.scratch else { return AfterExchange::Close };
    let head = scratch.request_head();
    let stopping = client.subscription.stage() != StopStage::Running;
    let cut = matches!(record.termination, Termination::Drain | Termination::Stop);
    let keep_alive = request_read && request.keep_alive && !stopping && !cut;
    let mut out = Vec::with_capacity(512);
    let answer = Answer {
        request_id: request.id.text(head),
        keep_alive,
        head_only: request.method.is_head(),
        form: Form::preferred(head),
        hsts: client.settings.hsts(request.scheme),
        ..answer
    };
    record.bytes = answer.write(&client.settings.pages, &mut out);
    match client.send_answer(&out, record.bytes).await {
        Ok(()) if keep_alive => AfterExchange::KeepAlive,
        Ok(()) => AfterExchange::Linger,
        Err(_) => AfterExchange::Close,
    }
}

pub(super) fn request_is_read(request: &RequestHead) -> bool {
    matches!(request.framing, Framing::None | Framing::Length(0))
}
