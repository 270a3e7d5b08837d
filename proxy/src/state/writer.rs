//! Writes the state on a separate thread, so that a slow or broken disk can delay the reply to a switch, but never
//! traffic. A failed write is retried until it succeeds.

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
use super::store::{Loaded, Store, StoreError};

/// How long a switch waits for the disk before it replies that its state isn't saved yet.
pub(crate) const PERSIST_TIMEOUT: Duration = Duration::from_secs(5);

/// The time between two attempts after a failure.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Hands states to the writer thread.
pub(crate) struct StateWriter {
    store: Arc<Store>,
    inbox: Arc<Inbox>,
    progress: watch::Receiver<Progress>,
    /// The last entry of every service, including those that are no longer configured: a service may have been removed
    /// by mistake, and must have the right active backend when it returns.
    known: Mutex<BTreeMap<ServiceName, ServiceEntry>>,
}

#[derive(Default)]
struct Inbox {
    slot: Mutex<Slot>,
    filled: Condvar,
    /// The latest state, or a newer one, was attempted.
    tried: Condvar,
    /// The revision of the last routing change.
    routing: AtomicU64,
    /// The last revision on disk.
    done: AtomicU64,
}

/// What changed in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateChange {
    /// The routing.
    Routing,
    /// Only a backend's health or version.
    BackendInfo,
}

#[derive(Default)]
struct Slot {
    /// The latest state that isn't written yet. Older ones are obsolete.
    wanted: Option<StateFile>,
    revision: u64,
    /// The last revision that was attempted.
    tried: u64,
}

#[derive(Debug, Clone, Default)]
struct Progress {
    /// The last revision on disk.
    done: u64,
    /// The last revision that failed, and why.
    failed: Option<(u64, String)>,
}

impl StateWriter {
    /// Starts the writer thread. `known`: the entries found at start. `reserved` gets the generations that
    /// the state on disk reserves.
    ///
    /// # Errors
    /// The thread can't be started.
    pub(crate) fn start(
        store: Store,
        known: BTreeMap<ServiceName, ServiceEntry>,
        reserved: Arc<AtomicU64>,
    ) -> std::io::Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let (report, progress) = watch::channel(Progress::default());
        let thread_inbox = Arc::clone(&inbox);
        let store = Arc::new(store);
        let thread_store = Arc::clone(&store);
        thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || keep(&thread_store, &thread_inbox, &reserved, &report))?;
        Ok(Self { store, inbox, progress, known: Mutex::new(known) })
    }

    /// Whether the current routing is saved to disk.
    #[must_use]
    pub(crate) fn is_persisted(&self) -> bool {
        self.inbox.done.load(Ordering::Acquire) >= self.routing()
    }

    /// The revision of the last routing change, for [`StateWriter::wait`].
    #[must_use]
    pub(crate) fn routing(&self) -> u64 {
        self.inbox.routing.load(Ordering::Acquire)
    }

    /// Queues this state for writing, and returns its revision for [`StateWriter::wait`].
    pub(crate) fn submit(&self, mut state: StateFile, change: StateChange) -> u64 {
        let mut known = self.known.lock();
        known.extend(std::mem::take(&mut state.services));
        state.services.clone_from(&known);
        let mut slot = self.inbox.slot.lock();
        if !self.store.is_ours() {
            // Another process writes it.
            return slot.revision;
        }
        slot.revision += 1;
        slot.wanted = Some(state);
        if change == StateChange::Routing {
            self.inbox.routing.store(slot.revision, Ordering::Release);
        }
        self.inbox.filled.notify_one();
        slot.revision
    }

    /// Waits until this revision was attempted, for at most `at_most`. For the start, which has no runtime yet.
    pub(crate) fn wait_until_tried(&self, revision: u64, at_most: Duration) {
        let mut slot = self.inbox.slot.lock();
        self.inbox.tried.wait_while_for(&mut slot, |slot| slot.tried < revision, at_most);
    }

    /// Releases the state file to another process. What is to be on disk must be there already. Waits for a write that has
    /// begun, so the admin thread calls it on another one.
    ///
    /// # Errors
    /// The disk takes too long. Nothing is released then.
    pub(crate) fn release(&self) -> Result<(), String> {
        self.inbox.slot.lock().wanted = None;
        if self.store.release_within(PERSIST_TIMEOUT) { Ok(()) } else { Err(too_slow()) }
    }

    /// Takes it.
    ///
    /// # Errors
    /// Another process has it.
    pub(crate) fn acquire(&self) -> Result<(), StoreError> {
        self.store.acquire()
    }

    /// Reads what another process has left.
    ///
    /// # Errors
    /// It can't be read.
    pub(crate) fn load(&self) -> Result<Loaded, StoreError> {
        let loaded = self.store.load()?;
        if let Some(state) = &loaded.state {
            self.known.lock().extend(state.services.clone());
        }
        Ok(loaded)
    }

    /// The last entry of a service that isn't configured now.
    #[must_use]
    pub(crate) fn entry(&self, service: &ServiceName) -> Option<ServiceEntry> {
        self.known.lock().get(service).cloned()
    }

    /// Waits until this revision, or a newer one, is on disk.
    ///
    /// # Errors
    /// If writing failed or took too long; it is retried in any case.
    pub(crate) async fn wait(&self, revision: u64) -> Result<(), String> {
        let mut progress = self.progress.clone();
        let decided = progress.wait_for(|progress| {
            progress.done >= revision || progress.failed.as_ref().is_some_and(|(tried, _)| *tried >= revision)
        });
        match tokio::time::timeout(PERSIST_TIMEOUT, decided).await {
            Ok(Ok(progress)) if progress.done >= revision => Ok(()),
            Ok(Ok(progress)) => {
                Err(progress.failed.as_ref().map_or_else(String::new, |(_, reason)| reason.clone()))
            }
            Ok(Err(_)) => Err("the writer thread has ended".to_owned()),
            Err(_) => Err(too_slow()),
        }
    }
}

fn too_slow() -> String {
    format!("the disk didn't respond within {} s", PERSIST_TIMEOUT.as_secs())
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
                    tracing::info!("the state file is saved again");
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
                    tracing::warn!(error = %plain(&error), "cannot write the state file: traffic follows the last switch, but a restart would activate the backend on disk; retrying every {} s", RETRY_EVERY.as_secs());
                    failing = Some(reason.clone());
                }
                report.send_modify(|progress| progress.failed = Some((revision, reason)));
                inbox.was_tried(revision);
                let mut slot = inbox.slot.lock();
                slot.wanted.get_or_insert(state);
                // A newer state is tried immediately: a caller is waiting for it.
                if slot.revision == revision {
                    inbox.filled.wait_for(&mut slot, RETRY_EVERY);
                }
            }
        }
    }
}
