//! Who leads: holds the locks of the state file and the admin socket, changes the routing, and ends splits and trials by
//! itself. One process at any time; see [`handover`](crate::handover).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::task::AbortHandle;
use uh_protocol::client::Client;
use uh_system::plain;

use super::control::Control;
use super::server;
use super::socket::{AdminSocket, SocketError, SocketFile};
use super::successor::record;
use crate::front::listener::{self, Holder};
use crate::handover::stay::Successor;
use crate::state::store::{Loaded, StoreError};
use crate::state::writer::StateWriter;
use crate::systemd;

/// How long another process may take to answer on the admin socket.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// The pause between two attempts.
const RETRY_EVERY: Duration = Duration::from_millis(20);

/// What only the leader has and does.
pub(crate) struct Leadership {
    control: Arc<Control>,
    socket: Arc<Mutex<AdminSocket>>,
    /// The listening socket for metrics.
    metrics: Option<(std::net::TcpListener, Holder)>,
    tasks: Mutex<Vec<AbortHandle>>,
    serving_metrics: Mutex<Option<AbortHandle>>,
    /// Tells the main thread.
    tell: Box<dyn Fn(News) + Send + Sync>,
}

/// What the main thread is notified of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// Another process leads and accepts: this one stays for a while, and ends with its last connection.
    Superseded(Successor),
    /// That one is ready.
    SuccessorReady,
    /// This process isn't to lead again.
    Leave,
    /// This process leads again.
    LeadsAgain,
    /// The other process knows what happened to the last requests.
    Reported,
}

impl Leadership {
    /// Begins to lead.
    pub(crate) fn begin(
        control: Arc<Control>,
        socket: Arc<Mutex<AdminSocket>>,
        metrics: Option<(std::net::TcpListener, Holder)>,
        tell: impl Fn(News) + Send + Sync + 'static,
    ) -> Self {
        let (tasks, serving_metrics, tell) = (Mutex::default(), Mutex::default(), Box::new(tell));
        let leadership = Self { control, socket, metrics, tasks, serving_metrics, tell };
        leadership.start_tasks();
        leadership.serve_metrics();
        leadership
    }

    /// What changes the routing without being asked.
    fn start_tasks(&self) {
        let control = || Arc::clone(&self.control);
        let tasks = [tokio::spawn(control().end_splits()), tokio::spawn(control().judge_trials())];
        self.tasks.lock().extend(tasks.map(|task| task.abort_handle()));
    }

    fn serve_metrics(&self) {
        let Some((socket, holder)) = &self.metrics else { return };
        let listener = listener::prepare(socket, holder)
            .and_then(|()| tokio::net::TcpListener::from_std(socket.try_clone()?));
        match listener {
            Ok(listener) => {
                let serving = server::serve_metrics(listener, holder.clone(), Arc::clone(&self.control));
                *self.serving_metrics.lock() = Some(tokio::spawn(serving).abort_handle());
            }
            Err(error) => tracing::error!(error = %plain(&error), "cannot serve metrics"),
        }
    }

    fn stop_tasks(&self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
    }

    /// Refuses changes, writes the state and releases the locks. Returns the generation on disk.
    ///
    /// # Errors
    /// The state can't be written. This process leads as before then.
    pub(super) async fn release(&self) -> Result<u64, String> {
        self.stop_tasks();
        let generation = self.control.board.freeze().generation;
        let released = match self.control.persist().await {
            Ok(()) => {
                crate::fault::point("handover_frozen");
                self.at_disk(StateWriter::release).await
            }
            Err(reason) => Err(reason),
        };
        if let Err(reason) = released {
            self.lead_again();
            return Err(format!("it can't write its state: {reason}"));
        }
        self.socket.lock().release();
        Ok(generation)
    }

