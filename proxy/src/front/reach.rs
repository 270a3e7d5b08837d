//! Reaching a backend: an endpoint, a connection from its pool or a fresh one, the retries that do no harm, and the
//! response's head.

use std::future::{Future as _, poll_fn};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use uh_system::plain;

use super::Lease;
use super::connection::Connection;
use super::pool::{IdlePool, Tried, millis};
use super::record::Record;
use super::refusal::Refusal;
use super::relay::{Failure, Relay, Surroundings, Unconnected};
use super::upstream::{ConnectError, Upstream};
use crate::observe::broken::Broken;
use crate::observe::meters::RetryReason;
use crate::observe::termination::Termination;
use uh_http1::buffer::Buffer;
use uh_http1::request::RequestHead;
use uh_http1::response::{Recipient, ResponseHead};

/// How much earlier than the backend we let go of an idle connection.
const IDLE_MARGIN: Duration = Duration::from_secs(1);

/// A request that has reached a backend, and its response head.
pub(super) struct Answered {
    pub upstream: Upstream,
    pub response: ResponseHead,
    /// The start of the response body.
    pub body: Option<Buffer>,
}

/// Finds an endpoint that answers. A connection from the pool that turns out to be dead is replaced once by a fresh
/// one, where that can't make the backend see the request twice; that attempt picks anew, and `lease` with it.
pub(super) async fn reach(
    conn: &mut Connection,
    request: &RequestHead,
    lease: &mut Lease,
    relay: &mut Relay,
    record: &mut Record,
) -> Result<Answered, Refusal> {
    let (mut retried, mut moved) = (false, false);
    loop {
        let mut upstream = match connect(conn, request, lease, retried, record, relay).await {
            Ok(upstream) => upstream,
            Err(refusal) if !moved && can_move(&refusal, lease) => {
                move_on(conn, request, lease, refusal)?;
                moved = true;
                continue;
            }
            Err(refusal) => return Err(refusal),
        };
        // Connecting may have taken a while: a request that is to be cut is better not sent at all.
        if lease.is_cut() {
            let refusal = Failure::Cut(Termination::Drain).refusal();
            if moved || !can_move(&refusal, lease) {
                return Err(refusal);
            }
            move_on(conn, request, lease, refusal)?;
            moved = true;
            continue;
        }
        let Some(scratch) = &conn.scratch else { return Err(Refusal::internal()) };
        let to = Recipient {
            request,
            request_head: scratch.request_head(),
            keep_alive: request.keep_alive,
            upgrade: allowed_upgrade(request, scratch.request_head(), lease),
            server: conn.settings.headers.server,
            fields: lease.owner().service.limits.response_fields,
            clock: SystemTime::now,
            hsts: conn.settings.hsts(request.scheme),
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
        if stale && let Some(target) = lease.owner().backend.endpoints.get(upstream.endpoint) {
            target.doubt();
        }
        // Once only; and never if the backend may have acted on the request, unless acting twice does no harm.
        let harmless = request.method.is_safe() || relay.up.sent() == 0;
        if !stale || retried || !harmless || relay.up.body_sent() > 0 || !may_retry(lease) {
            return Err(failure.refusal());
        }
        lease.owner().meters.lane(lease.worker()).retried(RetryReason::StaleConnection);
        *lease = pick_again(conn, request, lease).ok_or_else(|| failure.refusal())?;
        relay.rewind();
        retried = true;
    }
}

/// Whether traffic has moved while the backend could not be reached, or before a drain cut the attempt: nothing was sent,
/// and the new one can answer.
fn can_move(refusal: &Refusal, lease: &Lease) -> bool {
    let unsent = refusal.broken == Some(Broken::Unreachable) || refusal.termination == Termination::Drain;
    unsent && lease.is_retired() && may_retry(lease)
}

/// Takes part in what is active now instead. The old backend's drain sees the exchange end there.
///
/// # Errors
/// There is nothing to move on to: the refusal.
fn move_on(
    conn: &Connection,
    request: &RequestHead,
    lease: &mut Lease,
    refusal: Refusal,
) -> Result<(), Refusal> {
    lease.owner().meters.lane(lease.worker()).retried(RetryReason::ConnectFailed);
    *lease = pick_again(conn, request, lease).ok_or(refusal)?;
    Ok(())
}

/// Picks for another attempt. `None`: the service was reconfigured meanwhile, and the head is written for it as it was.
fn pick_again(conn: &Connection, request: &RequestHead, before: &Lease) -> Option<Lease> {
    let before = &before.owner().service;
    pick(conn, request).filter(|again| {
        let again = &again.owner().service;
        again.stripped_prefix() == before.stripped_prefix() && again.upgrades == before.upgrades
    })
}

/// The protocol that the request asks to upgrade to, as the service spells it, if the service allows it.
pub(super) fn allowed_upgrade<'a>(request: &RequestHead, head: &[u8], lease: &'a Lease) -> Option<&'a str> {
    let asked = request.upgrade.of_head(head);
    if asked.is_empty() { None } else { lease.owner().service.allowed_upgrade(asked) }
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
    conn: &mut Connection,
    request: &RequestHead,
    lease: &Lease,
    fresh: bool,
    record: &mut Record,
    relay: &mut Relay,
) -> Result<Upstream, Refusal> {
    let mut now = relay.last_move().into_std();
    let info = lease.owner();
    let (pool, lane) = (lease.payload(), info.meters.lane(lease.worker()));
    let mut tried = Tried::default();
    let mut last = None;
    loop {
        let Some(choice) = pool.choose(&mut tried, now) else { break };
        if last.is_some() {
            // No attempt starts on a backend that traffic has left: somebody may be about to stop it.
            if lease.is_retired() || !may_retry(lease) {
                break;
            }
            lane.retried(RetryReason::ConnectFailed);
        }
        record.endpoint = Some(choice.endpoint);
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
            conn.worker.connector.connect(target, choice.endpoint, timeout, &info.meters, conn.worker.index);
        let mut caller = Unconnected {
            client: &conn.client,
            lease,
            attention: &mut conn.attention,
            watchdog: &mut conn.watchdog,
        };
        // In a box of its own: most exchanges take a connection from the pool, and need no room for this.
        let mut connecting = Box::pin(connecting);
        let connected = poll_fn(|cx| {
            caller.attention.poll(cx);
            if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
                return Poll::Ready(Ok(connected));
            }
            match relay.check_unconnected(cx, &mut caller) {
                Ok(()) => Poll::Pending,
                Err(failure) => Poll::Ready(Err(failure.refusal())),
            }
        });
        match connected.await? {
            Ok(mut upstream) => {
                upstream.busy = choice.busy;
                return Ok(upstream);
            }
            Err(error) => {
                tracing::debug!(backend = %info.backend.name(), error = %plain(&error), "endpoint not reached");
                now = std::time::Instant::now();
                pool.not_reached(choice.endpoint, now);
                if last.replace(error).is_some() || fresh {
                    pool.budget().spend(&info.service.retries);
                }
            }
        }
    }
    let (status, detail) = match last {
        Some(ConnectError::TimedOut { .. }) => (504, "the app could not be reached in time"),
        _ => (502, "the app could not be reached"),
    };
    Err(Refusal {
        status,
        detail,
        termination: Termination::UpstreamUnreachable,
        broken: Some(Broken::Unreachable),
        reason: last.as_ref().map(ConnectError::reason),
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
pub(super) fn release(lease: &Lease, upstream: Upstream, response: &ResponseHead, relay: &mut Relay) {
    let clean = relay.request_done() && !relay.request_broken() && relay.down.surplus().is_none();
    if !clean || !response.upstream_keep_alive || lease.is_retired() {
        return;
    }
    let idle = lease.owner().service.timeouts.idle;
    // We let go first, or a request could meet the backend's closing.
    let keep = response.upstream_idle.map_or(idle, |theirs| idle.min(theirs.saturating_sub(IDLE_MARGIN)));
    lease.payload().put(upstream, keep, relay.last_move().into_std());
}

/// Takes part in the active backend of the service that this request is for.
pub(super) fn pick(conn: &Connection, request: &RequestHead) -> Option<Lease> {
    let head = conn.scratch.as_ref()?.request_head();
    conn.worker.board.pick(request.host.of_head(head), request.path.of_head(head), conn.worker.index)
}
