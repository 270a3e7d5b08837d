//! Drains, as the admin side performs them.

use std::time::{Duration, Instant};

use uh_protocol::request::{DrainRequest, Drained, MAX_DRAIN_TIMEOUT_MS};
use uh_protocol::{BackendName, Code, Problem, ServiceName};
use uh_switching::{CloseSchedule, Holding, Refusal};

use super::audit::Audit;
use super::control::{Control, cut};
use super::socket::Peer;
use crate::config::TunnelsAtDrain;
use crate::front::fittings::Fittings;
use crate::handover::wire::FromSuccessor;

/// Concurrent drains: fewer than concurrent calls, so that they can't block a switch.
const MAX_DRAINS: i64 = 64;

/// How long cut exchanges may take to notice: they are woken immediately.
const CUT_GRACE: Duration = Duration::from_secs(2);

/// How often a drain checks whether the tunnels are gone while requests remain.
const LOOK_EVERY: Duration = Duration::from_millis(20);

type Drain = uh_switching::Drain<Fittings>;

impl Control {
    /// `POST /v1/services/{s}/backends/{b}/drain`
    ///
    /// # Errors
    /// If the backend is active, or becomes active meanwhile.
    pub(crate) async fn drain(
        &self,
        service: &str,
        backend: &BackendName,
        request: DrainRequest,
        peer: Peer,
    ) -> Result<Drained, Problem> {
        self.drain_for(Audit::of_backend(peer, "drain", service, backend), service, backend, request).await
    }

    /// The same for whoever is named in the audit log.
    pub(super) async fn drain_for(
        &self,
        audit: Audit<'_>,
        service: &str,
        backend: &BackendName,
        request: DrainRequest,
    ) -> Result<Drained, Problem> {
        let timeout = self.drain_timeout(service, request.timeout_ms)?;
        let busy = || {
            Problem::new(Code::Busy, format!("{MAX_DRAINS} drains are already in progress; try again later"))
        };
        let _waiting = self.metrics.drain_waits(MAX_DRAINS).ok_or_else(busy)?;
        let start = Instant::now();
        let deadline = start + timeout;
        let handle = || {
            let drain = self.board.drain(service, backend);
            drain.map_err(|refusal| self.refuse(audit, &refusal))
        };
        // Repeated at each switch until nothing is left, since the backend may have been active again in between. If it
        // is active now, the reply must be an error, so that the caller doesn't stop it.
        let mut drain = handle()?;
        // What a process that this one has replaced holds counts, once it follows.
        self.follow().await;
        let predecessor = || self.predecessor.draining(service, backend);
        let all = |drain: &Drain| sum(drain.remaining(), predecessor().0);
        let is_over = |drain: &Drain| drain.is_drained() && predecessor().1;
        let before = all(&drain);
        let meters = self.backend_meters(service, backend)?;
        let cut_total = || meters.cut_total() + self.predecessor.cut(service, backend);
        let cut_before = cut_total();
        let (policy, spread) = self.tunnel_policy(service);
        if request.cut.unwrap_or(policy == TunnelsAtDrain::Close) && policy == TunnelsAtDrain::Close {
            self.close_tunnels(service, backend, &drain, spread);
        }
        loop {
            // Before the look: what changes after it ends the wait.
            let changed = self.board.changed();
            let mut theirs = self.predecessor.changes();
            drain = handle()?;
            if self.board.is_frozen() {
                return Err(self.refuse(audit, &Refusal::Frozen));
            }
            let over = async {
                tokio::select! {
                    () = drain.wait(), if !drain.is_drained() => {}
                    () = changed => {}
                    () = theirs.next() => {}
                }
            };
            if is_over(&drain) || tokio::time::timeout_at(deadline.into(), over).await.is_err() {
                break;
            }
        }
        if !is_over(&drain) && request.cut.unwrap_or(policy != TunnelsAtDrain::Keep) {
            if request.cut == Some(true) {
                drain.cut();
                self.of_predecessor(service, |service| FromSuccessor::Cut {
                    service,
                    backend: backend.clone(),
                });
            }
            self.close_tunnels(service, backend, &drain, spread);
            let is_standby = || self.board.drain(service, backend).is_ok();
            let remaining = || all(&drain);
            self.await_tunnels(&drain, remaining, request.cut == Some(true), spread + CUT_GRACE, is_standby)
                .await;
            drain = handle().map_err(|mut problem| {
                let cut = cut_total() - cut_before;
                problem.detail = format!("{} ({cut} requests were cut before that)", problem.detail);
                problem
            })?;
        }
        let was_cut = cut_total() - cut_before;
        let drained = is_over(&drain);
        let remaining = all(&drain);
        let total = before.requests + before.tunnels;
        let reply = Drained {
            drained,
            waited_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            finished: total.saturating_sub(was_cut + remaining.requests + remaining.tunnels),
            cut: was_cut,
            remaining: remaining.into(),
        };
        if let Ok(service) = service.parse() {
            self.metrics.drained(&service, backend, start.elapsed());
        }
        tracing::info!(target: "audit", peer = audit.peer.map(display), by = audit.by.map(display), action = "drain", service = cut(service), %backend, drained,
            waited_ms = reply.waited_ms, finished = reply.finished, cut = reply.cut,
            remaining = reply.remaining.total(), result = "done");
        Ok(reply)
    }

