//! What uh-proxy's status says of a cross-check.

use uh_protocol::BackendName;
use uh_protocol::status::{Suspect, TrialFigures, TrialState, TrialStatus};

use crate::proxy::ServiceView;
use crate::verdict::judge::Suspicion;

/// Whether it is a cross-check of this backend, and not an earlier one.
pub(super) fn is_of(trial: &TrialStatus, watched: &BackendName, before: Option<&TrialStatus>) -> bool {
    trial.suspect == Suspect::Active && trial.backend == *watched && before != Some(trial)
}

/// The reason of a breach, if uh-proxy's trial has found the active version worse.
pub(super) fn worse(trial: &TrialStatus, suspicion: &Suspicion, with: &BackendName) -> Option<String> {
    if trial.state != TrialState::Bad {
        return None;
    }
    let slow = trial.slowness.as_ref().filter(|slow| slow.ln_same_moment() > trial.failures.ln_coin);
    let (what, figures) = match slow {
        Some(slow) => ("were slow", slow),
        None => ("failed", &trial.failures),
    };
    let TrialFigures { new_bad, new_requests, new_clients, old_bad, old_requests, old_clients, .. } = figures;
    Some(format!(
        "{}; at the same time {new_bad} of {new_requests} requests {what} on {} ({new_clients} clients) and {old_bad} of {old_requests} on {with} ({old_clients})",
        suspicion.reason, trial.backend
    ))
}

pub(super) fn failing_clients(trial: &TrialStatus, slow: bool) -> u64 {
    let figures = if slow { trial.slowness.as_ref() } else { Some(&trial.failures) };
    figures.map_or(0, |figures| figures.new_clients + figures.old_clients)
}

/// Why the split of the check isn't there any more.
pub(super) fn lost(view: &ServiceView, with: &BackendName) -> Option<String> {
    if view.split_to(with).is_some_and(|split| split.suspect == Suspect::Active) {
        return None;
    }
    if view.backend(with).is_some_and(|backend| backend.healthy == Some(false)) {
        return Some(format!("{with} has become unhealthy"));
    }
    Some("another command ended its split, or it wasn't renewed in time".to_owned())
}
