//! Idle upstream connections. A pool belongs to one worker's lane of one activation and ends with it, so a new version
//! of a backend can't inherit a connection to its predecessor.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead as _, ReadBuf};

use super::Backend;
use super::budget::RetryBudget;
use super::endpoint::{Busy, Endpoint};
use super::sticky::Affinity;
use super::upstream::Upstream;
use crate::config;
use uh_switching::{Health, LanePayload};

/// The most idle connections that a worker keeps for one endpoint. More than that are closed after use.
const MAX_IDLE: usize = 512;

/// How long an endpoint that couldn't be reached is tried last: about as long as the probes take to find out more, and
/// long enough that hardly any request runs into it.
const AVOID_MS: u64 = 1000;

/// The idle connections of one worker to one activation's endpoints.
///
/// Only its worker uses the connections, except when a switch clears them. The lock is never waited for: if it is
/// taken, the pool counts as empty.
#[derive(Debug)]
pub(crate) struct IdlePool {
    backend: Arc<Backend>,
    budget: RetryBudget,
    by_endpoint: Box<[EndpointPool]>,
    next: AtomicUsize,
    retired: AtomicBool,
    retired_connections: Arc<RetiredConnections>,
}

/// Retired connections that wait to be closed. Closing dozens of them takes a millisecond, which would delay the first
/// requests to the new backend after a switch.
#[derive(Debug, Default)]
pub(crate) struct RetiredConnections(Mutex<Vec<Stream>>);

impl RetiredConnections {
    fn bury(&self, idle: impl Iterator<Item = Idle>) {
        self.0.lock().extend(idle.map(|idle| idle.upstream.stream));
    }

    /// Closes the collected connections.
    pub(crate) fn clear(&self) {
        let streams = std::mem::take(&mut *self.0.lock());
        drop(streams);
    }
}

/// The idle connections to one endpoint, and their number, which can be read without the lock.
#[derive(Debug, Default)]
struct EndpointPool {
    idle: Mutex<Vec<Idle>>,
    count: AtomicUsize,
}

impl EndpointPool {
    /// Accesses the connections, unless another thread does.
    fn try_with<T>(&self, work: impl FnOnce(&mut Vec<Idle>) -> T) -> Option<T> {
        let mut idle = self.idle.try_lock()?;
        let result = work(&mut idle);
        self.count.store(idle.len(), Ordering::Relaxed);
        Some(result)
    }
}

#[derive(Debug)]
struct Idle {
    upstream: Upstream,
    until: Instant,
}

impl Idle {
    /// Whether it hasn't expired, leads to the endpoint's current address, and is alive as far as its socket has
    /// reported.
    fn is_good(&mut self, endpoint: &Endpoint, now: Instant, cx: &mut Context<'_>) -> bool {
        if self.until <= now || !endpoint.leads_to(self.upstream.peer) {
            return false;
        }
        let quiet = is_quiet(&mut self.upstream.stream, cx);
        if !quiet {
            // An app that closes its connections may be about to stop.
            endpoint.doubt();
        }
        quiet
    }
}

/// Which endpoints an exchange has tried, one bit each: a backend has at most [`MAX_ENDPOINTS`](config::MAX_ENDPOINTS).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tried(u64);

const _: () = assert!(config::MAX_ENDPOINTS <= u64::BITS as usize);

impl Tried {
    fn contains(self, endpoint: usize) -> bool {
        self.0 & (1 << (endpoint % 64)) != 0
    }

    /// Whether it was not among them before.
    fn add(&mut self, endpoint: usize) -> bool {
        let before = self.contains(endpoint);
        self.0 |= 1 << (endpoint % 64);
        !before
    }
}

/// An endpoint to try.
#[derive(Debug)]
pub(crate) struct Choice {
    /// Its index.
    pub endpoint: usize,
    /// Counts the exchange, where there are several to choose from.
    pub busy: Option<Busy>,
    /// Whether no endpoint passes its probes, so that this one is tried anyway.
    pub fails_open: bool,
}

/// The sort key of endpoints, smallest first.
fn rank(endpoint: &Endpoint, index: usize, now_ms: u64, affinity: Affinity) -> (bool, bool, u64) {
    let unhealthy = endpoint.health() == Health::Unhealthy;
    (unhealthy, endpoint.is_avoided(now_ms), affinity.rank(index, endpoint))
}

/// The origin of this process's clock, in milliseconds.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds on this process's clock.
pub(super) fn millis(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(*ORIGIN).as_millis()).unwrap_or(u64::MAX)
}

