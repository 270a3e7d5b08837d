//! `uh-deploy prune`: removes images of old deploys. Also runs after each deploy if `image_keep` is set.
//!
//! Only images that uh-deploy deployed according to the history are removed, and never one that a container uses or
//! that is on record, which a rollback would start again.

use std::collections::HashSet;

use super::Done;
use super::args::PruneArgs;
use super::exit::{CliError, Exit};
use super::retire::remove_files;
use super::session::Session;
use crate::config::RuntimeConfig;
use crate::deploy::history::History;

pub(super) async fn prune(session: &Session, args: &PruneArgs) -> Done {
    let _lock = session.lock("prune")?;
    remove_unused_files(session).await?;
    if args.keep.is_none() && configured(session).is_none() && session.config.files.is_some() {
        return Ok(Exit::Done);
    }
    let keep = args.keep.or_else(|| configured(session)).ok_or_else(|| {
        CliError::usage(
            "no number of images to keep: pass --keep N, or set image_keep in [runtime.docker] or [runtime.compose]",
        )
    })?;
    let done = remove(session, keep).await?;
    if done.is_empty() {
        session.report.say("Nothing to prune.");
    }
    Ok(Exit::Done)
}

/// Removes the files that uh-proxy serves of backends that neither run nor are active, such as those of a deploy that
/// was killed. Files of others stay: the active backend's are served even while its app is down.
async fn remove_unused_files(session: &Session) -> Result<(), CliError> {
    if session.config.files.is_none() {
        return Ok(());
    }
    let view = session.proxy().await?.view().await?;
    for backend in &session.config.backends {
        let mut runs = view.is_active(&backend.name);
        for instance in session.runtime.find(&backend.name).await? {
            runs |= session.runtime.state(&instance).await?.is_running();
        }
        if !runs {
            remove_files(session, &backend.name);
        }
    }
    Ok(())
}

/// After a successful deploy and its watch. If it fails, the deploy has still succeeded. The lock isn't held.
pub(super) async fn after_deploy(session: &Session) {
    let Some(keep) = configured(session) else { return };
    let removed = match session.lock("prune") {
        Ok(_lock) => remove(session, keep).await,
        Err(failed) => Err(failed),
    };
    if let Err(failed) = removed {
        session.report.warn(&format!("old images weren't removed: {}", failed.message()));
    }
}

fn configured(session: &Session) -> Option<u32> {
    match &session.config.runtime {
        RuntimeConfig::Process(_) => None,
        RuntimeConfig::Docker(docker) => docker.image_keep,
        RuntimeConfig::Compose(compose) => compose.image_keep,
    }
}

/// Removes old images, and reports the result for each.
async fn remove(session: &Session, keep: u32) -> Result<Vec<String>, CliError> {
    let state_dir = &session.config.deploy.state_dir;
    let recorded = session.recorded_artifacts().map_err(|e| {
        CliError::new(
            Exit::Failed,
            format!("can't read the records, so nothing was removed: {}", crate::chain(&e)),
        )
    })?;
    let history = History::new(state_dir).lines().map_err(|e| {
        CliError::new(
            Exit::Failed,
            format!("can't read the history, so nothing was removed: {}", crate::chain(&e)),
        )
    })?;
    let deployed = history.into_iter().rev().filter_map(|line| line.artifact);
    let old = beyond(deployed.filter(|artifact| artifact.starts_with("sha256:")), keep, &recorded);
    let done = session.runtime.prune(&old).await?;
    done.iter().for_each(|line| session.report.line(line));
    Ok(done)
}

/// The artifacts that are neither among the newest nor on record. The newest comes first.
fn beyond(artifacts: impl Iterator<Item = String>, keep: u32, recorded: &HashSet<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    let distinct = artifacts.filter(|artifact| seen.insert(artifact.clone()));
    distinct.skip(keep as usize).filter(|artifact| !recorded.contains(artifact)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_what_is_on_record_stay() {
        let artifacts = ["d", "c", "d", "b", "a", "c"].map(str::to_owned);
        let recorded = HashSet::from(["b".to_owned()]);
        assert_eq!(beyond(artifacts.clone().into_iter(), 2, &recorded), ["a"]);
        assert_eq!(beyond(artifacts.clone().into_iter(), 0, &recorded), ["d", "c", "a"]);
        assert!(beyond(artifacts.into_iter(), 4, &HashSet::new()).is_empty());
    }
}
