//! Reaching a backend: an endpoint, a connection from its pool or a fresh one, the retries that do no harm, and the
//! response's head.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use uh_system::plain;

use super::applied::Applied;
use super::client::{Client, ClientLink};
use super::endpoint::Endpoint;
use super::error_answer::ErrorAnswer;
use super::pick::{pick, pick_named, pick_preview};
use super::pool::{IdlePool, Tried, millis};
use super::pump::gzip;
use super::record::ExchangeRecord;
use super::relay::{ExchangeFailure, Relay, RelayContext, Unconnected};
use super::scratch::Scratch;
use super::settings::Settings;
use super::split::NewCookie;
use super::sticky::{self, Affinity};
use super::trial::{ForTrial, TrialPart};
use super::upstream::{ConnectError, Upstream};
use super::{Lease, Named};
use crate::config::{PathSettings, Service};
use crate::observe::broken::Broken;
use crate::observe::meters::RetryReason;
use crate::observe::termination::Termination;
use uh_http1::buffer::Buffer;
use uh_http1::compression::Offer;
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
    applied: &mut Applied,
    relay: &mut Relay,
    record: &mut ExchangeRecord,
) -> Result<Answered, ErrorAnswer> {
    // A preview never moves to another backend.
    let moved = applied.is_preview();
    let mut search = Search { client, request, lease, applied, relay, record, retried: false, moved };
    loop {
        match search.attempt().await {
            Ok(answered) => return Ok(answered),
            Err(Miss::Unsent(refusal)) => search.move_on(refusal)?,
            Err(Miss::Unanswered { failure, stale }) => search.retry(&failure, stale)?,
        }
    }
}

/// The same for the previous backend, after the active one has answered: so nothing is reported. Never moves to another
/// backend.
pub(super) async fn reach_previous<L: ClientLink>(
    client: &mut Client<L>,
    request: &RequestHead,
    lease: &mut Lease,
    applied: &mut Applied,
    relay: &mut Relay,
    record: &mut ExchangeRecord,
) -> Result<Answered, Miss> {
    let mut search = Search { client, request, lease, applied, relay, record, retried: false, moved: true };
    match search.attempt().await {
        Err(Miss::Unanswered { stale: true, .. })
            if request.method.is_safe() || search.relay.up.sent() == 0 =>
        {
            search.relay.rewind();
            search.retried = true;
            search.attempt().await
        }
        first => first,
    }
}

/// The search for an endpoint that answers a request.
struct Search<'a, L> {
    client: &'a mut Client<L>,
    request: &'a RequestHead,
    lease: &'a mut Lease,
    applied: &'a mut Applied,
    relay: &'a mut Relay,
    record: &'a mut ExchangeRecord,
    /// A dead connection was replaced: this attempt uses a new one.
    retried: bool,
    /// The backend was replaced by the one that is active now, or must not be.
    moved: bool,
}

/// Why an attempt gave no response.
pub(super) enum Miss {
    /// Nothing was sent.
    Unsent(ErrorAnswer),
    /// The request, or a part of it, may have been sent. `stale`: on a connection that was dead already.
    Unanswered { failure: ExchangeFailure, stale: bool },
}

