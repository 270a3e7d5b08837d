//! One stream: its header list becomes a request head, its exchange is that of any client, and then it ends in good order
//! or is reset.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::Request;
use http::request::Parts;
use tokio::time::{Instant, timeout};

use super::head::{self, Content, HeadLimits};
use super::link::{Gone, ResponseProgress, StreamLink};
use super::shared::{OpenStream, SharedSession};
use crate::front::broadcast::Subscription;
use crate::front::client::Client;
use crate::front::lazy_timer::LazyTimer;
use crate::front::scratch::Scratch;
use crate::front::settings::Settings;
use crate::front::worker::Worker;
use crate::observe::termination::Termination;
use crate::tls::TlsSession;
use uh_http1::field::split_port;
use uh_http1::request::{BadRequest, Places};

/// After a complete response, how long the rest of the request may take to arrive before a reset asks the client to stop
/// sending it (RFC 9113 §8.1).
const REST_TIME: Duration = Duration::from_millis(100);

/// And how much of it.
const REST_BYTES: usize = 256 << 10;

/// A stream that has begun.
pub(super) struct NewStream {
    pub open: OpenStream,
    pub settings: Arc<Settings>,
    pub request: Request<RecvStream>,
    pub respond: SendResponse<Bytes>,
    /// It is the first of its connection.
    pub first: bool,
}

/// A stream that was served.
pub(super) struct Served {
    pub ended: Ended,
    /// When the last byte of a complete response was written.
    pub moved: Option<Instant>,
    /// For the next one.
    pub reused: Option<Reused>,
}

/// What one stream after another uses: counting references up and down for each costs as much as a step of its request.
pub(super) struct Reused {
    worker: Arc<Worker>,
    address: Arc<str>,
    tls: Option<Arc<TlsSession>>,
    subscription: Subscription,
    timer: LazyTimer,
}

impl Reused {
    fn of(shared: &SharedSession) -> Self {
        Self {
            worker: Arc::clone(&shared.worker),
            address: Arc::clone(&shared.address),
            tls: shared.tls.clone(),
            // Its connection's task is notified, and polls it.
            subscription: Subscription::of_part(Arc::clone(&shared.worker.broadcast)),
            timer: LazyTimer::default(),
        }
    }
}

/// How a stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// In good order, or by our doing.
    InOrder,
    /// Its client has cancelled it before it was answered.
    Cancelled,
}

/// Serves a stream until its response is complete or broken. It is polled by its connection's task.
pub(super) async fn serve(stream: NewStream, reused: Option<Reused>) -> Served {
    let NewStream { open, settings, request, respond, first } = stream;
    let (mut parts, body) = request.into_parts();
    let content = if body.is_end_stream() { Content::None } else { Content::Follows };
    let mut scratch = Scratch::take();
    let head = write_head(&parts, content, &settings, &open, scratch.written_request());
    let link = StreamLink::new((body, content), respond, std::mem::take(&mut parts.headers), first);
    // What is needed of it is in the head now. Its parts would keep all that was received of it.
    drop(parts);
    let reused = reused.unwrap_or_else(|| Reused::of(&open.shared));
    let Reused { worker, address, tls, subscription, timer } = reused;
    let mut client = Client::new(worker, settings, (open.shared.ip, address), tls, subscription, link);
    client.scratch = Some(scratch);
    client.timer = timer;
    // What a connection would do next is up to the session.
    let _next = match head {
        Ok(()) if open.is_one_too_many() => {
            open.refuse();
            let detail = "too many requests in flight from this address";
            Box::pin(client.refuse(429, detail, Termination::TooMany)).await
        }
        // Whether others may follow is up to the session.
        Ok(()) => client.exchange_in_place().await,
        Err(bad) => Box::pin(client.refuse_bad(bad)).await,
    };
    if let Some(scratch) = client.scratch.take() {
        scratch.give_back();
    }
    let ended = end(&open, &mut client.link).await;
    let Client { worker, address, tls, subscription, timer, moved, .. } = client;
    Served { ended, moved, reused: Some(Reused { worker, address, tls, subscription, timer }) }
}

fn write_head(
    parts: &Parts,
    content: Content,
    settings: &Settings,
    open: &OpenStream,
    out: (&mut Vec<u8>, &mut Places),
) -> Result<(), BadRequest> {
    let limits = HeadLimits { bytes: settings.limits.header_bytes, fields: settings.limits.header_fields };
    head::write(parts, content, limits, out)?;
    let authority = parts.uri.authority().map(|authority| authority.as_str());
    match (&open.shared.tls, authority) {
        (Some(tls), Some(authority)) if is_misdirected(tls, authority) => Err(BadRequest::Misdirected),
        _ => Ok(()),
    }
}

/// Whether the connection isn't meant for this host (RFC 9110 §15.5.20): browsers use one for all hosts that its
/// certificate covers, and only for those. A client that named no host in its handshake has chosen no certificate.
fn is_misdirected(tls: &TlsSession, authority: &str) -> bool {
    let Some(sni) = &tls.sni else { return false };
    if authority.eq_ignore_ascii_case(sni) {
        return false;
    }
    let host = split_port(authority.as_bytes()).0;
    let Ok(host) = std::str::from_utf8(host) else { return true };
    !host.eq_ignore_ascii_case(sni) && !tls.certificate.covers(&host.to_ascii_lowercase())
}

/// Ends the stream as its exchange has ended.
async fn end(open: &OpenStream, link: &mut StreamLink) -> Ended {
    match (link.progress(), link.gone()) {
        (ResponseProgress::Complete, None) => {
            if !link.request_is_read() {
                let _late = timeout(REST_TIME, discard(link)).await;
            }
            // What is left is cancelled with NO_ERROR when the link is dropped, after the response.
        }
        (ResponseProgress::Unanswered, Some(Gone::Reset)) => return Ended::Cancelled,
        (_, Some(_)) => {}
        // A broken response never looks like a complete one.
        (ResponseProgress::Unanswered | ResponseProgress::Answering, None) => {
            tracing::debug!(client = &*open.shared.address, "HTTP/2 stream broken off");
            link.reset(Reason::INTERNAL_ERROR);
        }
    }
    Ended::InOrder
}

async fn discard(link: &mut StreamLink) {
    let mut left = REST_BYTES;
    while left > 0 {
        match poll_fn(|cx| link.poll_discard(cx)).await {
            0 => return,
            discarded => left = left.saturating_sub(discarded),
        }
    }
}
