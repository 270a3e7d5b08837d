//! A trial in the words of `uh-proxy status`.

use uh_protocol::BackendName;
use uh_protocol::status::{Suspect, TrialFigures, TrialState, TrialStatus};

/// How many routes are named.
const ROUTES: usize = 5;

/// The lines about a trial. `active`: the old version, or the suspect of a cross-check until it is replaced.
pub(super) fn in_words(trial: &TrialStatus, active: &BackendName) -> Vec<String> {
    let TrialStatus { backend, state, failures, .. } = trial;
    let found = match (state, trial.ended) {
        (TrialState::Undecided, false) if trial.suspect == Suspect::Active => {
            "nothing says that it is worse than the other side so far".to_owned()
        }
        (TrialState::Bad, _) if trial.suspect == Suspect::Active && *active != trial.backend => {
            "it was worse than the other side".to_owned()
        }
        (TrialState::Bad, _) if trial.suspect == Suspect::Active => {
            "it is worse than the other side, and a switch is needed to take its clients back".to_owned()
        }
        (TrialState::Undecided, false) => format!("nothing says that it is worse than {active} so far"),
        (TrialState::Undecided, true) => "it ended without a decision".to_owned(),
        (TrialState::Suspicious, false) => format!(
            "it seems worse, but few clients are left on {active} to compare with; to be sure, run: uh-proxy split {backend} 50%"
        ),
        (TrialState::Suspicious, true) => "it seemed worse when it ended".to_owned(),
        (TrialState::Bad, false) => "it is worse: its clients are being taken back".to_owned(),
        (TrialState::Bad, true) => "it was worse, so its clients were taken back".to_owned(),
    };
    let what = match trial.suspect {
        Suspect::Split => "trial",
        Suspect::Active => "cross-check",
    };
    let mut lines = vec![format!("{what} of {backend}: {found}")];
    lines.push(format!("  failed: {}", figures(failures, trial)));
    if let (Some(slowness), Some(ms)) = (&trial.slowness, trial.slow_after_ms) {
        lines.push(format!("  slower than {ms} ms: {}", figures(slowness, trial)));
    }
    let failing: Vec<String> = trial
        .routes
        .iter()
        .filter(|route| route.new_clients > 0)
        .take(ROUTES)
        .map(|route| format!("{} ({})", route.template, route.new_clients))
        .collect();
    if !failing.is_empty() {
        lines.push(format!("  where clients of {backend} failed first: {}", failing.join(", ")));
    }
    lines
}

/// `3 of 120 requests (2 clients) on green, 1 of 1080 (1 client) on the other side, 0.1% before`
fn figures(figures: &TrialFigures, trial: &TrialStatus) -> String {
    let clients = |count: u64| if count == 1 { "1 client".to_owned() } else { format!("{count} clients") };
    let before = (figures.before_percent * 100.0).round() / 100.0;
    let excluded = match trial.state {
        TrialState::Undecided => format!("; not worse by more than {} points", figures.not_worse_by_points),
        TrialState::Suspicious | TrialState::Bad => String::new(),
    };
    format!(
        "{} of {} requests ({}) on {}, {} of {} ({}) on the other side, {before}% before{excluded}",
        figures.new_bad,
        figures.new_requests,
        clients(figures.new_clients),
        trial.backend,
        figures.old_bad,
        figures.old_requests,
        clients(figures.old_clients)
    )
}
