//! Regular probes: one task per endpoint of every backend, active or standby, so that there is never more than one
//! probe of an endpoint in flight; and a task that resolves its name, if it has one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use uh_protocol::{Address, BackendName, ServiceName};
use uh_switching::Health;

use super::probe::probe;
use super::resolver;
use super::streak::Streak;
use crate::config;
use crate::front::Board;
use crate::front::endpoint::Endpoint;

/// How long a registration may go unnoticed if its notification is lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Time between two probes while the health is still unknown.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);

/// Wakes the prober when backends change, and other tasks when an endpoint's health changes.
#[derive(Debug, Default)]
pub(crate) struct HealthNews {
    /// Backends have changed.
    pub backends: Notify,
    /// An endpoint's health has changed.
    pub health: Notify,
}

/// Probes every endpoint of the switchboard and resolves its name, indefinitely.
pub(crate) async fn run(board: Arc<Board>, news: Arc<HealthNews>) {
    let mut known: Vec<Arc<Endpoint>> = Vec::new();
    loop {
        let targets = targets(&board);
        known.retain(|endpoint| targets.iter().any(|target| Arc::ptr_eq(&target.endpoint, endpoint)));
        for target in targets {
            if !known.iter().any(|endpoint| Arc::ptr_eq(endpoint, &target.endpoint)) {
                known.push(Arc::clone(&target.endpoint));
                look_after(target, &board, &news);
            }
        }
        let _ = tokio::time::timeout(LOOK_EVERY, news.backends.notified()).await;
    }
}

#[derive(Clone)]
struct ProbeTask {
    service: Arc<config::Service>,
    backend: BackendName,
    endpoint: Arc<Endpoint>,
}

fn targets(board: &Board) -> Vec<ProbeTask> {
    let mut targets = Vec::new();
    for service in &board.live().services {
        for backend in &service.backends {
            targets.extend(backend.endpoints.iter().map(|endpoint| ProbeTask {
                service: Arc::clone(&service.state.config),
                backend: backend.name().clone(),
                endpoint: Arc::clone(endpoint),
            }));
        }
    }
    targets
}

fn look_after(target: ProbeTask, board: &Arc<Board>, news: &Arc<HealthNews>) {
    if let Address::Name(host, port) = target.endpoint.address.clone() {
        let (board, target) = (Arc::clone(board), target.clone());
        let endpoint = Arc::clone(&target.endpoint);
        tokio::spawn(async move {
            let look_up = || resolver::lookup(host.clone(), port);
            // Read each time: a reload may change the interval and keep the endpoint.
            let settings = || {
                let snapshot = board.snapshot();
                let state = snapshot.service(target.service.name.as_str());
                state.filter(|_| is_registered(&board, &target)).map(|state| state.config.resolve.clone())
            };
            resolver::keep_resolving(endpoint, look_up, settings).await;
        });
    }
    if target.service.health.enabled {
        tokio::spawn(keep_probing(target, Arc::clone(board), Arc::clone(news)));
    }
}

async fn keep_probing(target: ProbeTask, board: Arc<Board>, news: Arc<HealthNews>) {
    let check = &target.service.health;
    let mut streak = Streak::default();
    loop {
        if !is_registered(&board, &target) {
            return;
        }
        let found = probe(&target.endpoint, target.backend.as_str(), check).await;
        if !found.ok {
            // It may have been replaced by now.
            target.endpoint.doubt();
        }
        let before = target.endpoint.health();
        let after = streak.add(found.ok, check.healthy_after, check.unhealthy_after);
        if before != after {
            announce(&target.service.name, &target, after, found.error.as_deref());
        }
        let old_version = target.endpoint.last_probe().and_then(|probe| probe.version);
        let changed = before != after || old_version != found.version;
        target.endpoint.probed(found, after);
        if changed {
            news.health.notify_one();
        }
        // While an endpoint's health is unknown, a switch to it is refused: that must not last.
        let unknown = after == Health::Unknown;
        tokio::time::sleep(if unknown { check.interval.min(FIRST_INTERVAL) } else { check.interval }).await;
    }
}

fn is_registered(board: &Board, target: &ProbeTask) -> bool {
    let live = board.live();
    let service = live.service(target.service.name.as_str());
    let backend = service.and_then(|service| service.backend(&target.backend));
    backend.is_some_and(|backend| {
        backend.endpoints.iter().any(|endpoint| Arc::ptr_eq(endpoint, &target.endpoint))
    })
}

fn announce(service: &ServiceName, target: &ProbeTask, health: Health, error: Option<&str>) {
    let (backend, endpoint) = (&target.backend, &target.endpoint.address);
    match error {
        Some(error) => tracing::warn!(%service, %backend, %endpoint, error, "endpoint is {health}"),
        None => tracing::info!(%service, %backend, %endpoint, "endpoint is {health}"),
    }
}
