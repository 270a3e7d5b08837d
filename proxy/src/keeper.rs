//! Listening sockets from a uh-keeper (`server.keeper`): it keeps them open while uh-proxy crashes or restarts, so that
//! clients wait in their queues instead of being refused.
//!
//! A keeper that is gone costs nothing at once, since this process holds the sockets too. [`KeeperWatch`] gives them back
//! to the next one, and takes over the sockets that a keeper in a new network namespace has bound itself.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use uh_keeper::wire::{Answer, Link, LinkError};
use uh_system::plain;

/// How long the start waits for the keeper, and for it to bind an address. After a restart of the whole machine, there is
/// no order between the two.
const START_WITHIN: Duration = Duration::from_secs(10);

/// The pause before a keeper is asked again.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// How often the watch looks for the end of uh-proxy.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why the sockets of a keeper can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// It isn't there, or doesn't give them.
    #[error("cannot get the listening sockets (server.keeper)")]
    Link(#[from] LinkError),
    /// It can't bind one.
    #[error("the uh-keeper at {} cannot bind {address}: {reason}", path.display())]
    Missing {
        /// Its socket.
        path: PathBuf,
        /// The address.
        address: SocketAddr,
        /// In its words.
        reason: String,
    },
    /// It wasn't started with that address.
    #[error("{key} has {address}, which the uh-keeper at {} doesn't hold (it holds {held}): start uh-keeper with {address} too, or remove it from {key}", path.display())]
    NotHeld {
        /// Its socket.
        path: PathBuf,
        /// The address.
        address: SocketAddr,
        /// The configuration's key.
        key: &'static str,
        /// What it holds.
        held: String,
    },
}

/// The sockets that replace one of a keeper's.
pub(crate) type Renewals = watch::Receiver<Option<Arc<TcpListener>>>;

/// The sockets of a keeper, not all of them claimed yet.
#[derive(Debug)]
pub(crate) struct KeeperSockets {
    path: PathBuf,
    link: Link,
    answer: Answer,
    claimed: Vec<KeptSocket>,
}

/// A socket in use.
#[derive(Debug)]
struct KeptSocket {
    address: SocketAddr,
    current: Arc<TcpListener>,
    renewals: watch::Sender<Option<Arc<TcpListener>>>,
}

impl KeeperSockets {
    /// Gets them from the keeper at this path. Waits for a keeper that isn't there yet, or that still lacks one of the
    /// wanted addresses.
    ///
    /// # Errors
    /// There is no keeper, it refuses, or it can't bind an address.
    pub(crate) fn get(path: &Path, wanted: &[SocketAddr]) -> Result<Self, KeeperError> {
        let deadline = Instant::now() + START_WITHIN;
        let mut is_waiting = false;
        loop {
            let error = match ask(path, &[]) {
                Ok((link, answer)) => {
                    match answer.missing.iter().find(|(address, _)| wanted.contains(address)) {
                        None => return Ok(Self { path: path.to_owned(), link, answer, claimed: Vec::new() }),
                        Some((address, reason)) => KeeperError::Missing {
                            path: path.to_owned(),
                            address: *address,
                            reason: reason.clone(),
                        },
                    }
                }
                Err(error @ (LinkError::NoKeeper { .. } | LinkError::Broken(_))) => error.into(),
                Err(error) => return Err(error.into()),
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            if !std::mem::replace(&mut is_waiting, true) {
                tracing::info!(reason = %plain(&error), at_most_s = START_WITHIN.as_secs(), "waiting for uh-keeper");
            }
            thread::sleep(RETRY_EVERY);
        }
    }

    /// The socket for an address, if the keeper holds it, and those that will replace it.
    pub(crate) fn claim(&mut self, address: SocketAddr) -> io::Result<Option<(TcpListener, Renewals)>> {
        let Some(place) = self.answer.held.iter().position(|(held, _)| *held == address) else {
            return Ok(None);
        };
        let (_, socket) = self.answer.held.swap_remove(place);
        let copy = socket.try_clone()?;
        let (renewals, receiver) = watch::channel(None);
        self.claimed.push(KeptSocket { address, current: Arc::new(socket), renewals });
        Ok(Some((copy, receiver)))
    }

    /// The error for an address that the keeper doesn't hold.
    pub(crate) fn not_held(&self, address: SocketAddr, key: &'static str) -> KeeperError {
        let claimed = self.claimed.iter().map(|socket| socket.address);
        let held = claimed.chain(self.answer.held.iter().map(|(address, _)| *address));
        KeeperError::NotHeld { path: self.path.clone(), address, key, held: list(held) }
    }

    /// Ends the claims. Sockets that weren't claimed stay the keeper's: their clients would wait indefinitely.
    pub(crate) fn finish(self) -> KeeperWatch {
        for (address, _) in &self.answer.held {
            tracing::error!(
                %address,
                "uh-keeper holds an address that uh-proxy doesn't serve, so its clients wait without an answer: add it to server.listen, server.listen_tls, server.listen_h2c or server.metrics, or remove it from uh-keeper's arguments"
            );
        }
        KeeperWatch { path: self.path, link: self.link, sockets: self.claimed }
    }
}

/// Notices the end of the keeper, and brings this process and the next keeper together.
#[derive(Debug)]
pub(crate) struct KeeperWatch {
    path: PathBuf,
    link: Link,
    sockets: Vec<KeptSocket>,
}

impl KeeperWatch {
    /// Starts the thread, which ends when `stopped` turns true.
    ///
    /// # Errors
    /// The thread can't be started.
    pub(crate) fn start(self, stopped: watch::Receiver<bool>) -> io::Result<()> {
        thread::Builder::new().name("keeper".to_owned()).spawn(move || self.run(&stopped))?;
        Ok(())
    }

