//! One HTTP/1 connection: reads a head, runs the exchange, and repeats until either side closes.

mod endings;
mod head;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::admission::{ConnectionSlot, Refused};
use super::broadcast::Subscription;
use super::client::Client;
use super::client::http1::Http1;
use super::reset;
use super::settings::Settings;
use super::worker::Worker;
use crate::observe::termination::Termination;
use crate::tls::TlsSession;
use head::HeadRead;

/// What happens to a connection after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterExchange {
    /// It takes another request.
    KeepAlive,
    /// It is closed in good order.
    Close,
    /// It is closed in the middle of a response: over TLS without a word, so that the client can tell that what it was
    /// reading is not whole.
    Abandon,
    /// It is closed after the client has had time to read the answer.
    Linger,
    /// It was idle for too long: it is closed so that a request on its way doesn't cause a reset.
    Dismiss,
    /// It is reset: only then can the client tell that the response was incomplete.
    Reset,
}

/// A client that was accepted: counted as a connection, and admitted or not, before anything is read from it.
pub(crate) struct Arrival {
    pub(crate) worker: Arc<Worker>,
    /// In force when it came.
    pub(crate) settings: Arc<Settings>,
    pub(crate) ip: IpAddr,
    /// Its address as text.
    pub(crate) address: Arc<str>,
    /// Its place among the open connections, or why it has none.
    pub(crate) place: Result<ConnectionSlot, Refused>,
    pub(crate) open: OpenGuard,
}

impl Arrival {
    /// Counts a connection, and takes a place for it if there is one.
    #[must_use]
    pub(crate) fn new(worker: Arc<Worker>, address: SocketAddr) -> Self {
        let open = OpenGuard::new(&worker);
        let ip = address.ip().to_canonical();
        let settings = worker.settings();
        // A trusted proxy stands for all the clients behind it, and a load balancer still has to name the client.
        let counted = (!settings.headers.trusts(ip) && !settings.expects_proxy_header(ip)).then_some(ip);
        let place = worker.admission.admit(&settings.limits, counted, worker.index);
        Self { settings, ip, address: text(ip), place, open, worker }
    }

    /// Whether its peer is a load balancer that names the client in a PROXY header.
    pub(super) fn expects_proxy_header(&self) -> bool {
        self.settings.expects_proxy_header(self.ip)
    }

    /// Makes it a connection of the client that the PROXY header names, and counts it for that address.
    pub(super) fn set_client(&mut self, client: IpAddr) {
        self.ip = client.to_canonical();
        self.address = text(self.ip);
        if let Ok(place) = &mut self.place
            && !self.settings.headers.trusts(self.ip)
            && let Err(reason) = place.count_for(&self.settings.limits, self.ip)
        {
            self.place = Err(reason);
        }
    }
}

/// An address as text, in one allocation.
fn text(ip: IpAddr) -> Arc<str> {
    let mut space = [0; 45];
    let mut rest = &mut space[..];
    let written = write!(rest, "{ip}").map(|()| rest.len()).map(|left| space.len() - left);
    let text = written.ok().and_then(|length| std::str::from_utf8(&space[..length]).ok());
    text.map_or_else(|| ip.to_string().into(), Arc::from)
}

/// One client connection.
pub(crate) struct Connection {
    pub(super) client: Client<Http1>,
    /// Its slot among the open connections, or why it has none.
    place: Result<ConnectionSlot, Refused>,
    exchanges: u32,
    _open: OpenGuard,
}

impl Connection {
    /// Takes over an accepted connection, after its TLS handshake if there is one.
    #[must_use]
    pub(crate) fn new(arrival: Arrival, link: Http1, tls: Option<Arc<TlsSession>>) -> Self {
        let Arrival { worker, settings, ip, address, place, open } = arrival;
        let subscription = Subscription::new(Arc::clone(&worker.broadcast));
        let client = Client::new(worker, settings, (ip, address), tls, subscription, link);
        Self { client, place, exchanges: 0, _open: open }
    }

    /// Serves the connection until it closes.
    #[allow(
        clippy::manual_async_fn,
        reason = "the future of an async fn would have room for the connection twice"
    )]
    pub(crate) fn serve(mut self) -> impl Future<Output = ()> + Send {
        async move {
            if let Err(reason) = self.place {
                self.client.worker.admission.refuse(reason, &self.client.address);
                return Box::pin(self.turn_away(reason)).await;
            }
            loop {
                let next = match self.read_head().await {
                    HeadRead::Closed => AfterExchange::Close,
                    HeadRead::Dismissed => AfterExchange::Dismiss,
                    HeadRead::Evicted => return Box::pin(self.make_room()).await,
                    HeadRead::TimedOut => {
                        let detail = "the request did not arrive in time";
                        Box::pin(self.client.refuse(408, detail, Termination::ClientTimeout)).await
                    }
                    HeadRead::Bad(bad) => Box::pin(self.client.refuse_bad(bad)).await,
                    HeadRead::Complete => {
                        let most = self.client.settings.limits.requests_per_connection;
                        self.client.exchange(self.exchanges.saturating_add(1) >= most).await
                    }
                };
                self.exchanges = self.exchanges.saturating_add(1);
                // A waiting connection holds no memory.
                if let Some(scratch) = self.client.scratch.take() {
                    scratch.give_back();
                }
                match next {
                    AfterExchange::KeepAlive => {}
                    AfterExchange::Close if self.client.tls.is_some() => {
                        return Box::pin(self.end_tls()).await;
                    }
                    AfterExchange::Close | AfterExchange::Abandon => return,
                    AfterExchange::Reset => return reset::at_close(self.client.link.socket()),
                    AfterExchange::Linger => return Box::pin(self.linger_for_answer()).await,
                    AfterExchange::Dismiss => return Box::pin(self.dismiss()).await,
                }
            }
        }
    }
}

/// Counts a connection as open.
pub(crate) struct OpenGuard(Arc<Worker>);

impl OpenGuard {
    fn new(worker: &Arc<Worker>) -> Self {
        let meters = worker.meters.worker(worker.index);
        meters.client_open.fetch_add(1, Ordering::Relaxed);
        meters.accepted.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(worker))
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        let open = &self.0.meters.worker(self.0.index).client_open;
        if open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.all_gone.notify_waiters();
        }
    }
}
