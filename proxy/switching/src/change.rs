//! What becomes of the routing when somebody changes it: decided on values, so that it can be decided anywhere, tried
//! without being done, and replayed.

mod register;
mod reload;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use uh_protocol::{Address, BackendName, ServiceName};

use crate::backend::{Backend, Health};
use crate::record::ServiceRecord;
use crate::refusal::Refusal;
use crate::service::Service;
use crate::snapshot::{Active, Maintenance, ServiceState, Snapshot};

/// A change of the routing: all of its steps, or none.
#[derive(Debug, Clone)]
pub struct Change<S> {
    /// Refuse unless this is the generation.
    pub expect_generation: Option<u64>,
    /// What is to be different, one after the other. However many there are, the generation grows once.
    pub steps: Vec<Step<S>>,
}

/// One part of a change.
#[derive(Debug, Clone)]
pub enum Step<S> {
    /// Make a backend active.
    Switch {
        /// The service.
        service: String,
        /// The backend to make active.
        to: BackendName,
        /// Refuse unless this one is active.
        expect_active: Option<BackendName>,
        /// Switch even if it is not known to be healthy.
        force: bool,
        /// What the probes think of it.
        health: Health,
        /// When it is made.
        at: Timestamp,
    },
    /// Register a backend's endpoints and version, and end its withdrawal.
    Register {
        /// The service.
        service: String,
        /// The backend.
        backend: BackendName,
        /// At least one.
        endpoints: Vec<Address>,
        /// The app's version.
        version: Option<String>,
        /// Give even the active backend other endpoints.
        force: bool,
    },
    /// Drop a backend's registration, so that it is as the configuration has it, and end its withdrawal.
    Unset {
        /// The service.
        service: String,
        /// The backend.
        backend: BackendName,
        /// Give even the active backend other endpoints.
        force: bool,
    },
    /// Withdraw a standby: nothing switches to it until it is registered again.
    Withdraw {
        /// The service.
        service: String,
        /// The backend.
        backend: BackendName,
    },
    /// Begin or end maintenance. The time at which it began stays if only its words change. The generation stays: who
    /// serves does not change, and a deploy that is under way goes on.
    Maintain {
        /// The service.
        service: String,
        /// `None`: it ends.
        wanted: Option<Maintenance>,
    },
    /// Put these services in force in place of all others. What was decided at run time wins over them: which backend is
    /// active, and how backends are registered.
    Reload {
        /// In the order of the configuration.
        services: Vec<Arc<S>>,
        /// What is known of services that are not routed now.
        known: BTreeMap<ServiceName, ServiceRecord>,
    },
}

impl<S> Change<S> {
    /// A change of one step.
    #[must_use]
    pub fn one(expect_generation: Option<u64>, step: Step<S>) -> Self {
        Self { expect_generation, steps: vec![step] }
    }
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Whether anything is different.
    pub changed: bool,
    /// The generation now.
    pub generation: u64,
}

/// What a step makes different.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    Nothing,
    /// Something that leaves open who serves.
    Words,
    /// Who serves, or may: the generation grows.
    Routing,
}

impl<S: Service> Snapshot<S> {
    /// The routing after a change.
    ///
    /// # Errors
    /// Refused.
    pub fn after(&self, change: &Change<S>) -> Result<(Self, Outcome), Refusal> {
        let mut draft = Draft { before: self, change, services: self.services.clone() };
        let mut effect = Effect::Nothing;
        for step in &change.steps {
            effect = effect.max(draft.take(step)?);
        }
        let services = draft.services;
        let after = match effect {
            Effect::Routing => Self { generation: self.next_generation(), leap: 0, services },
            Effect::Words | Effect::Nothing => Self { services, ..*self },
        };
        let outcome = Outcome { changed: effect > Effect::Nothing, generation: after.generation };
        Ok((after, outcome))
    }
}

/// A change as far as it is worked out.
struct Draft<'a, S> {
    before: &'a Snapshot<S>,
    change: &'a Change<S>,
    services: Vec<ServiceState<S>>,
}

