//! Watches one backend: measures at every tick, judges, and saves its progress.

mod course;
mod cross_check;
mod saved;
mod show;

use std::time::Duration;

use jiff::Timestamp;
use uh_protocol::BackendName;

use self::saved::SavedWatch;
use self::show::figures;
use crate::cli::exit::CliError;
use crate::cli::session::Session;
use crate::cli::start;
use crate::counters::{Answers, Counters, Reading};
use crate::deploy::activation::{self, ActivationFile, PreviousActivation};
use crate::deploy::history::HistoryEntry;
use crate::deploy::watch::{self, Watch, WatchFile, WatchPlan};
use crate::evidence::Breach;
use crate::names::named;
use crate::proxy::{ProxyError, ProxyService, ServiceView, Serving};
use crate::runtime::InstanceId;
use crate::time::iso_millis;
use crate::verdict::judge::{Judge, WatchVerdict};

/// How a watch ended.
pub(in crate::cli) enum WatchEnd {
    /// The time is over without a breach.
    Well,
    /// The version is bad, for this reason.
    Breach(String),
    /// Traffic was switched, to another backend or to the same one again.
    MovedOn(Box<ServiceView>),
}

/// Watches one backend.
pub(in crate::cli) struct Watcher<'a> {
    session: &'a Session,
    proxy: &'a ProxyService,
    pub(in crate::cli) watched: BackendName,
    name: String,
    /// From uh-proxy's status. A different value means another activation.
    last_switch: Option<String>,
    instance: Option<InstanceId>,
    plan: WatchPlan,
    before: Option<PreviousActivation>,
    last: Reading,
    seen: Counters,
    in_flight: u64,
    judge: Judge<'a>,
    record: Option<SavedWatch>,
    /// Why the new version can't be compared with the old one, in this watch.
    alone: Option<String>,
    /// The last reason why it couldn't at a moment, so that it is said once.
    not_now: Option<String>,
}

impl<'a> Watcher<'a> {
    /// Watches the active backend, from now on.
    pub(in crate::cli) async fn of_active(
        session: &'a Session,
        proxy: &'a ProxyService,
        plan: WatchPlan,
    ) -> Result<Self, CliError> {
        let active = proxy.view().await?.service.active;
        let (view, last) = activation::read(proxy, &active).await?;
        let before = ActivationFile::new(&session.config.deploy.state_dir)
            .current(&view)
            .unwrap_or_else(|e| {
                session.report.warn(&format!("can't compare with the old version: {e}"));
                None
            })
            .and_then(|activation| activation.before);
        Ok(Self::new(session, proxy, &view, plan, before, last))
    }

    /// Watches what a deploy has just switched to, from the switch on.
    pub(in crate::cli) async fn of_deploy(
        session: &'a Session,
        proxy: &'a ProxyService,
        operation: &str,
        plan: WatchPlan,
    ) -> Result<Self, ProxyError> {
        let state_dir = &session.config.deploy.state_dir;
        let active = proxy.view().await?.service.active;
        let (view, now) = activation::read(proxy, &active).await?;
        let current = ActivationFile::new(state_dir).current(&view).unwrap_or_else(|e| {
            session.report.warn(&format!("can't compare with the old version: {e}"));
            None
        });
        let (last, before) = match current {
            Some(activation) => (activation.start, activation.before),
            None => (now, None),
        };
        let mut watcher = Self::new(session, proxy, &view, plan, before, last);
        let began: Timestamp =
            watcher.last_switch.as_deref().and_then(|at| at.parse().ok()).unwrap_or_else(Timestamp::now);
        let ends = began.checked_add(watcher.plan.duration()).unwrap_or(Timestamp::MAX);
        let watch = Watch {
            schema: watch::SCHEMA,
            operation: operation.to_owned(),
            service: proxy.service.clone(),
            backend: watcher.watched.clone(),
            version: view.version(&watcher.watched),
            last_switch: watcher.last_switch.clone(),
            plan: watcher.plan.clone(),
            began_at: iso_millis(began),
            ends_at: iso_millis(ends),
            before: watcher.before.clone(),
            last: watcher.last.clone(),
            seen: Counters::default(),
            memory: watcher.judge.memory().clone(),
            verdict: None,
            cross_check: None,
        };
        watcher.record = Some(SavedWatch { file: None, watch, complained: false });
        watcher.save();
        Ok(watcher)
    }