impl IdlePool {
    /// An empty pool for a backend.
    #[must_use]
    pub(crate) fn new(backend: &Arc<Backend>, retired_connections: Arc<RetiredConnections>) -> Self {
        Self {
            backend: Arc::clone(backend),
            budget: RetryBudget::default(),
            by_endpoint: backend.endpoints.iter().map(|_| EndpointPool::default()).collect(),
            next: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
            retired_connections,
        }
    }

    /// The endpoint to try next, among those not tried yet: those that pass their probes first, then those that could
    /// be reached, then as the request's affinity says: without one, the one with the fewest exchanges; ties in turn.
    pub(crate) fn choose(&self, tried: &mut Tried, now: Instant, affinity: Affinity) -> Option<Choice> {
        let endpoints = &self.backend.endpoints;
        if let [only] = &**endpoints {
            // Only one endpoint, so there is nothing to count.
            let unhealthy = only.health() == Health::Unhealthy;
            return tried.add(0).then_some(Choice { endpoint: 0, busy: None, fails_open: unhealthy });
        }
        let now_ms = millis(now);
        loop {
            let count = endpoints.len();
            let first = self.next.fetch_add(1, Ordering::Relaxed) % count.max(1);
            let turn = (0..count).map(|step| (first + step) % count).filter(|&index| !tried.contains(index));
            let best = turn.min_by_key(|&index| rank(&endpoints[index], index, now_ms, affinity))?;
            let endpoint = &endpoints[best];
            if endpoint.may_try(now_ms, now_ms + AVOID_MS) {
                tried.add(best);
                let unhealthy = endpoint.health() == Health::Unhealthy;
                let all = endpoints.iter().map(|endpoint| endpoint.health());
                let fails_open = unhealthy && Health::of_any(all) == Health::Unhealthy;
                return Some(Choice { endpoint: best, busy: Some(endpoint.begin()), fails_open });
            }
        }
    }

    /// Records that an endpoint couldn't be reached: for a while, others come first.
    pub(crate) fn not_reached(&self, endpoint: usize, now: Instant) {
        if let Some(endpoint) = self.backend.endpoints.get(endpoint) {
            endpoint.avoid_until(millis(now) + AVOID_MS);
        }
    }

    /// The retries that this worker may still make on this activation.
    pub(crate) fn budget(&self) -> &RetryBudget {
        &self.budget
    }

    /// Whether a connection to this endpoint is kept.
    pub(crate) fn has_idle(&self, endpoint: usize) -> bool {
        self.by_endpoint
            .get(endpoint)
            .is_some_and(|endpoint_pool| endpoint_pool.count.load(Ordering::Relaxed) > 0)
    }

    /// The connection to this endpoint that was used last, if one is alive and within its time.
    /// It wakes the caller's task when there is something to read from it.
    pub(crate) fn take(&self, endpoint: usize, now: Instant, cx: &mut Context<'_>) -> Option<Upstream> {
        let target = self.backend.endpoints.get(endpoint)?;
        self.by_endpoint.get(endpoint)?.try_with(|endpoint_pool| {
            while let Some(mut idle) = endpoint_pool.pop() {
                if idle.is_good(target, now, cx) {
                    idle.upstream.reused = true;
                    return Some(idle.upstream);
                }
            }
            None
        })?
    }

    /// Keeps a connection for the next exchange. Closes it if the activation is over or there are enough.
    pub(crate) fn put(&self, mut upstream: Upstream, keep: Duration, now: Instant) {
        if self.retired.load(Ordering::Acquire) || keep.is_zero() {
            return;
        }
        let Some(endpoint_pool) = self.by_endpoint.get(upstream.endpoint) else { return };
        upstream.busy = None;
        endpoint_pool.try_with(|endpoint_pool| {
            // Checked again under the lock, which `retire` takes after it has set the flag.
            if endpoint_pool.len() < MAX_IDLE && !self.retired.load(Ordering::Acquire) {
                endpoint_pool.push(Idle { upstream, until: now + keep });
            }
        });
    }

    /// Closes connections that are past their time or were closed by the other side.
    pub(crate) fn sweep(&self, now: Instant) {
        let cx = &mut Context::from_waker(Waker::noop());
        for (endpoint_pool, target) in self.by_endpoint.iter().zip(&self.backend.endpoints) {
            endpoint_pool
                .try_with(|endpoint_pool| endpoint_pool.retain_mut(|idle| idle.is_good(target, now, cx)));
        }
    }
}

impl LanePayload for IdlePool {
    fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        for endpoint_pool in &self.by_endpoint {
            self.retired_connections.bury(endpoint_pool.idle.lock().drain(..));
            endpoint_pool.count.store(0, Ordering::Relaxed);
        }
    }

    fn idle(&self) -> usize {
        self.by_endpoint.iter().map(|endpoint_pool| endpoint_pool.count.load(Ordering::Relaxed)).sum()
    }
}

