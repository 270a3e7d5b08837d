//! One exchange, step by step: pick and count, reach an endpoint, await the response, relay both bodies, let go.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::answer::{Answer, Form};
use super::bypass::{Pass, pass};
use super::connection::{Connection, Next};
use super::pool::{IdlePool, Tried, millis};
use super::pump::Pump;
use super::relay::{Failure, Relay, RestOfRequest, Surroundings};
use super::upstream::{ConnectError, Upstream};
use super::{Entry, Lease};
use crate::config::Service;
use crate::http1::body::Framing;
use crate::http1::buffer::Buffer;
use crate::http1::prefix;
use crate::http1::request::RequestHead;
use crate::http1::response::{Recipient, ResponseHead};
use crate::observe::line::Line;
use crate::observe::meters::RetryReason;
use crate::observe::termination::Termination;
use crate::switching::{Backend, Maintenance};

/// How much earlier than the backend we let go of an idle connection.
const IDLE_MARGIN: Duration = Duration::from_secs(1);

/// What the log and the counters say of an exchange.
#[derive(Debug)]
struct Record {
    started: Instant,
    /// When the last byte of a complete response was written.
    ended: Option<Instant>,
    /// 0 until a response head was passed on.
    status: u16,
    bytes: u64,
    upstream_time: Option<Duration>,
    termination: Termination,
    /// A health check of a service in maintenance: if no backend can answer it, we do.
    health_in_maintenance: bool,
}

impl Record {
    fn took(&self) -> Duration {
        self.ended.unwrap_or_else(Instant::now).saturating_duration_since(self.started)
    }
}

/// A request that has reached a backend, and its response head.
struct Answered {
    upstream: Upstream,
    response: ResponseHead,
    /// The start of the response body.
    body: Option<Buffer>,
}

/// What the client hears when no response could be had.
struct Refusal {
    status: u16,
    detail: &'static str,
    termination: Termination,
}

/// Carries out one exchange, logs and counts it.
pub async fn run(conn: &mut Connection, request: RequestHead) -> Next {
    let mut record = Record {
        started: Instant::now(),
        ended: None,
        status: 0,
        bytes: 0,
        upstream_time: None,
        termination: Termination::Done,
        health_in_maintenance: false,
    };
    let mut lease = match enter(conn, &request) {
        Entry::Open(lease) => lease,
        Entry::Nowhere => return no_route(conn, &request, &mut record).await,
        Entry::Closed(service, maintenance) => {
            let through = pass_through(conn, &request, &service);
            let Some((pass, lease)) = through else {
                return closed(conn, &request, &mut record, &service, &maintenance).await;
            };
            record.health_in_maintenance = pass == Pass::Health;
            lease
        }
    };
    let next = forward(conn, &request, &mut record, &mut lease).await;
    let info = lease.owner();
    let meters = info.meters.lane(lease.worker());
    // A tunnel may last for days: what it took is the time until it was open.
    let took = if record.status == 101 { record.upstream_time } else { None };
    meters.exchange(request.method.index(), record.status, took.unwrap_or_else(|| record.took()));
    if matches!(record.termination, Termination::Drain | Termination::Stop) {
        meters.was_cut();
    }
    write_log(conn, &request, &record, Some(&info.service), Some(&info.backend));
    next
}

fn enter(conn: &Connection, request: &RequestHead) -> Entry {
    let Some(scratch) = &conn.scratch else { return Entry::Nowhere };
    let head = scratch.request_head();
    conn.worker.board.enter(request.host.of_head(head), request.path.of_head(head), conn.worker.index)
}

async fn no_route(conn: &mut Connection, request: &RequestHead, record: &mut Record) -> Next {
    let refusal = Refusal {
        status: 404,
        detail: "no service answers for this host and path",
        termination: Termination::NoRoute,
    };
    let next = refuse(conn, request, record, &refusal, request_is_read(request)).await;
    conn.worker.meters.worker(conn.worker.index).unrouted.fetch_add(1, Ordering::Relaxed);
    write_log(conn, request, record, None, None);
    next
}

