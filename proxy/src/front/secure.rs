//! A new connection on a TLS port: its handshake, within its time and among the others, and then its exchanges.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::attention::{Attention, Stage};
use super::connection::{Arrival, Connection};
use super::watchdog::Watchdog;
use super::worker::plain_http;
use crate::tls;
use crate::tls::failure::Failure;
use crate::tls::handshake::{Done, Failed, negotiate};

/// How long a handshake may still take once the process is stopping.
const HURRIED: Duration = Duration::from_secs(1);

/// Serves a new connection on a TLS port. One that has no place is closed at once: it could be told why only after a
/// handshake, which is the most expensive thing that it could ask for.
pub(super) async fn serve(arrival: Arrival, stream: TcpStream) {
    let worker = Arc::clone(&arrival.worker);
    let Some(server) = &worker.tls else { return };
    if let Err(reason) = arrival.place {
        return worker.admission.refuse(reason, &arrival.address);
    }
    let shaken = Box::pin(shake(server, &arrival, stream)).await;
    match shaken {
        // What is spoken in it is decided here, by `session.alpn`.
        Ok(Done::Tls(client, session)) => Connection::new(arrival, client, Some(session)).serve().await,
        Ok(Done::PlainHttp(stream)) => {
            server.tally.failed(Failure::PlainHttp, &arrival.address, None);
            Box::pin(Connection::new(arrival, plain_http(stream), None).refuse_plain_http()).await;
        }
        Err(Failed(failure, sni)) => server.tally.failed(failure, &arrival.address, sni.as_deref()),
    }
}

/// Carries out a handshake until it is over, takes too long, makes room for another one or is cut by the end of the
/// process.
async fn shake(server: &tls::Server, arrival: &Arrival, stream: TcpStream) -> Result<Done, Failed> {
    let (worker, limits) = (&arrival.worker, &arrival.settings.limits);
    let _in_progress = server.tally.begins();
    let mut place = worker.handshakes.enter(limits.tls_handshakes.div_ceil(worker.workers));
    let mut attention = Attention::new(Arc::clone(&worker.bell));
    let mut watchdog = Watchdog::default();
    let mut deadline = Instant::now() + limits.tls_handshake_timeout;
    let mut hurried = false;
    let mut negotiation = pin!(negotiate(stream, server, &worker.handshakes));
    poll_fn(|cx| {
        attention.poll(cx);
        if let Poll::Ready(result) = negotiation.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        let stage = attention.stage();
        if stage == Stage::Stopping && !std::mem::replace(&mut hurried, true) {
            deadline = deadline.min(Instant::now() + HURRIED);
        }
        let failure = if stage == Stage::Cutting {
            Failure::Stopping
        } else if place.poll_evicted(cx) {
            Failure::Crowded
        } else if watchdog.poll_expired(cx, deadline) {
            if hurried { Failure::Stopping } else { Failure::TimedOut }
        } else {
            return Poll::Pending;
        };
        Poll::Ready(Err(Failed(failure, None)))
    })
    .await
}
