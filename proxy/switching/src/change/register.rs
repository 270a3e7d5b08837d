//! Registration: a backend is registered with endpoints and a version, returned to its configuration, or withdrawn
//! before it is stopped.

use std::sync::Arc;

use uh_protocol::{Address, BackendName};

use super::{Draft, Effect};
use crate::backend::Backend;
use crate::refusal::Refusal;
use crate::service::{Service, definition};

impl<S: Service> Draft<'_, S> {
    /// If anything changes, its endpoints are new ones, without the state of the previous ones.
    pub(super) fn register(
        &mut self,
        service: usize,
        name: &BackendName,
        endpoints: &[Address],
        version: Option<&str>,
        force: bool,
    ) -> Result<Effect, Refusal> {
        let current = Arc::clone(self.find_backend(service, name)?);
        let since = self.before.next_generation();
        let state = &mut self.services[service];
        let moved = !current.has_addresses(endpoints);
        if !moved && current.version.as_deref() == version && !state.is_withdrawn(name) {
            return Ok(Effect::Nothing);
        }
        if moved && state.is_active(name) && !force {
            return Err(Refusal::ActiveMoved { backend: name.clone() });
        }
        if moved && !force {
            self.check_not_in_split(service, name)?;
        }
        let state = &mut self.services[service];
        let backend = Arc::new(Backend::new(name.clone(), version, endpoints, since));
        for slot in state.backends.iter_mut().filter(|slot| slot.name == *name) {
            *slot = Arc::clone(&backend);
        }
        state.withdrawn.remove(name);
        if state.is_active(name) {
            state.active.since = since;
        }
        if let Some(split) = state.split.as_mut().filter(|split| split.new.backend == *name) {
            split.new.since = since;
        }
        Ok(Effect::Routing)
    }

    pub(super) fn unset(
        &mut self,
        service: &str,
        name: &BackendName,
        force: bool,
    ) -> Result<Effect, Refusal> {
        let service = self.find(service)?;
        self.find_backend(service, name)?;
        self.check_expectations(service, None)?;
        let config = Arc::clone(&self.services[service].config);
        // Every backend is in the configuration.
        let Some(configured) = definition(&*config, name) else { return Ok(Effect::Nothing) };
        self.register(service, name, &configured.endpoints, configured.version.as_deref(), force)
    }

    pub(super) fn withdraw(&mut self, service: &str, name: &BackendName) -> Result<Effect, Refusal> {
        let service = self.find(service)?;
        self.find_backend(service, name)?;
        self.check_expectations(service, None)?;
        let state = &mut self.services[service];
        if state.is_active(name) {
            return Err(Refusal::Active { backend: name.clone() });
        }
        self.check_not_in_split(service, name)?;
        let state = &mut self.services[service];
        Ok(if state.withdrawn.insert(name.clone()) { Effect::Routing } else { Effect::Nothing })
    }
}