/// Whether an idle connection has nothing to read, by the readiness that the worker last saw, without a system call.
/// Anything to read would be the end of the stream or unrequested bytes.
fn is_quiet(stream: &mut Stream, cx: &mut Context<'_>) -> bool {
    let mut byte = [0];
    Pin::new(stream).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uh_protocol::Address;

    fn pool(count: u16) -> IdlePool {
        let addresses: Vec<Address> =
            (1..=count).map(|port| format!("127.0.0.1:{port}").parse().unwrap()).collect();
        let backend = uh_switching::Backend::new("blue".parse().unwrap(), None, &addresses, 0);
        let endpoint = |address| Arc::new(Endpoint::new(address, Health::Healthy));
        let endpoints = addresses.into_iter().map(endpoint).collect();
        IdlePool::new(&Arc::new(Backend { backend: Arc::new(backend), endpoints }), Arc::default())
    }

    fn choose(pool: &IdlePool, tried: &mut Tried, now: Instant) -> Option<Choice> {
        pool.choose(tried, now, Affinity::None)
    }

    #[test]
    fn the_endpoint_with_the_fewest_exchanges_is_chosen_and_ties_in_turn() {
        let pool = pool(3);
        let now = Instant::now();
        let first = |pool: &IdlePool| choose(pool, &mut Tried::default(), now).unwrap();
        let (a, b, c) = (first(&pool), first(&pool), first(&pool));
        let mut all = [a.endpoint, b.endpoint, c.endpoint];
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2], "the load is not spread");
        let freed = b.endpoint;
        drop(b);
        assert_eq!(first(&pool).endpoint, freed);
        drop((a, c));
        let turns: Vec<usize> = (0..6).map(|_| first(&pool).endpoint).collect();
        assert!(
            (0..3).all(|endpoint| turns.iter().filter(|&&turn| turn == endpoint).count() == 2),
            "{turns:?}"
        );
        assert!(pool.backend.endpoints.iter().all(|endpoint| endpoint.in_flight() == 0));
    }

    #[test]
    fn the_unhealthy_and_the_unreachable_come_last_and_each_is_tried_once() {
        let pool = pool(3);
        let now = Instant::now();
        pool.backend.endpoints[0].set_health(Health::Unhealthy);
        pool.not_reached(1, now);
        for _ in 0..5 {
            let mut tried = Tried::default();
            let order: Vec<usize> =
                std::iter::from_fn(|| choose(&pool, &mut tried, now)).map(|choice| choice.endpoint).collect();
            assert_eq!(order, [2, 1, 0]);
        }
        let later = now + Duration::from_millis(AVOID_MS + 1);
        let chosen: Vec<usize> =
            (0..4).map(|_| choose(&pool, &mut Tried::default(), later).unwrap().endpoint).collect();
        assert_eq!(
            chosen.iter().filter(|&&endpoint| endpoint == 1).count(),
            1,
            "{chosen:?}: one may try it again"
        );
    }

    #[test]
    fn an_affinity_decides_among_those_that_are_as_healthy() {
        let pool = pool(3);
        let now = Instant::now();
        for affinity in [Affinity::Endpoint(1), Affinity::Client(7)] {
            let first = pool.choose(&mut Tried::default(), now, affinity).unwrap();
            for _ in 0..5 {
                let again = pool.choose(&mut Tried::default(), now, affinity).unwrap();
                assert_eq!(again.endpoint, first.endpoint, "though it has more to do");
            }
            let chosen = first.endpoint;
            pool.backend.endpoints[chosen].set_health(Health::Unhealthy);
            let mut tried = Tried::default();
            let order: Vec<usize> = std::iter::from_fn(|| pool.choose(&mut tried, now, affinity))
                .map(|choice| choice.endpoint)
                .collect();
            assert!(order.len() == 3 && order[2] == chosen, "{order:?}");
            pool.backend.endpoints[chosen].set_health(Health::Healthy);
        }
        assert_eq!(pool.choose(&mut Tried::default(), now, Affinity::Endpoint(1)).unwrap().endpoint, 1);
    }

    #[test]
    fn a_backend_without_a_healthy_endpoint_is_tried_anyway() {
        for count in [1, 3] {
            let pool = pool(count);
            assert!(!choose(&pool, &mut Tried::default(), Instant::now()).unwrap().fails_open);
            pool.backend.endpoints.iter().for_each(|endpoint| endpoint.set_health(Health::Unhealthy));
            let mut tried = Tried::default();
            assert!(choose(&pool, &mut tried, Instant::now()).unwrap().fails_open);
            let left = std::iter::from_fn(|| choose(&pool, &mut tried, Instant::now())).count();
            assert_eq!(left, usize::from(count) - 1);
        }
    }
}