impl<L: ClientLink> Search<'_, L> {
    async fn attempt(&mut self) -> Result<Answered, Miss> {
        let mut upstream = self.connect().await.map_err(Miss::Unsent)?;
        // Connecting may have taken a while: don't send a request that is to be cut.
        if self.lease.is_cut() {
            return Err(Miss::Unsent(ExchangeFailure::Cut(Termination::Drain).refusal()));
        }
        let mut body = None;
        let response = self.ask(&mut upstream, &mut body).await;
        let (budget, retries) = (self.lease.payload().budget(), &self.lease.owner().service.retries);
        match response {
            Ok(response) => {
                budget.answered(retries);
                Ok(Answered { upstream, response, body })
            }
            Err(failure) => {
                if self.retried {
                    budget.spend(retries);
                }
                let closed = matches!(failure, ExchangeFailure::UpstreamClosed { begun: false });
                let stale = upstream.reused && closed;
                if stale && let Some(target) = self.lease.owner().backend.endpoints.get(upstream.endpoint) {
                    target.doubt();
                }
                Err(Miss::Unanswered { failure, stale })
            }
        }
    }

    /// Sends the request and awaits the response's head.
    async fn ask(
        &mut self,
        upstream: &mut Upstream,
        body: &mut Option<Buffer>,
    ) -> Result<ResponseHead, ExchangeFailure> {
        let settings = self.applied.settings(self.lease);
        let Client { worker, link, subscription, timer, settings: server, scratch, .. } = &mut *self.client;
        let request_head = scratch.as_ref().map_or(&[][..], Scratch::request_head);
        let compress = settings.compress.as_deref();
        let compress = compress.map(|rules| Offer { rules, has_room: gzip::has_room() });
        let (upstream, lease) = (&mut upstream.stream, &*self.lease);
        let (assigned, service) = (self.record.trial.assigned(), &lease.owner().service);
        let cookie = NewCookie::of(self.request, assigned, service, &worker.cookies);
        let to = recipient(self.request, request_head, server, settings, lease);
        let to = Recipient { compress, seeks_page: cookie.is_some(), ..to };
        let (known, request) = (&mut self.record.trial, self.request);
        let trial = TrialPart { known, request, head: request_head };
        let mut around =
            RelayContext { client: link, upstream, lease, settings, cookie, trial, subscription, timer };
        self.relay.await_response(&mut around, to, body).await
    }

    /// Replaces the lease by one on the backend that is active now, if traffic has moved, or if the request was sent to the
    /// previous backend: once. The old backend's drain sees the exchange end.
    ///
    /// # Errors
    /// If no other backend is active: the error answer.
    fn move_on(&mut self, refusal: ErrorAnswer) -> Result<(), ErrorAnswer> {
        if self.moved || !is_unsent(&refusal) {
            return Err(refusal);
        }
        let picked = pick(self.client, self.request).filter(|(active, _)| !is_same(active, self.lease));
        let Some((active, assigned)) = picked.filter(|_| may_retry(self.lease)) else { return Err(refusal) };
        self.lease.owner().meters.lane(self.lease.worker()).retried(RetryReason::ConnectFailed);
        self.replace_lease(active).ok_or(refusal)?;
        self.record.assigned_again(assigned);
        self.moved = true;
        Ok(())
    }

    /// Prepares another attempt. Only once, and never if the backend may have acted on the request, unless it is safe
    /// to repeat.
    ///
    /// # Errors
    /// If there must be none: the error answer.
    fn retry(&mut self, failure: &ExchangeFailure, stale: bool) -> Result<(), ErrorAnswer> {
        let up = &self.relay.up;
        let harmless = up.body_sent() == 0 && (self.request.method.is_safe() || up.sent() == 0);
        if !stale || self.retried || !harmless || !may_retry(self.lease) {
            return Err(failure.refusal());
        }
        self.lease.owner().meters.lane(self.lease.worker()).retried(RetryReason::StaleConnection);
        self.pick_again().ok_or_else(|| failure.refusal())?;
        self.relay.rewind();
        self.retried = true;
        Ok(())
    }

    /// Picks for another attempt, which may be on another backend now.
    fn pick_again(&mut self) -> Option<()> {
        if self.applied.is_preview() {
            let (Named::Active(again) | Named::Standby(again)) =
                pick_preview(self.client, self.request, self.lease.owner().backend.name().as_str())
            else {
                return None;
            };
            return self.replace_lease(again);
        }
        let (active, assigned) = pick(self.client, self.request)?;
        let ids = self.applied.settings(self.lease).previous.named.as_deref();
        let named = ids.and_then(|ids| pick_named(self.client, self.request, &active, ids));
        let is_named = named.is_some();
        self.replace_lease(named.unwrap_or(active))?;
        self.record.assigned_again(assigned);
        if is_named {
            self.record.trial.take_part();
        }
        Some(())
    }

    /// `None`: the service was reconfigured meanwhile, so the prepared head no longer fits.
    fn replace_lease(&mut self, again: Lease) -> Option<()> {
        if !takes_the_same_head(&self.lease.owner().service, &again.owner().service) {
            return None;
        }
        self.applied.goes_on(self.lease, &again);
        *self.lease = again;
        Some(())
    }

    /// A connection to one of the backend's endpoints, from the pool if possible. An endpoint that can't be reached is
    /// skipped for any method, since nothing was sent to it.
    async fn connect(&mut self) -> Result<Upstream, ErrorAnswer> {
        let mut now = self.relay.last_move().into_std();
        let mut tried = Tried::default();
        let affinity = match self.applied.is_preview() {
            false => sticky::affinity(self.client, self.request, self.lease),
            true => Affinity::None,
        };
        let mut last = None;
        loop {
            let (info, settings) = (self.lease.owner(), self.applied.settings(self.lease));
            let (pool, lane) = (self.lease.payload(), info.meters.lane(self.lease.worker()));
            let Some(choice) = pool.choose(&mut tried, now, affinity) else { break };
            if last.is_some() {
                // No attempt starts on a backend that traffic has left: it may be about to be stopped.
                if self.lease.is_retired() || !may_retry(self.lease) {
                    break;
                }
                lane.retried(RetryReason::ConnectFailed);
            }
            self.record.endpoint = Some(choice.endpoint);
            if choice.fails_open {
                lane.failed_open();
            }
            if !self.retried
                && let Some(mut upstream) = pooled(pool, choice.endpoint, self.request, now, self.relay).await
            {
                upstream.busy = choice.busy;
                return Ok(upstream);
            }
            let Some(target) = info.backend.endpoints.get(choice.endpoint) else { continue };
            // Boxed: most exchanges take a connection from the pool and don't need this.
            let asking = (self.request, &mut self.record.trial);
            let (lease, at) = ((&*self.lease, settings), (&**target, choice.endpoint));
            match Box::pin(open(self.client, asking, lease, self.relay, at)).await? {
                Ok(mut upstream) => {
                    upstream.busy = choice.busy;
                    return Ok(upstream);
                }
                Err(error) => {
                    tracing::debug!(backend = %info.backend.name(), error = %plain(&error), "cannot reach the endpoint");
                    now = std::time::Instant::now();
                    pool.not_reached(choice.endpoint, now);
                    if last.replace(error).is_some() || self.retried {
                        pool.budget().spend(&info.service.retries);
                    }
                }
            }
        }
        Err(unreachable(last.as_ref()))
    }
}

