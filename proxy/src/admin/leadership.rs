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
use super::socket::{AdminSocket, SocketError, SocketFile};
use crate::state::store::StoreError;

/// How long another process may take to answer on the admin socket.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// The pause between two attempts.
const RETRY_EVERY: Duration = Duration::from_millis(20);

/// What only the leader has and does.
pub(crate) struct Leadership {
    control: Arc<Control>,
    socket: Arc<Mutex<AdminSocket>>,
    tasks: Mutex<Vec<AbortHandle>>,
    /// Ends with the last connection, once another process leads.
    superseded: Box<dyn Fn() + Send + Sync>,
}

impl Leadership {
    /// Begins to lead. `superseded` is called once, when another process leads.
    pub(crate) fn begin(
        control: Arc<Control>,
        socket: Arc<Mutex<AdminSocket>>,
        superseded: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let leadership = Self { control, socket, tasks: Mutex::default(), superseded: Box::new(superseded) };
        leadership.start_tasks();
        leadership
    }

    /// What changes the routing without being asked.
    fn start_tasks(&self) {
        let control = || Arc::clone(&self.control);
        let tasks = [tokio::spawn(control().end_splits()), tokio::spawn(control().judge_trials())];
        self.tasks.lock().extend(tasks.map(|task| task.abort_handle()));
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
        if let Err(reason) = self.control.persist().await {
            self.resume();
            return Err(format!("it can't write its state: {reason}"));
        }
        crate::fault::point("handover_frozen");
        self.control.state_writer.release();
        self.socket.lock().release();
        Ok(generation)
    }

    /// Takes the locks back, and leads as before. A process that has them and hangs must not stop this one from serving: it
    /// tries until it has them, or the other one leads.
    ///
    /// # Errors
    /// Another process leads.
    pub(super) async fn take_back(&self) -> Result<(), AnotherLeads> {
        let mut is_waiting = false;
        while let Err(blocked) = self.try_take_back() {
            if !std::mem::replace(&mut is_waiting, true) {
                blocked.report();
            }
            if self.is_replaced().await {
                return Err(AnotherLeads);
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
        self.resume();
        self.control.persist_later();
        Ok(())
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

    fn try_take_back(&self) -> Result<(), Blocked> {
        self.control.state_writer.acquire().map_err(|error| match error {
            StoreError::Taken { .. } => Blocked::Taken,
            error => Blocked::Failed(plain(&error)),
        })?;
        let taken_back = self.socket.lock().take_back();
        taken_back.map_err(|error| {
            self.control.state_writer.release();
            match error {
                SocketError::Taken { .. } => Blocked::Taken,
                error => Blocked::Failed(plain(&error)),
            }
        })
    }

    fn resume(&self) {
        self.control.board.unfreeze();
        self.start_tasks();
    }

    /// Whether no process leads.
    pub(super) fn is_vacant(&self) -> bool {
        let is_free = self.control.state_writer.acquire().is_ok();
        if is_free {
            self.control.state_writer.release();
        }
        is_free
    }

    /// Another process leads and accepts: stops accepting, and ends with the last connection.
    pub(super) fn end(&self) {
        (self.superseded)();
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
