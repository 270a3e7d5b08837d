//! Putting another configuration in force. What was decided at run time wins over the file: which backend is active,
//! and how backends are registered.

use std::sync::Arc;

use uh_protocol::BackendName;

use super::{Refusal, Restored, Switchboard, Writer, first_health};
use crate::config;
use crate::switching::{Address, Backend, LanePayload, ServiceState, Snapshot};

impl<P: LanePayload> Switchboard<P> {
    /// Puts these services in force, all at once. A service that is different gets a fresh activation of the backend
    /// that is active; what is in flight ends under the settings with which it began. One that is not different keeps
    /// its activation, idle connections and all. A service that is gone gets no new requests; its exchanges finish.
    /// `restored` says what is known of a service that was not there before. Returns the generation, which has grown if
    /// anything is different.
    ///
    /// # Errors
    /// Refused; then nothing has changed.
    pub fn reload(
        &self,
        services: &[config::Service],
        restored: impl Fn(&config::Service) -> Restored,
    ) -> Result<u64, Refusal> {
        let mut writer = self.writer.lock();
        let old = self.snapshot.load_full();
        let known =
            |service: &config::Service| old.services.iter().find(|state| state.config.name == service.name);
        services
            .iter()
            .try_for_each(|service| known(service).map_or(Ok(()), |state| check(state, service)))?;
        let same = |(state, service): (&ServiceState<P>, &config::Service)| is_same(&state.config, service);
        if old.services.len() == services.len() && old.services.iter().zip(services).all(same) {
            return Ok(old.generation);
        }
        let state = |service: &config::Service| match known(service) {
            Some(state) if is_same(&state.config, service) => Some(state.clone()),
            Some(state) => self.renewed(&mut writer, state, service),
            None => self.first_state(&mut writer, service, restored(service)),
        };
        let states = services.iter().filter_map(state).collect();
        let generation = writer.next_generation(old.generation);
        self.snapshot.store(Arc::new(Snapshot::new(generation, states)));
        Ok(generation)
    }

    fn renewed(
        &self,
        writer: &mut Writer,
        old: &ServiceState<P>,
        service: &config::Service,
    ) -> Option<ServiceState<P>> {
        let mut state = old.clone();
        state.config = Arc::new(service.clone());
        state.backends =
            service.backends.iter().map(|backend| renewed_backend(old, service, backend)).collect();
        let active = Arc::clone(state.backend(&old.active_backend().name)?);
        state.active = self.activate(writer, &state.config, &active);
        state.withdrawn.retain(|name| service.backends.iter().any(|backend| backend.name == *name));
        state.previous = old.previous.clone().filter(|name| state.backend(name).is_some());
        Some(state)
    }
}

/// Whether a service is as it was. `active` is for the very first start, and of no interest later.
fn is_same(old: &config::Service, new: &config::Service) -> bool {
    *old == config::Service { active: old.active.clone(), ..new.clone() }
}

fn check<P: LanePayload>(state: &ServiceState<P>, service: &config::Service) -> Result<(), Refusal> {
    let active = &state.active_backend().name;
    if service.backends.iter().any(|backend| backend.name == *active) {
        return Ok(());
    }
    Err(Refusal::ActiveRemoved { service: service.name.clone(), backend: active.clone() })
}

/// A backend under the new configuration. An endpoint that stays, and is probed as before, keeps what the probes think
/// of it.
fn renewed_backend<P: LanePayload>(
    old: &ServiceState<P>,
    service: &config::Service,
    configured: &config::BackendConfig,
) -> Arc<Backend> {
    let health = first_health(service);
    let (addresses, version) = (configured.endpoints.as_slice(), configured.version.as_deref());
    let name = |name: &BackendName| *name == configured.name;
    let Some(current) = old.backend(&configured.name) else {
        return Arc::new(Backend::new(configured.name.clone(), version, addresses, health));
    };
    let before = old.config.backends.iter().find(|backend| name(&backend.name));
    let registered = before.is_none_or(|before| !current.is_as_configured(before));
    let current_addresses: Vec<Address> = current.endpoints.iter().map(|e| e.address.clone()).collect();
    let (addresses, version) = if registered {
        (current_addresses.as_slice(), current.version.as_deref())
    } else {
        (addresses, version)
    };
    let probed_as_before = old.config.health == service.health;
    if probed_as_before && addresses == current_addresses && version == current.version.as_deref() {
        return Arc::clone(current);
    }
    let mut backend = Backend::new(configured.name.clone(), version, addresses, health);
    for endpoint in backend.endpoints.iter_mut().filter(|_| probed_as_before) {
        if let Some(kept) = current.endpoints.iter().find(|kept| kept.address == endpoint.address) {
            *endpoint = Arc::clone(kept);
        }
    }
    Arc::new(backend)
}
