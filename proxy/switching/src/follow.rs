//! Following: the routing of another process, taken over as it is.
//!
//! While uh-proxy is replaced, the old process follows the new one, and before that the other way round. A follower decides
//! nothing. It keeps the activations of what hasn't changed, so that its counts stay exact.

use std::collections::BTreeMap;
use std::sync::Arc;

use uh_protocol::ServiceName;

use crate::backend::Backend;
use crate::record::{RoutingRecord, ServiceRecord};
use crate::service::Service;
use crate::snapshot::{Active, ServiceState, Snapshot};
use crate::split::Split;

impl<S: Service> Snapshot<S> {
    /// The routing after another process's. Services that it doesn't know stay as they are, and its services that aren't
    /// configured here are left out.
    #[must_use]
    pub fn following(&self, record: &RoutingRecord) -> Self {
        let RoutingRecord { generation, services } = record;
        Self { generation: *generation, leap: 0, services: self.services_of(services, *generation) }
    }

    fn services_of(
        &self,
        records: &BTreeMap<ServiceName, ServiceRecord>,
        generation: u64,
    ) -> Vec<ServiceState<S>> {
        let of = |state: &ServiceState<S>| {
            let record = records.get(state.config.name());
            record.map_or_else(|| state.clone(), |record| state.following(record, generation))
        };
        self.services.iter().map(of).collect()
    }
}

impl<S: Service> ServiceState<S> {
    fn following(&self, record: &ServiceRecord, generation: u64) -> Self {
        // It has a backend, so there is a next state.
        let Some(next) = Self::first(Arc::clone(&self.config), Some(record), generation) else {
            return self.clone();
        };
        let backend = |next: Arc<Backend>| match self
            .backend(&next.name)
            .filter(|now| self.is_that(now, &next, record))
        {
            Some(current) => Arc::clone(current),
            None => next,
        };
        let backends: Vec<Arc<Backend>> = next.backends.into_iter().map(backend).collect();
        let is_kept = |active: &Active| {
            let current = self.backend(&active.backend);
            current.is_some_and(|current| backends.iter().any(|backend| Arc::ptr_eq(backend, current)))
        };
        let kept = |next: Active, current: Option<&Active>| {
            current
                .filter(|current| current.backend == next.backend && is_kept(current))
                .cloned()
                .unwrap_or(next)
        };
        let split_now = self.split.as_ref();
        let split = next.split.map(|split| {
            let same = split_now.filter(|now| now.assignment.salt == split.assignment.salt);
            Split { new: kept(split.new.clone(), same.map(|now| &now.new)), ..split }
        });
        let active = kept(next.active, Some(&self.active));
        Self { active, split, backends, ..next }
    }

    /// Whether a backend is registered as it was. One that was withdrawn and isn't any more has been registered again, maybe
    /// with the same addresses.
    fn is_that(&self, current: &Backend, next: &Backend, record: &ServiceRecord) -> bool {
        let addresses: Vec<_> = next.addresses().cloned().collect();
        let returned = self.is_withdrawn(&current.name) && !record.withdrawn.contains(&current.name);
        current.version == next.version && current.has_addresses(&addresses) && !returned
    }
}