    /// Closes tunnels, one after the other.
    fn close_tunnels(&self, service: &str, backend: &BackendName, drain: &Drain, spread: Duration) {
        let tunnels = sum(drain.remaining(), self.predecessor.draining(service, backend).0).tunnels;
        let over = CloseSchedule::length(tunnels, spread);
        let over_ms = u64::try_from(over.as_millis()).unwrap_or(u64::MAX);
        self.of_predecessor(service, |service| FromSuccessor::CloseTunnels {
            service,
            backend: backend.clone(),
            over_ms,
        });
        drain.close_tunnels(CloseSchedule { from: tokio::time::Instant::now(), over });
        self.broadcasts.iter().for_each(|broadcast| broadcast.wake_all());
    }

    /// Sends an order about a service to the process that this one has replaced.
    fn of_predecessor(&self, service: &str, order: impl FnOnce(ServiceName) -> FromSuccessor) {
        if let Ok(service) = service.parse() {
            self.predecessor.order(order(service));
        }
    }

    /// Waits until the tunnels are gone (and the requests, if `requests`), up to a limit and as long as it is a
    /// standby.
    async fn await_tunnels(
        &self,
        drain: &Drain,
        remaining: impl Fn() -> Holding,
        requests: bool,
        at_most: Duration,
        is_standby: impl Fn() -> bool,
    ) {
        let deadline = Instant::now() + at_most;
        while Instant::now() < deadline && is_standby() && (requests || remaining().tunnels > 0) {
            if tokio::time::timeout(LOOK_EVERY, drain.wait()).await.is_ok()
                && remaining() == Holding::default()
            {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A service's configured drain policy for tunnels.
    fn tunnel_policy(&self, service: &str) -> (TunnelsAtDrain, Duration) {
        let snapshot = self.board.snapshot();
        let config = snapshot.service(service).map(|state| &state.config);
        config.map_or((TunnelsAtDrain::Keep, Duration::ZERO), |config| {
            (config.tunnels_at_drain, config.tunnel_close_spread)
        })
    }

    fn drain_timeout(&self, service: &str, asked_ms: Option<u64>) -> Result<Duration, Problem> {
        if let Some(ms) = asked_ms.filter(|ms| *ms > MAX_DRAIN_TIMEOUT_MS) {
            let detail = format!("timeout_ms is {ms}; the maximum is {MAX_DRAIN_TIMEOUT_MS}");
            return Err(Problem::with_status(Code::InvalidRequest, 422, detail));
        }
        let snapshot = self.board.snapshot();
        let configured = snapshot.service(service).map_or(Duration::ZERO, |state| state.config.drain_timeout);
        Ok(asked_ms.map_or(configured, Duration::from_millis))
    }
}

fn sum(one: Holding, other: Holding) -> Holding {
    Holding { requests: one.requests + other.requests, tunnels: one.tunnels + other.tunnels }
}
