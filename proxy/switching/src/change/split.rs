//! Splits: a part of the clients goes to a backend that isn't active.

use jiff::Timestamp;
use uh_protocol::BackendName;

use super::{Draft, Effect, OneSplit};
use crate::backend::Health;
use crate::refusal::Refusal;
use crate::service::Service;
use crate::snapshot::{Active, ServiceState};
use crate::split::{Assignment, Judging, Salt, Split, Term, Weight};

/// The split that is asked for.
pub(super) struct Wanted<'a> {
    pub to: &'a BackendName,
    pub weight: Weight,
    pub salt: Salt,
    pub term: Term,
    pub judging: Judging,
    pub until: Timestamp,
    pub at: Timestamp,
}

impl<S: Service> Draft<'_, S> {
    /// Nobody is kept from sending fewer clients to a backend, or from keeping them there, however it is.
    pub(super) fn split(
        &mut self,
        service: &str,
        wanted: &Wanted<'_>,
        health: Health,
    ) -> Result<Effect, Refusal> {
        let service = self.find(service)?;
        self.find_backend(service, wanted.to)?;
        self.check_expectations(service, None)?;
        let since = self.before.next_generation();
        let state = &mut self.services[service];
        check_target(state, wanted.to)?;
        if let Some(split) = state.split.as_ref().filter(|now| now.judging.suspect != wanted.judging.suspect)
        {
            let (service, current) = (state.config.name().clone(), split.new.backend.clone());
            return Err(Refusal::OtherSuspect { service, current, weight: split.assignment.weight });
        }
        let now = state.split.as_ref().map(|split| split.assignment.weight);
        if now.is_none_or(|now| now < wanted.weight) && !health.is_good() {
            let (backend, active) = (wanted.to.clone(), state.active.backend.clone());
            return Err(Refusal::Unhealthy { backend, active, health });
        }
        let split = state.split.get_or_insert_with(|| Split {
            new: Active { backend: wanted.to.clone(), since },
            assignment: Assignment { weight: wanted.weight, salt: wanted.salt },
            began: wanted.at,
            term: wanted.term,
            until: wanted.until,
            judging: wanted.judging,
        });
        split.assignment.weight = wanted.weight;
        let renewed = (split.term, split.until) != (wanted.term, wanted.until);
        (split.term, split.until) = (wanted.term, wanted.until);
        Ok(match now == Some(wanted.weight) {
            false => Effect::Routing,
            true if renewed => Effect::Words,
            true => Effect::Nothing,
        })
    }

    pub(super) fn end_split(
        &mut self,
        service: &str,
        to: Option<&BackendName>,
        only: Option<OneSplit>,
    ) -> Result<Effect, Refusal> {
        let service = self.find(service)?;
        if let Some(to) = to {
            self.find_backend(service, to)?;
        }
        self.check_expectations(service, None)?;
        let state = &mut self.services[service];
        if let Some(to) = to {
            check_same(state, to)?;
        }
        let is_that_one = |split: &mut Split| {
            only.is_none_or(|only| {
                only.salt == split.assignment.salt && only.until.is_none_or(|until| until == split.until)
            })
        };
        Ok(if state.split.take_if(is_that_one).is_some() { Effect::Routing } else { Effect::Nothing })
    }

    /// A split's backend gets requests, so it can't be taken away.
    pub(super) fn check_not_in_split(&self, service: usize, name: &BackendName) -> Result<(), Refusal> {
        in_split(&self.services[service], name).map_or(Ok(()), Err)
    }
}

/// The refusal, if a split sends a part of the traffic to this backend.
pub(crate) fn in_split<S: Service>(state: &ServiceState<S>, name: &BackendName) -> Option<Refusal> {
    let split = state.split_to(name)?;
    let (service, weight) = (state.config.name().clone(), split.assignment.weight);
    Some(Refusal::InSplit { service, backend: name.clone(), weight })
}

fn check_target<S: Service>(state: &ServiceState<S>, to: &BackendName) -> Result<(), Refusal> {
    if state.is_active(to) {
        return Err(Refusal::SplitToActive { backend: to.clone() });
    }
    if state.is_withdrawn(to) {
        return Err(Refusal::Withdrawn { backend: to.clone(), active: state.active.backend.clone() });
    }
    check_same(state, to)
}

/// There is no split to another backend.
fn check_same<S: Service>(state: &ServiceState<S>, to: &BackendName) -> Result<(), Refusal> {
    let Some(split) = state.split.as_ref().filter(|split| split.new.backend != *to) else { return Ok(()) };
    Err(Refusal::OtherSplit {
        service: state.config.name().clone(),
        asked: to.clone(),
        current: split.new.backend.clone(),
        weight: split.assignment.weight,
    })
}
