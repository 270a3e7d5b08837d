//! The run-time state of a registered endpoint: probes, resolved addresses, failed connects and load.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Notify;
use uh_protocol::Address;
use uh_protocol::status::ProbeStatus;
use uh_switching::Health;

use super::sticky;

/// The result of the last lookups of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolution {
    /// The name's addresses from the last successful lookup; empty only if there was none.
    pub addresses: Box<[SocketAddr]>,
    /// Why the last lookup failed, if it did.
    pub error: Option<String>,
}

/// One address of a backend, with its run-time state.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Its address.
    pub address: Address,
    /// The same as text, for every line of the access log.
    text: Box<str>,
    /// What stands for it in the scores of clients.
    seed: u64,
    /// What stands for it in a cookie, once one is needed.
    tag: OnceLock<Box<str>>,
    health: AtomicU8,
    last_probe: Mutex<Option<(ProbeStatus, Instant)>>,
    /// The app's version as the last probe reported it; apart from the probe, so that a request can read it.
    reported_version: ArcSwapOption<String>,
    /// The name's addresses, once it has been resolved.
    resolution: ArcSwapOption<Resolution>,
    looked_up: Notify,
    /// There is a sign that the name's addresses have changed.
    lookup_wanted: Notify,
    /// The next of the name's addresses to try.
    turn: AtomicUsize,
    load: Arc<Load>,
    /// Until when this endpoint is tried last, after a failed connect; 0: it isn't.
    avoid_until_ms: AtomicU64,
}

/// How many exchanges an endpoint carries, counted by all workers; apart from what requests only read.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Load(AtomicUsize);

