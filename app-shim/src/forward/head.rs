//! What of a head is forwarded: everything except hop-by-hop fields (RFC 9110, 7.6.1) and framing, which is
//! rewritten.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::http::uri::{PathAndQuery, Uri};
use hyper::{Method, Request, Version};

use super::body::RequestBody;
use crate::settings::AppAddress;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Hop-by-hop fields, whether `Connection` names them or not. `Trailer` isn't one: it announces fields after the
/// body.
const HOP_BY_HOP: [HeaderName; 6] =
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, UPGRADE];

/// Whether a request asks for a WebSocket. Other upgrades aren't forwarded: the shim couldn't close them gracefully.
pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && has_token(headers, &UPGRADE, "websocket")
        && has_token(headers, &CONNECTION, "upgrade")
}

/// Whether a client waits for `100 Continue` before it sends its body.
pub(super) fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Why a request can't be forwarded: its host is ambiguous (RFC 9112, 3.2), the app would take a coded body for a
/// plain one, or its `Connection` would remove a field that must stay, such as the client's address from the proxy in
/// front.
pub(super) fn fault<B>(request: &Request<B>) -> Option<&'static str> {
    let headers = request.headers();
    if !is_target(request.method(), request.uri()) {
        return Some("the request target is malformed");
    }
    // hyper has decoded `chunked`, and would drop any other coding listed before it.
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next().map(HeaderValue::as_bytes);
    if codings.next().is_some() || coding.is_some_and(|coding| !coding.eq_ignore_ascii_case(b"chunked")) {
        return Some("only the chunked transfer coding is supported");
    }
    let hosts = headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() != Version::HTTP_10) {
        return Some("the request must have exactly one Host field");
    }
    let must_stay = |name: HeaderName| {
        name == HOST
            || name == CONTENT_LENGTH
            || name == "forwarded"
            || name.as_str().starts_with("x-forwarded-")
    };
    named_by_connection(headers)
        .any(must_stay)
        .then_some("the Connection field lists a field that can't be hop-by-hop")
}