/// Takes part in the active backend of a service in maintenance, for those who get through.
fn pass_through(conn: &Connection, request: &RequestHead, service: &Service) -> Option<(Pass, Lease)> {
    let head = conn.scratch.as_ref()?.request_head();
    let is_read = request.method.is_read();
    let pass = pass(service, head, is_read, request.path.of_head(head), &conn.address)?;
    Some((pass, pick(conn, request)?))
}

/// Answers for a service in maintenance. No backend hears of the request.
async fn closed(
    conn: &mut Connection,
    request: &RequestHead,
    record: &mut Record,
    service: &Service,
    maintenance: &Maintenance,
) -> Next {
    record.status = 503;
    record.termination = Termination::Maintenance;
    let answer = Answer {
        status: 503,
        detail: &maintenance.message,
        retry_after_s: Some(maintenance.retry_after_s),
        maintenance: true,
        ..Answer::default()
    };
    let next = tell(conn, request, record, answer, request_is_read(request)).await;
    conn.worker.meters.worker(conn.worker.index).unrouted.fetch_add(1, Ordering::Relaxed);
    write_log(conn, request, record, Some(service), None);
    next
}

fn pick(conn: &Connection, request: &RequestHead) -> Option<Lease> {
    let head = conn.scratch.as_ref()?.request_head();
    conn.worker.board.pick(request.host.of_head(head), request.path.of_head(head), conn.worker.index)
}

/// Forwards the request and relays the response. `lease` is the hold on the activation that answered in the end.
async fn forward(
    conn: &mut Connection,
    request: &RequestHead,
    record: &mut Record,
    lease: &mut Lease,
) -> Next {
    let most = lease.owner().service.limits.body_bytes;
    if let (Framing::Length(length), Some(most)) = (request.framing, most)
        && length > most
    {
        let refusal = Failure::Client(Termination::TooLarge).refusal();
        return refuse(conn, request, record, &refusal, false).await;
    }
    let mut relay = begin(conn, request, lease, record.started);
    relay.up.limit_body(most);
    let answered = match reach(conn, request, lease, &mut relay).await {
        Ok(answered) => answered,
        Err(refusal) => {
            let read = relay.request_done() || request_is_read(request);
            give_back(conn, relay);
            return refuse(conn, request, record, &refusal, read).await;
        }
    };
    let Answered { mut upstream, response, body } = answered;
    record.status = response.status;
    record.upstream_time = Some(relay.last_move().saturating_duration_since(record.started));
    relay.down.begin_body(response.framing, response.coding, body);
    if response.is_tunnel() {
        lease.becomes_tunnel();
        relay.becomes_tunnel();
    }
    let mut around = Surroundings {
        client: &mut conn.client,
        upstream: &mut upstream.stream,
        lease,
        attention: &mut conn.attention,
        watchdog: &mut conn.watchdog,
    };
    // A client that was told the end instead of "100 Continue" may send no body at all: nobody waits for it.
    let awaited = !request.expects_continue || relay.up.body_sent() > 0;
    let wanted = response.upstream_keep_alive && awaited;
    let rest = if wanted { RestOfRequest::Wanted } else { RestOfRequest::Unwanted };
    let result = relay.bodies(&mut around, rest).await;
    record.bytes = relay.down.body_sent();
    if let Err(failure) = result {
        let untold = relay.down.sent() == 0;
        let refusal = failure.refusal();
        record.termination = refusal.termination;
        let last_words = relay.last_words();
        give_back(conn, relay);
        if let Some(frame) = last_words {
            return if conn.send(frame).await.is_ok() { Next::Linger } else { Next::Close };
        }
        // A client that has heard nothing yet can be told; to any other, a response that breaks off must look like it.
        return match untold {
            true => refuse(conn, request, record, &refusal, false).await,
            false if response.ends_with_connection() && !response.is_tunnel() => Next::Reset,
            false => Next::Close,
        };
    }
    record.ended = Some(relay.last_move());
    release(lease, upstream, &response, &mut relay);
    let request_done = relay.request_done();
    let ended = relay.client_ended();
    give_back(conn, relay);
    match (response.is_tunnel(), request_done) {
        // A tunnel's end; or the response is complete before the request, the rest of which nobody wants any more.
        (true, _) | (false, false) => Next::Linger,
        (false, true) if response.client_keep_alive && (!ended || conn.input.is_some()) => Next::KeepAlive,
        // Nothing more comes from a client that said so: no word of it could meet a reset.
        (false, true) if request.is_last && conn.input.is_none() => Next::Close,
        (false, true) => Next::Linger,
    }
}

