//! What the streams of an HTTP/2 connection share, and what is counted for as long as a connection or a stream is open.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::front::in_flight::{AddressRequests, RequestInFlight};
use crate::front::worker::Worker;
use crate::tls::TlsSession;

/// What the streams of a connection share.
pub(super) struct SharedSession {
    pub worker: Arc<Worker>,
    pub ip: IpAddr,
    pub address: Arc<str>,
    pub tls: Option<Arc<TlsSession>>,
    /// Counts the requests of the client's address; `None`: it has no limit.
    pub requests: Option<AddressRequests>,
}

/// A stream that is being served, counted for as long as this lives.
pub(super) struct OpenStream {
    pub shared: Arc<SharedSession>,
    /// Its place among the requests of its address.
    place: Option<RequestInFlight>,
}

impl OpenStream {
    pub(super) fn new(shared: &Arc<SharedSession>) -> Self {
        let place = shared.requests.as_ref().and_then(AddressRequests::begin);
        let worker = &shared.worker;
        worker.meters.worker(worker.index).http2.stream_opened();
        Self { shared: Arc::clone(shared), place }
    }

    /// Counts it as rejected.
    pub(super) fn refuse(&self) {
        if let Some(requests) = &self.shared.requests {
            requests.refuse(&self.shared.address);
        }
    }

    /// Whether its address has too many requests in flight.
    pub(super) fn is_one_too_many(&self) -> bool {
        self.shared.requests.is_some() && self.place.is_none()
    }
}

/// A connection, counted for as long as this lives.
pub(super) struct OpenConnection(Arc<Worker>);

impl OpenConnection {
    pub(super) fn new(worker: &Arc<Worker>) -> Self {
        worker.meters.worker(worker.index).http2.connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(worker))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.meters.worker(self.0.index).http2.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
