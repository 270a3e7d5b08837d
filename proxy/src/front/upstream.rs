//! Connections to endpoints: opening one, and counting it for as long as it lives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pingora::connectors::TransportConnector;
use pingora::protocols::Stream;
use pingora::upstreams::peer::HttpPeer;
use pingora::{BError, ErrorType};

use super::endpoint::{Busy, Endpoint};
use crate::observe::meters::BackendMeters;
use uh_protocol::Address;

/// An open connection to an endpoint.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// The connection.
    pub stream: Stream,
    /// Which of the backend's endpoints it leads to.
    pub endpoint: usize,
    /// Whether it has carried an exchange before.
    pub reused: bool,
    /// The address it is connected to, if the endpoint is a name.
    pub peer: Option<SocketAddr>,
    /// Counts the exchange that it carries, where the endpoint is one of several.
    pub busy: Option<Busy>,
    _open: OpenGuard,
}

#[derive(Debug)]
struct OpenGuard(Arc<BackendMeters>);

impl OpenGuard {
    fn new(meters: &Arc<BackendMeters>) -> Self {
        meters.open_connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(meters))
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open_connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why an endpoint could not be reached. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The connection timed out.
    #[error("connecting to {address} timed out after {} ms", after.as_millis())]
    TimedOut {
        /// The endpoint.
        address: Address,
        /// How long the caller waited.
        after: Duration,
    },
    /// It was refused, or the name doesn't resolve.
    #[error("cannot connect to {address}")]
    Failed {
        /// The endpoint.
        address: Address,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ConnectError {
    /// Why, as logged in the access log.
    #[must_use]
    pub(crate) fn reason(&self) -> &'static str {
        const TIMED_OUT: &str = "no connection within timeouts.connect";
        let Self::Failed { source, .. } = self else { return TIMED_OUT };
        match source.downcast_ref::<BError>().map(|error| error.root_etype()) {
            Some(ErrorType::ConnectRefused) => "connection refused",
            Some(ErrorType::ConnectTimedout) => TIMED_OUT,
            Some(ErrorType::ConnectNoRoute) => "no route",
            Some(ErrorType::BindError) => "no free local port",
            Some(_) => "cannot connect",
            None => "the name doesn't resolve to an address",
        }
    }
}

/// If connecting to a name's address takes longer than this, the address may be out of date.
const DOUBTFUL: Duration = Duration::from_millis(250);

/// Opens connections to endpoints.
pub(crate) struct Connector {
    inner: TransportConnector,
}

impl Default for Connector {
    fn default() -> Self {
        Self { inner: TransportConnector::new(None) }
    }
}

impl Connector {
    /// Opens a connection to an endpoint. Never resolves a name: that is done in the background, and only the very
    /// first lookup is awaited.
    ///
    /// # Errors
    /// It can't be reached in time.
    pub(crate) async fn connect(
        &self,
        target: &Endpoint,
        endpoint: usize,
        timeout: Duration,
        meters: &Arc<BackendMeters>,
        worker: usize,
    ) -> Result<Upstream, ConnectError> {
        let start = Instant::now();
        let address = &target.address;
        let timed_out = || ConnectError::TimedOut { address: address.clone(), after: timeout };
        let open = tokio::time::timeout(timeout, self.open(target, timeout));
        let opened = open.await.map_err(|_| timed_out())?;
        let (stream, peer) = opened.map_err(|error| match error {
            OpenError::TimedOut => timed_out(),
            OpenError::Failed(source) => ConnectError::Failed { address: address.clone(), source },
        })?;
        target.reached();
        meters.lane(worker).connect.observe(start.elapsed());
        Ok(Upstream { stream, endpoint, reused: false, peer, busy: None, _open: OpenGuard::new(meters) })
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
        timeout: Duration,
    ) -> Result<(Stream, Option<SocketAddr>), OpenError> {
        let peer = match &endpoint.address {
            Address::Socket(address) => peer(*address),
            Address::Unix(path) => {
                HttpPeer::new_uds(path.to_str().ok_or("the path is not text")?, false, String::new())?
            }
            Address::Name(..) => return self.open_any(endpoint, timeout).await,
        };
        Ok((self.inner.new_stream(&peer).await?, None))
    }

    /// Tries all addresses of a name, starting with a different one each time. Each gets a fair share of the remaining
    /// time, so that one that doesn't answer leaves some for the others.
    async fn open_any(
        &self,
        endpoint: &Endpoint,
        timeout: Duration,
    ) -> Result<(Stream, Option<SocketAddr>), OpenError> {
        let deadline = Instant::now() + timeout;
        let found = endpoint.first_resolution().await;
        let count = found.addresses.len();
        let first = endpoint.next_turn(count);
        let mut last =
            OpenError::from(found.error.as_deref().unwrap_or("the name doesn't resolve to an address"));
        for step in 0..count {
            let address = found.addresses[(first + step) % count];
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(count - step).unwrap_or(u32::MAX);
            let peer = peer(address);
            let opening = self.inner.new_stream(&peer);
            tokio::pin!(opening);
            let hint = share.min(DOUBTFUL);
            let mut opened = tokio::time::timeout(hint, &mut opening).await;
            if opened.is_err() {
                endpoint.doubt();
                opened = tokio::time::timeout(share.saturating_sub(hint), &mut opening).await;
            }
            match opened {
                Ok(Ok(stream)) => return Ok((stream, Some(address))),
                Ok(Err(error)) => last = error.into(),
                Err(_) => last = OpenError::TimedOut,
            }
        }
        endpoint.doubt();
        Err(last)
    }
}

enum OpenError {
    TimedOut,
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for OpenError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn peer(address: SocketAddr) -> HttpPeer {
    HttpPeer::new(address, false, String::new())
}
