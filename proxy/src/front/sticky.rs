//! The same endpoint for a client: by a cookie of uh-proxy's, or by the client's address.
//!
//! The cookie holds a keyed hash of an endpoint of one backend. It names no address, and after a switch it is nobody's, so
//! that the client gets an endpoint of the new backend, and another cookie. By address, each endpoint has a score with each
//! client (rendezvous hashing), and the highest one wins: if an endpoint goes, only its own clients move.
//!
//! Either way, an endpoint that fails its probes or couldn't be reached comes after those that can.

use std::sync::OnceLock;

use sha2::{Digest as _, Sha256};
use uh_http1::cookie::{self, OwnCookie};
use uh_http1::field;
use uh_http1::forwarded::Scheme;
use uh_http1::request::RequestHead;

use super::admission::ClientNetwork;
use super::client::Client;
use super::endpoint::Endpoint;
use super::relay::Relay;
use super::{Backend, Lease};
use crate::config::{Service, Sticky};
use crate::observe::stuck::Stuck;
use crate::state::cookie_key::CookieKey;

/// How many bytes of the hash are in a cookie: nobody guesses them, and no two endpoints share them.
const TAG_BYTES: usize = 16;

/// The key of cookies, once a service needs one.
#[derive(Debug, Default)]
pub(crate) struct StickyKey(OnceLock<CookieKey>);

impl StickyKey {
    /// Whether a service needs one and there is none yet.
    pub(crate) fn is_missing(&self, services: &[Service]) -> bool {
        let needs = |service: &Service| matches!(service.sticky, Some(Sticky::Cookie(_)));
        self.0.get().is_none() && services.iter().any(needs)
    }

    /// From now on, this one. The first one stays.
    pub(crate) fn set(&self, key: CookieKey) {
        self.0.get_or_init(|| key);
    }

    /// What stands for an endpoint in a cookie.
    fn tag<'a>(&self, lease: &Lease, endpoint: &'a Endpoint) -> Option<&'a str> {
        let key = self.0.get()?;
        Some(endpoint.tag(|| {
            let info = lease.owner();
            let mut hash = Sha256::new();
            hash.update(key.bytes());
            for part in [info.service.name.as_str(), info.backend.name().as_str(), endpoint.text()] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
            hash.finalize()[..TAG_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
        }))
    }
}

/// Which endpoint of a backend a request should reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Affinity {
    /// Any.
    None,
    /// This one, by its index.
    Endpoint(usize),
    /// The one with the highest score for this client.
    Client(u64),
}

impl Affinity {
    /// Where an endpoint comes, among those that are as healthy: smallest first.
    pub(super) fn rank(self, index: usize, endpoint: &Endpoint) -> u64 {
        match self {
            Self::None => endpoint.in_flight() as u64,
            Self::Endpoint(wanted) if index == wanted => 0,
            Self::Endpoint(_) => endpoint.in_flight() as u64 + 1,
            Self::Client(client) => !mixed(client ^ endpoint.seed()),
        }
    }

    /// The endpoint that it should reach, if that is certain.
    fn wanted(self, backend: &Backend) -> Option<usize> {
        match self {
            Self::None => None,
            Self::Endpoint(index) => Some(index),
            Self::Client(_) => {
                let ranked = backend.endpoints.iter().enumerate();
                ranked.min_by_key(|(index, endpoint)| self.rank(*index, endpoint)).map(|(index, _)| index)
            }
        }
    }
}

/// Which endpoint of its lease's backend a request should reach.
pub(super) fn affinity<L>(client: &Client<L>, request: &RequestHead, lease: &Lease) -> Affinity {
    let info = lease.owner();
    let endpoints = &info.backend.endpoints;
    match &info.service.sticky {
        Some(_) if endpoints.len() < 2 => Affinity::None,
        None => Affinity::None,
        Some(Sticky::Address) => Affinity::Client(client_hash(client, request)),
        Some(Sticky::Cookie(name)) => {
            let key = &client.worker.sticky;
            let is_of = |value: &[u8], endpoint: &Endpoint| {
                key.tag(lease, endpoint).is_some_and(|tag| tag.as_bytes() == value)
            };
            cookie::values_of(client.request_head(), name.as_bytes())
                .find_map(|value| endpoints.iter().position(|endpoint| is_of(value, endpoint)))
                .map_or(Affinity::None, Affinity::Endpoint)
        }
    }
}

