//! Decides changes of the routing on values, so that a change can be decided anywhere, tried without effect, and
//! replayed.

mod register;
mod reload;
mod split;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use uh_protocol::{Address, BackendName, ServiceName};

use crate::backend::{Backend, Health};
use crate::record::ServiceRecord;
use crate::refusal::Refusal;
use crate::service::Service;
use crate::snapshot::{Active, Maintenance, ServiceState, Snapshot};
use crate::split::{Judging, Salt, Term, Weight};

pub(crate) use split::in_split;

/// A change of the routing: all of its steps, or none.
#[derive(Debug, Clone)]
pub struct Change<S> {
    /// Refuse unless this is the current generation.
    pub expect_generation: Option<u64>,
    /// The steps, in order. The generation increases once, however many there are.
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
        /// Refuse unless this backend is active.
        expect_active: Option<BackendName>,
        /// Switch even if it isn't known to be healthy.
        force: bool,
        /// Its health.
        health: Health,
        /// The time of the switch.
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
        /// Change the endpoints even if the backend is active.
        force: bool,
    },
    /// Drop a backend's registration, which returns it to the configuration, and end its withdrawal.
    Unset {
        /// The service.
        service: String,
        /// The backend.
        backend: BackendName,
        /// Change the endpoints even if the backend is active.
        force: bool,
    },
    /// Withdraw a standby: nothing can switch to it until it is registered again.
    Withdraw {
        /// The service.
        service: String,
        /// The backend.
        backend: BackendName,
    },
    /// Send a part of the clients to a backend that isn't active, change how many, or renew that. The active backend stays
    /// the active one. A renewal alone leaves the generation as it is.
    Split {
        /// The service.
        service: String,
        /// The backend of the new side.
        to: BackendName,
        /// The share of clients that go there.
        weight: Weight,
        /// Which ones, if the split begins. One that goes on keeps its own.
        salt: Salt,
        /// How long it lasts.
        term: Term,
        /// How it is judged. One that goes on keeps that, and must suspect the same side.
        judging: Judging,
        /// When it ends unless it is renewed.
        until: Timestamp,
        /// The health of the backend. It must be good if more clients are to go there.
        health: Health,
        /// The time of this change.
        at: Timestamp,
    },
    /// End a split: all clients go to the active backend again.
    EndSplit {
        /// The service.
        service: String,
        /// Refuse if it is to another backend.
        to: Option<BackendName>,
        /// Do nothing if it isn't this one any more.
        only: Option<OneSplit>,
    },
    /// Turn maintenance on or off. If only the message changes, the start time is kept. The generation stays the same:
    /// the active backend doesn't change, and a deploy in progress continues.
    Maintain {
        /// The service.
        service: String,
        /// `None`: turn it off.
        wanted: Option<Maintenance>,
    },
    /// Replace all services with these. Run-time state takes precedence: the active backend, and registrations.
    Reload {
        /// In the order of the configuration.
        services: Vec<Arc<S>>,
        /// The state of services that aren't routed now.
        known: BTreeMap<ServiceName, ServiceRecord>,
    },
}

/// A split as somebody has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OneSplit {
    /// Its salt.
    pub salt: Salt,
    /// If this has changed, it was renewed.
    pub until: Option<Timestamp>,
}

impl<S> Change<S> {
    /// A change of one step.
    #[must_use]
    pub fn one(expect_generation: Option<u64>, step: Step<S>) -> Self {
        Self { expect_generation, steps: vec![step] }
    }
}

/// The result of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Whether anything changed.
    pub changed: bool,
    /// The current generation.
    pub generation: u64,
}

/// The kind of a step's effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    Nothing,
    /// Only what is said about the routing, or how long it lasts.
    Words,
    /// Where requests go, or what may become active, changes: the generation increases.
    Routing,
}

impl<S: Service> Snapshot<S> {
    /// Computes the routing after a change.
    ///
    /// # Errors If it is refused.
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

/// A partially computed change.
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
            Step::Split { service, to, weight, salt, term, judging, until, health, at } => {
                let (weight, salt, term, judging) = (*weight, *salt, *term, *judging);
                let wanted = split::Wanted { to, weight, salt, term, judging, until: *until, at: *at };
                self.split(service, &wanted, *health)
            }
            Step::EndSplit { service, to, only } => self.end_split(service, to.as_ref(), *only),
            Step::Maintain { service, wanted } => self.maintain(service, wanted.as_ref()),
            Step::Reload { services, known } => self.reload(services, known),
        }
    }

    /// `health`: must be good; `None`: switch anyway.
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
        // It was between the old active backend and another one.
        state.split = None;
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
