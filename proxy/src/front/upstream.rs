//! Connections to endpoints: opening one, and counting it for as long as it lives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pingora::connectors::TransportConnector;
use pingora::protocols::Stream;
use pingora::upstreams::peer::HttpPeer;

use crate::observe::meters::BackendMeters;
use crate::switching::Address;

/// An open connection to an endpoint.
#[derive(Debug)]
pub struct Upstream {
    /// The connection.
    pub stream: Stream,
    /// Which of the backend's endpoints it leads to.
    pub endpoint: usize,
    /// Whether it has carried an exchange before.
    pub reused: bool,
    _open: OpenGuard,
}

#[derive(Debug)]
struct OpenGuard(Arc<BackendMeters>);

impl OpenGuard {
    fn new(meters: &Arc<BackendMeters>) -> Self {
        meters.connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(meters))
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why an endpoint could not be reached. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answered in time.
    #[error("no connection to {address} within {} ms", after.as_millis())]
    TimedOut {
        /// The endpoint.
        address: Address,
        /// How long was waited.
        after: Duration,
    },
    /// It was refused, or the name is not known.
    #[error("cannot connect to {address}")]
    Failed {
        /// The endpoint.
        address: Address,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Opens connections to endpoints.
pub struct Connector {
    inner: TransportConnector,
}

impl Default for Connector {
    fn default() -> Self {
        Self { inner: TransportConnector::new(None) }
    }
}

impl Connector {
    /// Opens a connection to an endpoint.
    ///
    /// # Errors
    /// It can't be reached in time.
    pub async fn connect(
        &self,
        address: &Address,
        endpoint: usize,
        timeout: Duration,
        meters: &Arc<BackendMeters>,
        worker: usize,
    ) -> Result<Upstream, ConnectError> {
        let start = Instant::now();
        let timed_out = || ConnectError::TimedOut { address: address.clone(), after: timeout };
        let open = tokio::time::timeout(timeout, self.open(address));
        let stream = open.await.map_err(|_| timed_out())?;
        let stream = stream.map_err(|source| ConnectError::Failed { address: address.clone(), source })?;
        meters.lane(worker).connect.observe(start.elapsed());
        Ok(Upstream { stream, endpoint, reused: false, _open: OpenGuard::new(meters) })
    }

    async fn open(&self, address: &Address) -> Result<Stream, Box<dyn std::error::Error + Send + Sync>> {
        let peer = match address {
            Address::Socket(address) => peer(*address),
            Address::Unix(path) => {
                HttpPeer::new_uds(path.to_str().ok_or("the path is not text")?, false, String::new())?
            }
            Address::Name(host, port) => {
                let mut last = None;
                for address in tokio::net::lookup_host((host.as_str(), *port)).await? {
                    match self.inner.new_stream(&peer(address)).await {
                        Ok(stream) => return Ok(stream),
                        Err(error) => last = Some(error),
                    }
                }
                return Err(last.map_or_else(|| "the name has no address".into(), Into::into));
            }
        };
        Ok(self.inner.new_stream(&peer).await?)
    }
}

fn peer(address: SocketAddr) -> HttpPeer {
    HttpPeer::new(address, false, String::new())
}