impl<S: Service> Draft<'_, S> {
    fn take(&mut self, step: &Step<S>) -> Result<Effect, Refusal> {
        match step {
            Step::Switch { service, to, expect_active, force, health, at } => {
                let service = self.find(service)?;
                self.find_backend(service, to)?;
                self.check_expectations(service, expect_active.as_ref())?;
                self.switch(service, to, if *force { None } else { Some(*health) }, *at)
            }
            Step::Register { service, backend, endpoints, version, force } => {
                let service = self.find(service)?;
                self.check_expectations(service, None)?;
                self.register(service, backend, endpoints, version.as_deref(), *force)
            }
            Step::Unset { service, backend, force } => self.unset(service, backend, *force),
            Step::Withdraw { service, backend } => self.withdraw(service, backend),
            Step::Maintain { service, wanted } => self.maintain(service, wanted.as_ref()),
            Step::Reload { services, known } => self.reload(services, known),
        }
    }

    /// `health`: what has to be good; `None`: it is switched to anyway.
    fn switch(
        &mut self,
        service: usize,
        to: &BackendName,
        health: Option<Health>,
        at: Timestamp,
    ) -> Result<Effect, Refusal> {
        let since = self.before.next_generation();
        let state = &mut self.services[service];
        let active = &state.active.backend;
        if active == to {
            return Ok(Effect::Nothing);
        }
        if state.is_withdrawn(to) {
            return Err(Refusal::Withdrawn { backend: to.clone(), active: active.clone() });
        }
        if let Some(health) = health.filter(|health| !health.is_good()) {
            return Err(Refusal::Unhealthy { backend: to.clone(), active: active.clone(), health });
        }
        let active = std::mem::replace(&mut state.active, Active { backend: to.clone(), since });
        state.previous = Some(active.backend);
        state.last_switch = Some(at);
        Ok(Effect::Routing)
    }

    fn maintain(&mut self, service: &str, wanted: Option<&Maintenance>) -> Result<Effect, Refusal> {
        let service = self.find(service)?;
        let state = &mut self.services[service];
        let current = state.maintenance.as_deref();
        let wanted = wanted.map(|wanted| Maintenance {
            since: current.map_or(wanted.since, |current| current.since),
            ..wanted.clone()
        });
        if current == wanted.as_ref() {
            return Ok(Effect::Nothing);
        }
        state.maintenance = wanted.map(Arc::new);
        Ok(Effect::Words)
    }

    fn find(&self, name: &str) -> Result<usize, Refusal> {
        let place = self.services.iter().position(|service| service.config.name().as_str() == name);
        place.ok_or_else(|| unknown_service(&self.services, name))
    }

    fn find_backend(&self, service: usize, name: &BackendName) -> Result<&Arc<Backend>, Refusal> {
        let state = &self.services[service];
        state.backend(name).ok_or_else(|| unknown_backend(state, name))
    }

    fn check_expectations(&self, service: usize, expect_active: Option<&BackendName>) -> Result<(), Refusal> {
        let (active, generation) = (&self.services[service].active.backend, self.before.generation);
        if let Some(expected) = expect_active.filter(|expected| *expected != active) {
            let (expected, active) = (expected.clone(), active.clone());
            return Err(Refusal::NotActive { expected, active, generation });
        }
        if let Some(expected) = self.change.expect_generation.filter(|expected| *expected != generation) {
            return Err(Refusal::OtherGeneration { expected, generation, active: active.clone() });
        }
        Ok(())
    }
}

pub(crate) fn unknown_service<S: Service>(services: &[ServiceState<S>], name: &str) -> Refusal {
    Refusal::UnknownService {
        asked: name.chars().take(uh_protocol::name::MAX_NAME_BYTES).collect(),
        known: services.iter().map(|service| service.config.name().to_string()).collect(),
    }
}

pub(crate) fn unknown_backend<S: Service>(state: &ServiceState<S>, name: &BackendName) -> Refusal {
    Refusal::UnknownBackend {
        service: state.config.name().to_string(),
        asked: name.to_string(),
        known: state.backends.iter().map(|backend| backend.name.to_string()).collect(),
    }
}
