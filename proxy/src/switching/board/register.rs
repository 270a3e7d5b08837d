//! What may become active: a backend is registered with endpoints and a version, goes back to what the configuration
//! has, or is withdrawn before somebody stops it.

use std::sync::Arc;

use uh_protocol::BackendName;

use super::{
    Holding, Refusal, Switchboard, Writer, check_expectations, drain, find, find_backend, first_health,
};
use crate::switching::{Address, Backend, LanePayload, ServiceState, Snapshot};

/// What an operator asks for with a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterOrder<'a> {
    /// At least one.
    pub addresses: &'a [Address],
    /// The app's version.
    pub version: Option<&'a str>,
    /// Refuse unless this is the generation.
    pub expect_generation: Option<u64>,
    /// Give even the active backend other endpoints.
    pub force: bool,
}

/// What a registration did.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The backend as it is now.
    pub backend: Arc<Backend>,
    /// Whether anything is different.
    pub changed: bool,
    /// The generation now.
    pub generation: u64,
}

/// What a withdrawal did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Withdrawal {
    /// Whether it was not withdrawn before.
    pub changed: bool,
    /// The generation now.
    pub generation: u64,
    /// What it still holds.
    pub holding: Holding,
}

impl<P: LanePayload> Switchboard<P> {
    /// Registers a backend's endpoints and version, and ends its withdrawal. Unless nothing is different, it gets new
    /// idle pools, and its probes start again.
    ///
    /// # Errors
    /// Refused; then nothing has changed.
    pub fn set_backend(
        &self,
        service: &str,
        name: &BackendName,
        order: &RegisterOrder<'_>,
    ) -> Result<Registration, Refusal> {
        let mut writer = self.writer.lock();
        let old = self.snapshot.load_full();
        let (index, state) = find(&old, service)?;
        check_expectations(&old, &state.active_backend().name, None, order.expect_generation)?;
        self.register(&mut writer, &old, index, name, order)
    }

    /// Drops a backend's registration, so that it is as the configuration has it, and ends its withdrawal.
    ///
    /// # Errors
    /// Refused; then nothing has changed.
    pub fn unset_backend(
        &self,
        service: &str,
        name: &BackendName,
        expect_generation: Option<u64>,
        force: bool,
    ) -> Result<Registration, Refusal> {
        let mut writer = self.writer.lock();
        let old = self.snapshot.load_full();
        let (index, state) = find(&old, service)?;
        let current = find_backend(state, name)?;
        check_expectations(&old, &state.active_backend().name, None, expect_generation)?;
        let config = Arc::clone(&state.config);
        let Some(configured) = config.backends.iter().find(|backend| backend.name == *name) else {
            // Every backend is one of the configuration's.
            return Ok(Registration {
                backend: Arc::clone(current),
                changed: false,
                generation: old.generation,
            });
        };
        let (addresses, version) = (configured.endpoints.as_slice(), configured.version.as_deref());
        self.register(
            &mut writer,
            &old,
            index,
            name,
            &RegisterOrder { addresses, version, expect_generation, force },
        )
    }

    fn register(
        &self,
        writer: &mut Writer,
        old: &Snapshot<P>,
        index: usize,
        name: &BackendName,
        order: &RegisterOrder<'_>,
    ) -> Result<Registration, Refusal> {
        let state: &ServiceState<P> = &old.services[index];
        let current = find_backend(state, name)?;
        let is_active = state.is_active(name);
        let moved = !current.has_addresses(order.addresses);
        if !moved && current.version.as_deref() == order.version && !state.is_withdrawn(name) {
            return Ok(Registration {
                backend: Arc::clone(current),
                changed: false,
                generation: old.generation,
            });
        }
        if moved && is_active && !order.force {
            return Err(Refusal::ActiveMoved { backend: name.clone() });
        }
        let health = first_health(&state.config);
        let backend = Arc::new(Backend::new(name.clone(), order.version, order.addresses, health));
        let mut changed = state.clone();
        for slot in changed.backends.iter_mut().filter(|slot| slot.name == *name) {
            *slot = Arc::clone(&backend);
        }
        changed.withdrawn.remove(name);
        if is_active {
            changed.active = self.activate(writer, &state.config, &backend);
        }
        let next = writer.replace(old, index, changed);
        let generation = next.generation;
        self.snapshot.store(next);
        Ok(Registration { backend, changed: true, generation })
    }

    /// Withdraws a standby: from here on nothing switches to it, whatever its probes say and even by force, until it is
    /// registered again. So no exchange can start on it, and whoever drains it now may stop it.
    ///
    /// # Errors
    /// Refused, as for the active backend; then nothing has changed.
    pub fn withdraw(
        &self,
        service: &str,
        name: &BackendName,
        expect_generation: Option<u64>,
    ) -> Result<Withdrawal, Refusal> {
        let mut writer = self.writer.lock();
        let old = self.snapshot.load_full();
        let (index, state) = find(&old, service)?;
        find_backend(state, name)?;
        check_expectations(&old, &state.active_backend().name, None, expect_generation)?;
        if state.is_active(name) {
            return Err(Refusal::Active { backend: name.clone() });
        }
        let holding = drain::sum(&writer.of(&state.config, name));
        let mut changed = state.clone();
        if !changed.withdrawn.insert(name.clone()) {
            return Ok(Withdrawal { changed: false, generation: old.generation, holding });
        }
        let next = writer.replace(&old, index, changed);
        let generation = next.generation;
        self.snapshot.store(next);
        Ok(Withdrawal { changed: true, generation, holding })
    }
}
