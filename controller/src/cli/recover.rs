//! `uh-deploy recover`

use super::exit::{CliError, Exit};
use super::monitor::resume;
use super::session::Session;
use super::{Done, alive, operation};
use crate::deploy::machine::Outcome;

pub(super) async fn recover(session: &Session) -> Done {
    let lock = session.lock_patiently("recover").await?;
    let unfinished = operation::unfinished(session)?.is_some();
    let proxy = match session.proxy().await {
        Ok(proxy) => proxy,
        Err(failed) if unfinished => {
            let message = format!(
                "{}. An interrupted operation can only be recovered once uh-proxy answers; then run `uh-deploy recover` again",
                failed.message()
            );
            return Err(CliError::new(Exit::Attention, message));
        }
        Err(failed) => {
            drop(lock);
            // Without an interrupted operation, only an open watch needs uh-proxy.
            if let Some(exit) = resume::if_needed(session).await? {
                return Ok(exit);
            }
            say_nothing_to_recover(session);
            session.report.say(&format!("Can't determine whether the app serves: {}", failed.message()));
            return Ok(Exit::Done);
        }
    };
    let recovered = operation::recover_or_keep(session, &proxy).await?;
    if recovered.as_ref().is_some_and(|(_, ended)| ended.outcome == Outcome::Attention) {
        return Ok(Exit::Attention);
    }
    if recovered.is_none() {
        operation::readmit(session, &proxy).await;
    }
    drop(lock);
    let resumed = resume::finish(session, &proxy).await?;
    if recovered.is_none() && resumed.is_none() {
        say_nothing_to_recover(session);
    }
    if let Some(exit) = resumed.filter(|exit| *exit != Exit::Done) {
        return Ok(exit);
    }
    let serving = proxy.serving().await?;
    if alive::was_deployed(session, &serving)
        && let Some(why) = alive::why_dead(session, &serving).await
    {
        let message = format!(
            "{} is active but doesn't answer ({why}), so users get errors. Start it with `uh-deploy start`, or roll back with `uh-deploy rollback`",
            serving.name()
        );
        return Err(CliError::new(Exit::Attention, message));
    }
    Ok(Exit::Done)
}

fn say_nothing_to_recover(session: &Session) {
    session.report.say("Nothing to recover: the last deploy or rollback is complete.");
}
