//! The counters of the active backend when traffic moved to it, saved at every switch by uh-deploy.
//!
//! uh-proxy counts by backend, and a backend's counters span activations: those of `blue` include every version that
//! ran as blue. The counts of one activation are the difference between its end and its start, so the start is saved.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uh_protocol::{BackendName, ServiceName};

use crate::counters::{Counters, ProxyProcess, Reading};
use crate::files;
use crate::proxy::{ProxyError, ProxyService, ServiceView};
use crate::time::same_switch;

/// The version of the file's format.
const SCHEMA: u32 = 1;

/// The activation that uh-deploy's last switch started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Activation {
    schema: u32,
    pub service: ServiceName,
    /// What became active.
    pub backend: BackendName,
    /// The time of the switch in uh-proxy's status (`last_switch`): a different value means that traffic was switched
    /// again.
    pub since: String,
    /// The counters at that moment.
    pub start: Reading,
    /// What served before, and its counters.
    pub before: Option<PreviousActivation>,
}

/// What a backend counted in one activation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PreviousActivation {
    /// Which backend.
    pub backend: BackendName,
    /// Its version, if known.
    pub version: Option<String>,
    /// Its counters in that activation.
    pub counters: Counters,
}

/// The file of a state directory.
#[derive(Debug, Clone)]
pub(crate) struct ActivationFile {
    path: PathBuf,
}

impl ActivationFile {
    /// The file of this state directory.
    #[must_use]
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join("activation.json") }
    }

    /// The current activation, if uh-deploy's switch started it. `view`: the current status.
    ///
    /// # Errors
    /// The file exists but can't be read.
    pub(crate) fn current(&self, view: &ServiceView) -> io::Result<Option<Activation>> {
        let Some(text) = files::read(&self.path)? else { return Ok(None) };
        let activation: Activation = serde_json::from_slice(&text).map_err(|e| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", self.path.display()))
        })?;
        let service = &view.service;
        let same = activation.service == service.name
            && activation.backend == service.active
            && same_switch(Some(&activation.since), service.last_switch.as_deref());
        Ok(same.then_some(activation))
    }

    /// Saves the activation that a switch has started.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn begin(&self, handover: Handover, since: String) -> io::Result<()> {
        let Handover { service, backend, start, before } = handover;
        let activation = Activation { schema: SCHEMA, service, backend, since, start, before };
        files::replace(&self.path, serde_json::to_string(&activation)?.as_bytes())
    }

    /// Reads the counters just before traffic moves to `to`.
    ///
    /// # Errors
    /// uh-proxy doesn't answer, or the file can't be read.
    pub(crate) async fn hand_over(
        &self,
        proxy: &ProxyService,
        to: &BackendName,
    ) -> Result<Handover, HandoverError> {
        let (view, metrics) = metrics_of_one_process(proxy).await?;
        let process = process(&view);
        let reading = |backend: &BackendName| {
            let counters = Counters::read(&metrics, proxy.service.as_str(), backend.as_str());
            Reading { process: process.clone(), counters }
        };
        let old = &view.service.active;
        let start = self.current(&view)?.map(|activation| activation.start);
        let counters = match start {
            Some(start) => Some(reading(old).since(&start)),
            // Active since before this uh-proxy started, so everything it counted is from this activation.
            None if active_since_start(&view, jiff::Timestamp::now()) => Some(reading(old).counters),
            None => None,
        };
        let before = counters.map(|counters| PreviousActivation {
            backend: old.clone(),
            version: view.version(old),
            counters,
        });
        Ok(Handover { service: proxy.service.clone(), backend: to.clone(), start: reading(to), before })
    }
}

/// The counters just before traffic moves.
#[derive(Debug)]
pub(crate) struct Handover {
    service: ServiceName,
    backend: BackendName,
    start: Reading,
    before: Option<PreviousActivation>,
}

/// Why the counters couldn't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoverError {
    /// uh-proxy doesn't answer.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The file can't be read.
    #[error("can't read what was saved at the last switch: {0}")]
    File(#[from] io::Error),
}

/// A backend's counters, with the status at that moment.
///
/// # Errors
/// uh-proxy doesn't answer.
pub(crate) async fn read(
    proxy: &ProxyService,
    backend: &BackendName,
) -> Result<(ServiceView, Reading), ProxyError> {
    let (view, [reading]) = read_all(proxy, [backend]).await?;
    Ok((view, reading))
}

/// The counters of several backends, with the status at that moment.
///
/// # Errors
/// uh-proxy doesn't answer.
pub(crate) async fn read_all<const N: usize>(
    proxy: &ProxyService,
    backends: [&BackendName; N],
) -> Result<(ServiceView, [Reading; N]), ProxyError> {
    let (view, metrics) = metrics_of_one_process(proxy).await?;
    let process = process(&view);
    let readings = backends.map(|backend| {
        let counters = Counters::read(&metrics, proxy.service.as_str(), backend.as_str());
        Reading { process: process.clone(), counters }
    });
    Ok((view, readings))
}

/// How often to retry if uh-proxy restarts between two calls. One restart is normal, one per attempt isn't.
const ROUNDS: u32 = 3;

/// The status and the counters of the same process.
async fn metrics_of_one_process(proxy: &ProxyService) -> Result<(ServiceView, String), ProxyError> {
    let mut round = 1;
    loop {
        let before = proxy.view().await?;
        let metrics = proxy.client.metrics().await?;
        let after = proxy.view().await?;
        if process(&before).is(&process(&after)) || round == ROUNDS {
            return Ok((after, metrics));
        }
        round += 1;
    }
}

fn process(view: &ServiceView) -> ProxyProcess {
    ProxyProcess::new(&view.status.proxy, monotonic(), &boot_id())
}

fn active_since_start(view: &ServiceView, now: jiff::Timestamp) -> bool {
    let Some(last_switch) = &view.service.last_switch else { return true };
    let up = Duration::from_secs(view.status.proxy.uptime_s);
    let started = now.checked_sub(up).ok();
    let switched = last_switch.parse::<jiff::Timestamp>().ok();
    started.zip(switched).is_some_and(|(started, switched)| switched < started)
}

/// The clock that uptimes are measured with.
fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Empty if unknown: then process id and start time decide.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
