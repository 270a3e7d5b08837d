//! A new connection from a load balancer that sends a PROXY header: reads the header, which names the client, and hands
//! the connection on. Nothing after the header is read, so that TLS and HTTP start where they always do.

use std::future::{Future as _, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
use uh_http1::proxy_protocol::{self, BadProxyHeader, MAX_HEADER, ProxyHeader};

use super::admission::Refused;
use super::broadcast::{StopStage, Subscription};
use super::connection::Arrival;
use super::lazy_timer::LazyTimer;
use super::listener::Speaks;
use super::worker;

/// How long a header may still take once uh-proxy is stopping.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Why a connection is closed instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoHeader {
    /// The load balancer closed it before it sent anything, as health checks do, or uh-proxy is stopping.
    Gone,
    /// It broke the rules.
    Refused(Refused),
}

/// Reads the header of a new connection, and serves the connection for the client that the header names.
pub(super) async fn serve(mut arrival: Arrival, mut stream: TcpStream, speaks: Speaks) {
    // A connection without a slot is turned away, whoever the client is.
    if arrival.place.is_ok() {
        match header_in_time(&arrival, &mut stream).await {
            Ok(Some(client)) => arrival.set_client(client),
            // The load balancer speaks for itself.
            Ok(None) => {}
            Err(NoHeader::Gone) => return,
            Err(NoHeader::Refused(reason)) => {
                return arrival.worker.admission.refuse(reason, &arrival.address);
            }
        }
    }
    worker::start(arrival, stream, speaks);
}

/// The client that the header names, if it arrives within its deadline.
async fn header_in_time(arrival: &Arrival, stream: &mut TcpStream) -> Result<Option<IpAddr>, NoHeader> {
    let mut subscription = Subscription::new(Arc::clone(&arrival.worker.broadcast));
    let mut timer = LazyTimer::default();
    let mut deadline = Instant::now() + arrival.settings.limits.header_timeout;
    let mut header = pin!(header(stream));
    poll_fn(|cx| {
        subscription.poll(cx);
        if let Poll::Ready(result) = header.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        let stage = subscription.stage();
        if stage == StopStage::Stopping {
            deadline = deadline.min(Instant::now() + STOP_GRACE);
        }
        if stage != StopStage::Cutting && !timer.poll_expired(cx, deadline) {
            return Poll::Pending;
        }
        let late = NoHeader::Refused(Refused::ProxyHeaderTimeout);
        Poll::Ready(Err(if stage == StopStage::Running { late } else { NoHeader::Gone }))
    })
    .await
}

/// Reads a header and nothing else.
async fn header(stream: &mut TcpStream) -> Result<Option<IpAddr>, NoHeader> {
    let mut bytes = vec![0; MAX_HEADER];
    let mut read = 0;
    loop {
        let peeked = stream.peek(&mut bytes[read..]).await.map_err(|_| NoHeader::Gone)?;
        if peeked == 0 {
            let cut_off = NoHeader::Refused(Refused::BadProxyHeader);
            return Err(if read == 0 { NoHeader::Gone } else { cut_off });
        }
        let seen = read + peeked;
        let header = proxy_protocol::parse(&bytes[..seen]).map_err(|bad| match bad {
            BadProxyHeader::Missing => NoHeader::Refused(Refused::NoProxyHeader),
            BadProxyHeader::Malformed | BadProxyHeader::TooLong => NoHeader::Refused(Refused::BadProxyHeader),
        })?;
        // What belongs to the header is taken out of the socket. Otherwise, the next peek wouldn't wait for more.
        let end = header.map_or(seen, |ProxyHeader { length, .. }| length);
        stream.read_exact(&mut bytes[read..end]).await.map_err(|_| NoHeader::Gone)?;
        if let Some(header) = header {
            return Ok(header.client);
        }
        read = end;
    }
}
