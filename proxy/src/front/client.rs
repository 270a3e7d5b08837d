//! A request's client, as an exchange sees it, whatever protocol it speaks.
//!
//! [`Client`] holds the facts; [`ClientLink`] carries the bytes. An HTTP/1 connection has one client for all its
//! requests; an HTTP/2 connection has one for each stream. Inside, heads are HTTP/1 text and bodies are content: a
//! protocol translates at its edge.

mod answers;
pub mod http1;
pub mod presence;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::broadcast::Subscription;
use super::connection::AfterExchange;
use super::exchange::{self, Outcome};
use super::lazy_timer::LazyTimer;
use super::pump::ends::{PumpSink, PumpSource};
use super::scratch::Scratch;
use super::settings::Settings;
use super::worker::Worker;
use crate::tls::TlsSession;
use presence::Presence;
use uh_http1::body::Framing;
use uh_http1::buffer::Buffer;
use uh_http1::forwarded::{Caller, Scheme};
use uh_http1::request::{self, RequestHead};
use uh_http1::response::Coding;

/// The minimum rate if the service isn't known: the default of `limits.min_body_rate`.
const BODY_RATE: u64 = 500;

/// How the bodies of an exchange reach its client, and what is known of that client meanwhile.
pub trait ClientLink: PumpSource + PumpSink + Send {
    /// Whether the client speaks HTTP/2: the request's head is then uh-proxy's own transcript of it.
    const HTTP2: bool;

    /// Whether a client that isn't being read from must be looked for by [`ClientLink::presence`].
    const NEEDS_LOOKS: bool;

    /// How the request's body arrives, and how it is passed on.
    fn request_body(request: &RequestHead) -> (Framing, Coding);

    /// Once the whole request has been read: whether the client is still there. Makes sure that the task is woken when
    /// that changes. `ahead` holds what was read past the request.
    fn watch(&mut self, cx: &mut Context<'_>, ahead: &mut Option<Buffer>) -> Watched;

    /// Whether the client has cancelled the exchange, if the protocol can say so. Polled whenever nothing moves.
    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> bool {
        let _ = cx;
        false
    }

    /// Whether the client is still there, as far as is known without reading.
    fn presence(&self) -> Presence;

    /// Bytes that the client has taken, if that is known.
    fn taken(&self) -> Option<u64>;

    /// Whether the client has taken everything that was written; `None`: not yet.
    fn has_taken_all(&self) -> Option<bool>;
}

/// What [`ClientLink::watch`] has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// The client is there.
    Here,
    /// It has closed its sending side. It may still read.
    Ended,
    /// It has left.
    Gone,
}

/// A client with one request at a time.
pub struct Client<L> {
    /// The worker that serves it.
    pub worker: Arc<Worker>,
    /// The settings of the current or last request.
    pub settings: Arc<Settings>,
    /// The peer: the client, or a proxy in front of uh-proxy.
    pub ip: IpAddr,
    /// The same as text.
    pub address: Arc<str>,
    /// What the TLS handshake has agreed on; `None`: the client speaks plain HTTP.
    pub tls: Option<Arc<TlsSession>>,
    /// The heads of the current request.
    pub scratch: Option<Scratch>,
    /// Bytes read beyond the last message.
    pub input: Option<Buffer>,
    /// Notified when the process stops or a drain cuts.
    pub subscription: Subscription,
    /// For all its deadlines.
    pub timer: LazyTimer,
    /// When the last byte of the last response was written, for whoever goes on from there.
    pub moved: Option<Instant>,
    /// The minimum rate of a request body, in bytes per second, from the service of the last request.
    pub body_rate: u64,
    /// Carries the bytes.
    pub link: L,
}

impl<L> Client<L> {
    /// How the client speaks to us.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::Https } else { Scheme::Http }
    }

    /// The head of the current request.
    #[must_use]
    pub fn request_head(&self) -> &[u8] {
        self.scratch.as_ref().map_or(&[], Scratch::request_head)
    }
}

impl<L: ClientLink> Client<L> {
    /// A client that hasn't sent anything yet.
    #[must_use]
    pub fn new(
        worker: Arc<Worker>,
        settings: Arc<Settings>,
        (ip, address): (IpAddr, Arc<str>),
        tls: Option<Arc<TlsSession>>,
        link: L,
    ) -> Self {
        let subscription = Subscription::new(Arc::clone(&worker.broadcast));
        Self {
            worker,
            settings,
            ip,
            address,
            tls,
            scratch: None,
            input: None,
            subscription,
            timer: LazyTimer::default(),
            moved: None,
            body_rate: BODY_RATE,
            link,
        }
    }

    /// Runs the exchange for the request whose head is in [`Client::scratch`]. `last`: no other may follow on this
    /// connection.
    pub async fn exchange(&mut self, last: bool) -> AfterExchange {
        let scheme = self.scheme();
        let Some(scratch) = &mut self.scratch else { return AfterExchange::Close };
        let mut upstream = std::mem::take(scratch.upstream());
        upstream.clear();
        let headers = &self.settings.headers;
        let request_start = headers.request_start.then(milliseconds_since_1970);
        let caller =
            Caller { address: self.ip, text: &self.address, request_start, scheme, http2: L::HTTP2, headers };
        let translated = request::translate(scratch.request_head(), &caller, &mut upstream);
        *scratch.upstream() = upstream;
        match translated {
            Ok(mut request) => {
                request.keep_alive &= !last;
                let _active = ActiveGuard::new(&self.worker);
                // Boxed, so that the future of a waiting connection doesn't include the size of an exchange.
                let outcome = Box::pin(exchange::run(self, request)).await;
                match outcome {
                    Outcome::Ended(next) => next,
                    Outcome::Tunnel(tunnel) => Box::pin(tunnel.run(self)).await,
                }
            }
            Err(bad) => Box::pin(self.refuse_bad(bad)).await,
        }
    }
}

fn milliseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Counts a client as having a request in progress.
struct ActiveGuard(Arc<Worker>);

impl ActiveGuard {
    fn new(worker: &Arc<Worker>) -> Self {
        worker.meters.worker(worker.index).client_active.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(worker))
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.meters.worker(self.0.index).client_active.fetch_sub(1, Ordering::Relaxed);
    }
}
