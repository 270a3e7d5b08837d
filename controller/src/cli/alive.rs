//! Whether what should serve lives: asked of the runtime and of the app itself, now, and not read from an older probe.

use super::session::Session;
use crate::deploy::records::Records;
use crate::front::Serving;
use crate::probe::{Expected, probe};
use crate::runtime::{InstanceId, State};

/// Why the active backend can't serve, if so. `None` too where nothing is known here that could be asked.
pub(super) async fn why_dead(session: &Session, serving: &Serving) -> Option<String> {
    let backend = serving.active();
    // A damaged record is no answer; the probe is.
    let record = Records::new(&session.config.deploy.state_dir).of(backend).ok().flatten();
    let instance = record.as_ref().map(|record| record.instance.clone());
    let configured = session.config.backend(backend).map(|backend| backend.endpoints.clone());
    let endpoints = record.map(|record| record.frozen.endpoints).or(configured).unwrap_or_default();
    let version = serving.view().backend(backend).and_then(|backend| backend.version.clone());
    for endpoint in &endpoints {
        let expected = Expected { backend, version: version.as_deref() };
        let found = probe(endpoint, expected, &session.config.gate).await;
        if !found.is_healthy() {
            return Some(match ended(session, instance.as_ref()).await {
                Some(how) => how,
                None => format!("{endpoint}: {}", found.summary()),
            });
        }
    }
    None
}

async fn ended(session: &Session, instance: Option<&InstanceId>) -> Option<String> {
    let instance = instance?;
    match session.runtime.state(instance).await.ok()? {
        State::Running { .. } => None,
        State::Exited(ending) => Some(format!("{instance} ended: {ending}")),
        State::Absent => Some(format!("{instance} is not running")),
    }
}

/// Whether anything was deployed as the active backend from here: only then is its death ours to report.
pub(super) fn was_deployed(session: &Session, serving: &Serving) -> bool {
    Records::new(&session.config.deploy.state_dir).of(serving.active()).is_ok_and(|record| record.is_some())
}
