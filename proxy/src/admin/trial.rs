//! Trials: every split is one. Opens a trial with each split, looks at it every 100 ms, and ends a split whose new side is
//! worse: the fuse. It needs nobody else to be alive.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use uh_switching::{OneSplit, ServiceState, Split};
use uh_trial::{Figures, Side, Status, Weight};

use super::control::Control;
use super::history::{NOTE_EVERY, Past};
use super::split_end::Reason;
use crate::config::Service;
use crate::front::trial::OpenTrial;

/// How often trials are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How many of the routes with failures are logged.
const LOGGED_ROUTES: usize = 5;

impl Control {
    /// Opens and judges trials, indefinitely.
    pub(crate) async fn judge_trials(self: Arc<Self>) {
        let mut past = Past::new();
        loop {
            // Before the look: what changes after it ends the wait.
            let changed = self.board.changed();
            self.note(&mut past);
            let running = self.follow_splits(&past);
            let next = if running { LOOK_EVERY } else { NOTE_EVERY };
            tokio::select! {
                () = changed => {}
                () = sleep(next) => {}
            }
        }
    }

    /// Opens trials for new splits, looks at all of them, and ends what is worse. Returns whether there is any.
    fn follow_splits(self: &Arc<Self>, past: &Past) -> bool {
        let snapshot = self.board.snapshot();
        let before = self.trials.open();
        let mut trials = Vec::new();
        for state in &snapshot.services {
            let Some(split) = &state.split else { continue };
            let open = before.iter().find(|trial| trial.shared.salt == split.assignment.salt);
            let trial = open.map_or_else(|| Arc::new(self.open(state, split, past)), Arc::clone);
            self.look(&trial, state, split, past);
            trials.push(trial);
        }
        let changed = trials.len() != before.len()
            || trials.iter().zip(before.iter()).any(|(now, before)| !Arc::ptr_eq(now, before));
        let running = !trials.is_empty();
        if changed {
            self.trials.replace(trials, |name| snapshot.service(name.as_str()).is_some());
        }
        running
    }

    fn look(self: &Arc<Self>, trial: &OpenTrial, state: &ServiceState<Service>, split: &Split, past: &Past) {
        if trial.shared.patience.get().is_none()
            && let (_, Some(patience)) = self.past_of(state, past)
        {
            // What the old version did before stays unknown: only the coin can decide.
            let _ = trial.shared.patience.set(patience);
        }
        let weight = Weight::new(split.assignment.weight.share());
        let Status::Bad { kind, figures, .. } = trial.look(weight) else { return };
        let only = OneSplit { salt: split.assignment.salt, until: None };
        if self.end_by_itself(&state.config.name, only, Reason::Worse) {
            log(trial, kind.as_str(), &figures);
        }
    }

    /// Opens the trial of a service's split. The old version is known by what was counted since it became active, at most
    /// 10 minutes ago.
    fn open(&self, state: &ServiceState<Service>, split: &Split, past: &Past) -> OpenTrial {
        let (history, patience) = self.past_of(state, past);
        let (service, backend) = (&state.config.name, &split.new.backend);
        tracing::info!(%service, old = %state.active.backend, new = %backend, requests = history.failures.all(),
            failed = history.failures.bad(),
            slow_after_ms = patience.map(|patience| patience.slow_after.as_millis() as u64),
            "a trial has begun");
        let of = (service.clone(), backend.clone(), split.assignment.salt);
        OpenTrial::new(of, history, patience, self.broadcasts.len())
    }
}

/// Logs why a trial has ended.
fn log(trial: &OpenTrial, kind: &'static str, figures: &Figures) {
    let percent = |rate: f64| (rate * 10_000.0).round() / 100.0;
    let (routes, request_ids) = trial.judged(|judged| {
        let top = judged.routes.top();
        let named = top
            .iter()
            .take(LOGGED_ROUTES)
            .map(|route| format!("{} ({})", route.template, route.coin.clients(Side::New)));
        (named.collect::<Vec<_>>().join(", "), judged.request_ids.join(", "))
    });
    tracing::warn!(service = %trial.service, backend = %trial.backend, kind,
        new_percent = percent(figures.new.rate()), new_requests = figures.new.all(), new_bad = figures.new.bad(),
        old_percent = percent(figures.old.rate()), old_requests = figures.old.all(), old_bad = figures.old.bad(),
        before_percent = percent(figures.before.rate()), clients_new = figures.clients_new,
        clients_old = figures.clients_old, ln_coin = figures.ln_coin,
        ln_windows = figures.ln_windows, ln_history = figures.ln_history,
        after_s = trial.age().as_secs_f64(), routes, request_ids,
        "the new version is worse: all clients return to the old one");
}
