//! `uh-deploy prune`: removes images of versions that were deployed long ago. Also after each deploy, where `image_keep`
//! is set.
//!
//! Only images that the history names as deployed by uh-deploy are removed; never one that a container uses or that is
//! on record, which is what a rollback would start again.

use std::collections::HashSet;

use super::Done;
use super::args::PruneArgs;
use super::exit::{Exit, Failed};
use super::session::Session;
use crate::config::RuntimeConfig;
use crate::deploy::history::History;

pub(super) async fn prune(session: &Session, args: &PruneArgs) -> Done {
    let _lock = session.lock("prune")?;
    let keep = args.keep.or_else(|| configured(session)).ok_or_else(|| {
        Failed::usage(
            "say how many images to keep: --keep N, or image_keep in [runtime.docker] or [runtime.compose]",
        )
    })?;
    let done = remove(session, keep).await?;
    if done.is_empty() {
        session.report.say("Nothing to prune.");
    }
    Ok(Exit::Done)
}

/// After a deploy that went well, and its watch; that it can't be done now is no fault of the deploy. The lock is not
/// held.
pub(super) async fn after_deploy(session: &Session) {
    let Some(keep) = configured(session) else { return };
    let removed = match session.lock("prune") {
        Ok(_lock) => remove(session, keep).await,
        Err(failed) => Err(failed),
    };
    if let Err(failed) = removed {
        session.report.warn(&format!("old images were not removed: {}", failed.message()));
    }
}

fn configured(session: &Session) -> Option<u32> {
    match &session.config.runtime {
        RuntimeConfig::Process(_) => None,
        RuntimeConfig::Docker(docker) => docker.image_keep,
        RuntimeConfig::Compose(compose) => compose.image_keep,
    }
}

/// Says what became of each.
async fn remove(session: &Session, keep: u32) -> Result<Vec<String>, Failed> {
    let state_dir = &session.config.deploy.state_dir;
    let recorded = session.recorded_artifacts().map_err(|e| {
        Failed::new(
            Exit::Failed,
            format!("cannot read the records, so nothing was removed: {}", crate::chain(&e)),
        )
    })?;
    let history = History::new(state_dir).lines().map_err(|e| {
        Failed::new(
            Exit::Failed,
            format!("cannot read the history, so nothing was removed: {}", crate::chain(&e)),
        )
    })?;
    let deployed = history.into_iter().rev().filter_map(|line| line.artifact);
    let old = beyond(deployed.filter(|artifact| artifact.starts_with("sha256:")), keep, &recorded);
    let done = session.runtime.prune(&old).await?;
    done.iter().for_each(|line| session.report.line(line));
    Ok(done)
}

/// What is not among the newest, and not on record. The newest comes first.
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
