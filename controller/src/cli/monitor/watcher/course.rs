//! The course of a watch: ticks, looks between them, and what follows from what they find.

use std::time::{Duration, Instant};

use super::super::{BEGIN_POLL, MAX_SILENCE};
use super::{WatchEnd, Watcher};
use crate::cli::exit::{CliError, Exit};
use crate::counters::{Counters, Reading};
use crate::deploy::activation;
use crate::deploy::link::WatchLink;
use crate::fault;
use crate::gate::end_of;
use crate::proxy::{ProxyError, ServiceView};
use crate::time::same_switch;
use crate::verdict::judge::{Condition, Finding, Suspicion};

/// How often to check the instance between ticks, so that a crash is noticed immediately.
const INSTANCE_POLL: Duration = Duration::from_millis(200);

/// How often to look for a suspicion between ticks, where it can be cross-checked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often to look whether the operation in parallel is over.
const OVER_POLL: Duration = Duration::from_millis(20);

/// What a tick or a look has found.
enum Found {
    /// The watch is over.
    End(WatchEnd),
    /// The counters speak against the version.
    Suspicion(Suspicion),
}

impl Watcher<'_> {
    /// Watches for this long. `link`: to the operation it runs in parallel with.
    pub(in crate::cli) async fn run(
        &mut self,
        duration: Duration,
        link: Option<&WatchLink>,
    ) -> Result<WatchEnd, CliError> {
        let end = Instant::now() + duration;
        let mut silent_since = None;
        let mut next = (Instant::now() + self.plan.interval()).min(end);
        loop {
            let look = if self.compares() { next.min(Instant::now() + LOOK_EVERY) } else { next };
            let mut ended = if Instant::now() >= end { self.instance_end(link).await } else { None };
            while Instant::now() < look && ended.is_none() {
                let left = look.saturating_duration_since(Instant::now());
                tokio::time::sleep(left.min(INSTANCE_POLL)).await;
                ended = self.instance_end(link).await;
            }
            let is_tick = ended.is_some() || Instant::now() >= next;
            let found = if is_tick { self.tick(ended).await } else { self.peek().await };
            let found = match found {
                Ok(Some(Found::Suspicion(suspicion))) => self.settle(suspicion, link, end).await,
                Ok(Some(Found::End(done))) => return Ok(done),
                Ok(None) => Ok(None),
                Err(e) => Err(e),
            };
            match found {
                Ok(Some(done)) => return Ok(done),
                Ok(None) if is_tick && Instant::now() >= end => {
                    fault::point("watch.tick");
                    return Ok(WatchEnd::Well);
                }
                Ok(None) => silent_since = None,
                Err(e) => {
                    let is_last = Instant::now() >= end;
                    if silent_since.is_none() || (!is_last && is_tick) {
                        self.session.report.warn(&crate::chain(&e));
                    }
                    if silent_since.get_or_insert_with(Instant::now).elapsed() >= MAX_SILENCE {
                        return Err(self.silence(&e));
                    }
                    // One failed request, even the last one, doesn't decide the verdict.
                    if is_last {
                        tokio::time::sleep(BEGIN_POLL).await;
                    }
                }
            }
            if is_tick {
                fault::point("watch.tick");
                next = (Instant::now() + self.plan.interval()).min(end);
            }
        }
    }

    /// What to do about a suspicion. `None`: the watch goes on.
    async fn settle(
        &mut self,
        suspicion: Suspicion,
        link: Option<&WatchLink>,
        end: Instant,
    ) -> Result<Option<WatchEnd>, ProxyError> {
        if self.compares()
            && let Some(link) = link.filter(|link| !link.is_over())
        {
            // The operation has the old version drained, so that one gets no clients before it is over.
            if !suspicion.enough {
                return Ok(None);
            }
            link.hurry();
            while !link.is_over() {
                tokio::time::sleep(OVER_POLL).await;
            }
        }
        Box::pin(self.cross_check(suspicion, end)).await
    }

    /// Without uh-proxy the active backend is unknown. A saved watch stays open for the next command.
    fn silence(&self, error: &ProxyError) -> CliError {
        let next =
            if self.is_recorded() { ", then run `uh-deploy recover` to continue the watch" } else { "" };
        let message = format!(
            "can't determine the active backend: uh-proxy stopped answering while {} was watched: {}. Check uh-proxy{next}",
            self.name,
            crate::chain(error)
        );
        CliError::new(Exit::Attention, message)
    }

    /// While a deploy settles, it checks the instance itself and moves traffic back.
    pub(super) async fn instance_end(&self, link: Option<&WatchLink>) -> Option<String> {
        let settles = !self.session.config.deploy.settle.is_zero();
        if settles && link.is_some_and(|link| !link.is_over()) {
            return None;
        }
        let instance = self.instance.as_ref()?;
        let state = self.session.runtime.state(instance).await.ok()?;
        end_of(&state).map(|end| format!("{instance} exited: {end}"))
    }

    /// An extra tick, and what it leads to.
    pub(in crate::cli) async fn look(&mut self) -> Result<Option<WatchEnd>, ProxyError> {
        let ended = self.instance_end(None).await;
        match self.tick(ended).await? {
            Some(Found::Suspicion(suspicion)) => Box::pin(self.cross_check(suspicion, Instant::now())).await,
            Some(Found::End(end)) => Ok(Some(end)),
            None => Ok(None),
        }
    }

    async fn tick(&mut self, ended: Option<String>) -> Result<Option<Found>, ProxyError> {
        let (view, now) = activation::read(self.proxy, &self.watched).await?;
        if self.has_moved_on(&view) {
            return Ok(Some(Found::End(WatchEnd::MovedOn(Box::new(view)))));
        }
        let (tick, condition) = self.count(&view, now, ended);
        let found = self.judge.tick(&tick, &self.seen, &condition);
        self.save();
        Ok(match found {
            Some(Finding::Certain(reason)) => Some(Found::End(WatchEnd::Breach(reason))),
            Some(Finding::Counted(suspicion)) => Some(Found::Suspicion(suspicion)),
            None => self.judge.suspects(&self.seen).filter(|_| self.compares()).map(Found::Suspicion),
        })
    }

    /// A look between two ticks: whether there is a suspicion already. Nothing else takes so little time to be found.
    async fn peek(&mut self) -> Result<Option<Found>, ProxyError> {
        let (view, now) = activation::read(self.proxy, &self.watched).await?;
        if self.has_moved_on(&view) {
            return Ok(Some(Found::End(WatchEnd::MovedOn(Box::new(view)))));
        }
        let seen = self.seen.clone().plus(&now.since(&self.last));
        Ok(self.judge.suspects(&seen).map(Found::Suspicion))
    }

    /// Traffic was switched, to another backend or to the same one again.
    pub(super) fn has_moved_on(&self, view: &ServiceView) -> bool {
        let same = same_switch(view.service.last_switch.as_deref(), self.last_switch.as_deref());
        !view.is_active(&self.watched) || !same
    }

    /// Adds up what was counted since the last tick, and shows it. `ended`: how the instance has.
    pub(super) fn count(
        &mut self,
        view: &ServiceView,
        now: Reading,
        ended: Option<String>,
    ) -> (Counters, Condition) {
        if !now.process.is(&self.last.process) {
            self.session.report.warn(
                "uh-proxy was restarted, so its counters start from zero; what it counted after the last measurement is lost",
            );
        }
        let tick = now.since(&self.last);
        self.seen = std::mem::take(&mut self.seen).plus(&tick);
        self.last = now;
        let condition = self.condition(view, ended);
        let backend = view.backend(&self.watched);
        self.in_flight = backend.map_or(0, |backend| backend.requests_in_flight + backend.tunnels);
        self.show(&tick, &condition);
        (tick, condition)
    }

    /// What the probes say. `ended`: how the instance has.
    pub(super) fn condition(&self, view: &ServiceView, ended: Option<String>) -> Condition {
        let backend = view.backend(&self.watched);
        match (ended, backend.and_then(|backend| backend.healthy)) {
            (Some(how), _) => Condition::Ended(how),
            (None, Some(false)) => {
                let error = backend.and_then(|b| b.last_probe.as_ref()).and_then(|probe| probe.error.clone());
                Condition::Unhealthy(error.unwrap_or_default())
            }
            (None, _) => Condition::Well,
        }
    }
}
