//! What the core needs to know of how a service is configured.

use uh_protocol::{Address, BackendName, ServiceName};

/// A service as it is configured. The core asks for what it routes by; the rest it carries.
pub trait Service: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> &ServiceName;

    /// Which hosts it answers for; empty: any host that no other service names.
    fn hosts(&self) -> &[String];

    /// Which paths it answers for, on segment boundaries.
    fn path_prefix(&self) -> &str;

    /// Its backends; at least one.
    fn backends(&self) -> &[BackendDefinition];

    /// Active while nothing else is known.
    fn first_active(&self) -> &BackendName;

    /// Whether somebody probes its endpoints.
    fn is_probed(&self) -> bool;

    /// Whether its endpoints are probed as the other's are, so that what the probes think of one still holds.
    fn is_probed_like(&self, other: &Self) -> bool;

    /// Whether it is configured as the other is, but for [`Service::first_active`].
    fn is_same(&self, other: &Self) -> bool;
}

/// One backend as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendDefinition {
    /// Its name.
    pub name: BackendName,
    /// At least one.
    pub endpoints: Vec<Address>,
    /// The app's version, where it is known beforehand.
    pub version: Option<String>,
}

/// The definition of this backend.
pub(crate) fn definition<'a>(service: &'a impl Service, name: &BackendName) -> Option<&'a BackendDefinition> {
    service.backends().iter().find(|definition| definition.name == *name)
}