    fn run(mut self, stopped: &watch::Receiver<bool>) {
        loop {
            while !self.link.is_gone_within(LOOK_EVERY) {
                if *stopped.borrow() {
                    return;
                }
            }
            tracing::error!(
                path = %self.path.display(),
                "lost uh-keeper: uh-proxy still serves, but the ports close if it stops now; connecting again"
            );
            if self.reconnect(stopped).is_none() {
                return;
            }
            tracing::info!(path = %self.path.display(), "uh-keeper is there again and holds the listening sockets");
        }
    }

    /// Asks until a keeper holds every socket; `None`: uh-proxy stops.
    fn reconnect(&mut self, stopped: &watch::Receiver<bool>) -> Option<()> {
        let mut failing = None;
        while !*stopped.borrow() {
            let holding: Vec<&TcpListener> = self.sockets.iter().map(|socket| &*socket.current).collect();
            let error = match ask(&self.path, &holding) {
                Ok((link, answer)) => {
                    self.link = link;
                    let lacking = self.renew(answer);
                    if lacking.is_empty() {
                        return Some(());
                    }
                    format!("it doesn't hold {}", list(lacking.into_iter()))
                }
                Err(error) => plain(&error),
            };
            if failing.as_ref() != Some(&error) {
                tracing::warn!(reason = error, "uh-keeper doesn't hold the listening sockets; trying again");
                failing = Some(error);
            }
            thread::sleep(RETRY_EVERY);
        }
        None
    }

    /// Uses the sockets of a new keeper that aren't those from here. Returns the addresses that it lacks.
    fn renew(&mut self, mut answer: Answer) -> Vec<SocketAddr> {
        let mut lacking = Vec::new();
        for socket in &mut self.sockets {
            let Some(place) = answer.held.iter().position(|(held, _)| *held == socket.address) else {
                lacking.push(socket.address);
                continue;
            };
            let (address, held) = answer.held.swap_remove(place);
            if is_same(&held, &socket.current) {
                continue;
            }
            tracing::warn!(%address, "uh-keeper has a new socket for this address; accepting from it");
            socket.current = Arc::new(held);
            socket.renewals.send_replace(Some(Arc::clone(&socket.current)));
        }
        lacking
    }
}

/// What a keeper holds now, without claiming it.
///
/// # Errors
/// There is no keeper, or it refuses.
pub(crate) fn look(path: &Path) -> Result<Answer, LinkError> {
    ask(path, &[]).map(|(_, answer)| answer)
}

/// Addresses for a message.
pub(crate) fn list(addresses: impl Iterator<Item = impl Display>) -> String {
    let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
    if addresses.is_empty() { "nothing".to_owned() } else { addresses.join(", ") }
}

fn ask(path: &Path, holding: &[&TcpListener]) -> Result<(Link, Answer), LinkError> {
    let link = Link::connect(path)?;
    let answer = link.ask(holding)?;
    Ok((link, answer))
}

/// Whether two descriptors are of one socket. If that can't be determined, they count as different: accepting from a
/// socket twice does no harm.
fn is_same(one: &TcpListener, other: &TcpListener) -> bool {
    let identity = |socket: &TcpListener| {
        let file = File::from(std::os::fd::OwnedFd::from(socket.try_clone().ok()?));
        file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
    };
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_one_socket_are_recognised() {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(is_same(&one, &one.try_clone().unwrap()) && !is_same(&one, &other));
    }
}
