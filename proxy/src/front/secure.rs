//! A new connection on a TLS port: its handshake, with a deadline and a limit on concurrent handshakes, then its exchanges.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::broadcast::{StopStage, Subscription};
use super::client::http1::Http1;
use super::connection::{Arrival, Connection};
use super::http2;
use super::lazy_timer::LazyTimer;
use crate::tls;
use crate::tls::failure::HandshakeFailure;
use crate::tls::handshake::{FailedHandshake, Negotiated, negotiate};
use crate::tls::server::HTTP2;

/// How long a handshake may still take once uh-proxy is stopping.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Serves a new connection on a TLS port. If no slot is free, it is closed without an explanation: sending one would need
/// a handshake, the most expensive thing a client can ask for.
pub(super) async fn serve(arrival: Arrival, stream: TcpStream) {
    let worker = Arc::clone(&arrival.worker);
    let Some(server) = &worker.tls else { return };
    if let Err(reason) = arrival.place {
        return worker.admission.refuse(reason, &arrival.address);
    }
    let handshake = Box::pin(handshake(server, &arrival, stream)).await;
    match handshake {
        Ok(Negotiated::Tls(client, session)) if session.alpn == HTTP2 => {
            Box::pin(http2::serve(arrival, http2::ByRecord(client), Some(session))).await;
        }
        Ok(Negotiated::Tls(client, session)) => {
            Connection::new(arrival, Http1::Tls(client), Some(session)).serve().await;
        }
        Ok(Negotiated::PlainHttp(stream)) => {
            server.counts.failed(HandshakeFailure::PlainHttp, &arrival.address, None);
            Box::pin(Connection::new(arrival, Http1::Plain(stream), None).refuse_plain_http()).await;
        }
        Ok(Negotiated::Proof) => {}
        Err(FailedHandshake(failure, sni)) => server.counts.failed(failure, &arrival.address, sni.as_deref()),
    }
}

/// Runs a handshake until it completes, exceeds its deadline, is evicted in favour of a newer one, or is cut at shutdown.
async fn handshake(
    server: &tls::Server,
    arrival: &Arrival,
    stream: TcpStream,
) -> Result<Negotiated, FailedHandshake> {
    let (worker, limits) = (&arrival.worker, &arrival.settings.limits);
    let _in_progress = server.counts.begins();
    let mut pending = worker.handshakes.enter(limits.tls_handshakes.div_ceil(worker.workers));
    let mut subscription = Subscription::new(Arc::clone(&worker.broadcast));
    let mut timer = LazyTimer::default();
    let mut deadline = Instant::now() + limits.tls_handshake_timeout;
    let mut stopping = false;
    let mut negotiation = pin!(negotiate(stream, server, &worker.handshakes));
    poll_fn(|cx| {
        subscription.poll(cx);
        if let Poll::Ready(result) = negotiation.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        let stage = subscription.stage();
        if stage == StopStage::Stopping && !std::mem::replace(&mut stopping, true) {
            deadline = deadline.min(Instant::now() + STOP_GRACE);
        }
        let failure = if stage == StopStage::Cutting {
            HandshakeFailure::Stopping
        } else if pending.poll_evicted(cx) {
            HandshakeFailure::Evicted
        } else if timer.poll_expired(cx, deadline) {
            if stopping { HandshakeFailure::Stopping } else { HandshakeFailure::TimedOut }
        } else {
            return Poll::Pending;
        };
        Poll::Ready(Err(FailedHandshake(failure, None)))
    })
    .await
}
