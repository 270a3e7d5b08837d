//! Run-time state that must survive a restart. Together with the configuration, it determines a [`Snapshot`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use uh_protocol::{Address, BackendName, ServiceName};

use crate::change::{Change, Outcome};
use crate::refusal::Refusal;
use crate::service::{Service, definition};
use crate::snapshot::{Maintenance, ServiceState, Snapshot};
use crate::split::{Split, SplitRecord};

/// The routing state that must survive a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutingRecord {
    /// Its generation.
    pub generation: u64,
    /// Every service, including those that aren't configured now.
    pub services: BTreeMap<ServiceName, ServiceRecord>,
}

/// The state of a service that must survive a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRecord {
    /// The active backend.
    pub active: BackendName,
    /// The one before.
    pub previous: Option<BackendName>,
    /// When the active one last changed.
    pub last_switch: Option<Timestamp>,
    /// Backends that differ from the configuration.
    pub registered: BTreeMap<BackendName, Registration>,
    /// Its maintenance, if it is on.
    pub maintenance: Option<Maintenance>,
    /// Backends that are withdrawn.
    pub withdrawn: BTreeSet<BackendName>,
    /// The split of its traffic, if there is one.
    pub split: Option<SplitRecord>,
}

/// A backend registered at run time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// At least one.
    pub endpoints: Vec<Address>,
    /// The app's version.
    pub version: Option<String>,
}

impl ServiceRecord {
    /// The record of a routed service.
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
            split: state.split.as_ref().map(Split::record),
        }
    }

    /// The same without a split whose time is up at this moment.
    #[must_use]
    pub fn at(mut self, now: Timestamp) -> Self {
        self.split.take_if(|split| split.until <= now);
        self
    }
}

impl RoutingRecord {
    /// The record of a routing.
    pub fn of<S: Service>(snapshot: &Snapshot<S>) -> Self {
        let entry = |state: &ServiceState<S>| (state.config.name().clone(), ServiceRecord::of(state));
        Self { generation: snapshot.generation, services: snapshot.services.iter().map(entry).collect() }
    }

    /// Computes the record after a change, like [`Snapshot::after`], but from the stored record instead of the live
    /// routing. Entries of services that aren't configured here are kept.
    ///
    /// # Errors If it is refused.
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