    /// Continues a saved watch from its last tick.
    pub(in crate::cli) fn of_record(
        session: &'a Session,
        proxy: &'a ProxyService,
        file: WatchFile,
        watch: Watch,
    ) -> Self {
        let answers = watch.before.as_ref().map(|before| before.counters.answers());
        Self {
            session,
            proxy,
            watched: watch.backend.clone(),
            name: name_of(proxy, &watch.plan, &watch.backend, watch.version.as_deref()),
            last_switch: watch.last_switch.clone(),
            instance: instance(session, &watch.backend),
            plan: watch.plan.clone(),
            before: watch.before.clone(),
            last: watch.last.clone(),
            seen: watch.seen.clone(),
            in_flight: 0,
            judge: Judge::resume(&session.config.monitor, answers, watch.memory.clone()),
            record: Some(SavedWatch { file: Some(file), watch, complained: false }),
            alone: None,
            not_now: None,
        }
    }

    fn new(
        session: &'a Session,
        proxy: &'a ProxyService,
        view: &ServiceView,
        plan: WatchPlan,
        before: Option<PreviousActivation>,
        last: Reading,
    ) -> Self {
        let watched = view.service.active.clone();
        let answers = before.as_ref().map(|before| before.counters.answers());
        Self {
            session,
            proxy,
            name: name_of(proxy, &plan, &watched, view.version(&watched).as_deref()),
            last_switch: view.service.last_switch.clone(),
            instance: instance(session, &watched),
            watched,
            plan,
            before,
            last,
            seen: Counters::default(),
            in_flight: 0,
            judge: Judge::new(&session.config.monitor, answers),
            record: None,
            alone: None,
            not_now: None,
        }
    }

    pub(in crate::cli) fn session(&self) -> &'a Session {
        self.session
    }

    pub(in crate::cli) fn proxy(&self) -> &'a ProxyService {
        self.proxy
    }

    /// `app: ` in a watch of several services, otherwise nothing.
    pub(in crate::cli) fn of_service(&self) -> String {
        of_service(self.proxy, &self.plan)
    }

    /// What it watches, for messages.
    pub(in crate::cli) fn name(&self) -> &str {
        &self.name
    }

    /// The remaining time of a saved watch.
    pub(in crate::cli) fn left(&self, now: Timestamp) -> Duration {
        self.record.as_ref().map_or(Duration::ZERO, |record| record.watch.left(now))
    }

    /// The time of the switch that made it active, from uh-proxy's status.
    pub(in crate::cli) fn last_switch(&self) -> Option<&str> {
        self.last_switch.as_deref()
    }

    /// What the version that serves again answered before it was replaced, if that is known.
    pub(in crate::cli) fn answers_before(&self, serving: Option<&Serving>) -> Option<Answers> {
        let before = self.before.as_ref().filter(|before| serving.is_some_and(|now| now.is(&before.backend)));
        before.map(|before| before.counters.answers())
    }

    pub(in crate::cli) fn plan(&self) -> &WatchPlan {
        &self.plan
    }

    /// Whether it is saved, and therefore always recorded in the history.
    pub(in crate::cli) fn is_recorded(&self) -> bool {
        self.record.is_some()
    }

    pub(in crate::cli) fn verdict(&self) -> WatchVerdict {
        match self.judge.verdict(&self.seen) {
            WatchVerdict::NotEnoughData(why) if self.in_flight > 0 && !self.seen.knows_overdue() => {
                let open = self.in_flight;
                WatchVerdict::NotEnoughData(format!(
                    "{why}; {open} requests are in flight, and this uh-proxy doesn't report overdue ones"
                ))
            }
            verdict => verdict,
        }
    }

    pub(in crate::cli) fn evidence(&self, reason: String) -> Breach {
        let since = self.last_switch.clone().unwrap_or_default();
        let failures = self.seen.failures();
        Breach::collect(&self.session.config, &self.proxy.service, &self.watched, &since, reason, failures)
    }

    /// An entry for the history.
    pub(in crate::cli) fn line(&self, outcome: &str) -> HistoryEntry {
        HistoryEntry {
            command: "watch".to_owned(),
            service: Some(self.proxy.service.clone()),
            from: self.before.as_ref().map(|before| before.backend.clone()),
            from_version: self.before.as_ref().and_then(|before| before.version.clone()),
            to: Some(self.watched.clone()),
            version: self.record.as_ref().and_then(|record| record.watch.version.clone()),
            outcome: outcome.to_owned(),
            remarks: vec![figures(&self.seen)],
            ..HistoryEntry::default()
        }
    }
}

fn instance(session: &Session, backend: &BackendName) -> Option<InstanceId> {
    start::record_of(session, backend).ok().flatten().map(|record| record.instance)
}

/// `green (v1.0.1)`, in a watch of several services with the service.
fn name_of(proxy: &ProxyService, plan: &WatchPlan, backend: &BackendName, version: Option<&str>) -> String {
    format!("{}{}", of_service(proxy, plan), named(backend, version))
}

fn of_service(proxy: &ProxyService, plan: &WatchPlan) -> String {
    if plan.of_release { format!("{}: ", proxy.service) } else { String::new() }
}
