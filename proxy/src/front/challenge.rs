//! Answers the certificate authority's HTTP-01 requests, on every listener, before anything else is decided about the
//! request: it must be answered for an unknown host, and neither be redirected nor get the maintenance page.

use std::sync::atomic::Ordering;

use super::answer::Answer;
use super::client::{Client, ClientLink};
use super::connection::AfterExchange;
use super::exchange::{request_is_read, send_answer};
use super::record::ExchangeRecord;
use uh_http1::request::RequestHead;

/// The proof that the request asks for; `None` for any other request. An app or certbot may have tokens of its own, so
/// an unknown one is routed like every other request.
pub(super) fn of<L>(client: &Client<L>, request: &RequestHead) -> Option<String> {
    let path = request.path.of_head(client.scratch.as_ref()?.request_head());
    let challenges = &client.worker.tls.as_ref()?.challenges;
    if request.method.is_read() { challenges.text(path) } else { None }
}

/// Sends the proof.
pub(super) async fn answer<L: ClientLink>(
    client: &mut Client<L>,
    request: &RequestHead,
    record: &mut ExchangeRecord,
    text: &str,
) -> AfterExchange {
    record.status = 200;
    let answer = Answer { status: 200, text: Some(text), ..Answer::default() };
    let next = send_answer(client, request, record, answer, request_is_read(request)).await;
    client.worker.meters.worker(client.worker.index).unrouted.fetch_add(1, Ordering::Relaxed);
    record.log(client, request, None, None);
    next
}
