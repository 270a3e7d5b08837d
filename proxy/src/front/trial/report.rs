//! What a trial has found, for the status and the metrics.

use std::sync::atomic::Ordering;

use uh_protocol::status::{Suspect, TrialFigures, TrialRoute, TrialState, TrialStatus};
use uh_trial::routes::Route;
use uh_trial::{Counts, Figures, Kind, Side, Status};

use super::{FailureKind, Judged, OpenTrial};
use crate::observe::metrics::TrialReading;

impl OpenTrial {
    /// For the status. `ended`: its split has ended.
    pub(super) fn status(&self, ended: bool) -> TrialStatus {
        let counts = self.counts();
        let is_timed = Kind::Slowness.of(counts.new).all() + Kind::Slowness.of(counts.old).all() > 0;
        let slow_after = self.shared.patience.get().map(|patience| patience.slow_after);
        self.judged(|judged| TrialStatus {
            backend: self.backend.clone(),
            state: match judged.status {
                Status::Undecided => TrialState::Undecided,
                Status::Suspicious => TrialState::Suspicious,
                Status::Bad { .. } => TrialState::Bad,
            },
            ended,
            suspect: match self.shared.suspect {
                uh_switching::Side::New => Suspect::Split,
                uh_switching::Side::Old => Suspect::Active,
            },
            slow_after_ms: slow_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
            failures: figures(judged, Kind::Failure, &counts),
            slowness: is_timed.then(|| figures(judged, Kind::Slowness, &counts)),
            routes: judged.routes.top().into_iter().map(route).collect(),
            request_ids: judged.request_ids.clone(),
        })
    }

    /// For a scrape.
    pub(super) fn read(&self) -> TrialReading {
        let counts = self.counts();
        let bad_requests = Side::ALL.into_iter().flat_map(|side| {
            FailureKind::ALL.map(|kind| {
                let count = self.shared.bad_requests[side as usize][kind as usize].load(Ordering::Relaxed);
                (side.as_str(), kind.as_str(), count)
            })
        });
        self.judged(|judged| {
            let failures = judged.trial.figures(Kind::Failure, &counts);
            let slowness = judged.trial.figures(Kind::Slowness, &counts);
            let windows = slowness.ln_windows.map(|ln_windows| ("slowness_windows", ln_windows));
            let ln_evidence = [
                ("failures_coin", failures.ln_coin),
                ("failures_history", failures.ln_history),
                ("slowness_coin", slowness.ln_coin),
                ("slowness_history", slowness.ln_history),
            ];
            TrialReading {
                service: self.service.clone(),
                backend: self.backend.clone(),
                failures: bad_requests.collect(),
                ln_evidence: ln_evidence.into_iter().chain(windows).collect(),
                state: match judged.status {
                    Status::Undecided => 0,
                    Status::Suspicious => 1,
                    Status::Bad { .. } => 2,
                },
            }
        })
    }
}

fn figures(judged: &Judged, kind: Kind, counts: &Counts) -> TrialFigures {
    let Figures { new, old, before, clients_new, clients_old, ln_coin, ln_windows, ln_history } =
        judged.trial.figures(kind, counts);
    TrialFigures {
        new_requests: new.all(),
        new_bad: new.bad(),
        new_clients: clients_new,
        old_requests: old.all(),
        old_bad: old.bad(),
        old_clients: clients_old,
        before_percent: before.rate() * 100.0,
        ln_coin,
        ln_windows,
        ln_history,
        not_worse_by_points: points(judged.trial.excluded(kind, counts)),
    }
}

/// In points, with two decimals, rounded up.
fn points(share: f64) -> f64 {
    (share * 10_000.0).ceil() / 100.0
}

fn route(route: &Route) -> TrialRoute {
    TrialRoute {
        template: route.template.clone(),
        new_clients: route.coin.clients(Side::New),
        old_clients: route.coin.clients(Side::Old),
    }
}
