//! Answers the certificate authority's HTTP-01 requests, on every listener, before anything else is decided about the
//! request: it must be answered for an unknown host, and neither be redirected nor get the maintenance page.

use super::client::Client;
use uh_http1::request::RequestHead;

/// The proof that the request asks for; `None` for any other request. An app or certbot may have tokens of its own, so
/// an unknown one is routed like every other request.
pub(super) fn of<L>(client: &Client<L>, request: &RequestHead) -> Option<String> {
    let path = request.path.of_head(client.scratch.as_ref()?.request_head());
    let challenges = &client.worker.tls.as_ref()?.challenges;
    if request.method.is_read() { challenges.text(path) } else { None }
}
