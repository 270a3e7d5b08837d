//! Trials: every split is one. Opens a trial with each split, looks at it every 100 ms, and ends a split whose new side is
//! worse: the fuse. It needs nobody else to be alive. In a cross-check, where the active side is the suspect, the end of the
//! split would give that one all clients, so whoever asked for it acts.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use uh_protocol::BackendName;
use uh_switching::{OneSplit, ServiceState, Side, Split};
use uh_trial::{Figures, History, Status};

use super::control::Control;
use super::history::{NOTE_EVERY, Past};
use super::split_end::Reason;
use crate::config::Service;
use crate::front::trial::{OpenTrial, Patience};

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
            && let (_, Some(patience)) = self.past_of_old(state, split, past)
        {
            // What the old version did before stays unknown: only the coin can decide.
            let _ = trial.shared.patience.set(patience);
        }
        let Status::Bad { kind, figures, .. } = trial.look(split.assignment.weight.share()) else { return };
        if split.judging.suspect == Side::Old {
            if trial.is_news() {
                log(trial, kind.as_str(), &figures, "a cross-check has found the active version worse");
            }
            return;
        }
        let only = OneSplit { salt: split.assignment.salt, until: None };
        if self.end_by_itself(&state.config.name, only, Reason::Worse) {
            let what = "the new version is worse: all clients return to the old one";
            log(trial, kind.as_str(), &figures, what);
        }
    }

    /// What is known of the side that isn't suspected.
    fn past_of_old(
        &self,
        state: &ServiceState<Service>,
        split: &Split,
        past: &Past,
    ) -> (History, Option<Patience>) {
        match split.judging.suspect {
            Side::New => self.past_of(state, past),
            Side::Old => past.before(&state.config.name, &split.new.backend),
        }
    }

    /// Opens the trial of a service's split. The old version is known by what was counted in the last 10 minutes in which it
    /// was active.
    fn open(&self, state: &ServiceState<Service>, split: &Split, past: &Past) -> OpenTrial {
        let (history, patience) = self.past_of_old(state, split, past);
        let (service, [old, backend]) = (&state.config.name, sides(state, split));
        tracing::info!(%service, %old, new = %backend, requests = history.failures.all(),
            failed = history.failures.bad(),
            slow_after_ms = patience.map(|patience| patience.slow_after.as_millis() as u64),
            "a trial has begun");
        let of = (service.clone(), backend.clone(), split.assignment.salt);
        OpenTrial::new(of, split.judging, history, patience, self.broadcasts.len())
    }
}

/// The backend that a trial compares with, and the suspect.
fn sides<'a>(state: &'a ServiceState<Service>, split: &'a Split) -> [&'a BackendName; 2] {
    let (active, other) = (&state.active.backend, &split.new.backend);
    match split.judging.suspect {
        Side::New => [active, other],
        Side::Old => [other, active],
    }
}

/// Logs what a trial has found.
fn log(trial: &OpenTrial, kind: &'static str, figures: &Figures, what: &'static str) {
    let percent = |rate: f64| (rate * 10_000.0).round() / 100.0;
    let (routes, request_ids) = trial.judged(|judged| {
        let top = judged.routes.top();
        let named = top
            .iter()
            .take(LOGGED_ROUTES)
            .map(|route| format!("{} ({})", route.template, route.coin.clients(uh_trial::Side::New)));
        (named.collect::<Vec<_>>().join(", "), judged.request_ids.join(", "))
    });
    tracing::warn!(service = %trial.service, backend = %trial.backend, kind,
        new_percent = percent(figures.new.rate()), new_requests = figures.new.all(), new_bad = figures.new.bad(),
        old_percent = percent(figures.old.rate()), old_requests = figures.old.all(), old_bad = figures.old.bad(),
        before_percent = percent(figures.before.rate()), clients_new = figures.clients_new,
        clients_old = figures.clients_old, ln_coin = figures.ln_coin,
        ln_windows = figures.ln_windows, ln_history = figures.ln_history,
        after_s = trial.age().as_secs_f64(), routes, request_ids, "{what}");
}
