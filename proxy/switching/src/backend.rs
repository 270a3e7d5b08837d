//! A registered backend, as a value. The run-time state of its endpoints is kept elsewhere, in
//! [`Registered`](crate::Registered).

use std::fmt;
use std::sync::Arc;

use uh_protocol::{Address, BackendName};

use crate::service::BackendDefinition;

/// The health of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Probing is on, but there haven't been enough probes yet.
    Unknown,
    /// Enough good probes in a row.
    Healthy,
    /// Enough bad probes in a row.
    Unhealthy,
    /// Probing is off: counts as healthy, and is reported as unknown.
    NotProbed,
}

impl Health {
    /// The value in the status.
    #[must_use]
    pub fn as_option(self) -> Option<bool> {
        match self {
            Self::Healthy => Some(true),
            Self::Unhealthy => Some(false),
            Self::Unknown | Self::NotProbed => None,
        }
    }

    /// Whether traffic may be moved to it without force.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::Healthy | Self::NotProbed)
    }

    /// The health of a backend with several endpoints: healthy if any is, since that is enough to receive traffic.
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

/// One endpoint of one registration. The same address registered again is a new endpoint, without the state of the
/// first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointId {
    /// Its address.
    pub address: Address,
    /// The generation in which it was registered.
    pub since: u64,
}

/// A registered backend.
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
    /// A backend registered in this generation.
    #[must_use]
    pub fn new(name: BackendName, version: Option<&str>, addresses: &[Address], since: u64) -> Self {
        let endpoint = |address: &Address| EndpointId { address: address.clone(), since };
        Self { name, version: version.map(Arc::from), endpoints: addresses.iter().map(endpoint).collect() }
    }

    /// Whether it is as configured, without a registration at run time.
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