/// hyper accepts targets that aren't valid (RFC 9112, 3.2): it would read `b` as a request for `/` on the host b.
fn is_target(method: &Method, uri: &Uri) -> bool {
    match (uri.scheme_str(), uri.authority()) {
        (None, None) => uri.path() != "*" || method == Method::OPTIONS,
        (Some("http"), Some(authority)) => !authority.as_str().contains('@'),
        _ => false,
    }
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// Turns a client's request into one for the app.
pub(super) fn for_app(parts: &mut Parts, peer: SocketAddr, app: &AppAddress, websocket: bool) {
    let trailers = has_token(&parts.headers, &TE, "trailers");
    let chunked = parts.headers.contains_key(TRANSFER_ENCODING);
    strip(&mut parts.headers);
    if chunked {
        // Otherwise hyper would drop the body of a GET.
        parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    parts.headers.remove(TE);
    if trailers {
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if websocket {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        parts.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    to_origin_form(parts);
    if !parts.headers.contains_key(HOST) {
        // HTTP/1.0 requests may have none, but HTTP/1.1 requires it.
        let host = HeaderValue::try_from(app.host());
        parts.headers.insert(HOST, host.unwrap_or(HeaderValue::from_static("localhost")));
    }
    if !parts.headers.contains_key(FORWARDED_FOR)
        && let Ok(client) = HeaderValue::try_from(peer.ip().to_string())
    {
        parts.headers.insert(FORWARDED_FOR, client);
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
}

/// `GET http://host/path` means `GET /path` with that host (RFC 9112, 3.2.2).
fn to_origin_form(parts: &mut Parts) {
    let Some(authority) = parts.uri.authority() else { return };
    if let Ok(host) = HeaderValue::try_from(authority.as_str()) {
        parts.headers.insert(HOST, host);
    }
    let path = parts.uri.path_and_query().cloned();
    parts.uri = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
}

/// Turns the app's response into one for the client.
pub(super) fn for_client(headers: &mut HeaderMap) {
    strip(headers);
}

fn strip(headers: &mut HeaderMap) {
    let is_plain = |value: &HeaderValue| {
        value.as_bytes().eq_ignore_ascii_case(b"keep-alive")
            || value.as_bytes().eq_ignore_ascii_case(b"close")
    };
    // Most values are just `close` or `keep-alive`; named fields are rare.
    if !headers.get_all(CONNECTION).iter().all(is_plain) {
        strip_named(headers);
    }
    headers.remove(CONNECTION);
    for name in &HOP_BY_HOP[1..] {
        headers.remove(name);
    }
    headers.remove(TRANSFER_ENCODING);
}

fn strip_named(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = named_by_connection(headers).collect();
    for name in named {
        headers.remove(name);
    }
}

/// Parsed as bytes: one invalid name must not protect the others.
fn named_by_connection(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let values = headers.get_all(CONNECTION).into_iter().map(HeaderValue::as_bytes);
    let names = values.flat_map(|value| value.split(|&byte| byte == b','));
    names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
}

/// How long the app keeps an idle connection, as in `Keep-Alive: timeout=5`.
pub(super) fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(KEEP_ALIVE)?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

/// A copy of a request without a body.
pub(super) fn copy(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn for_app_of(uri: &str, fields: &[(&'static str, &'static str)]) -> Parts {
        let mut request = Request::get(uri).body(()).unwrap();
        *request.headers_mut() = map(fields);
        let mut parts = request.into_parts().0;
        let app = "127.0.0.1:3000".parse().unwrap();
        let websocket = is_websocket(&parts.headers);
        for_app(&mut parts, "192.0.2.7:9".parse().unwrap(), &app, websocket);
        parts
    }

    #[test]
    fn hop_by_hop_fields_are_not_forwarded() {
        let parts = for_app_of(
            "/",
            &[
                ("host", "a"),
                ("connection", "X-One, keep-alive"),
                ("x-one", "1"),
                ("x-two", "2"),
                ("keep-alive", "timeout=5"),
                ("upgrade", "h2c"),
                ("te", "gzip, trailers"),
                ("transfer-encoding", "chunked"),
                ("x-forwarded-for", "203.0.113.9"),
            ],
        );
        let expected = map(&[
            ("host", "a"),
            ("x-two", "2"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("x-forwarded-for", "203.0.113.9"),
        ]);
        assert_eq!(parts.headers, expected);
    }

    #[test]
    fn a_request_that_the_app_would_read_differently_is_a_fault() {
        let fault_of = |method: Method, target: &str, coding: Option<&str>| {
            let mut request = Request::builder().method(method).uri(target).header(HOST, "a");
            for coding in coding.into_iter().flat_map(|coding| coding.split('|')) {
                request = request.header(TRANSFER_ENCODING, coding);
            }
            fault(&request.body(()).unwrap())
        };
        for target in ["b", "b:80", "*", "ftp://b/", "https://b/", "http://u@b/"] {
            assert_eq!(
                fault_of(Method::GET, target, None),
                Some("the request target is malformed"),
                "{target}"
            );
        }
        for coding in ["gzip, chunked", "gzip|chunked", "chunked|chunked"] {
            assert!(fault_of(Method::POST, "/", Some(coding)).is_some(), "{coding}");
        }
        for (method, target) in [(Method::GET, "/b"), (Method::GET, "http://b/"), (Method::OPTIONS, "*")] {
            assert_eq!(fault_of(method, target, Some("Chunked")), None, "{target}");
        }
    }

    #[test]
    fn a_websocket_upgrade_is_rewritten() {
        let parts = for_app_of(
            "/",
            &[("host", "a"), ("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")],
        );
        assert_eq!(parts.headers[CONNECTION], "Upgrade");
        assert_eq!(parts.headers[UPGRADE], "websocket");
        assert!(
            !is_websocket(&map(&[("upgrade", "websocket")])),
            "without a Connection field it isn't for this connection"
        );
    }

    #[test]
    fn the_app_gets_a_path_a_host_and_the_client_address() {
        let parts = for_app_of("http://example.com/a?b=%20", &[("host", "other")]);
        assert_eq!(
            (parts.uri.to_string().as_str(), &parts.headers[HOST]),
            ("/a?b=%20", &"example.com".parse().unwrap())
        );
        assert_eq!(parts.headers[FORWARDED_FOR], "192.0.2.7");
        assert_eq!(for_app_of("/", &[]).headers[HOST], "127.0.0.1:3000");
    }

    #[test]
    fn the_keep_alive_timeout_of_the_app_is_parsed() {
        let read = |value| keep_alive(&map(&[("keep-alive", value)]));
        assert_eq!(read("timeout=5"), Some(Duration::from_secs(5)));
        assert_eq!(read("max=100, timeout=15"), Some(Duration::from_secs(15)));
        assert_eq!((read("timeout=x"), keep_alive(&map(&[]))), (None, None));
    }
}
