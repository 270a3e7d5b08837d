//! Who leads, and whether it is as good as the one before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use uh_protocol::client::Client;
use uh_protocol::status::Status;

use super::{Pair, Upgrade};
use crate::runtime::front_door::DoorContainer;
use crate::time::span;

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long a new leader is watched before the old container goes: long enough for a round of probes.
const WATCHED_FOR: Duration = Duration::from_secs(3);

/// How long a leader may not answer: while it waits for the other one to follow.
const SILENT_FOR: Duration = Duration::from_secs(5);

/// How long the socket for successors may take to accept.
const ACCEPTS_WITHIN: Duration = Duration::from_secs(5);

/// The uh-proxy that answers on the admin socket.
pub(super) struct Leader {
    socket: PathBuf,
    client: Client,
}

impl Leader {
    pub(super) fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), client: Client::new(socket) }
    }

    /// Its status, if it answers.
    pub(super) async fn status(&self) -> Option<Status> {
        self.client.status().await.ok()
    }

    /// Whether it is in this container.
    pub(super) async fn is_in(&self, container: &DoorContainer) -> bool {
        self.status().await.is_some_and(|status| status.proxy.host == container.host)
    }

    /// Whether it waits for a successor.
    pub(super) async fn hands_over(&self) -> bool {
        let mut path = self.socket.as_os_str().to_owned();
        path.push(".successor");
        matches!(timeout(ACCEPTS_WITHIN, UnixStream::connect(path)).await, Ok(Ok(_)))
    }
}

impl Upgrade<'_> {
    /// Waits until the new container leads, and watches it for a moment. Otherwise, why not.
    pub(super) async fn until_new_leads(&self, pair: &Pair) -> Result<(), String> {
        let before = self.leader.status().await;
        self.until_leads(&pair.new).await?;
        let before = before.filter(|status| status.proxy.host != pair.new.host);
        self.watch(&pair.new, before.as_ref()).await
    }

    /// Waits until this container leads.
    pub(super) async fn until_leads(&self, new: &DoorContainer) -> Result<(), String> {
        let deadline = Instant::now() + self.args.timeout;
        loop {
            if self.leader.is_in(new).await {
                return Ok(());
            }
            self.demand_running(new).await?;
            if Instant::now() >= deadline {
                return Err(self
                    .with_log(format!("it doesn't lead after {}", span(self.args.timeout)), new)
                    .await);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn watch(&self, new: &DoorContainer, before: Option<&Status>) -> Result<(), String> {
        let (mut until, mut answered) = (Instant::now() + WATCHED_FOR, Instant::now());
        while Instant::now() < until {
            self.demand_running(new).await?;
            match self.leader.status().await {
                Some(status) if status.proxy.host == new.host => {
                    answered = Instant::now();
                    let worse = before.map(|before| worse(before, &status)).unwrap_or_default();
                    if let Some(what) = worse.first() {
                        return Err(self.with_log(format!("under it, {what} isn't healthy"), new).await);
                    }
                }
                Some(_) => return Err(self.with_log("another container took over".to_owned(), new).await),
                // It has until the deadline, and is watched for longer then.
                None if answered.elapsed() < SILENT_FOR => until = until.max(Instant::now() + LOOK_EVERY * 2),
                None => {
                    let what = format!("it leads, but hasn't answered for {}", span(SILENT_FOR));
                    return Err(self.with_log(what, new).await);
                }
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn demand_running(&self, new: &DoorContainer) -> Result<(), String> {
        match self.door.look(new).await {
            Ok(Some(now)) if now.is_running && now.restarts <= new.restarts => Ok(()),
            Ok(Some(_)) => Err(self.with_log("it has ended".to_owned(), new).await),
            Ok(None) => Err("it was removed".to_owned()),
            Err(error) => Err(crate::chain(&error)),
        }
    }

    async fn with_log(&self, what: String, container: &DoorContainer) -> String {
        let lines = self.door.last_lines(container).await;
        for line in &lines {
            self.session.report.line(&format!("{}: {line}", container.name));
        }
        what
    }
}

/// The active backends that were healthy and aren't now.
fn worse(before: &Status, now: &Status) -> Vec<String> {
    let healthy = |status: &Status| -> BTreeSet<(String, String)> {
        let of = |service: &uh_protocol::status::ServiceStatus| {
            let backend = service.backends.iter().find(|backend| backend.name == service.active)?;
            (backend.healthy == Some(true)).then(|| (service.name.to_string(), backend.name.to_string()))
        };
        status.services.iter().filter_map(of).collect()
    };
    let now_healthy = healthy(now);
    let named =
        |status: &Status, service: &str| status.services.iter().any(|other| other.name.as_str() == service);
    healthy(before)
        .into_iter()
        // What the new configuration doesn't have any more isn't missing, and a switch may have moved traffic.
        .filter(|(service, backend)| {
            named(now, service)
                && now
                    .services
                    .iter()
                    .any(|other| other.name.as_str() == service && other.active.as_str() == backend)
        })
        .filter(|pair| !now_healthy.contains(pair))
        .map(|(service, backend)| format!("{backend} of {service}"))
        .collect()
}