/// Both directions, before the first byte. The request's head and what has come of its body go up in one write.
fn begin(conn: &mut Connection, request: &RequestHead, lease: &Lease, now: Instant) -> Relay {
    let input = conn.input.take();
    let (mut up, mut down) = conn.scratch.as_mut().map_or_else(Default::default, |scratch| {
        (std::mem::take(scratch.upstream()), std::mem::take(scratch.response()))
    });
    if let Some(stripped) = lease.owner().service.stripped_prefix() {
        prefix::strip(&mut up, stripped.as_bytes());
    }
    down.clear();
    Relay::new(Pump::new(up, request.framing, input), Pump::new(down, Framing::None, None), now)
}

/// Hands what the relay borrowed back to the connection: memory, and what was read past the request.
fn give_back(conn: &mut Connection, relay: Relay) {
    let (input, up) = relay.up.into_parts();
    let (_, down) = relay.down.into_parts();
    conn.input = input;
    if let Some(scratch) = &mut conn.scratch {
        *scratch.upstream() = up;
        *scratch.response() = down;
    }
}

/// Finds an endpoint that answers. A connection from the pool that turns out to be dead is replaced once by a fresh
/// one, where that can't make the backend see the request twice; that attempt picks anew, and `lease` with it.
async fn reach(
    conn: &mut Connection,
    request: &RequestHead,
    lease: &mut Lease,
    relay: &mut Relay,
) -> Result<Answered, Refusal> {
    let mut retried = false;
    loop {
        let mut upstream = connect(conn, request, lease, retried, relay.last_move().into_std()).await?;
        // Connecting may have taken a while: a request that is to be cut is better not sent at all.
        if lease.is_cut() {
            return Err(Failure::Cut(Termination::Drain).refusal());
        }
        let Some(scratch) = &conn.scratch else { return Err(Refusal::internal()) };
        let to = Recipient {
            request,
            request_head: scratch.request_head(),
            keep_alive: request.keep_alive,
            server: conn.settings.headers.server,
        };
        let mut around = Surroundings {
            client: &mut conn.client,
            upstream: &mut upstream.stream,
            lease,
            attention: &mut conn.attention,
            watchdog: &mut conn.watchdog,
        };
        let mut body = None;
        let (budget, retries) = (lease.payload().budget(), &lease.owner().service.retries);
        let failure = match relay.await_response(&mut around, to, &mut body).await {
            Ok(response) => {
                budget.answered(retries);
                return Ok(Answered { upstream, response, body });
            }
            Err(failure) => failure,
        };
        if retried {
            budget.spend(retries);
        }
        let stale = upstream.reused && matches!(failure, Failure::UpstreamClosed { begun: false });
        // Once only; and never if the backend may have acted on the request, unless acting twice does no harm.
        let harmless = request.method.is_safe() || relay.up.sent() == 0;
        if !stale || retried || !harmless || relay.up.body_sent() > 0 || !may_retry(lease) {
            return Err(failure.refusal());
        }
        lease.owner().meters.lane(lease.worker()).retried(RetryReason::StaleConnection);
        let again = pick(conn, request).ok_or_else(Refusal::internal)?;
        if again.owner().service.stripped_prefix() != lease.owner().service.stripped_prefix() {
            // Reconfigured meanwhile: the head is written for the service as it was.
            return Err(failure.refusal());
        }
        *lease = again;
        relay.rewind();
        retried = true;
    }
}

/// Whether the retry budget allows another attempt; counted if not.
fn may_retry(lease: &Lease) -> bool {
    let info = lease.owner();
    let allowed = lease.payload().budget().allows(&info.service.retries, millis(std::time::Instant::now()));
    if !allowed {
        info.meters.lane(lease.worker()).retry_refused();
    }
    allowed
}

