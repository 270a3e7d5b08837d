//! The admin client: one call, one connection over the Unix socket, one deadline.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::name::{BackendName, ServiceName};
use crate::problem::{Code, Problem};
use crate::request::{
    BackendRequest, DrainRequest, Drained, Maintained, MaintenanceRequest, PreviewReply, PreviewRequest,
    Registered, ReleaseRequest, Released, Reloaded, SplitReply, SplitRequest, SwitchRequest, Switched,
    UPGRADE_TIMEOUT_MS, UnsetRequest, UpgradeRequest, Upgraded, WithdrawRequest, Withdrawn,
};
use crate::status::{Certificates, Status};

/// How long a call may take in addition to any wait it requests: uh-proxy answers in milliseconds, and persists within
/// a deadline of five seconds.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a reload may take: it waits for its turn to open the log, opens it, checks the file and writes the state.
/// Each step takes at most five seconds.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(25);

/// How long closing many tunnels one after the other may take at the end of a drain.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a call that is refused as `busy` is repeated, from the first refusal on: while uh-proxy is replaced, no
/// process takes changes for some milliseconds. Nothing was changed then. The first refusal may be that of a drain that
/// has waited for minutes.
const BUSY_FOR: Duration = Duration::from_secs(3);

/// The pause before it is repeated.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// The largest reply that is read, so that a wrong socket can't exhaust memory.
const MAX_REPLY_BYTES: usize = 16 << 20;

/// For how long a call has been refused as `busy`.
#[derive(Debug, Default)]
struct Refusals {
    first: Option<Instant>,
}

impl Refusals {
    /// Whether to repeat a call that has just been refused.
    fn may_repeat(&mut self, now: Instant) -> bool {
        now.duration_since(*self.first.get_or_insert(now)) < BUSY_FOR
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing is listening there.
    #[error("no uh-proxy is listening on {}", path.display())]
    NoProxy {
        /// The admin socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The socket exists, but this user may not use it. No request was sent.
    #[error(
        "no permission to use the admin socket {}: run this as root or as uh-proxy's user, or add your user ID to server.admin_users",
        path.display()
    )]
    NoPermission {
        /// The admin socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// uh-proxy answered with an error.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// The connection was lost: the change may or may not have been made.
    #[error("lost the connection to {} before the reply arrived", path.display())]
    Broken {
        /// The admin socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No reply in time: the change may or may not have been made.
    #[error("no reply from {} within {} s", path.display(), after.as_secs())]
    TimedOut {
        /// The admin socket.
        path: PathBuf,
        /// How long the caller waited.
        after: Duration,
    },
}

/// A client of one uh-proxy, named by its admin socket. Cheap; holds no connection.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client for the admin socket at this path.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The admin socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// See [`ClientError`], as for every call.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.call(Method::GET, "/v1/status", None::<&()>, CALL_TIMEOUT).await
    }