/// One exchange that an endpoint carries, or is about to.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Load>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Endpoint {
    /// A new endpoint.
    #[must_use]
    pub(crate) fn new(address: Address, health: Health) -> Self {
        let text = address.to_string().into_boxed_str();
        Self {
            seed: sticky::seed(&text),
            text,
            tag: OnceLock::new(),
            address,
            health: AtomicU8::new(health as u8),
            last_probe: Mutex::default(),
            reported_version: ArcSwapOption::empty(),
            resolution: ArcSwapOption::empty(),
            looked_up: Notify::new(),
            lookup_wanted: Notify::new(),
            turn: AtomicUsize::new(0),
            load: Arc::default(),
            avoid_until_ms: AtomicU64::new(0),
        }
    }

    /// Its address as text.
    #[must_use]
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What stands for it in the scores of clients.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// What stands for it in a cookie. `make` is called once.
    pub(super) fn tag(&self, make: impl FnOnce() -> String) -> &str {
        self.tag.get_or_init(|| make().into_boxed_str())
    }

    /// Exchanges that it carries, of all workers.
    pub(crate) fn in_flight(&self) -> usize {
        self.load.0.load(Ordering::Relaxed)
    }

    /// Counts one more, for as long as the value lives.
    pub(crate) fn begin(&self) -> Busy {
        self.load.0.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(&self.load))
    }

    /// After a failed connect: tries this endpoint last until then. Milliseconds on the caller's clock.
    pub(crate) fn avoid_until(&self, until_ms: u64) {
        self.avoid_until_ms.store(until_ms.max(1), Ordering::Relaxed);
    }

    /// A connect succeeded.
    pub(crate) fn reached(&self) {
        if self.avoid_until_ms.load(Ordering::Relaxed) != 0 {
            self.avoid_until_ms.store(0, Ordering::Relaxed);
        }
    }

    /// Whether this endpoint is tried last, because a connect has failed recently.
    pub(crate) fn is_avoided(&self, now_ms: u64) -> bool {
        self.avoid_until_ms.load(Ordering::Relaxed) > now_ms
    }

    /// Whether the caller may try it. If it was to be avoided until now, one caller may, and the others continue to
    /// avoid it until then.
    pub(crate) fn may_try(&self, now_ms: u64, until_ms: u64) -> bool {
        let before = self.avoid_until_ms.load(Ordering::Relaxed);
        let order = Ordering::Relaxed;
        before == 0
            || before > now_ms
            || self.avoid_until_ms.compare_exchange(before, until_ms, order, order).is_ok()
    }

    /// For the resolver: stores the result of a lookup. After a failure, the last addresses are kept.
    pub(crate) fn looked_up(&self, found: Result<Box<[SocketAddr]>, String>) {
        let resolution = match found {
            Ok(addresses) => Resolution { addresses, error: None },
            Err(error) => {
                let addresses =
                    self.resolution.load().as_ref().map_or_else(Box::default, |r| r.addresses.clone());
                Resolution { addresses, error: Some(error) }
            }
        };
        let before = self.resolution.swap(Some(Arc::new(resolution)));
        let moved = |after: &Resolution| before.is_none_or(|before| before.addresses != after.addresses);
        if self.resolution.load().as_deref().is_some_and(moved) {
            // Failed connects were to the old addresses.
            self.reached();
        }
        self.looked_up.notify_waiters();
    }

    /// The endpoint's address seems out of date: the name should be resolved again immediately.
    pub(crate) fn doubt(&self) {
        if matches!(self.address, Address::Name(..)) {
            self.lookup_wanted.notify_one();
        }
    }

    /// For the resolver: the name's addresses may have changed.
    pub(crate) async fn doubted(&self) {
        self.lookup_wanted.notified().await;
    }

    /// The name's current addresses, as far as known.
    pub(crate) fn resolution(&self) -> Option<Arc<Resolution>> {
        self.resolution.load_full()
    }

    /// The name's current addresses; waits for the first lookup.
    pub(crate) async fn first_resolution(&self) -> Arc<Resolution> {
        loop {
            let looked_up = self.looked_up.notified();
            tokio::pin!(looked_up);
            looked_up.as_mut().enable();
            if let Some(resolution) = self.resolution() {
                return resolution;
            }
            looked_up.await;
        }
    }

    /// Which of `count` addresses of the name is next.
    pub(crate) fn next_turn(&self, count: usize) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % count.max(1)
    }

    /// Whether this address is still one of the name's addresses.
    pub(crate) fn leads_to(&self, peer: Option<SocketAddr>) -> bool {
        match (&self.address, peer) {
            (Address::Name(..), Some(peer)) => {
                self.resolution.load().as_ref().is_some_and(|found| found.addresses.contains(&peer))
            }
            _ => true,
        }
    }

    /// Its health.
    pub(crate) fn health(&self) -> Health {
        const ALL: [Health; 4] = [Health::Unknown, Health::Healthy, Health::Unhealthy, Health::NotProbed];
        ALL[usize::from(self.health.load(Ordering::Relaxed)) % ALL.len()]
    }

    /// Its latest probe.
    pub(crate) fn last_probe(&self) -> Option<ProbeStatus> {
        self.last_probe.lock().as_ref().map(|(probe, _)| probe.clone())
    }

    /// Whether its latest probe passed, and ended no longer ago than this.
    pub(crate) fn was_good_within(&self, age: Duration) -> bool {
        self.last_probe.lock().as_ref().is_some_and(|(probe, at)| probe.ok && at.elapsed() < age)
    }

    /// The app's version as the last probe reported it.
    pub(crate) fn reported_version(&self) -> arc_swap::Guard<Option<Arc<String>>> {
        self.reported_version.load()
    }

    /// For the prober: stores the latest probe and the resulting health.
    pub(crate) fn probed(&self, probe: ProbeStatus, health: Health) {
        if self.reported_version.load().as_deref() != probe.version.as_ref() {
            self.reported_version.store(probe.version.clone().map(Arc::new));
        }
        *self.last_probe.lock() = Some((probe, Instant::now()));
        self.set_health(health);
    }

    /// Sets its health.
    pub(crate) fn set_health(&self, health: Health) {
        self.health.store(health as u8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_lookup_keeps_the_last_good_addresses() {
        let endpoint = Endpoint::new("blue:80".parse().unwrap(), Health::Unknown);
        let (one, two): (SocketAddr, SocketAddr) =
            ("192.0.2.1:80".parse().unwrap(), "192.0.2.2:80".parse().unwrap());
        endpoint.looked_up(Err("no such host".to_owned()));
        assert_eq!(endpoint.resolution().unwrap().addresses.len(), 0);
        endpoint.looked_up(Ok([one].into()));
        endpoint.looked_up(Err("timed out".to_owned()));
        let found = endpoint.resolution().unwrap();
        assert_eq!((&found.addresses[..], found.error.as_deref()), (&[one][..], Some("timed out")));
        assert!(endpoint.leads_to(Some(one)));
        endpoint.looked_up(Ok([two].into()));
        assert!(!endpoint.leads_to(Some(one)), "a connection to where the name led before is kept");
    }

    #[test]
    fn one_caller_at_a_time_tries_an_endpoint_that_could_not_be_reached() {
        let endpoint = Endpoint::new("127.0.0.1:1".parse().unwrap(), Health::Unknown);
        assert!(!endpoint.is_avoided(0) && endpoint.may_try(0, 1000));
        endpoint.avoid_until(1000);
        assert!(endpoint.is_avoided(999) && !endpoint.is_avoided(1000));
        assert!(endpoint.may_try(1000, 2000), "nobody tries it again");
        assert!(endpoint.is_avoided(1500), "the second caller tries it too");
        endpoint.reached();
        assert!(!endpoint.is_avoided(1500));
    }
}
