//! Applies a new configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use uh_protocol::{Address, ServiceName};

use super::split::in_split;
use super::{Draft, Effect};
use crate::backend::Backend;
use crate::record::ServiceRecord;
use crate::refusal::Refusal;
use crate::service::{BackendDefinition, Service, definition};
use crate::snapshot::{Active, ServiceState};
use crate::split::Split;

impl<S: Service> Draft<'_, S> {
    /// A changed service begins a new activation of its active backend; exchanges in flight finish with the settings
    /// they began with. An unchanged service stays as it is. A removed one gets no new requests.
    pub(super) fn reload(
        &mut self,
        services: &[Arc<S>],
        known: &BTreeMap<ServiceName, ServiceRecord>,
    ) -> Result<Effect, Refusal> {
        let routed =
            |service: &Arc<S>| self.services.iter().find(|state| state.config.name() == service.name());
        for service in services {
            routed(service).map_or(Ok(()), |state| check(state, &**service))?;
        }
        let same = |(state, service): (&ServiceState<S>, &Arc<S>)| state.config.is_same(service);
        if self.services.len() == services.len() && self.services.iter().zip(services).all(same) {
            return Ok(Effect::Nothing);
        }
        let since = self.before.next_generation();
        let state = |service: &Arc<S>| match routed(service) {
            Some(state) if state.config.is_same(service) => Some(state.clone()),
            Some(state) => Some(renewed(state, service, since)),
            None => ServiceState::first(Arc::clone(service), known.get(service.name()), since),
        };
        self.services = services.iter().filter_map(state).collect();
        Ok(Effect::Routing)
    }
}

fn check<S: Service>(state: &ServiceState<S>, service: &S) -> Result<(), Refusal> {
    let active = &state.active.backend;
    if definition(service, active).is_none() {
        return Err(Refusal::ActiveRemoved { service: service.name().clone(), backend: active.clone() });
    }
    let removed = state.split.as_ref().filter(|split| definition(service, &split.new.backend).is_none());
    removed.and_then(|split| in_split(state, &split.new.backend)).map_or(Ok(()), Err)
}

/// A service under the new configuration. Its active backend is one of its backends.
fn renewed<S: Service>(old: &ServiceState<S>, service: &Arc<S>, since: u64) -> ServiceState<S> {
    let backend = |configured| renewed_backend(old, &**service, configured, since);
    let backends: Vec<Arc<Backend>> = service.backends().iter().map(backend).collect();
    let has = |name: &_| definition(&**service, name).is_some();
    ServiceState {
        config: Arc::clone(service),
        backends,
        active: Active { backend: old.active.backend.clone(), since },
        previous: old.previous.clone().filter(has),
        last_switch: old.last_switch,
        maintenance: old.maintenance.clone(),
        withdrawn: old.withdrawn.iter().filter(|name| has(name)).cloned().collect(),
        split: old.split.clone().map(|split| Split { new: Active { since, ..split.new }, ..split }),
    }
}

/// A backend under the new configuration. An unchanged endpoint with unchanged health checks is still the same one.
fn renewed_backend<S: Service>(
    old: &ServiceState<S>,
    service: &S,
    configured: &BackendDefinition,
    since: u64,
) -> Arc<Backend> {
    let name = &configured.name;
    let (addresses, version) = (configured.endpoints.as_slice(), configured.version.as_deref());
    let Some(current) = old.backend(name) else {
        return Arc::new(Backend::new(name.clone(), version, addresses, since));
    };
    let before = definition(&*old.config, name);
    let registered = before.is_none_or(|before| !current.is_as_configured(before));
    let current_addresses: Vec<Address> = current.addresses().cloned().collect();
    let (addresses, version) = if registered {
        (current_addresses.as_slice(), current.version.as_deref())
    } else {
        (addresses, version)
    };
    let mut backend = Backend::new(name.clone(), version, addresses, since);
    if old.config.is_probed_like(service) {
        for endpoint in &mut backend.endpoints {
            if let Some(kept) = current.endpoints.iter().find(|kept| kept.address == endpoint.address) {
                endpoint.since = kept.since;
            }
        }
    }
    Arc::new(backend)
}
