//! Whether the active backend answers: probed now, and checked with the runtime, rather than read from an older
//! probe.

use super::session::Session;
use crate::deploy::records::Records;
use crate::probe::{Expected, probe};
use crate::proxy::Serving;
use crate::runtime::{InstanceId, State};

/// Why the active backend can't serve. `None`: it can, or there is nothing to probe.
pub(super) async fn why_dead(session: &Session, serving: &Serving) -> Option<String> {
    let backend = serving.active();
    // A damaged record doesn't matter: the probe decides.
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
        State::Exited(ending) => Some(format!("{instance} exited: {ending}")),
        State::Absent => Some(format!("{instance} isn't running")),
    }
}

/// Whether uh-deploy deployed the active backend: only then does its failure matter here.
pub(super) fn was_deployed(session: &Session, serving: &Serving) -> bool {
    Records::new(&session.config.deploy.state_dir).of(serving.active()).is_ok_and(|record| record.is_some())
}