    /// `GET /v1/certificates`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn certificates(&self) -> Result<Certificates, ClientError> {
        self.call(Method::GET, "/v1/certificates", None::<&()>, CALL_TIMEOUT).await
    }

    /// Makes another backend active.
    ///
    /// # Errors
    /// A `Problem` if refused; nothing has changed then.
    pub async fn switch(
        &self,
        service: &ServiceName,
        request: &SwitchRequest,
    ) -> Result<Switched, ClientError> {
        self.call(Method::POST, &format!("/v1/services/{service}/switch"), Some(request), CALL_TIMEOUT).await
    }

    /// Makes other backends of several services active, all at once.
    ///
    /// # Errors
    /// A `Problem` if refused for any of them; nothing has changed then.
    pub async fn release(&self, request: &ReleaseRequest) -> Result<Released, ClientError> {
        self.call(Method::POST, "/v1/switch", Some(request), CALL_TIMEOUT).await
    }

    /// Waits for a standby's in-flight requests to finish.
    ///
    /// # Errors
    /// A `Problem` if the backend is active, or becomes active meanwhile.
    pub async fn drain(
        &self,
        service: &ServiceName,
        backend: &BackendName,
        request: &DrainRequest,
    ) -> Result<Drained, ClientError> {
        let path = format!("/v1/services/{service}/backends/{backend}/drain");
        // Without a timeout, uh-proxy uses the service's own.
        let timeout_ms = request.timeout_ms.unwrap_or(crate::request::MAX_DRAIN_TIMEOUT_MS);
        let timeout = Duration::from_millis(timeout_ms).saturating_add(CALL_TIMEOUT + CLOSING_TIMEOUT);
        self.call(Method::POST, &path, Some(request), timeout).await
    }

    /// Registers a backend's endpoints and version.
    ///
    /// # Errors
    /// A `Problem` if refused; nothing has changed then.
    pub async fn set_backend(
        &self,
        service: &ServiceName,
        backend: &BackendName,
        request: &BackendRequest,
    ) -> Result<Registered, ClientError> {
        let path = format!("/v1/services/{service}/backends/{backend}");
        self.call(Method::PUT, &path, Some(request), CALL_TIMEOUT).await
    }

    /// Drops a backend's registration, which returns it to the configuration file's endpoints, and ends a withdrawal.
    ///
    /// # Errors
    /// A `Problem` if refused; nothing has changed then.
    pub async fn unset_backend(
        &self,
        service: &ServiceName,
        backend: &BackendName,
        request: &UnsetRequest,
    ) -> Result<Registered, ClientError> {
        let path = format!("/v1/services/{service}/backends/{backend}");
        self.call(Method::DELETE, &path, Some(request), CALL_TIMEOUT).await
    }

    /// Withdraws a standby: no exchange starts on it, and nothing switches to it, until it is registered again. Do this
    /// before you stop a backend, then drain it.
    ///
    /// # Errors
    /// A `Problem` if refused, as for the active backend; nothing has changed then.
    pub async fn withdraw(
        &self,
        service: &ServiceName,
        backend: &BackendName,
        request: &WithdrawRequest,
    ) -> Result<Withdrawn, ClientError> {
        let path = format!("/v1/services/{service}/backends/{backend}/withdraw");
        self.call(Method::POST, &path, Some(request), CALL_TIMEOUT).await
    }

    /// Sends a part of the traffic to another backend, changes how much, renews that, or ends it.
    ///
    /// # Errors
    /// A `Problem` if refused; nothing has changed then.
    pub async fn split(
        &self,
        service: &ServiceName,
        request: &SplitRequest,
    ) -> Result<SplitReply, ClientError> {
        self.call(Method::POST, &format!("/v1/services/{service}/split"), Some(request), CALL_TIMEOUT).await
    }

    /// Makes a link by which its holder looks at a standby.
    ///
    /// # Errors
    /// A `Problem` if refused.
    pub async fn preview(
        &self,
        service: &ServiceName,
        request: &PreviewRequest,
    ) -> Result<PreviewReply, ClientError> {
        self.call(Method::POST, &format!("/v1/services/{service}/preview"), Some(request), CALL_TIMEOUT).await
    }

    /// Turns maintenance on or off. In maintenance, uh-proxy answers new requests itself.
    ///
    /// # Errors
    /// A `Problem` if refused; nothing has changed then.
    pub async fn maintenance(
        &self,
        service: &ServiceName,
        request: &MaintenanceRequest,
    ) -> Result<Maintained, ClientError> {
        let path = format!("/v1/services/{service}/maintenance");
        self.call(Method::POST, &path, Some(request), CALL_TIMEOUT).await
    }

    /// Reads the configuration file again.
    ///
    /// # Errors
    /// A `Problem` if the file is invalid; nothing has changed then.
    pub async fn reload(&self) -> Result<Reloaded, ClientError> {
        self.call(Method::POST, "/v1/reload", None::<&()>, RELOAD_TIMEOUT).await
    }

    /// `POST /v1/upgrade`: waits until the new process leads.
    ///
    /// # Errors
    /// See [`ClientError`]. The running process goes on leading, except if the connection broke.
    pub async fn upgrade(&self, request: &UpgradeRequest) -> Result<Upgraded, ClientError> {
        let timeout = Duration::from_millis(request.timeout_ms.unwrap_or(UPGRADE_TIMEOUT_MS));
        let timeout = timeout.saturating_add(CALL_TIMEOUT + CALL_TIMEOUT);
        self.call(Method::POST, "/v1/upgrade", Some(request), timeout).await
    }

    /// `POST /v1/upgrade/back`: waits until the process that was replaced leads again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn upgrade_back(&self) -> Result<Upgraded, ClientError> {
        let timeout = CALL_TIMEOUT + CALL_TIMEOUT + CALL_TIMEOUT;
        self.call(Method::POST, "/v1/upgrade/back", None::<&()>, timeout).await
    }

    /// `GET /metrics`, as text.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let body = self.send(Method::GET, "/metrics", Bytes::new(), CALL_TIMEOUT).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        timeout: Duration,
    ) -> Result<T, ClientError> {
        let body = match body {
            Some(body) => Bytes::from(serde_json::to_vec(body).map_err(|e| self.broken(e))?),
            None => Bytes::new(),
        };
        let reply = self.send(method, path, body, timeout).await?;
        serde_json::from_slice(&reply).map_err(|e| self.broken(e))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, ClientError> {
        let mut refusals = Refusals::default();
        loop {
            let exchange = self.exchange(method.clone(), path, body.clone());
            match tokio::time::timeout(timeout, exchange).await {
                Ok(Err(ClientError::Problem(problem)))
                    if problem.code == Code::Busy && refusals.may_repeat(Instant::now()) =>
                {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Ok(result) => return result,
                Err(_) => {
                    return Err(ClientError::TimedOut { path: self.socket.clone(), after: timeout });
                }
            }
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| self.unconnected(source))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.broken(e))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "uh")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| self.broken(e))?;
        // The connection is driven here, together with the call, so that both end together.
        let reply = async {
            let response = sender.send_request(request).await.map_err(|e| self.broken(e))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_REPLY_BYTES).collect().await;
            Ok::<_, ClientError>((status, body.map_err(|e| self.broken(e))?.to_bytes()))
        };
        tokio::pin!(connection, reply);
        let (status, body) = tokio::select! {
            reply = &mut reply => reply?,
            ended = &mut connection => {
                // The reply may be complete and waiting; if not, nothing more can come.
                ended.map_err(|e| self.broken(e))?;
                reply.await?
            }
        };
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(problem.into()),
            Err(_) => Err(self.broken(format!("unexpected response with status {status}"))),
        }
    }

    fn unconnected(&self, source: std::io::Error) -> ClientError {
        let path = self.socket.clone();
        match source.kind() {
            std::io::ErrorKind::PermissionDenied => ClientError::NoPermission { path, source },
            _ => ClientError::NoProxy { path, source },
        }
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken { path: self.socket.clone(), source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_repeated_for_as_long_after_its_first_refusal_however_late_that_comes() {
        let begun = Instant::now();
        let refused = begun + Duration::from_secs(100);
        let mut refusals = Refusals::default();
        assert!(refusals.may_repeat(refused), "a drain was interrupted after 100 s");
        assert!(refusals.may_repeat(refused + BUSY_FOR / 2));
        assert!(!refusals.may_repeat(refused + BUSY_FOR));
    }
}
