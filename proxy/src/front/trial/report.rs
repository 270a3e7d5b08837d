//! What a trial has found, for the status and the metrics.

use std::sync::atomic::Ordering;

use uh_protocol::status::{TrialFigures, TrialRoute, TrialState, TrialStatus};
use uh_trial::routes::Route;
use uh_trial::{Counts, Figures, Kind, Side, Status};

use super::{FailureKind, Judged, OpenTrial};
use crate::observe::metrics::TrialReading;

impl OpenTrial {
    /// For the status. `ended`: its split has ended.
    pub(super) fn status(&self, ended: bool) -> TrialStatus {
        let counts = self.counts();
        let slow_after = self.shared.patience.get().map(|patience| patience.slow_after);
        self.judged(|judged| TrialStatus {
            backend: self.backend.clone(),
            state: match judged.status {
                Status::Undecided => TrialState::Undecided,
                Status::Suspicious => TrialState::Suspicious,
                Status::Bad { .. } => TrialState::Bad,
            },
            ended,
            slow_after_ms: slow_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
            failures: figures(judged, Kind::Failure, &counts).unwrap_or_else(nothing),
            slowness: figures(judged, Kind::Slowness, &counts).filter(|_| slow_after.is_some()),
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
            let evidence = |kind, coin, history| {
                let figures = judged.trial.figures(kind, &counts);
                figures.map(|figures| [(coin, figures.ln_coin), (history, figures.ln_history)])
            };
            let failures = evidence(Kind::Failure, "failures_coin", "failures_history");
            let slowness = evidence(Kind::Slowness, "slowness_coin", "slowness_history");
            TrialReading {
                service: self.service.clone(),
                backend: self.backend.clone(),
                failures: bad_requests.collect(),
                ln_evidence: failures.into_iter().chain(slowness).flatten().collect(),
                state: match judged.status {
                    Status::Undecided => 0,
                    Status::Suspicious => 1,
                    Status::Bad { .. } => 2,
                },
            }
        })
    }
}

fn figures(judged: &Judged, kind: Kind, counts: &Counts) -> Option<TrialFigures> {
    let Figures { new, old, before, clients_new, clients_old, ln_coin, ln_history } =
        judged.trial.figures(kind, counts)?;
    Some(TrialFigures {
        new_requests: new.all(),
        new_bad: new.bad(),
        new_clients: clients_new,
        old_requests: old.all(),
        old_bad: old.bad(),
        old_clients: clients_old,
        before_percent: before.rate() * 100.0,
        ln_coin,
        ln_history,
        not_worse_by_points: points(judged.trial.excluded(kind, counts)),
    })
}

/// Before anything is known.
fn nothing() -> TrialFigures {
    TrialFigures {
        new_requests: 0,
        new_bad: 0,
        new_clients: 0,
        old_requests: 0,
        old_bad: 0,
        old_clients: 0,
        before_percent: 0.0,
        ln_coin: 0.0,
        ln_history: 0.0,
        not_worse_by_points: 100.0,
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
