//! Writes the state on a thread of its own, so that a slow disk delays the reply to a switch, never its traffic, and a
//! broken one neither. What could not be written is tried again until it can.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;
use uh_protocol::ServiceName;
use uh_system::plain;

use super::file::{ServiceEntry, StateFile};
use super::store::Store;

/// How long a switch waits for the disk before it replies that its state is not there yet.
pub const PERSIST_TIMEOUT: Duration = Duration::from_secs(5);

/// From one failed attempt to the next.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Hands states to the writing thread.
pub struct Keeper {
    inbox: Arc<Inbox>,
    progress: watch::Receiver<Progress>,
    /// The last entry of every service, also of those that are not configured now: somebody may have left one out by
    /// mistake, and must find the right backend active when it comes back.
    known: Mutex<BTreeMap<ServiceName, ServiceEntry>>,
}

#[derive(Default)]
struct Inbox {
    slot: Mutex<Slot>,
    filled: Condvar,
    /// The newest state was tried, or a newer one.
    tried: Condvar,
    /// Up to here the routing has changed.
    routing: AtomicU64,
    /// Up to here it is on disk.
    done: AtomicU64,
}

/// What is different in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The routing.
    Routing,
    /// Only what is known of a backend: its health, its version.
    Facts,
}

#[derive(Default)]
struct Slot {
    /// The newest state not yet written. An older one is of no interest any more.
    wanted: Option<StateFile>,
    revision: u64,
    /// Up to here it was tried.
    tried: u64,
}

#[derive(Debug, Clone, Default)]
struct Progress {
    /// Up to here it is on disk.
    done: u64,
    /// Up to here it was tried, and why it failed.
    failed: Option<(u64, String)>,
}

impl Keeper {
    /// Starts the writing thread. `known`: the entries that were found at the start. `reserved` gets the generations that
    /// the state on disk reserves.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(
        store: Store,
        known: BTreeMap<ServiceName, ServiceEntry>,
        reserved: Arc<AtomicU64>,
    ) -> std::io::Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let (report, progress) = watch::channel(Progress::default());
        let thread_inbox = Arc::clone(&inbox);
        thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || keep(&store, &thread_inbox, &reserved, &report))?;
        Ok(Self { inbox, progress, known: Mutex::new(known) })
    }

    /// Whether the routing in force is on disk.
    #[must_use]
    pub fn is_persisted(&self) -> bool {
        self.inbox.done.load(Ordering::Acquire) >= self.routing()
    }

    /// The number of the last state with another routing, for [`Keeper::wait`].
    #[must_use]
    pub fn routing(&self) -> u64 {
        self.inbox.routing.load(Ordering::Acquire)
    }

    /// Asks for this state to be written, and returns its number for [`Keeper::wait`].
    pub fn submit(&self, mut state: StateFile, change: Change) -> u64 {
        let mut known = self.known.lock();
        known.extend(std::mem::take(&mut state.services));
        state.services.clone_from(&known);
        let mut slot = self.inbox.slot.lock();
        slot.revision += 1;
        slot.wanted = Some(state);
        if change == Change::Routing {
            self.inbox.routing.store(slot.revision, Ordering::Release);
        }
        self.inbox.filled.notify_one();
        slot.revision
    }

    /// Waits until the state of this number was tried, for `at_most` so long. For the start, which has no runtime yet.
    pub fn wait_until_tried(&self, revision: u64, at_most: Duration) {
        let mut slot = self.inbox.slot.lock();
        self.inbox.tried.wait_while_for(&mut slot, |slot| slot.tried < revision, at_most);
    }

    /// What is known of a service that is not configured now.
    #[must_use]
    pub fn entry(&self, service: &ServiceName) -> Option<ServiceEntry> {
        self.known.lock().get(service).cloned()
    }

    /// Waits until the state of this number, or a newer one, is on disk.
    ///
    /// # Errors
    /// The disk refused, or took too long; it is tried again all the same.
    pub async fn wait(&self, revision: u64) -> Result<(), String> {
        let mut progress = self.progress.clone();
        let decided = progress.wait_for(|progress| {
            progress.done >= revision || progress.failed.as_ref().is_some_and(|(tried, _)| *tried >= revision)
        });
        match tokio::time::timeout(PERSIST_TIMEOUT, decided).await {
            Ok(Ok(progress)) if progress.done >= revision => Ok(()),
            Ok(Ok(progress)) => {
                Err(progress.failed.as_ref().map_or_else(String::new, |(_, reason)| reason.clone()))
            }
            Ok(Err(_)) => Err("the writing thread is gone".to_owned()),
            Err(_) => Err(format!("the disk did not answer within {} s", PERSIST_TIMEOUT.as_secs())),
        }
    }
}

impl Inbox {
    fn was_tried(&self, revision: u64) {
        self.slot.lock().tried = revision;
        self.tried.notify_all();
    }
}

fn keep(store: &Store, inbox: &Inbox, reserved: &AtomicU64, report: &watch::Sender<Progress>) {
    let mut failing: Option<String> = None;
    loop {
        let (state, revision) = {
            let mut slot = inbox.slot.lock();
            loop {
                if let Some(state) = slot.wanted.take() {
                    break (state, slot.revision);
                }
                inbox.filled.wait(&mut slot);
            }
        };
        match store.save(&state) {
            Ok(()) => {
                if failing.take().is_some() {
                    tracing::info!("the state is on disk again");
                }
                reserved.fetch_max(state.generation_reserve.unwrap_or(0), Ordering::AcqRel);
                inbox.done.store(revision, Ordering::Release);
                inbox.was_tried(revision);
                report.send_modify(|progress| *progress = Progress { done: revision, failed: None });
                if let Err(error) = store.save_copy(&state) {
                    tracing::warn!(error = %plain(&error), "cannot write the last-good copy of the state");
                }
            }
            Err(error) => {
                let reason = plain(&error);
                if failing.as_ref() != Some(&reason) {
                    tracing::warn!(error = %plain(&error), "cannot write the state: traffic is as switched, but a restart would serve what is on disk; trying again every {} s", RETRY_EVERY.as_secs());
                    failing = Some(reason.clone());
                }
                report.send_modify(|progress| progress.failed = Some((revision, reason)));
                inbox.was_tried(revision);
                let mut slot = inbox.slot.lock();
                slot.wanted.get_or_insert(state);
                // A newer state is tried at once: somebody waits for the answer.
                if slot.revision == revision {
                    inbox.filled.wait_for(&mut slot, RETRY_EVERY);
                }
            }
        }
    }
}