/// A connection to one of the backend's endpoints, from the pool if there is one. An endpoint that can't be reached is
/// passed over for any method, as nothing was sent to it.
async fn connect(
    conn: &Connection,
    request: &RequestHead,
    lease: &Lease,
    fresh: bool,
    mut now: std::time::Instant,
) -> Result<Upstream, Refusal> {
    let worker = &conn.worker;
    let info = lease.owner();
    let (pool, lane) = (lease.payload(), info.meters.lane(lease.worker()));
    let mut tried = Tried::default();
    let mut last = None;
    loop {
        let Some(choice) = pool.choose(&mut tried, now) else { break };
        if last.is_some() {
            if !may_retry(lease) {
                break;
            }
            lane.retried(RetryReason::ConnectFailed);
        }
        if choice.fails_open {
            lane.failed_open();
        }
        if !fresh && let Some(mut upstream) = pooled(pool, choice.endpoint, request, now).await {
            upstream.busy = choice.busy;
            return Ok(upstream);
        }
        let Some(target) = info.backend.endpoints.get(choice.endpoint) else { continue };
        let timeout = info.service.timeouts.connect;
        let connecting =
            worker.connector.connect(target, choice.endpoint, timeout, &info.meters, worker.index);
        // In a box of its own: most exchanges take a connection from the pool, and need no room for this.
        match Box::pin(connecting).await {
            Ok(mut upstream) => {
                upstream.busy = choice.busy;
                return Ok(upstream);
            }
            Err(error) => {
                tracing::debug!(backend = %info.backend.name, %error, "endpoint not reached");
                now = std::time::Instant::now();
                pool.not_reached(choice.endpoint, now);
                if last.replace(error).is_some() || fresh {
                    pool.budget().spend(&info.service.retries);
                }
            }
        }
    }
    Err(match last {
        Some(ConnectError::TimedOut { .. }) => Refusal {
            status: 504,
            detail: "the app could not be reached in time",
            termination: Termination::UpstreamUnreachable,
        },
        _ => Refusal {
            status: 502,
            detail: "the app could not be reached",
            termination: Termination::UpstreamUnreachable,
        },
    })
}

/// A connection from the pool. Before one carries what can't be sent twice, the worker looks once more at its sockets:
/// what they had told when it last waited may be out of date, and a dead one would make an error. Only a connection
/// that dies while such a request is on its way is found out too late.
async fn pooled(
    pool: &IdlePool,
    endpoint: usize,
    request: &RequestHead,
    now: std::time::Instant,
) -> Option<Upstream> {
    if !request.method.is_safe() && pool.has_idle(endpoint) {
        // The runtime wakes a task that yields after it has asked the kernel for news of all sockets.
        tokio::task::yield_now().await;
    }
    pool.take(endpoint, now)
}

/// Keeps the backend's connection for the next exchange, if it is in a state for that.
fn release(lease: &Lease, upstream: Upstream, response: &ResponseHead, relay: &mut Relay) {
    let clean = relay.request_done() && !relay.request_broken() && relay.down.surplus().is_none();
    if !clean || !response.upstream_keep_alive || lease.is_retired() {
        return;
    }
    let idle = lease.owner().service.timeouts.idle;
    // We let go first, or a request could meet the backend's closing.
    let keep = response.upstream_idle.map_or(idle, |theirs| idle.min(theirs.saturating_sub(IDLE_MARGIN)));
    lease.payload().put(upstream, keep, relay.last_move().into_std());
}

/// Answers in the backend's stead.
async fn refuse(
    conn: &mut Connection,
    request: &RequestHead,
    record: &mut Record,
    refusal: &Refusal,
    request_read: bool,
) -> Next {
    record.status = refusal.status;
    record.termination = refusal.termination;
    if refusal.termination == Termination::ClientGone {
        return Next::Close;
    }
    let no_backend = matches!(refusal.status, 502 | 504);
    if record.health_in_maintenance && no_backend {
        record.status = 200;
    }
    let answer = Answer { status: record.status, detail: refusal.detail, ..Answer::default() };
    tell(conn, request, record, answer, request_read).await
}

