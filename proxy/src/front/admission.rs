//! Limits on client connections: in total and per address.
//!
//! Counted once per connection, never per request. Memory is bounded by the open connections: an address without one
//! isn't remembered. IPv6 addresses count by their /64, which is what one customer gets.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::idle::{IdleClients, IdleSlot, Left};
use super::in_flight::{AddressRequests, InFlightByAddress};
use super::pool::millis;
use super::rate::RateLimiter;
use super::request_buffer::BufferBudgets;
use super::splice;
use crate::config::ServerLimits;
use crate::observe::log_rate_limit::LogRateLimit;
use crate::observe::metrics::ClientCounts;

/// File descriptors reserved for everything but exchanges: an eighth, within these bounds. The admin API
/// takes up to 256 of them, probes one for each endpoint.
const RESERVE: (u64, u64) = (64, 1024);

/// File descriptors that each worker thread needs for itself: its event queue, its listening sockets, the connections
/// that it may accept before it can reject one (tokio lets a task continue for 128 of them), and the large bodies that
/// it splices.
const RESERVE_PER_WORKER: u64 = 8 + 128 + (splice::MOST * splice::DESCRIPTORS) as u64;

/// Counts client connections.
#[derive(Debug)]
pub(crate) struct Admission {
    /// What the file descriptor limit allows.
    ceiling: usize,
    /// How many rejected clients may be sent an answer at the same time.
    most_answered: usize,
    open: AtomicUsize,
    answering: AtomicUsize,
    by_source: Mutex<HashMap<ClientNetwork, u32>>,
    refused: [AtomicU64; REASONS.len()],
    idle: Arc<IdleClients>,
    evicted: AtomicU64,
    in_flight: Arc<InFlightByAddress>,
    /// How often clients have made requests, where that is limited.
    pub(crate) rates: Arc<RateLimiter>,
    /// What all buffered requests have.
    pub(crate) buffers: BufferBudgets,
    logged: [LogRateLimit; REASONS.len()],
}

/// Why a connection is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too many connections in total.
    Full,
    /// Too many connections from its address.
    Address,
    /// It uses TLS, which isn't supported.
    Tls,
    /// A load balancer sent something else than a PROXY header.
    NoProxyHeader,
    /// A load balancer sent an invalid PROXY header.
    BadProxyHeader,
    /// A load balancer's PROXY header didn't arrive in time.
    ProxyHeaderTimeout,
}

/// All reasons, by their index.
pub(crate) const REASONS: [&str; 6] =
    ["full", "address", "tls", "no_proxy_header", "bad_proxy_header", "proxy_header_timeout"];

/// What an operator can do about rejected connections, by reason.
const ADVICE: [&str; REASONS.len()] = [
    "raise server.limits.connections or the file descriptor limit",
    "if it is a load balancer, list it in server.trusted_proxies; otherwise raise server.limits.connections_per_address",
    "the client uses https:// on a plain HTTP port",
    "server.proxy_protocol_from lists the address, but no PROXY header came; turn it on in the load balancer, or remove the address",
    "the PROXY header is invalid, incomplete or longer than 4 KiB",
    "the PROXY header didn't arrive within server.limits.header_timeout",
];

/// An IPv4 address, or the first half of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ClientNetwork {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for ClientNetwork {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// A connection's slot among the open ones. Freed when this is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    admission: Arc<Admission>,
    source: Option<ClientNetwork>,
    /// Where an idle connection is found when its slot is needed.
    pub slot: IdleSlot,
}

impl Admission {
    /// For a process with this many file descriptors. Every client may need one for itself and one for its backend.
    #[must_use]
    pub(crate) fn new(descriptors: u64, workers: usize) -> Self {
        let reserve = (descriptors / 8).clamp(RESERVE.0, RESERVE.1);
        let fixed = reserve.saturating_add(RESERVE_PER_WORKER.saturating_mul(workers as u64));
        // However few there are, half of them are for clients and their backends.
        let fixed = fixed.min(descriptors / 2);
        let ceiling = (descriptors.saturating_sub(fixed) / 2).max(1);
        Self {
            ceiling: usize::try_from(ceiling).unwrap_or(usize::MAX),
            most_answered: usize::try_from(reserve / 4).unwrap_or(usize::MAX),
            open: AtomicUsize::new(0),
            answering: AtomicUsize::new(0),
            by_source: Mutex::default(),
            refused: Default::default(),
            idle: Arc::new(IdleClients::new(workers)),
            evicted: AtomicU64::new(0),
            in_flight: Arc::default(),
            rates: Arc::default(),
            buffers: BufferBudgets::default(),
            logged: Default::default(),
        }
    }

    /// How many client connections there may be.
    #[must_use]
    pub(crate) fn most(&self, limits: &ServerLimits) -> usize {
        limits.connections.map_or(self.ceiling, |most| self.ceiling.min(most as usize))
    }

