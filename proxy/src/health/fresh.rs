//! One probe of a backend right before traffic moves to it: the results of the regular probes may be out of date, for
//! example because the app is being stopped at this moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::probe::probe_within;
use crate::config;
use crate::front::Backend;

/// A successful probe that is more recent than this needs no other: a switch can coincide that closely with the end of
/// a probe anyway.
const FRESH_ENOUGH: Duration = Duration::from_millis(100);

/// The result of a probe before a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fresh {
    /// The overall outcome.
    pub verdict: SwitchVerdict,
    /// How long it took.
    pub took: Duration,
    /// Its timeout.
    pub limit: Duration,
    /// The endpoints that gave a bad answer, by address, and why.
    pub bad: Vec<(String, String)>,
}

/// The outcome for the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SwitchVerdict {
    /// At least one endpoint gave a good answer.
    Good,
    /// None did, and at least one timed out: the regular probes decide.
    NoAnswer,
    /// Every endpoint refused the connection or gave a bad answer.
    Bad,
    /// No probe was made.
    Skipped,
}

impl Fresh {
    /// No probe was made.
    #[must_use]
    pub(crate) fn skipped() -> Self {
        Self { verdict: SwitchVerdict::Skipped, took: Duration::ZERO, limit: Duration::ZERO, bad: Vec::new() }
    }
}

/// Probes all endpoints of a backend concurrently. Skipped if probing is off, and if every endpoint has just passed a
/// probe.
pub(crate) async fn probe_now(service: &Arc<config::Service>, backend: &Arc<Backend>) -> Fresh {
    let check = &service.health;
    let known = || backend.endpoints.iter().all(|endpoint| endpoint.was_good_within(FRESH_ENOUGH));
    if !check.enabled || check.switch_probe_timeout.is_zero() || known() {
        return Fresh::skipped();
    }
    let start = Instant::now();
    let timeout = check.switch_probe_timeout.min(check.timeout);
    let mut probes = JoinSet::new();
    for endpoint in &backend.endpoints {
        let (service, backend, endpoint) = (Arc::clone(service), Arc::clone(backend), Arc::clone(endpoint));
        probes.spawn(async move {
            let found = probe_within(timeout, &endpoint, backend.name().as_str(), &service.health).await;
            (endpoint.address.to_string(), found)
        });
    }
    let (mut good, mut silent, mut bad) = (0, 0, Vec::new());
    for (address, found) in probes.join_all().await {
        match found {
            Some(found) if found.ok => good += 1,
            Some(found) => bad.push((address, found.error.unwrap_or_default())),
            None => silent += 1,
        }
    }
    bad.sort();
    let verdict = match (good, silent) {
        (0, 0) => SwitchVerdict::Bad,
        (0, _) => SwitchVerdict::NoAnswer,
        _ => SwitchVerdict::Good,
    };
    Fresh { verdict, took: start.elapsed(), limit: timeout, bad }
}
