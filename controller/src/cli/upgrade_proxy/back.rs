//! The way back: the old container leads on, or again, and the new one goes.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Pair, Upgrade};
use crate::cli::exit::{CliError, Exit};
use crate::runtime::front_door::VERSION;

/// How long the old one may take to lead again: it finishes its requests before it restarts, and then probes the backends.
const LEADS_AGAIN_WITHIN: Duration = Duration::from_secs(90);

/// How long it may take to notice that the new one is gone.
const NOTICES_WITHIN: Duration = Duration::from_secs(10);

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Upgrade<'_> {
    /// Makes the old container lead and removes the new one. Returns how that ended, and why it had to be.
    pub(super) async fn give_back(&self, pair: &Pair, why: &str) -> CliError {
        let Pair { old, new } = pair;
        self.session.report.warn(&format!("{}: {why}. Going back to {}", new.name, old.name));
        // It serves until the old one has taken over from it, if it can.
        if self.leader.is_in(new).await && self.door.restart(old).await.is_ok() {
            self.leads_within(pair, LEADS_AGAIN_WITHIN).await;
        }
        let removed = self.door.remove(new).await;
        let leads = self.leads_within(pair, NOTICES_WITHIN).await || {
            // It had been replaced already, and waits for its stop.
            self.door.restart(old).await.is_ok() && self.leads_within(pair, LEADS_AGAIN_WITHIN).await
        };
        let what = format!("not upgraded to {}: {why}", new.image);
        match (leads, removed) {
            (false, _) if self.leader.is_in(new).await => CliError::new(
                Exit::Attention,
                format!(
                    "{what}; but {} leads on, since {} didn't take over: see `docker logs {}`, then run this again",
                    new.name, old.name, old.name
                ),
            ),
            (false, _) => CliError::new(
                Exit::Attention,
                format!(
                    "{what}; and no uh-proxy answers on the admin socket: see `docker logs {}`, then `docker restart {}`",
                    old.name, old.name
                ),
            ),
            (true, Err(error)) => CliError::new(
                Exit::Attention,
                format!("{what}. {} leads, but remove {}: {}", old.name, new.name, crate::chain(&error)),
            ),
            (true, Ok(())) => CliError::new(
                Exit::Failed,
                format!(
                    "{what}. {} ({}) leads; set {VERSION} back, or a later `up` starts the new one",
                    old.name, old.image
                ),
            ),
        }
    }

    async fn leads_within(&self, pair: &Pair, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        loop {
            // An older version doesn't say where it runs.
            let status = self.leader.status().await;
            if status.is_some_and(|status| status.proxy.host != pair.new.host) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}