    /// Counts a rejected connection, and logs it unless one was just logged for the same reason.
    pub(crate) fn refuse(&self, reason: Refused, client: &str) {
        let index = reason as usize;
        self.refused[index].fetch_add(1, Ordering::Relaxed);
        if let Some(unlogged) = self.logged[index].allows() {
            tracing::warn!(
                client,
                reason = REASONS[index],
                more_since_last_line = unlogged,
                "connection rejected: {}",
                ADVICE[index]
            );
        }
    }

    /// Takes a slot for a connection of this worker from this address; `None`: a trusted proxy or a load balancer, which
    /// have no limit per address. If no slot is free, the connection that has been idle longest is evicted.
    ///
    /// # Errors
    /// There is none. The caller says so with [`Admission::refuse`].
    pub(crate) fn admit(
        self: &Arc<Self>,
        limits: &ServerLimits,
        address: Option<IpAddr>,
        worker: usize,
    ) -> Result<ConnectionSlot, Refused> {
        // First, so that nothing is evicted for a connection that is rejected anyway.
        let source = match (limits.connections_per_address, address) {
            (Some(most), Some(address)) => Some(self.count_source(address, most)?),
            _ => None,
        };
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.most(limits) {
            // In both cases one of the counted connections goes: this one, or the evicted one.
            self.open.fetch_sub(1, Ordering::Relaxed);
            if !self.idle.evict_oldest(millis(Instant::now())) {
                self.forget_source(source);
                return Err(Refused::Full);
            }
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(ConnectionSlot { admission: Arc::clone(self), source, slot: self.idle.slot(worker) })
    }

    fn count_source(&self, address: IpAddr, most: u32) -> Result<ClientNetwork, Refused> {
        let source = ClientNetwork::from(address);
        let mut by_source = self.by_source.lock();
        let count = by_source.entry(source).or_insert(0);
        if *count >= most {
            return Err(Refused::Address);
        }
        *count += 1;
        Ok(source)
    }

    fn forget_source(&self, source: Option<ClientNetwork>) {
        let Some(source) = source else { return };
        let mut by_source = self.by_source.lock();
        if let Some(count) = by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                by_source.remove(&source);
            }
        }
    }

    /// The requests in flight of this address, for an HTTP/2 connection.
    pub(crate) fn requests_of(&self, address: IpAddr, most: u32) -> AddressRequests {
        self.in_flight.of(address, most)
    }

    /// Permission to send a rejected client an answer; `None`: too many are being answered already, so close it without
    /// one. A flood must not use up the reserved descriptors.
    pub(crate) fn answer_turn(self: &Arc<Self>) -> Option<Turn> {
        let turn = Turn(Arc::clone(self));
        (self.answering.fetch_add(1, Ordering::Relaxed) < self.most_answered).then_some(turn)
    }

    /// The connections rejected and evicted since the start.
    #[must_use]
    pub(crate) fn counts(&self) -> ClientCounts {
        ClientCounts {
            refused: REASONS.into_iter().zip(self.refused()).collect(),
            evicted: self.evicted(),
            requests_refused: self.in_flight.refused(),
            rates_evicted: self.rates.evicted(),
            buffered: [("memory", self.buffers.memory_bytes()), ("disk", self.buffers.disk_bytes())],
        }
    }

    /// Idle connections closed since the start to make room for others.
    #[must_use]
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Connections rejected since the start, by reason.
    #[must_use]
    pub(crate) fn refused(&self) -> [u64; REASONS.len()] {
        std::array::from_fn(|reason| self.refused[reason].load(Ordering::Relaxed))
    }
}

impl ConnectionSlot {
    /// Counts the connection for this address, if it counts for none yet.
    ///
    /// # Errors
    /// If the address has as many connections as it may.
    pub(crate) fn count_for(&mut self, limits: &ServerLimits, address: IpAddr) -> Result<(), Refused> {
        if let (Some(most), None) = (limits.connections_per_address, self.source) {
            self.source = Some(self.admission.count_source(address, most)?);
        }
        Ok(())
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        if self.slot.release() == Left::Free {
            self.admission.open.fetch_sub(1, Ordering::Relaxed);
        }
        self.admission.forget_source(self.source);
    }
}

