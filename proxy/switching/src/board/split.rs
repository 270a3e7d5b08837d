//! Splits, as operators ask for them.

use std::sync::Arc;

use jiff::Timestamp;
use uh_protocol::BackendName;

use super::{Applied, Switchboard, Target};
use crate::backend::Health;
use crate::change::{Change, OneSplit, Step};
use crate::drain::Holding;
use crate::live::{Fittings, Live};
use crate::refusal::Refusal;
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::split::{Judging, Salt, Split, Term, Weight};

/// A requested split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitOrder {
    /// The backend of the new side.
    pub to: BackendName,
    /// The share of clients that go there.
    pub weight: Weight,
    /// Which ones, if the split begins.
    pub salt: Salt,
    /// How long it lasts from now on.
    pub term: Term,
    /// How it is judged.
    pub judging: Judging,
    /// Refuse unless this is the current generation.
    pub expect_generation: Option<u64>,
}

/// The requested end of a split.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SplitEnd {
    /// Refuse if it is to another backend.
    pub to: Option<BackendName>,
    /// Do nothing if it isn't this one any more.
    pub only: Option<OneSplit>,
    /// Refuse unless this is the current generation.
    pub expect_generation: Option<u64>,
}

/// The result of a change of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitOutcome {
    /// Whether clients go elsewhere now.
    pub moved: bool,
    /// Whether anything changed: that, or how long the split lasts.
    pub changed: bool,
    /// The current generation.
    pub generation: u64,
    /// The active backend, which is the old side.
    pub active: BackendName,
    /// The split before.
    pub before: Option<Split>,
    /// The split now.
    pub now: Option<Split>,
    /// What was in flight on the new side when the split ended.
    pub holding: Holding,
}

impl<F: Fittings> Switchboard<F> {
    /// The target of a split that sends more clients there than before; `None`: it doesn't. Changes nothing; the split
    /// itself checks everything again.
    ///
    /// # Errors
    /// If it would be refused.
    pub fn try_split(
        &self,
        service: &str,
        order: &SplitOrder,
        at: Timestamp,
    ) -> Result<Option<Target<F>>, Refusal> {
        let live = self.live();
        let (after, _) = live.snapshot.after(&self.split_change(&live, service, order, at))?;
        let weight = |snapshot: &Snapshot<F::Service>| {
            Some(snapshot.service(service)?.split.as_ref()?.assignment.weight)
        };
        let grows = weight(&after) > weight(&live.snapshot);
        let target = live.service(service).filter(|_| grows).and_then(|service| {
            let backend = Arc::clone(service.backend(&order.to)?);
            Some(Target { service: Arc::clone(&service.state.config), backend })
        });
        Ok(target)
    }

    /// Begins a split, changes its weight, or renews it.
    ///
    /// # Errors
    /// If refused; nothing has changed then.
    pub fn split(&self, service: &str, order: &SplitOrder, at: Timestamp) -> Result<SplitOutcome, Refusal> {
        self.apply(|live| self.split_change(live, service, order, at))?.split(service)
    }

    fn split_change(
        &self,
        live: &Live<F>,
        service: &str,
        order: &SplitOrder,
        at: Timestamp,
    ) -> Change<F::Service> {
        let target = live.service(service).and_then(|service| service.backend(&order.to));
        let step = Step::Split {
            service: service.to_owned(),
            to: order.to.clone(),
            weight: order.weight,
            salt: order.salt,
            term: order.term,
            judging: order.judging,
            until: order.term.until(at),
            health: target.map_or(Health::Unknown, |target| self.health(target)),
            at,
        };
        Change::one(order.expect_generation, step)
    }

    /// Ends a split, if there is one.
    ///
    /// # Errors
    /// If refused; nothing has changed then.
    pub fn end_split(&self, service: &str, end: &SplitEnd) -> Result<SplitOutcome, Refusal> {
        let SplitEnd { to, only, expect_generation } = end.clone();
        let step = Step::EndSplit { service: service.to_owned(), to, only };
        self.apply(|_| Change::one(expect_generation, step))?.split(service)
    }
}

impl<S: Service> Applied<S> {
    fn split(&self, service: &str) -> Result<SplitOutcome, Refusal> {
        let (before, after) = self.service(service)?;
        let new = before.split.as_ref().map(|split| (after.config.name().clone(), split.new.backend.clone()));
        let holding = new.and_then(|new| self.in_flight_before.get(&new)).copied().unwrap_or_default();
        Ok(SplitOutcome {
            moved: self.after.generation != self.before.generation,
            changed: self.outcome.changed,
            generation: self.outcome.generation,
            active: after.active.backend.clone(),
            before: before.split.clone(),
            now: after.split.clone(),
            holding,
        })
    }
}