/// Opens a connection, unless the exchange ends before.
async fn open<L: ClientLink>(
    client: &mut Client<L>,
    (request, known): (&RequestHead, &mut ForTrial),
    (lease, settings): (&Lease, &PathSettings),
    relay: &mut Relay,
    (target, endpoint): (&Endpoint, usize),
) -> Result<Result<Upstream, ConnectError>, ErrorAnswer> {
    let Client { worker, link, subscription, timer, scratch, .. } = client;
    let head = scratch.as_ref().map_or(&[][..], Scratch::request_head);
    let trial = TrialPart { known, request, head };
    let info = lease.owner();
    let timeout = settings.timeouts.connect;
    let mut connecting =
        pin!(worker.connector.connect(target, endpoint, timeout, &info.meters, worker.index));
    let mut caller = Unconnected { client: link, lease, settings, trial, subscription, timer };
    relay.waits();
    poll_fn(|cx| {
        caller.subscription.poll(cx);
        if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
            return Poll::Ready(Ok(connected));
        }
        match relay.check_unconnected(cx, &mut caller) {
            Ok(()) => Poll::Pending,
            Err(failure) => Poll::Ready(Err(failure.refusal())),
        }
    })
    .await
}

/// The error answer if no endpoint could be reached.
fn unreachable(last: Option<&ConnectError>) -> ErrorAnswer {
    let (status, detail) = match last {
        Some(ConnectError::TimedOut { .. }) => (504, "the app could not be reached in time"),
        _ => (502, "the app could not be reached"),
    };
    ErrorAnswer {
        status,
        detail,
        termination: Termination::UpstreamUnreachable,
        broken: Some(Broken::Unreachable),
        reason: last.map(ConnectError::reason),
    }
}

/// Whether nothing was sent: the backend couldn't be reached, or a drain cut the attempt before.
fn is_unsent(refusal: &ErrorAnswer) -> bool {
    refusal.broken == Some(Broken::Unreachable) || refusal.termination == Termination::Drain
}

/// Whether both are on one activation.
fn is_same(a: &Lease, b: &Lease) -> bool {
    std::ptr::eq(a.owner(), b.owner())
}

/// Whether a head that was prepared for a service fits it after a reload.
fn takes_the_same_head(before: &Service, after: &Service) -> bool {
    before.stripped_prefix() == after.stripped_prefix()
        && before.upgrades == after.upgrades
        && before.sticky == after.sticky
}

/// How the response to a request is rewritten for its client. It isn't compressed.
pub(super) fn recipient<'a>(
    request: &'a RequestHead,
    request_head: &'a [u8],
    server: &'a Settings,
    settings: &PathSettings,
    lease: &'a Lease,
) -> Recipient<'a> {
    Recipient {
        request,
        request_head,
        keep_alive: request.keep_alive,
        upgrade: allowed_upgrade(request, request_head, lease),
        server: server.headers.server,
        fields: settings.limits.response_fields,
        clock: SystemTime::now,
        hsts: server.hsts(request.scheme),
        compress: None,
        seeks_page: false,
    }
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

/// A connection from the pool. Before it carries a request that can't be sent twice, the worker polls its sockets
/// again: their last known state may be out of date, and a dead connection would cause an error. Only a connection that
/// dies while such a request is on its way is detected too late.
async fn pooled(
    pool: &IdlePool,
    endpoint: usize,
    request: &RequestHead,
    now: std::time::Instant,
    relay: &mut Relay,
) -> Option<Upstream> {
    if !request.method.is_safe() && pool.has_idle(endpoint) {
        relay.waits();
        // The runtime wakes a task that yields after it has polled all sockets.
        tokio::task::yield_now().await;
    }
    let upstream = poll_fn(|cx| Poll::Ready(pool.take(endpoint, now, cx))).await?;
    relay.upstream_is_quiet();
    Some(upstream)
}

/// Keeps the backend's connection for the next exchange, if it can be reused.
pub(super) fn release(lease: &Lease, upstream: Upstream, response: &ResponseHead, relay: &mut Relay) {
    let clean = relay.request_done() && relay.down.surplus().is_none();
    if !clean || !response.upstream_keep_alive || lease.is_retired() {
        return;
    }
    let idle = lease.owner().service.rules.own().timeouts.idle;
    // uh-proxy closes first, or a request could coincide with the backend's close.
    let keep = response.upstream_idle.map_or(idle, |theirs| idle.min(theirs.saturating_sub(IDLE_MARGIN)));
    lease.payload().put(upstream, keep, relay.last_move().into_std());
}