/// A rejected client that is being sent an answer.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Admission>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections: Option<u32>, per_address: Option<u32>) -> ServerLimits {
        let text = "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n\
                    [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n";
        let limits = crate::config::parse(text).unwrap().server.limits;
        ServerLimits { connections, connections_per_address: per_address, ..limits }
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn one_address_can_not_take_every_place() {
        let admission = Arc::new(Admission::new(20_000, 2));
        let limits = limits(None, Some(2));
        let first = admission.admit(&limits, address("192.0.2.1"), 0).unwrap();
        let _second = admission.admit(&limits, address("::ffff:192.0.2.1"), 0).unwrap();
        assert_eq!(admission.admit(&limits, address("192.0.2.1"), 0).unwrap_err(), Refused::Address);
        let _other = admission.admit(&limits, address("192.0.2.2"), 0).unwrap();
        drop(first);
        let _again = admission.admit(&limits, address("192.0.2.1"), 0).unwrap();
        assert_eq!(
            admission.refused(),
            [0; REASONS.len()],
            "it counts what was turned away, not what might have been"
        );
        admission.refuse(Refused::Address, "192.0.2.1");
        assert_eq!(admission.refused()[Refused::Address as usize], 1);
        assert_eq!(admission.refused().iter().sum::<u64>(), 1);
        let mut late = admission.admit(&limits, None, 0).unwrap();
        assert_eq!(late.count_for(&limits, "192.0.2.1".parse().unwrap()), Err(Refused::Address));
        late.count_for(&limits, "192.0.2.3".parse().unwrap()).unwrap();
        assert_eq!(admission.by_source.lock().len(), 3);
        drop(late);
        assert_eq!(admission.by_source.lock().len(), 2);
        let _proxies = [(); 5].map(|()| admission.admit(&limits, None, 0).unwrap());
        assert_eq!(admission.open.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn an_ipv6_address_counts_by_its_64() {
        let admission = Arc::new(Admission::new(20_000, 2));
        let limits = limits(None, Some(1));
        let _one = admission.admit(&limits, address("2001:db8::1"), 0).unwrap();
        assert_eq!(admission.admit(&limits, address("2001:db8::ffff:1"), 0).unwrap_err(), Refused::Address);
        let _other = admission.admit(&limits, address("2001:db8:0:1::1"), 0).unwrap();
    }

    #[test]
    fn the_places_are_bounded_by_the_descriptors_whatever_is_asked_for() {
        assert_eq!(Admission::new(20_000, 2).most(&limits(None, None)), (20_000 - 1024 - 528) / 2);
        assert_eq!(Admission::new(2048, 2).most(&limits(Some(10_000), None)), (2048 - 256 - 528) / 2);
        assert_eq!(Admission::new(1024, 2).most(&limits(Some(10), None)), 10);
        assert_eq!(Admission::new(1024, 64).most(&limits(None, None)), 1024 / 4);
        assert_eq!(Admission::new(3, 2).most(&limits(None, None)), 1);
        let admission = Arc::new(Admission::new(1024, 2));
        let limits = limits(Some(1), None);
        let place = admission.admit(&limits, address("192.0.2.1"), 0).unwrap();
        assert_eq!(admission.admit(&limits, address("192.0.2.1"), 0).unwrap_err(), Refused::Full);
        drop(place);
        assert!(admission.admit(&limits, address("192.0.2.1"), 0).is_ok());
    }

    #[test]
    fn an_evicted_connection_hands_its_slot_over_once_and_only_to_an_admitted_one() {
        let admission = Arc::new(Admission::new(20_000, 2));
        let limits = limits(Some(2), Some(2));
        let idle = |place: &mut ConnectionSlot, at| {
            place.slot.set_idle(at, &std::task::Context::from_waker(std::task::Waker::noop()));
        };
        let mut first = admission.admit(&limits, address("192.0.2.1"), 0).unwrap();
        let mut second = admission.admit(&limits, address("192.0.2.1"), 1).unwrap();
        idle(&mut first, 2);
        idle(&mut second, 1);
        assert_eq!(admission.admit(&limits, address("192.0.2.1"), 0).unwrap_err(), Refused::Address);
        assert!(!first.slot.is_evicted() && !second.slot.is_evicted());
        let third = admission.admit(&limits, address("192.0.2.2"), 0).unwrap();
        assert!(second.slot.is_evicted() && !first.slot.is_evicted());
        drop(second);
        assert_eq!(admission.open.load(Ordering::Relaxed), 2);
        assert!(first.slot.set_busy());
        assert_eq!(admission.admit(&limits, address("192.0.2.2"), 0).unwrap_err(), Refused::Full);
        assert_eq!(admission.by_source.lock().len(), 2, "who is turned away is not remembered");
        drop((first, third));
        assert_eq!((admission.open.load(Ordering::Relaxed), admission.evicted()), (0, 1));
        assert!(admission.by_source.lock().is_empty());
    }

    #[test]
    fn nothing_is_remembered_of_an_address_without_a_connection() {
        let admission = Arc::new(Admission::new(20_000, 2));
        let limits = limits(None, Some(5));
        let places: Vec<ConnectionSlot> = (0..100u32)
            .map(|n| admission.admit(&limits, Some(IpAddr::from(n.to_be_bytes())), 0).unwrap())
            .collect();
        assert_eq!(admission.by_source.lock().len(), 100);
        drop(places);
        assert!(admission.by_source.lock().is_empty());
    }

    #[test]
    fn a_flood_is_closed_without_a_word() {
        let admission = Arc::new(Admission::new(1024, 2));
        let turns: Vec<Turn> = std::iter::from_fn(|| admission.answer_turn()).take(1000).collect();
        assert_eq!(turns.len(), 32);
        drop(turns);
        assert!(admission.answer_turn().is_some());
    }
}
