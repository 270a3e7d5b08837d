//! Limits on the requests that one client makes: `rate` of a service or of some of its paths.
//!
//! A request that is over its limit is answered with 429 before a backend is asked. All workers count in one table, or a
//! client would get the limit once for each worker that its connections happen to be on. It is the one thing that
//! workers share on the path of a request, takes no lock, and is only there if a limit is configured.

mod table;

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Instant;

use table::{RateTable, Verdict};

use super::Lease;
use super::admission::ClientNetwork;
use super::bypass::is_health_path;
use super::client::Client;
use crate::config::{Rate, Service};
use crate::observe::log_rate_limit::LogRateLimit;
use uh_http1::request::RequestHead;

/// What all limits have counted.
#[derive(Debug)]
pub struct RateLimiter {
    since: Instant,
    /// Secret, so that nobody can choose addresses that share a place in the table.
    hasher: RandomState,
    table: OnceLock<RateTable>,
    logged: LogRateLimit,
}

impl Default for RateLimiter {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            hasher: RandomState::new(),
            table: OnceLock::new(),
            logged: LogRateLimit::default(),
        }
    }
}

/// A request is over its limit. It would pass in so many seconds, rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverRate {
    /// For `Retry-After`.
    pub retry_after_s: u32,
}

/// Counts a request against the limit for its path. `Some`: it is over it, which is counted and logged. Health checks and
/// requests of a trusted proxy itself aren't limited: they aren't a client's.
pub(super) fn check<L>(
    client: &Client<L>,
    request: &RequestHead,
    lease: &Lease,
    rate: &Rate,
    at: Instant,
) -> Option<OverRate> {
    let (head, service) = (client.request_head(), &lease.owner().service);
    let address = client.source(request)?;
    let is_health = || request.method.is_read() && is_health_path(service, request.path.of_head(head));
    if client.settings.headers.trusts(address) || is_health() {
        return None;
    }
    let limiter = &client.worker.admission.rates;
    let over = limiter.admit(rate, address, at).err()?;
    lease.owner().meters.lane(lease.worker()).rate_limited();
    limiter.log(service.name.as_str(), rate, address);
    Some(over)
}

impl RateLimiter {
    /// Makes the table, which takes a few milliseconds, before the first request needs it, if any of these services will.
    pub(crate) fn prepare(&self, services: &[Service]) {
        if services.iter().any(|service| service.rules.any(|settings| settings.rate.is_some())) {
            self.table.get_or_init(RateTable::default);
        }
    }

    /// Counts a request that arrived `at` this time.
    ///
    /// # Errors
    /// It is over the limit, and isn't counted.
    pub fn admit(&self, rate: &Rate, client: IpAddr, at: Instant) -> Result<(), OverRate> {
        let now_us = at.saturating_duration_since(self.since).as_micros() as u64;
        let hash = self.hasher.hash_one((rate.rule, ClientNetwork::from(client)));
        match self.table.get_or_init(RateTable::default).take(hash, now_us, rate.quota) {
            Verdict::Pass => Ok(()),
            Verdict::WaitUs(us) => {
                Err(OverRate { retry_after_s: u32::try_from(us.div_ceil(1_000_000)).unwrap_or(u32::MAX) })
            }
        }
    }

    /// Logs a rejected request, unless one was just logged.
    pub(crate) fn log(&self, service: &str, rate: &Rate, client: IpAddr) {
        if let Some(unlogged) = self.logged.allows() {
            tracing::warn!(
                %client,
                service,
                rate = %rate,
                more_since_last_line = unlogged,
                "request rejected: the client is over the rate limit; if it is a load balancer, list it in \
                 server.trusted_proxies; otherwise raise `rate`"
            );
        }
    }

    /// Entries that were lost to other clients while they still counted.
    #[must_use]
    pub(crate) fn evicted(&self) -> u64 {
        self.table.get().map_or(0, RateTable::evicted)
    }
}
