//! Settings: the headers that the app gets about its clients, and which client headers are forwarded.

use std::net::IpAddr;

use crate::network::Network;

/// What uh-proxy tells the app about its clients, and which client headers it passes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderPolicy {
    /// Proxies whose forwarding headers are trusted.
    pub trusted_proxies: Vec<Network>,
    /// Whether to send RFC 7239's `Forwarded` to the app.
    pub forwarded: bool,
    /// Whether to send `Via` to the app.
    pub via: bool,
    /// Whether to send `X-Request-Start` to the app.
    pub request_start: bool,
    /// What to do with a request without a valid `traceparent`.
    pub traceparent: Traceparent,
    /// What to do with a field whose name some apps confuse with another's.
    pub underscores: Underscores,
    /// What to do with the `Server` field of the app's responses.
    pub server: ServerField,
}

impl HeaderPolicy {
    /// Whether this address is a trusted proxy.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(address))
    }
}

/// What to do with a request without a valid `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Traceparent {
    /// Pass it on without one.
    #[default]
    Pass,
    /// Add one.
    Make,
}

/// What to do with a request field whose name has characters other than letters, digits and hyphens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    /// Drop it.
    #[default]
    Drop,
    /// Pass it on, unless an app might confuse it with a field that uh-proxy sets.
    Pass,
    /// Reject the request.
    Refuse,
}

/// What to do with the `Server` field of the app's responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerField {
    /// Pass it on.
    #[default]
    Pass,
    /// Drop it.
    Drop,
}
