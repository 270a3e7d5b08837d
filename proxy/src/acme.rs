//! Certificates by ACME (RFC 8555): asks a certificate authority (CA) for them, proves that the hosts are ours, renews
//! them in time, and keeps them in a directory.
//!
//! ```text
//! configuration ─▶ hosts: one certificate for each set
//!                    │            ┌──▶ store: account, orders, certificates on disk
//!                    ▼            │
//!  acme thread:   renewal ─▶ order ──▶ tls::challenges ◀── data path: what the CA asks for
//!                    │  ▲         └──▶ http: the CA
//!                    │  └─ schedule: when to try
//!                    └──▶ tls::Server: new connections get the certificate
//! ```
//!
//! It has a thread of its own. Nothing waits for it: until there is a certificate, handshakes for its hosts fail, and the
//! log says why. In reading order: [`hosts`], [`store`], [`http`], [`failure`], [`schedule`], `patience`,
//! `account`, `order`, `managed`, `renewal`.

mod account;
pub(crate) mod failure;
pub(crate) mod hosts;
pub(crate) mod http;
mod managed;
mod order;
mod patience;
mod renewal;
pub(crate) mod schedule;
pub(crate) mod store;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::config::{self, Config};
use crate::observe::metrics::AcmeCounts;
use crate::tls;
use crate::tls::server::CheckedTls;
use failure::Cause;
use hosts::HostSet;
use http::{CaClient, TrustError};
use renewal::{Renewal, Work};
use store::{Store, StoreError};

/// What certificates to get, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    settings: config::Acme,
    sets: Vec<HostSet>,
}

impl Plan {
    /// The plan of a configuration; `None` without `[server.acme]`.
    #[must_use]
    pub(crate) fn of(config: &Config, files: &CheckedTls) -> Option<Self> {
        let settings = config.server.acme.clone()?;
        let sets = hosts::sets(&settings, &config.services, |host| files.serves(host));
        Some(Self { settings, sets })
    }

    /// Whether it includes a certificate for a host.
    #[must_use]
    pub(crate) fn covers(&self, host: &str) -> bool {
        self.sets.iter().any(|set| set.hosts().iter().any(|one| one == host))
    }
}

/// Why ACME can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The state directory can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The CA can't be trusted as configured.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Checks the settings that depend on this machine. Creates the state directory.
///
/// # Errors
/// If they can't be used.
pub(crate) fn open(settings: &config::Acme) -> Result<Store, AcmeError> {
    CaClient::new(settings.ca_file.as_deref())?;
    Ok(Store::open(&settings.state_dir)?)
}

/// Like [`open`], but changes nothing. Returns all errors.
#[must_use]
pub(crate) fn check(settings: &config::Acme) -> Vec<AcmeError> {
    let trust = CaClient::new(settings.ca_file.as_deref()).err().map(AcmeError::Trust);
    let store = Store::check(&settings.state_dir).err().map(AcmeError::Store);
    trust.into_iter().chain(store).collect()
}

/// A set of hosts, as operators see it.
#[derive(Debug, Clone)]
pub(crate) struct SetStatus {
    /// Its first host.
    pub name: String,
    /// All of its hosts.
    pub hosts: Vec<String>,
    /// Where its certificate is kept, or will be.
    pub file: PathBuf,
    /// When it is renewed, or tried again.
    pub next_try: Timestamp,
    /// Why the last attempt failed.
    pub problem: Option<String>,
    /// Failed attempts in a row.
    pub failures: u32,
}

/// What the acme thread and the admin side share.
#[derive(Debug, Default)]
struct Shared {
    sets: Mutex<Vec<SetStatus>>,
    issued: AtomicU64,
    failed: [AtomicU64; Cause::ALL.len()],
}

/// Gets certificates, as planned.
pub(crate) struct Acme {
    server: Arc<tls::Server>,
    plans: watch::Sender<Option<Arc<Plan>>>,
    shared: Arc<Shared>,
    running: Mutex<bool>,
}

impl Acme {
    /// Serves the certificates that are on disk. Nothing else happens until [`Acme::start`].
    ///
    /// # Errors
    /// If the settings can't be used.
    pub(crate) fn new(server: Arc<tls::Server>, plan: Option<Plan>) -> Result<Self, AcmeError> {
        let shared: Arc<Shared> = Arc::default();
        if let Some(plan) = &plan {
            let work = Work::load(open(&plan.settings)?, plan, &server.challenges);
            server.install_acme(work.served());
            *shared.sets.lock() = work.statuses();
        }
        let (plans, _) = watch::channel(plan.map(Arc::new));
        Ok(Self { server, plans, shared, running: Mutex::new(false) })
    }

    /// Starts the thread, if there is anything to do.
    ///
    /// # Errors
    /// If it can't be started.
    pub(crate) fn start(&self) -> io::Result<()> {
        let mut running = self.running.lock();
        if *running || self.plans.borrow().is_none() {
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let renewal =
            Renewal::new(Arc::clone(&self.server), Arc::clone(&self.shared), self.plans.subscribe());
        thread::Builder::new().name("acme".to_owned()).spawn(move || runtime.block_on(renewal.run()))?;
        *running = true;
        Ok(())
    }

    /// Replaces the plan. An attempt that is under way is resumed under the new plan.
    pub(crate) fn apply(&self, plan: Option<Plan>) {
        self.plans.send_if_modified(|current| {
            let changed = current.as_deref() != plan.as_ref();
            if changed {
                *current = plan.map(Arc::new);
            }
            changed
        });
        if let Err(error) = self.start() {
            tracing::error!(error = %uh_system::plain(&error), "cannot start the acme thread; certificates aren't renewed until a restart");
        }
    }

    /// The sets of hosts.
    #[must_use]
    pub(crate) fn sets(&self) -> Vec<SetStatus> {
        self.shared.sets.lock().clone()
    }

    /// The values for the metrics.
    #[must_use]
    pub(crate) fn counts(&self) -> AcmeCounts {
        let failed = Cause::ALL.iter().zip(&self.shared.failed);
        let failed = failed.map(|(cause, count)| (cause.label(), count.load(Ordering::Relaxed)));
        let issued = ("issued", self.shared.issued.load(Ordering::Relaxed));
        let reading = |set: SetStatus| (set.name, set.next_try.as_second(), set.failures);
        AcmeCounts {
            orders: [issued].into_iter().chain(failed).collect(),
            sets: self.sets().into_iter().map(reading).collect(),
        }
    }
}
