//! HTTP connections to the app: opens, uses and pools them.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::body::RequestBody;
use super::expect::BodyGate;
use crate::app_link::connect;
use crate::server::RESPONSE_FIELDS_MAX;
use crate::settings::AppAddress;

/// The most idle connections that are kept.
const IDLE_MAX: usize = 256;
/// How long an idle connection is kept: less than the 5 s after which Node, the strictest of the common servers,
/// closes it. `Keep-Alive: timeout=…` from the app takes precedence.
const IDLE_KEEP: Duration = Duration::from_secs(4);
/// How much earlier than the app's timeout a connection is dropped.
const KEEP_MARGIN: Duration = Duration::from_secs(1);
/// An unsafe request can't be sent again once it is written, so it only uses a connection that was in use just
/// before, or a fresh one.
const UNSAFE_IDLE_MAX: Duration = Duration::from_secs(1);
/// How long a request's body may continue after its response has ended if its connection is to be kept.
const REST_MAX: Duration = Duration::from_secs(60);
/// The largest response head, and the most that is buffered in each direction.
const BUFFER_MAX: usize = 64 << 10;

/// Why the app gave no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("can't be reached: {0}")]
    Unreachable(io::Error),
    #[error("closed the connection before its response was complete")]
    Closed(hyper::Error),
    #[error("sent a response that isn't HTTP: {0}")]
    Malformed(hyper::Error),
    #[error("didn't receive the whole request: {0}")]
    Request(hyper::Error),
    #[error("switched protocols without being asked to")]
    Unasked,
}

/// A request that got no response.
pub(super) struct SendError {
    pub(super) error: ForwardError,
    /// The request, if none of it was written.
    pub(super) unsent: Option<Request<RequestBody>>,
}

/// A connection to the app. Dropping it closes it, which cancels the app's work on it.
pub(super) struct AppConnection {
    sender: SendRequest<RequestBody>,
    task: TaskGuard,
}

/// Ends the task that drives a connection.
struct TaskGuard(Option<AbortHandle>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

impl AppConnection {
    pub(super) async fn open(app: &AppAddress) -> Result<Self, ForwardError> {
        let stream = connect(app).await.map_err(ForwardError::Unreachable)?;
        let mut builder = http1::Builder::new();
        builder.max_headers(RESPONSE_FIELDS_MAX).max_buf_size(BUFFER_MAX).max_header_size(BUFFER_MAX);
        let (sender, connection) = builder.handshake(stream).await.map_err(ForwardError::Closed)?;
        // The exchange that uses it sees how it ends.
        let task = tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(Self { sender, task: TaskGuard(Some(task.abort_handle())) })
    }

    /// Sends a request and waits for the head of its response.
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SendError> {
        self.sender.try_send_request(request).await.map_err(|mut failed| {
            let unsent = failed.take_message();
            let error = failed.into_error();
            let error = if error.is_parse() {
                ForwardError::Malformed(error)
            } else if error.is_user() {
                ForwardError::Request(error)
            } else {
                ForwardError::Closed(error)
            };
            SendError { error, unsent }
        })
    }

    /// Hands the connection over to the tunnel it has become.
    pub(super) fn into_tunnel(mut self) {
        self.task.0 = None;
    }

    /// Whether the next request can be sent immediately.
    fn is_ready(&self) -> bool {
        self.sender.is_ready() && !self.sender.is_closed()
    }
}

/// The idle connections to the app; the most recently used one is taken first. `None` once the pool is closed.
pub(super) struct Pool {
    idle: Mutex<Option<VecDeque<IdleConnection>>>,
}

struct IdleConnection {
    connection: AppConnection,
    since: Instant,
    until: Instant,
}

impl Default for Pool {
    fn default() -> Self {
        Self { idle: Mutex::new(Some(VecDeque::new())) }
    }
}

impl Pool {
    /// A connection that can probably be reused.
    pub(super) fn take(&self, safe: bool) -> Option<AppConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = idle.as_mut()?;
        let now = Instant::now();
        while let Some(last) = idle.back() {
            if last.connection.is_ready() && now < last.until {
                // The others have been idle even longer.
                let fresh_enough = safe || now.duration_since(last.since) < UNSAFE_IDLE_MAX;
                return if fresh_enough { idle.pop_back().map(|idle| idle.connection) } else { None };
            }
            idle.pop_back();
        }
        None
    }

    fn put(&self, connection: AppConnection, keep: Duration) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(idle) = idle.as_mut() else { return };
        let now = Instant::now();
        while idle.front().is_some_and(|first| first.until <= now) || idle.len() >= IDLE_MAX {
            idle.pop_front();
        }
        idle.push_back(IdleConnection { connection, since: now, until: now + keep });
    }

    /// Closes all connections, and keeps none from now on.
    pub(super) fn close(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// A connection in use, returned to the pool when the response has ended.
pub(super) struct BorrowedConnection {
    connection: Option<AppConnection>,
    pool: Arc<Pool>,
    keep: Duration,
    gate: Option<BodyGate>,
}

impl BorrowedConnection {
    /// `keep`: how long the app keeps an idle connection, if it says so.
    pub(super) fn new(
        connection: AppConnection,
        pool: Arc<Pool>,
        keep: Option<Duration>,
        gate: Option<BodyGate>,
    ) -> Self {
        let keep = keep.map_or(IDLE_KEEP, |keep| keep.saturating_sub(KEEP_MARGIN));
        Self { connection: Some(connection), pool, keep, gate }
    }

    /// Returns the connection to the pool if it can be reused.
    pub(super) fn give_back(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if connection.is_ready() {
            self.pool.put(connection, self.keep);
        } else if !connection.sender.is_closed() && self.gate.as_ref().is_none_or(BodyGate::is_open) {
            // The response has ended before the request: the rest of the request still goes to the app.
            let (pool, keep) = (Arc::clone(&self.pool), self.keep);
            tokio::spawn(async move {
                if matches!(timeout(REST_MAX, connection.sender.ready()).await, Ok(Ok(()))) {
                    pool.put(connection, keep);
                }
            });
        }
    }
}

impl fmt::Debug for AppConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppConnection").finish_non_exhaustive()
    }
}
