//! Which settings apply to an exchange.

use std::sync::Arc;

use super::Lease;
use crate::config::{PathId, PathSettings, Service};
use uh_http1::request::RequestHead;

/// The settings of an exchange: those of its service for its path. They are the same from its first byte to its last,
/// even if the service is reconfigured meanwhile and another attempt goes to a new activation.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// `None`: the service of the exchange's lease. So that most exchanges don't count another reference to it, which all
    /// workers would write to.
    service: Option<Arc<Service>>,
    /// Which of its settings.
    pub(super) path: PathId,
    /// How its backend was chosen.
    pub(super) choice: Choice,
}

/// How the backend of an exchange was chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Choice {
    /// It is the active one, or where a split sends the client.
    #[default]
    Routed,
    /// It is the previous one, which the request names by its deployment id.
    Named,
    /// A preview's token names it.
    Preview,
}

impl Applied {
    /// For an exchange with a lease.
    pub(super) fn of_lease(lease: &Lease, request: &RequestHead, head: &[u8]) -> Self {
        let path = lease.owner().service.rules.find(request.path.of_head(head));
        Self { path, ..Self::default() }
    }

    /// For an exchange of this service without a lease.
    pub(super) fn of_service(service: Arc<Service>, request: &RequestHead, head: &[u8]) -> Self {
        let path = service.rules.find(request.path.of_head(head));
        Self { service: Some(service), path, choice: Choice::Routed }
    }

    /// The same without the lease, which is dropped.
    pub(super) fn without_lease(self, lease: &Lease) -> Self {
        Self { service: Some(self.service.unwrap_or_else(|| Arc::clone(&lease.owner().service))), ..self }
    }

    /// The exchange goes on with another lease. The settings stay.
    pub(super) fn goes_on(&mut self, before: &Lease, after: &Lease) {
        let (before, after) = (&before.owner().service, &after.owner().service);
        if self.service.is_none() && !Arc::ptr_eq(before, after) {
            self.service = Some(Arc::clone(before));
        }
    }

    /// Whether the exchange is a preview.
    pub(super) fn is_preview(&self) -> bool {
        self.choice == Choice::Preview
    }

    /// The settings of an exchange with this lease.
    pub(super) fn settings<'a>(&'a self, lease: &'a Lease) -> &'a PathSettings {
        self.service.as_ref().unwrap_or(&lease.owner().service).rules.at(self.path)
    }

    /// The service of an exchange without a lease, if it is for one.
    pub(super) fn service(&self) -> Option<&Service> {
        self.service.as_deref()
    }

    /// The settings of an exchange, if it is for a service.
    pub(super) fn any_settings<'a>(&'a self, lease: Option<&'a Lease>) -> Option<&'a PathSettings> {
        let of_lease = || lease.map(|lease| &*lease.owner().service);
        Some(self.service().or_else(of_lease)?.rules.at(self.path))
    }
}
