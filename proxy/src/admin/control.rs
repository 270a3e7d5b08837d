//! A running uh-proxy, as the admin side sees it. Its operations are in one file each.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use tokio::sync::{Mutex, Notify};
use uh_protocol::{BackendName, Code, Problem, ServiceName};
use uh_switching::ServiceState;

use super::upgrade::Upgrades;
use crate::acme::Acme;
use crate::config::Service;
use crate::front::Board;
use crate::front::broadcast::Broadcast;
use crate::front::own_cookies::OwnCookies;
use crate::front::rate::RateLimiter;
use crate::front::settings::SettingsCell;
use crate::front::sticky::StickyKey;
use crate::front::trial::Trials;
use crate::handover::end::End;
use crate::handover::predecessor::Predecessor;
use crate::health::prober::HealthNews;
use crate::observe::access_log::LogControl;
use crate::observe::meters::{BackendMeters, Meters};
use crate::observe::metrics::Metrics;
use crate::state::file::StateFile;
use crate::state::writer::{StateChange, StateWriter};
use crate::tls;

/// A running uh-proxy, as the admin side sees it.
pub(crate) struct Control {
    /// Where routing changes.
    pub board: Arc<Board>,
    /// Writes the state.
    pub state_writer: Arc<StateWriter>,
    /// The data path's counters.
    pub meters: Arc<Meters>,
    /// The Prometheus text.
    pub metrics: Metrics,
    /// Wakes the workers' connections.
    pub broadcasts: Vec<Arc<Broadcast>>,
    /// What a reload needs.
    pub reloading: Reloading,
    /// Increases as long as the admin thread makes progress.
    pub admin_heartbeat: AtomicU64,
    /// What rate limits have counted.
    pub rates: Arc<RateLimiter>,
    /// The key of sticky cookies.
    pub sticky: Arc<StickyKey>,
    /// uh-proxy's own cookies.
    pub cookies: Arc<OwnCookies>,
    /// What trials count.
    pub trials: Arc<Trials>,
    /// The process that this one has replaced.
    pub predecessor: Arc<Predecessor>,
    /// What an upgrade needs.
    pub upgrades: Upgrades,
    /// What the process waits for last, when another one has replaced it.
    pub end: End,
    /// Wakes the prober.
    pub news: Arc<HealthNews>,
    /// Notified when an endpoint's health has changed, which may end a split.
    pub split_health: Notify,
    /// When the process started.
    pub started: Instant,
    /// The addresses bound for plain HTTP.
    pub listen: Vec<String>,
    /// Those for HTTPS.
    pub listen_tls: Vec<String>,
    /// The addresses for HTTP/2 without TLS.
    pub listen_h2c: Vec<String>,
    /// What serves HTTPS, if it is served.
    pub tls: Option<Arc<tls::Server>>,
    /// What gets certificates for it.
    pub acme: Option<Arc<Acme>>,
    /// The metrics listener's address.
    pub metrics_address: Option<String>,
    /// Problems with the state file found at start.
    pub warnings: Vec<String>,
}

/// What a reload needs in addition to the switchboard.
pub(crate) struct Reloading {
    /// The configuration file.
    pub path: PathBuf,
    /// Its text as last applied. The lock serialises reloads.
    pub text: Mutex<String>,
    /// Its text at start: compared to find what a restart would change.
    pub text_at_start: String,
    /// Each worker's settings.
    pub settings: Vec<Arc<SettingsCell>>,
    /// Where the access log goes.
    pub log_control: LogControl,
    /// Notified at SIGHUP.
    pub wanted: Notify,
    /// Notified at SIGUSR1.
    pub reopen_wanted: Notify,
    /// Held while the access log is opened again.
    pub reopening: Arc<Mutex<()>>,
}

impl Control {
    pub(super) fn backend_meters(
        &self,
        service: &str,
        backend: &BackendName,
    ) -> Result<Arc<BackendMeters>, Problem> {
        let service: ServiceName = service.parse().map_err(|_| internal("the service name isn't valid"))?;
        Ok(self.meters.backend(&service, backend))
    }

    /// Tunnels in flight, of all backends.
    pub(crate) fn tunnels(&self) -> u64 {
        let snapshot = self.board.snapshot();
        let of = |state: &ServiceState<Service>| -> u64 {
            let names = state.backends.iter().map(|backend| &backend.name);
            names.map(|name| self.board.holding(&state.config.name, name).tunnels).sum()
        };
        snapshot.services.iter().map(of).sum()
    }

    /// Writes the state in the background, for changes that nobody waits for.
    pub(crate) fn persist_later(&self) {
        if let Some(state) = StateFile::of(&self.board.view()) {
            self.state_writer.submit(state, StateChange::BackendInfo);
        }
    }

    /// Waits until the process that this one has replaced has followed the current routing. Without one, nothing happens.
    pub(crate) async fn follow(&self) {
        self.predecessor.synced(|| StateFile::of(&self.board.view())).await;
    }

    pub(super) async fn persist(&self) -> Result<(), String> {
        match StateFile::of(&self.board.view()) {
            Some(state) => {
                self.state_writer.wait(self.state_writer.submit(state, StateChange::Routing)).await
            }
            None => Ok(()),
        }
    }
}

pub(super) fn internal(detail: &str) -> Problem {
    Problem::new(Code::Internal, detail)
}

/// A client's text, shortened for a log line.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(uh_protocol::name::MAX_NAME_BYTES).collect()
}
