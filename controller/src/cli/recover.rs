//! `uh-deploy recover`

use super::exit::Exit;
use super::monitor::resume;
use super::session::Session;
use super::{Done, operation};
use crate::deploy::machine::Outcome;

pub(super) async fn recover(session: &Session) -> Done {
    let lock = session.lock("recover")?;
    if operation::unfinished(session)?.is_none() {
        drop(lock);
        // Only a watch needs uh-proxy here, and only if there is one.
        if let Some(exit) = resume::if_needed(session).await? {
            return Ok(exit);
        }
        session.report.say("Nothing to recover: the last deploy or roll back came to its end.");
        return Ok(Exit::Done);
    }
    let front = session.front().await.map_err(|failed| {
        let message = format!("{}. What was interrupted can only be judged with the front door's answer; then run recover again", failed.message());
        super::exit::Failed::new(Exit::Attention, message)
    })?;
    match operation::recover_if_needed(session, &front).await? {
        Some((_, Outcome::Attention)) => Ok(Exit::Attention),
        _ => {
            drop(lock);
            Ok(resume::finish(session, &front).await?.unwrap_or(Exit::Done))
        }
    }
}
