//! A request's client, as an exchange sees it, whatever protocol it speaks.
//!
//! [`Client`] holds the facts; [`ClientLink`] carries the bytes. An HTTP/1 connection has one client for all its
//! requests; an HTTP/2 connection has one for each stream. Inside, heads are HTTP/1 text and bodies are content: a
//! protocol translates at its edge.

mod answers;
pub(crate) mod http1;
pub(crate) mod presence;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::admission::ClientNetwork;
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
use uh_http1::request::{self, BadRequest, RequestHead};
use uh_http1::response::Coding;

/// The minimum rate if the service isn't known: the default of `limits.min_body_rate`.
const BODY_RATE: u64 = 500;

/// How the bodies of an exchange reach its client, and what is known of that client meanwhile.
pub(crate) trait ClientLink: PumpSource + PumpSink + Send {
    /// Whether the client speaks HTTP/2: the request's head is then uh-proxy's own transcript of it.
    const HTTP2: bool;

    /// Whether a client that isn't being read from must be looked for by [`ClientLink::presence`].
    const NEEDS_LOOKS: bool;

    /// How the request's body arrives, and how it is passed on.
    fn request_body(request: &RequestHead) -> (Framing, Coding);

    /// Once the whole request has been read: whether the client is still there. Makes sure that the task is woken when
    /// that changes. `ahead` holds what was read past the request.
    fn watch(&mut self, cx: &mut Context<'_>, ahead: &mut Option<Buffer>) -> Watched;

    /// Whether the client has cancelled the exchange, if the protocol can say so. Polled whenever nothing moves, unless
    /// [`ClientLink::watch`] has just been called.
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
pub(crate) enum Watched {
    /// The client is there.
    Here,
    /// It has closed its sending side. It may still read.
    Ended,
    /// It has left.
    Gone,
}

/// A client with one request at a time.
pub(crate) struct Client<L> {
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
    pub(crate) fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::Https } else { Scheme::Http }
    }

    /// The address that a request comes from: as reported by a trusted proxy, or else the peer's.
    #[must_use]
    pub(crate) fn source(&self, request: &RequestHead) -> Option<IpAddr> {
        let told = request.client.of_head(self.request_head());
        if told.is_empty() { Some(self.ip) } else { std::str::from_utf8(told).ok()?.parse().ok() }
    }

    /// The network that a request comes from, by which its client is recognised. The peer's, if a trusted proxy reports no
    /// address.
    #[must_use]
    pub(super) fn network(&self, request: &RequestHead) -> ClientNetwork {
        ClientNetwork::from(self.source(request).unwrap_or(self.ip))
    }

    /// The head of the current request.
    #[must_use]
    pub(crate) fn request_head(&self) -> &[u8] {
        self.scratch.as_ref().map_or(&[], Scratch::request_head)
    }
}

impl<L: ClientLink> Client<L> {
    /// A client that hasn't sent anything yet.
    #[must_use]
    pub(crate) fn new(
        worker: Arc<Worker>,
        settings: Arc<Settings>,
        (ip, address): (IpAddr, Arc<str>),
        tls: Option<Arc<TlsSession>>,
        subscription: Subscription,
        link: L,
    ) -> Self {
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
    pub(crate) async fn exchange(&mut self, last: bool) -> AfterExchange {
        match self.translate() {
            Ok(mut request) => {
                request.keep_alive &= !last;
                let _active = ActiveGuard::new(&self.worker);
                // Boxed, so that the future of a waiting connection doesn't include the size of an exchange.
                let outcome = Box::pin(exchange::run(self, request)).await;
                self.follow(outcome).await
            }
            Err(bad) => Box::pin(self.refuse_bad(bad)).await,
        }
    }

    /// The same in the caller's memory, which isn't kept between two requests.
    pub(crate) async fn exchange_in_place(&mut self) -> AfterExchange {
        match self.translate() {
            Ok(request) => {
                let _active = ActiveGuard::new(&self.worker);
                let outcome = exchange::run(self, request).await;
                self.follow(outcome).await
            }
            Err(bad) => Box::pin(self.refuse_bad(bad)).await,
        }
    }

    /// Writes the head for the backend.
    fn translate(&mut self) -> Result<RequestHead, BadRequest> {
        let scheme = self.scheme();
        // There always is one.
        let scratch = self.scratch.get_or_insert_default();
        let mut upstream = std::mem::take(scratch.upstream());
        upstream.clear();
        let headers = &self.settings.headers;
        let request_start = headers.request_start.then(milliseconds_since_1970);
        let caller = Caller {
            address: self.ip,
            text: &self.address,
            request_start,
            scheme,
            http2: L::HTTP2,
            hides_cookies: self.worker.cookies.in_use(),
            headers,
        };
        let head = scratch.request_head();
        let translated = if L::HTTP2 {
            request::translate_written(head, scratch.places(), &caller, &mut upstream)
        } else {
            request::translate(head, &caller, &mut upstream)
        };
        *scratch.upstream() = upstream;
        if L::HTTP2 {
            scratch.return_places();
        }
        translated
    }

    /// What follows an exchange.
    async fn follow(&mut self, outcome: Outcome) -> AfterExchange {
        match outcome {
            Outcome::Ended(next) => next,
            Outcome::Tunnel(tunnel) => Box::pin(tunnel.run(self)).await,
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
