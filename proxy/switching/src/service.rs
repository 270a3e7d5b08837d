//! What the core needs from a service's configuration.

use uh_protocol::{Address, BackendName, ServiceName};

/// A configured service. The core uses what it routes by; the rest is opaque.
pub trait Service: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> &ServiceName;

    /// The hosts it serves; empty: any host that no other service names.
    fn hosts(&self) -> &[String];

    /// The path prefix it serves, on segment boundaries.
    fn path_prefix(&self) -> &str;

    /// Its backends; at least one.
    fn backends(&self) -> &[BackendDefinition];

    /// The active backend when there is no earlier state.
    fn first_active(&self) -> &BackendName;

    /// Whether requests that the active backend has nothing for may be asked of the previous one.
    fn asks_previous(&self) -> bool {
        false
    }

    /// Whether its endpoints are probed.
    fn is_probed(&self) -> bool;

    /// Whether its health checks equal the other's, so that health results remain valid.
    fn is_probed_like(&self, other: &Self) -> bool;

    /// Whether its configuration equals the other's, except for [`Service::first_active`].
    fn is_same(&self, other: &Self) -> bool;
}

/// One configured backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendDefinition {
    /// Its name.
    pub name: BackendName,
    /// At least one.
    pub endpoints: Vec<Address>,
    /// The app's version, if it's known in advance.
    pub version: Option<String>,
}

/// The definition of this backend.
pub(crate) fn definition<'a>(service: &'a impl Service, name: &BackendName) -> Option<&'a BackendDefinition> {
    service.backends().iter().find(|definition| definition.name == *name)
}