/// Sends an answer of our own, in the form that the client prefers.
async fn tell(
    conn: &mut Connection,
    request: &RequestHead,
    record: &mut Record,
    answer: Answer<'_>,
    request_read: bool,
) -> Next {
    let Some(scratch) = &conn.scratch else { return Next::Close };
    let head = scratch.request_head();
    let stopping = conn.attention.stage() != super::attention::Stage::Running;
    let cut = matches!(record.termination, Termination::Drain | Termination::Stop);
    let keep_alive = request_read && request.keep_alive && !stopping && !cut;
    let mut out = Vec::with_capacity(512);
    let answer = Answer {
        request_id: request.id.text(head),
        keep_alive,
        head_only: request.method.is_head(),
        form: Form::preferred(head),
        ..answer
    };
    record.bytes = answer.write(&conn.settings.pages, &mut out);
    match conn.send(&out).await {
        Ok(()) if keep_alive => Next::KeepAlive,
        Ok(()) => Next::Linger,
        Err(_) => Next::Close,
    }
}

fn request_is_read(request: &RequestHead) -> bool {
    matches!(request.framing, Framing::None | Framing::Length(0))
}

impl Failure {
    fn refusal(&self) -> Refusal {
        let (status, detail, termination) = match self {
            Self::Client(Termination::ClientTimeout) => {
                (408, "the request did not arrive in time", Termination::ClientTimeout)
            }
            Self::Client(Termination::BadRequest) => {
                (400, "the request body is malformed", Termination::BadRequest)
            }
            Self::Client(Termination::TooLarge) => {
                (413, "the request body is too large", Termination::TooLarge)
            }
            // nginx's code for a client that left; nobody sees it but the log and the counters.
            Self::Client(_) => (499, "", Termination::ClientGone),
            Self::UpstreamClosed { .. } => {
                (502, "the app closed the connection", Termination::UpstreamClosed)
            }
            Self::UpstreamBroke => (502, "the app's response broke off", Termination::UpstreamClosed),
            Self::UpstreamProtocol(_) => {
                (502, "the app's response could not be understood", Termination::UpstreamProtocol)
            }
            Self::UpstreamTimeout => (504, "the app did not answer in time", Termination::UpstreamTimeout),
            Self::Cut(Termination::Drain) => {
                (503, "this version of the app is being retired", Termination::Drain)
            }
            Self::Cut(_) => (503, "the front door is stopping", Termination::Stop),
        };
        Refusal { status, detail, termination }
    }
}

impl Refusal {
    fn internal() -> Self {
        Self { status: 503, detail: "no backend is available", termination: Termination::NoRoute }
    }
}

fn write_log(
    conn: &Connection,
    request: &RequestHead,
    record: &Record,
    service: Option<&Service>,
    backend: Option<&Backend>,
) {
    let (true, Some(scratch)) = (conn.worker.log.is_on(), &conn.scratch) else { return };
    let head = scratch.request_head();
    let reported = backend.and_then(|backend| Some(backend.endpoints.first()?.reported_version()));
    let reported = reported.as_ref().and_then(|version| version.as_deref().map(String::as_str));
    let client = std::str::from_utf8(request.client.of_head(head)).unwrap_or_default();
    conn.worker.log.write(&Line {
        time: SystemTime::now(),
        client: if client.is_empty() { &conn.address } else { client },
        method: request.method_text.of_head(head),
        target: request.target.of_head(head),
        protocol: request.version.as_str(),
        host: request.host.of_head(head),
        status: record.status,
        bytes: record.bytes,
        request_time: record.took(),
        upstream_time: record.upstream_time,
        service: service.map(|service| service.name.as_str()),
        backend: backend.map(|backend| backend.name.as_str()),
        version: backend.and_then(|backend| backend.version.as_deref()).or(reported),
        request_id: request.id.text(head),
        referer: request.referer.of_head(head),
        user_agent: request.user_agent.of_head(head),
        termination: record.termination,
    });
}