/// Removes uh-proxy's cookie from the head for the backend.
pub(super) fn hide(service: &Service, head: &mut Vec<u8>) {
    if let Some(Sticky::Cookie(name)) = &service.sticky {
        cookie::hide(head, name.as_bytes());
    }
}

/// This endpoint has answered: counts whether it is the one that the client had, and lets it have the next request, too.
pub(super) fn remember<L>(
    client: &Client<L>,
    request: &RequestHead,
    lease: &Lease,
    answered: usize,
    relay: &mut Relay,
) {
    let info = lease.owner();
    let (Some(sticky), Some(endpoint)) = (&info.service.sticky, info.backend.endpoints.get(answered)) else {
        return;
    };
    if info.backend.endpoints.len() < 2 {
        return;
    }
    let stuck = match affinity(client, request, lease).wanted(&info.backend) {
        None => Stuck::New,
        Some(wanted) if wanted == answered => Stuck::Kept,
        Some(_) => Stuck::Moved,
    };
    info.meters.lane(lease.worker()).stuck(stuck);
    let (Sticky::Cookie(name), true) = (sticky, stuck != Stuck::Kept) else { return };
    let Some(value) = client.worker.sticky.tag(lease, endpoint) else { return };
    let path = match info.service.path_prefix.trim_end_matches('/') {
        "" => "/",
        prefix => prefix,
    };
    let secure = request.scheme == Scheme::Https;
    let head = relay.down.head();
    let start = field::last_head(head);
    OwnCookie { name, value, path, secure }.add(head, start);
}

/// The part of a client's address by which it is recognised, as one number.
fn client_hash<L>(client: &Client<L>, request: &RequestHead) -> u64 {
    match client.network(request) {
        ClientNetwork::V4(address) => mixed(u64::from(address)),
        ClientNetwork::V6(network) => mixed(network ^ (1 << 63 | 1)),
    }
}

/// Stands for an endpoint in the scores of clients. The same in all versions of uh-proxy: FNV-1a, 64 bits.
pub(super) fn seed(address: &str) -> u64 {
    let add = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    mixed(address.bytes().fold(0xcbf2_9ce4_8422_2325, add))
}

/// Spreads the bits: the finalizer of splitmix64.
fn mixed(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uh_switching::Health;

    fn endpoints(count: u16) -> Vec<Endpoint> {
        let endpoint = |port| Endpoint::new(format!("127.0.0.1:{port}").parse().unwrap(), Health::Healthy);
        (3000..3000 + count).map(endpoint).collect()
    }

    fn best(endpoints: &[Endpoint], client: u32) -> usize {
        let affinity = Affinity::Client(mixed(u64::from(client)));
        let ranked = endpoints.iter().enumerate();
        ranked.min_by_key(|(index, endpoint)| affinity.rank(*index, endpoint)).unwrap().0
    }

    #[test]
    fn clients_are_spread_evenly_and_a_change_moves_few() {
        const CLIENTS: u32 = 60_000;
        let (five, six) = (endpoints(5), endpoints(6));
        let mut counts = [0_u32; 6];
        let mut moved = 0;
        for client in 0..CLIENTS {
            // Neighbours, as in an office or at a provider.
            let client = 0x0a00_0000 + client;
            let (before, after) = (best(&five, client), best(&six, client));
            counts[after] += 1;
            assert!(before == after || after == 5, "a client moved between two endpoints that stayed");
            moved += u32::from(before != after);
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        assert!((9_500..10_500).contains(&moved), "{moved}");
    }
}
