//! What the app is told of its clients, and which of their words are passed on: settings of whoever uses this package.

use std::net::IpAddr;

use crate::network::Network;

/// What the app is told of its clients, and which of their words are passed on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderPolicy {
    /// Whose word on the client before them is believed.
    pub trusted_proxies: Vec<Network>,
    /// Whether the app is sent RFC 7239's `Forwarded`.
    pub forwarded: bool,
    /// Whether the app is sent `Via`.
    pub via: bool,
    /// Whether the app is sent `X-Request-Start`.
    pub request_start: bool,
    /// What becomes of a request without a valid `traceparent`.
    pub traceparent: Traceparent,
    /// What becomes of a field whose name some apps mistake for another's.
    pub underscores: Underscores,
    /// What becomes of the `Server` field of the app's responses.
    pub server: ServerField,
}

impl HeaderPolicy {
    /// Whether what this address says of others is believed.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(address))
    }
}

/// What becomes of a request without a valid `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Traceparent {
    /// It stays without.
    #[default]
    Pass,
    /// It gets one.
    Make,
}

/// What becomes of a request field with other characters than letters, digits and hyphens in its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    /// It is left out.
    #[default]
    Drop,
    /// It is passed on, unless an app might take it for a field that we answer for.
    Pass,
    /// The request is refused.
    Refuse,
}

/// What becomes of the `Server` field of the app's responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerField {
    /// It is passed on.
    #[default]
    Pass,
    /// It is left out.
    Drop,
}