    /// Works on the state file on another thread, since the disk may be slow.
    pub(super) async fn at_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StateWriter) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let writer = Arc::clone(&self.control.state_writer);
        let done = tokio::task::spawn_blocking(move || work(&writer)).await;
        done.unwrap_or_else(|error| Err(plain(&error)))
    }

    /// Takes the locks back, and leads again, with what a process that had them meanwhile has left. A process that has them
    /// and hangs must not stop this one from serving: it tries until it has them, or the other one leads.
    ///
    /// # Errors
    /// Another process leads.
    pub(super) async fn take_back(&self) -> Result<(), AnotherLeads> {
        let mut is_waiting = false;
        let left = loop {
            let blocked = match self.try_take_back().await {
                Ok(left) => break left,
                Err(blocked) => blocked,
            };
            if !std::mem::replace(&mut is_waiting, true) {
                blocked.report();
            }
            if self.is_replaced().await {
                return Err(AnotherLeads);
            }
            tokio::time::sleep(RETRY_EVERY).await;
        };
        self.adopt(&left);
        self.lead_again();
        Ok(())
    }

    /// Puts in force what another process has left.
    pub(super) fn adopt(&self, left: &Loaded) {
        for warning in &left.warnings {
            tracing::warn!("state: {warning}");
        }
        // One that is not newer is what this process has written itself.
        let own = self.control.board.snapshot().generation;
        if let Some(state) = left.state.as_ref().filter(|state| state.generation > own) {
            let generation = state.generation;
            tracing::info!(generation, "following the routing that another uh-proxy has left");
            self.control.board.follow(&record(state));
            // Its backends may have other endpoints.
            self.control.news.backends.notify_one();
        }
    }

    /// Whether another process answers on the admin socket.
    async fn is_replaced(&self) -> bool {
        let path = {
            let socket = self.socket.lock();
            if socket.place() == SocketFile::Ours {
                return false;
            }
            socket.path().to_owned()
        };
        tokio::time::timeout(ANSWERS_WITHIN, Client::new(path).status())
            .await
            .is_ok_and(|status| status.is_ok())
    }

    async fn try_take_back(&self) -> Result<Loaded, Blocked> {
        let left = self.at_disk(|writer| {
            // The outer error is one of the thread.
            Ok(writer.acquire().and_then(|()| writer.load()).map_err(|error| {
                let blocked = Blocked::from(error);
                // If it is ours.
                let _ = writer.release();
                blocked
            }))
        });
        let left = left.await.map_err(Blocked::Failed)??;
        let taken_back = self.socket.lock().take_back();
        if let Err(error) = taken_back {
            let _ = self.at_disk(StateWriter::release).await;
            return Err(match error {
                SocketError::Taken { .. } => Blocked::Taken,
                error => Blocked::Failed(plain(&error)),
            });
        }
        Ok(left)
    }

    /// Takes changes again.
    pub(super) fn lead_again(&self) {
        self.control.board.unfreeze();
        self.start_tasks();
        // What was to be written meanwhile wasn't.
        self.control.persist_later();
    }

    /// Whether no process leads.
    pub(super) async fn is_vacant(&self) -> bool {
        let is_free = self.at_disk(|writer| {
            writer.acquire().map_err(|error| plain(&error))?;
            writer.release()
        });
        is_free.await.is_ok()
    }

    /// Another process leads and accepts: stops accepting, stays for a while, and ends with the last connection.
    pub(super) fn end(&self, successor: Successor) {
        if let Some(metrics) = self.serving_metrics.lock().take() {
            metrics.abort();
        }
        (self.tell)(News::Superseded(successor));
    }

    /// That process is ready.
    pub(super) fn successor_ready(&self) {
        (self.tell)(News::SuccessorReady);
    }

    /// This process isn't to lead again.
    pub(super) fn leave(&self) {
        self.control.end.close_way_back();
        (self.tell)(News::Leave);
    }

    /// This process has the locks, and what the other one has left is in force: accepts again.
    pub(super) fn begin_again(&self) {
        systemd::main_process_again();
        self.serve_metrics();
        (self.tell)(News::LeadsAgain);
    }

    /// The admin socket.
    pub(super) fn socket(&self) -> &Arc<Mutex<AdminSocket>> {
        &self.socket
    }

    /// That process knows what happened to the last requests.
    pub(super) fn reported(&self) {
        (self.tell)(News::Reported);
    }

    /// A new socket for successors.
    ///
    /// # Errors
    /// It can't be created.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        let listener = self.socket.lock().for_successors().map_err(io::Error::other)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }

    /// The running uh-proxy.
    pub(super) fn control(&self) -> &Arc<Control> {
        &self.control
    }
}

/// Why the locks can't be taken back at the moment.
#[derive(Debug)]
enum Blocked {
    /// Another process has them.
    Taken,
    /// Another error.
    Failed(String),
}

impl From<StoreError> for Blocked {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Taken { .. } => Self::Taken,
            error => Self::Failed(plain(&error)),
        }
    }
}

impl Blocked {
    fn report(&self) {
        match self {
            Self::Taken => tracing::error!(
                "the uh-proxy that wanted to take over has the locks and doesn't lead: this one serves, but refuses changes until the other one is stopped"
            ),
            Self::Failed(error) => tracing::error!(
                error,
                "cannot take the locks back after a take-over that failed: this one serves, but refuses changes until it can; retrying"
            ),
        }
    }
}

/// Another process leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AnotherLeads;
