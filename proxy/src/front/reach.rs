//! Reaching a backend: an endpoint, a connection from its pool or a fresh one, the retries that do no harm, and the
//! response's head.

use std::future::{Future as _, poll_fn};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use uh_system::plain;

use super::Lease;
use super::client::{Client, ClientLink};
use super::error_answer::ErrorAnswer;
use super::pool::{IdlePool, Tried, millis};
use super::record::ExchangeRecord;
use super::relay::{ExchangeFailure, Relay, RelayContext, Unconnected};
use super::upstream::{ConnectError, Upstream};
use crate::observe::broken::Broken;
use crate::observe::meters::RetryReason;
use crate::observe::termination::Termination;
use uh_http1::buffer::Buffer;
use uh_http1::request::RequestHead;
use uh_http1::response::{Recipient, ResponseHead};

/// How much earlier than the backend uh-proxy closes an idle connection.
const IDLE_MARGIN: Duration = Duration::from_secs(1);

/// A request that was sent to a backend, with its response head.
pub(super) struct Answered {
    pub upstream: Upstream,
    pub response: ResponseHead,
    /// The start of the response body.
    pub body: Option<Buffer>,
}

/// Finds an endpoint that answers. A pooled connection that turns out to be dead is replaced once by a new one, if that
/// can't make the backend see the request twice. That attempt picks again, and `lease` changes with it.
pub(super) async fn reach<L: ClientLink>(
    client: &mut Client<L>,
    request: &RequestHead,
    lease: &mut Lease,
    relay: &mut Relay,
    record: &mut ExchangeRecord,
) -> Result<Answered, ErrorAnswer> {
    let (mut retried, mut moved) = (false, false);
    loop {
        let mut upstream = match connect(client, request, lease, retried, record, relay).await {
            Ok(upstream) => upstream,
            Err(refusal) if !moved && can_move(&refusal, lease) => {
                move_on(client, request, lease, refusal)?;
                moved = true;
                continue;
            }
            Err(refusal) => return Err(refusal),
        };
        // Connecting may have taken a while: don't send a request that is to be cut.
        if lease.is_cut() {
            let refusal = ExchangeFailure::Cut(Termination::Drain).refusal();
            if moved || !can_move(&refusal, lease) {
                return Err(refusal);
            }
            move_on(client, request, lease, refusal)?;
            moved = true;
            continue;
        }
        let Some(scratch) = &client.scratch else { return Err(ErrorAnswer::internal()) };
        let to = Recipient {
            request,
            request_head: scratch.request_head(),
            keep_alive: request.keep_alive,
            upgrade: allowed_upgrade(request, scratch.request_head(), lease),
            server: client.settings.headers.server,
            fields: lease.owner().service.limits.response_fields,
            clock: SystemTime::now,
            hsts: client.settings.hsts(request.scheme),
        };
        let mut around = RelayContext {
            client: &mut client.link,
            upstream: &mut upstream.stream,
            lease,
            subscription: &mut client.subscription,
            timer: &mut client.timer,
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
        let stale = upstream.reused && matches!(failure, ExchangeFailure::UpstreamClosed { begun: false });
        if stale && let Some(target) = lease.owner().backend.endpoints.get(upstream.endpoint) {
            target.doubt();
        }
        // Only once, and never if the backend may have acted on the request, unless it is safe to repeat.
        let harmless = request.method.is_safe() || relay.up.sent() == 0;
        if !stale || retried || !harmless || relay.up.body_sent() > 0 || !may_retry(lease) {
            return Err(failure.refusal());
        }
        lease.owner().meters.lane(lease.worker()).retried(RetryReason::StaleConnection);
        *lease = pick_again(client, request, lease).ok_or_else(|| failure.refusal())?;
        relay.rewind();
        retried = true;
    }
}

/// Whether traffic has moved while the backend couldn't be reached, or before a drain cut the attempt: nothing was
/// sent, so the new backend can answer.
fn can_move(refusal: &ErrorAnswer, lease: &Lease) -> bool {
    let unsent = refusal.broken == Some(Broken::Unreachable) || refusal.termination == Termination::Drain;
    unsent && lease.is_retired() && may_retry(lease)
}

/// Replaces the lease by one on the active backend. The old backend's drain sees the exchange end.
///
/// # Errors
/// If no other backend is active: the error answer.
fn move_on<L>(
    client: &Client<L>,
    request: &RequestHead,
    lease: &mut Lease,
    refusal: ErrorAnswer,
) -> Result<(), ErrorAnswer> {
    lease.owner().meters.lane(lease.worker()).retried(RetryReason::ConnectFailed);
    *lease = pick_again(client, request, lease).ok_or(refusal)?;
    Ok(())
}

/// Picks for another attempt. `None`: the service was reconfigured meanwhile, so the prepared head no longer fits.
fn pick_again<L>(client: &Client<L>, request: &RequestHead, before: &Lease) -> Option<Lease> {
    let before = &before.owner().service;
    pick(client, request).filter(|again| {
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

/// A connection to one of the backend's endpoints, from the pool if possible. An endpoint that can't be reached is
/// skipped for any method, since nothing was sent to it.
async fn connect<L: ClientLink>(
    client: &mut Client<L>,
    request: &RequestHead,
    lease: &Lease,
    fresh: bool,
    record: &mut ExchangeRecord,
    relay: &mut Relay,
) -> Result<Upstream, ErrorAnswer> {
    let mut now = relay.last_move().into_std();
    let info = lease.owner();
    let (pool, lane) = (lease.payload(), info.meters.lane(lease.worker()));
    let mut tried = Tried::default();
    let mut last = None;
    loop {
        let Some(choice) = pool.choose(&mut tried, now) else { break };
        if last.is_some() {
            // No attempt starts on a backend that traffic has left: it may be about to be stopped.
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
        let connecting = client.worker.connector.connect(
            target,
            choice.endpoint,
            timeout,
            &info.meters,
            client.worker.index,
        );
        let mut caller = Unconnected {
            client: &mut client.link,
            lease,
            subscription: &mut client.subscription,
            timer: &mut client.timer,
        };
        // Boxed: most exchanges take a connection from the pool and don't need this.
        let mut connecting = Box::pin(connecting);
        let connected = poll_fn(|cx| {
            caller.subscription.poll(cx);
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
                tracing::debug!(backend = %info.backend.name(), error = %plain(&error), "cannot reach the endpoint");
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
    Err(ErrorAnswer {
        status,
        detail,
        termination: Termination::UpstreamUnreachable,
        broken: Some(Broken::Unreachable),
        reason: last.as_ref().map(ConnectError::reason),
    })
}

/// A connection from the pool. Before it carries a request that can't be sent twice, the worker polls its sockets
/// again: their last known state may be out of date, and a dead connection would cause an error. Only a connection that
/// dies while such a request is on its way is detected too late.
async fn pooled(
    pool: &IdlePool,
    endpoint: usize,
    request: &RequestHead,
    now: std::time::Instant,
) -> Option<Upstream> {
    if !request.method.is_safe() && pool.has_idle(endpoint) {
        // The runtime wakes a task that yields after it has polled all sockets.
        tokio::task::yield_now().await;
    }
    pool.take(endpoint, now)
}

/// Keeps the backend's connection for the next exchange, if it can be reused.
pub(super) fn release(lease: &Lease, upstream: Upstream, response: &ResponseHead, relay: &mut Relay) {
    let clean = relay.request_done() && !relay.request_broken() && relay.down.surplus().is_none();
    if !clean || !response.upstream_keep_alive || lease.is_retired() {
        return;
    }
    let idle = lease.owner().service.timeouts.idle;
    // uh-proxy closes first, or a request could coincide with the backend's close.
    let keep = response.upstream_idle.map_or(idle, |theirs| idle.min(theirs.saturating_sub(IDLE_MARGIN)));
    lease.payload().put(upstream, keep, relay.last_move().into_std());
}

/// A lease on the active backend of the service that this request is for.
pub(super) fn pick<L>(client: &Client<L>, request: &RequestHead) -> Option<Lease> {
    let head = client.scratch.as_ref()?.request_head();
    client.worker.board.pick(request.host.of_head(head), request.path.of_head(head), client.worker.index)
}
