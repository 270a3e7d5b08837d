//! Puts backends back into service that were withdrawn to be stopped, but weren't stopped: the command was killed in
//! between, or the stop failed.

use super::progress::{Listener, Progress};
use super::records::Records;
use crate::config::Config;
use crate::proxy::{ProxyError, ProxyService};
use crate::runtime::Runtime;

/// Registers every withdrawn backend again whose recorded instance is running. A failed candidate has no record and
/// stays withdrawn.
///
/// # Errors
/// uh-proxy doesn't answer, or refuses.
pub(crate) async fn readmit(
    config: &Config,
    runtime: &dyn Runtime,
    proxy: &ProxyService,
    listener: Listener<'_>,
) -> Result<(), ProxyError> {
    let records = Records::new(&config.deploy.state_dir);
    for backend in &config.backends {
        let view = proxy.view().await?;
        if !view.is_withdrawn(&backend.name) {
            continue;
        }
        let record = match records.of(&backend.name) {
            Ok(Some(record)) => record,
            Ok(None) => continue,
            Err(e) => {
                listener(Progress::NotReadmitted { backend: &backend.name, error: &e });
                continue;
            }
        };
        if !runtime.state(&record.instance).await.is_ok_and(|state| state.is_running()) {
            continue;
        }
        let (frozen, version) = (&record.frozen, record.frozen.version.as_str());
        proxy.register(&backend.name, &frozen.endpoints, Some(version), view.generation).await?;
        listener(Progress::Readmitted { backend: &backend.name, version });
    }
    Ok(())
}
