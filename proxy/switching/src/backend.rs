//! A backend as it is registered: a value. What is found out about its endpoints is kept elsewhere, in
//! [`Registered`](crate::Registered).

use std::fmt;
use std::sync::Arc;

use uh_protocol::{Address, BackendName};

use crate::service::BackendDefinition;

/// What the probes think of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Probing is on, but there have not been enough probes to tell.
    Unknown,
    /// Enough good probes in a row.
    Healthy,
    /// Enough bad probes in a row.
    Unhealthy,
    /// Nobody probes: taken as healthy, and said to be unknown.
    NotProbed,
}

impl Health {
    /// As the status shows it.
    #[must_use]
    pub fn as_option(self) -> Option<bool> {
        match self {
            Self::Healthy => Some(true),
            Self::Unhealthy => Some(false),
            Self::Unknown | Self::NotProbed => None,
        }
    }

    /// Whether traffic may be moved there without force.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::Healthy | Self::NotProbed)
    }

    /// What several endpoints make of their backend: healthy if any is, as that is enough to take traffic.
    #[must_use]
    pub fn of_any(endpoints: impl Iterator<Item = Self>) -> Self {
        let rank = |health: &Self| match health {
            Self::NotProbed => 0,
            Self::Healthy => 1,
            Self::Unknown => 2,
            Self::Unhealthy => 3,
        };
        endpoints.min_by_key(rank).unwrap_or(Self::Unhealthy)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Unknown => "unknown",
            Self::NotProbed => "not probed",
        })
    }
}

/// One endpoint of one registration. The same address registered again is another endpoint: what was found out about
/// the first one says nothing about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointId {
    /// Where it is.
    pub address: Address,
    /// The generation in which it was registered.
    pub since: u64,
}

/// A backend as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub name: BackendName,
    /// The app's version, if it was registered with one.
    pub version: Option<Arc<str>>,
    /// At least one.
    pub endpoints: Box<[EndpointId]>,
}

impl Backend {
    /// A backend that is registered in this generation.
    #[must_use]
    pub fn new(name: BackendName, version: Option<&str>, addresses: &[Address], since: u64) -> Self {
        let endpoint = |address: &Address| EndpointId { address: address.clone(), since };
        Self { name, version: version.map(Arc::from), endpoints: addresses.iter().map(endpoint).collect() }
    }

    /// Whether it is as a configuration has it, and not as it was registered at run time.
    #[must_use]
    pub fn is_as_configured(&self, configured: &BackendDefinition) -> bool {
        self.version.as_deref() == configured.version.as_deref() && self.has_addresses(&configured.endpoints)
    }

    /// The addresses of its endpoints.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.endpoints.iter().map(|endpoint| &endpoint.address)
    }

    /// Whether these are the addresses of its endpoints, in this order.
    #[must_use]
    pub fn has_addresses(&self, addresses: &[Address]) -> bool {
        self.addresses().eq(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_healthy_endpoint_is_enough() {
        use Health::{Healthy, NotProbed, Unhealthy, Unknown};
        for (endpoints, whole) in [
            ([Unknown, Unknown], Unknown),
            ([Unhealthy, Unknown], Unknown),
            ([Unhealthy, Healthy], Healthy),
            ([Unhealthy, Unhealthy], Unhealthy),
            ([NotProbed, NotProbed], NotProbed),
        ] {
            assert_eq!(Health::of_any(endpoints.into_iter()), whole, "{endpoints:?}");
        }
    }
}
