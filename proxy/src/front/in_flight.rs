//! Limits on the requests of one address that are in flight at the same time.
//!
//! An HTTP/1 connection carries one request at a time, so a limit on connections is enough. An HTTP/2 connection carries
//! many. Each HTTP/2 connection has a reference to the count of its address, so a request takes no lock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::admission::ClientNetwork;
use crate::observe::log_rate_limit::LogRateLimit;

/// The counts of all addresses with HTTP/2 connections.
#[derive(Debug, Default)]
pub(crate) struct InFlightByAddress {
    counts: Mutex<HashMap<ClientNetwork, Weak<Count>>>,
    refused: AtomicU64,
    logged: LogRateLimit,
}

#[derive(Debug)]
struct Count {
    owner: Arc<InFlightByAddress>,
    network: ClientNetwork,
    in_flight: AtomicU32,
}

/// The requests of one address.
#[derive(Debug)]
pub(crate) struct AddressRequests {
    count: Arc<Count>,
    most: u32,
}

/// A request in flight. No longer counted when this is dropped.
#[derive(Debug)]
pub(crate) struct RequestInFlight(Arc<Count>);

impl InFlightByAddress {
    /// The requests of this address, for a new connection. At most `most` may be in flight.
    pub(crate) fn of(self: &Arc<Self>, address: IpAddr, most: u32) -> AddressRequests {
        let network = ClientNetwork::from(address);
        let mut counts = self.counts.lock();
        let known = counts.get(&network).and_then(Weak::upgrade);
        let count = known.unwrap_or_else(|| {
            let count = Arc::new(Count { owner: Arc::clone(self), network, in_flight: AtomicU32::new(0) });
            counts.insert(network, Arc::downgrade(&count));
            count
        });
        AddressRequests { count, most }
    }

    /// Requests rejected since the start.
    #[must_use]
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl AddressRequests {
    /// Counts a request; `None`: there are too many.
    #[must_use]
    pub(crate) fn begin(&self) -> Option<RequestInFlight> {
        let request = RequestInFlight(Arc::clone(&self.count));
        (self.count.in_flight.fetch_add(1, Ordering::Relaxed) < self.most).then_some(request)
    }

    /// Counts a rejected request, and logs it unless one was just logged.
    pub(crate) fn refuse(&self, client: &str) {
        let owner = &self.count.owner;
        owner.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(unlogged) = owner.logged.allows() {
            tracing::warn!(
                client,
                most = self.most,
                more_since_last_line = unlogged,
                "request rejected: too many in flight from its address; if it is a load balancer, list it in \
                 server.trusted_proxies; otherwise raise server.limits.requests_in_flight_per_address"
            );
        }
    }
}

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        let mut counts = self.owner.counts.lock();
        // Another connection may have begun to count again.
        if counts.get(&self.network).is_some_and(|count| count.strong_count() == 0) {
            counts.remove(&self.network);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_one_limit_over_all_its_connections() {
        let counts = Arc::new(InFlightByAddress::default());
        let address = |text: &str| text.parse().unwrap();
        let one = counts.of(address("192.0.2.1"), 2);
        let two = counts.of(address("::ffff:192.0.2.1"), 2);
        let other = counts.of(address("192.0.2.2"), 2);
        let first = one.begin();
        let second = two.begin();
        assert!(first.is_some() && second.is_some());
        assert!(one.begin().is_none() && two.begin().is_none());
        assert!(other.begin().is_some());
        drop(first);
        assert!(two.begin().is_some());
        two.refuse("192.0.2.1");
        assert_eq!(counts.refused(), 1);
    }

    #[test]
    fn nothing_is_remembered_of_an_address_without_a_connection() {
        let counts = Arc::new(InFlightByAddress::default());
        let one = counts.of("2001:db8::1".parse().unwrap(), 2);
        let request = one.begin();
        drop(one);
        assert_eq!(counts.counts.lock().len(), 1, "its request is still in flight");
        drop(request);
        assert!(counts.counts.lock().is_empty());
    }
}
