//! What must survive: all that was decided at run time. With the configuration, it is a [`Snapshot`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use uh_protocol::{Address, BackendName, ServiceName};

use crate::change::{Change, Outcome};
use crate::refusal::Refusal;
use crate::service::{Service, definition};
use crate::snapshot::{Maintenance, ServiceState, Snapshot};

/// What must survive of the routing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The generation that it is of.
    pub generation: u64,
    /// Every service, those too that are not configured now.
    pub services: BTreeMap<ServiceName, ServiceRecord>,
}

/// What must survive of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRecord {
    /// The active backend.
    pub active: BackendName,
    /// The one before.
    pub previous: Option<BackendName>,
    /// When the active one last changed.
    pub last_switch: Option<Timestamp>,
    /// Backends that are not as the configuration has them.
    pub registered: BTreeMap<BackendName, Registration>,
    /// The maintenance it is in.
    pub maintenance: Option<Maintenance>,
    /// Backends that are withdrawn.
    pub withdrawn: BTreeSet<BackendName>,
}

/// A backend as it was registered at run time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// At least one.
    pub endpoints: Vec<Address>,
    /// The app's version.
    pub version: Option<String>,
}

impl ServiceRecord {
    /// That of a service as it is routed.
    pub fn of<S: Service>(state: &ServiceState<S>) -> Self {
        let differs = |backend: &&Arc<crate::Backend>| {
            definition(&*state.config, &backend.name)
                .is_none_or(|configured| !backend.is_as_configured(configured))
        };
        let registered = state.backends.iter().filter(differs).map(|backend| {
            let endpoints = backend.addresses().cloned().collect();
            let version = backend.version.as_deref().map(str::to_owned);
            (backend.name.clone(), Registration { endpoints, version })
        });
        Self {
            active: state.active.backend.clone(),
            previous: state.previous.clone(),
            last_switch: state.last_switch,
            registered: registered.collect(),
            maintenance: state.maintenance.as_deref().cloned(),
            withdrawn: state.withdrawn.clone(),
        }
    }
}

impl Record {
    /// That of the routing.
    pub fn of<S: Service>(snapshot: &Snapshot<S>) -> Self {
        let entry = |state: &ServiceState<S>| (state.config.name().clone(), ServiceRecord::of(state));
        Self { generation: snapshot.generation, services: snapshot.services.iter().map(entry).collect() }
    }

    /// The record after a change, as a proxy with these services decides it: what [`Snapshot::after`] says, for a
    /// decision that is made on what is stored and not on what is in force here. What is known of services that are
    /// not configured here stays.
    ///
    /// # Errors
    /// Refused.
    pub fn after<S: Service>(
        &self,
        services: &[Arc<S>],
        change: &Change<S>,
    ) -> Result<(Self, Outcome), Refusal> {
        let (snapshot, outcome) = Snapshot::first(services, &self.services, self.generation).after(change)?;
        let Self { generation, services } = Self::of(&snapshot);
        let mut all = self.services.clone();
        all.extend(services);
        Ok((Self { generation, services: all }, outcome))
    }
}
