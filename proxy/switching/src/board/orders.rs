//! Operators' requests other than switches: each is a [`Change`] of one step.

use std::collections::BTreeMap;
use std::sync::Arc;

use uh_protocol::{Address, BackendName, ServiceName};

use super::{Applied, Switchboard};
use crate::backend::Backend;
use crate::change::{Change, Outcome, Step, unknown_backend, unknown_service};
use crate::drain::Holding;
use crate::live::Fittings;
use crate::record::ServiceRecord;
use crate::refusal::Refusal;
use crate::service::Service;
use crate::snapshot::{Maintenance, ServiceState};

/// A requested registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterOrder<'a> {
    /// At least one.
    pub addresses: &'a [Address],
    /// The app's version.
    pub version: Option<&'a str>,
    /// Refuse unless this is the current generation.
    pub expect_generation: Option<u64>,
    /// Change the endpoints even if the backend is active.
    pub force: bool,
}

/// The result of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterOutcome {
    /// The backend as it is now.
    pub backend: Arc<Backend>,
    /// Whether anything changed.
    pub changed: bool,
    /// The current generation.
    pub generation: u64,
}

/// The result of a withdrawal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Withdrawal {
    /// Whether it wasn't withdrawn before.
    pub changed: bool,
    /// The current generation.
    pub generation: u64,
    /// What is still in flight on it.
    pub holding: Holding,
}

impl<F: Fittings> Switchboard<F> {
    /// Registers a backend's endpoints and version, and ends its withdrawal. If anything changes, it gets new idle
    /// pools and its probes start again.
    ///
    /// # Errors
    /// If refused; nothing has changed then.
    pub fn set_backend(
        &self,
        service: &str,
        name: &BackendName,
        order: &RegisterOrder<'_>,
    ) -> Result<RegisterOutcome, Refusal> {
        let step = Step::Register {
            service: service.to_owned(),
            backend: name.clone(),
            endpoints: order.addresses.to_vec(),
            version: order.version.map(str::to_owned),
            force: order.force,
        };
        let applied = self.apply(|_| Change::one(order.expect_generation, step))?;
        applied.registered(service, name)
    }

    /// Drops a backend's registration, which returns it to the configuration, and ends its withdrawal.
    ///
    /// # Errors
    /// If refused; nothing has changed then.
    pub fn unset_backend(
        &self,
        service: &str,
        name: &BackendName,
        expect_generation: Option<u64>,
        force: bool,
    ) -> Result<RegisterOutcome, Refusal> {
        let step = Step::Unset { service: service.to_owned(), backend: name.clone(), force };
        let applied = self.apply(|_| Change::one(expect_generation, step))?;
        applied.registered(service, name)
    }

    /// Withdraws a standby: nothing can switch to it, even with force, until it is registered again. So no exchange can
    /// start on it, and after a drain it can be stopped.
    ///
    /// # Errors
    /// If refused, as for the active backend; nothing has changed then.
    pub fn withdraw(
        &self,
        service: &str,
        name: &BackendName,
        expect_generation: Option<u64>,
    ) -> Result<Withdrawal, Refusal> {
        let step = Step::Withdraw { service: service.to_owned(), backend: name.clone() };
        let applied = self.apply(|_| Change::one(expect_generation, step))?;
        let (_, after) = applied.service(service)?;
        let holding = self.holding(after.config.name(), name);
        let Outcome { changed, generation } = applied.outcome;
        Ok(Withdrawal { changed, generation, holding })
    }

    /// Turns maintenance on or off. If only the message changes, the start time is kept. Returns the current
    /// maintenance, and whether anything changed.
    ///
    /// # Errors
    /// No such service.
    pub fn set_maintenance(
        &self,
        service: &str,
        wanted: Option<Maintenance>,
    ) -> Result<(Option<Arc<Maintenance>>, bool), Refusal> {
        let step = Step::Maintain { service: service.to_owned(), wanted };
        let applied = self.apply(|_| Change::one(None, step))?;
        let (_, after) = applied.service(service)?;
        Ok((after.maintenance.clone(), applied.outcome.changed))
    }

    /// Applies these services in one step. `known` returns the state of services that are new here.
    ///
    /// # Errors
    /// If refused; nothing has changed then.
    pub fn reload(
        &self,
        services: Vec<Arc<F::Service>>,
        known: BTreeMap<ServiceName, ServiceRecord>,
    ) -> Result<Outcome, Refusal> {
        let step = Step::Reload { services, known };
        Ok(self.apply(|_| Change::one(None, step))?.outcome)
    }
}

impl<S: Service> Applied<S> {
    /// The previous and the current state of a service.
    pub(super) fn service(&self, name: &str) -> Result<(&ServiceState<S>, &ServiceState<S>), Refusal> {
        let unknown = || unknown_service(&self.after.services, name);
        let both = self.before.service(name).zip(self.after.service(name));
        both.ok_or_else(unknown)
    }

    fn registered(&self, service: &str, name: &BackendName) -> Result<RegisterOutcome, Refusal> {
        let (_, after) = self.service(service)?;
        let backend = after.backend(name).ok_or_else(|| unknown_backend(after, name))?;
        let Outcome { changed, generation } = self.outcome;
        Ok(RegisterOutcome { backend: Arc::clone(backend), changed, generation })
    }
}
