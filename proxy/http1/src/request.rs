//! A client's request head: checked, understood, and written anew for the backend in the same pass.

use std::mem::MaybeUninit;

use super::body::Framing;
use super::field::{self, ConnectionOptions, Known, MAX_FIELDS, Span, classify, write_field, write_number};
use super::forwarded::{self, Caller, Scheme};
use super::policy::{Traceparent, Underscores};
use super::trace;

/// The methods that are told apart; any other is `OTHER`.
pub const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "OTHER"];

/// The longest request id that is taken over from a client.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// HTTP/1.0 or HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// No chunked bodies, no interim responses, one request a connection unless asked.
    Http10,
    /// The rest of the world.
    Http11,
}

impl Version {
    /// As the access log shows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
        }
    }
}

/// A request's method, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method(usize);

impl Method {
    fn new(text: &str) -> Self {
        Self(METHODS.iter().position(|&known| known == text).unwrap_or(METHODS.len() - 1))
    }

    /// Its index in [`METHODS`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0
    }

    /// Whether its response has no body.
    #[must_use]
    pub fn is_head(self) -> bool {
        METHODS[self.0] == "HEAD"
    }

    /// Whether it only asks for a representation: `GET` or `HEAD`.
    #[must_use]
    pub fn is_read(self) -> bool {
        matches!(METHODS[self.0], "GET" | "HEAD")
    }

    /// Whether doing it twice does no harm by definition (RFC 9110 §9.2.1).
    #[must_use]
    pub fn is_safe(self) -> bool {
        matches!(METHODS[self.0], "GET" | "HEAD" | "OPTIONS")
    }
}

/// The id that follows a request through all logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestId {
    /// The client sent a good one.
    FromClient(Span),
    /// Ours.
    Made([u8; 32]),
}

impl RequestId {
    /// A fresh one: 128 random bits, in hexadecimal.
    #[must_use]
    pub fn make() -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let random = fastrand::u128(..).to_le_bytes();
        Self::Made(std::array::from_fn(|at| DIGITS[usize::from(random[at / 2] >> (4 * (at % 2)) & 15)]))
    }

    /// Its text.
    #[must_use]
    pub fn text<'a>(&'a self, head: &'a [u8]) -> &'a [u8] {
        match self {
            Self::FromClient(span) => span.of_head(head),
            Self::Made(text) => text,
        }
    }
}

/// What we need to know of a request; the texts are spans of its head.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead {
    /// Its method.
    pub method: Method,
    /// The method's text.
    pub method_text: Span,
    /// The target as the client wrote it.
    pub target: Span,
    /// Path and query; of a path that is empty, the query alone.
    pub path: Span,
    /// The host, with its port if it has one; empty if there is none.
    pub host: Span,
    /// The client's version.
    pub version: Version,
    /// Where its body ends.
    pub framing: Framing,
    /// Whether the client wants to keep the connection.
    pub keep_alive: bool,
    /// Whether the client said that it is its last one on this connection.
    pub is_last: bool,
    /// Whether it waits for `100 Continue` before it sends its body.
    pub expects_continue: bool,
    /// What it asks to upgrade the connection to; empty: nothing. Goes to the backend by [`write_upgrade`] alone, once
    /// the service that the request is for is known.
    pub upgrade: Span,
    /// The client's address, where a trusted proxy has told it; empty: it is the caller's.
    pub client: Span,
    /// How the client speaks, to us or to a trusted proxy before us.
    pub scheme: Scheme,
    /// Its id.
    pub id: RequestId,
    /// `User-Agent`, or empty.
    pub user_agent: Span,
    /// `Referer`, or empty.
    pub referer: Span,
}

impl RequestHead {
    /// The client's address: what a trusted proxy has told, or else `peer`, who sent the request.
    #[must_use]
    pub fn client_address<'a>(&self, head: &'a [u8], peer: &'a str) -> &'a str {
        match std::str::from_utf8(self.client.of_head(head)) {
            Ok(told) if !told.is_empty() => told,
            _ => peer,
        }
    }
}

/// Why a request is refused. The connection is closed after the answer: where the request ends is not certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// 400.
    #[error("{0}")]
    Malformed(&'static str),
    /// 405: `CONNECT` and `TRACE`.
    #[error("the method is not allowed")]
    Method,
    /// 400: the first bytes are no text.
    #[error("the client speaks TLS, and this port speaks plain HTTP: use http:// here")]
    Tls,
    /// 417.
    #[error("only 100-continue can be expected")]
    Expectation,
    /// 431.
    #[error("the request head is too large")]
    TooLarge,
    /// 501.
    #[error("only the chunked transfer coding is supported")]
    Coding,
    /// 505.
    #[error("only HTTP/1.0 and HTTP/1.1 are spoken here")]
    Version,
}

/// The type of a TLS record that opens a connection (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 0x16;

impl BadRequest {
    /// What the first byte of a head shows already. Nobody waits for the rest of what is no request.
    #[must_use]
    pub fn by_first_byte(byte: u8) -> Option<Self> {
        match byte {
            TLS_HANDSHAKE => Some(Self::Tls),
            b'\r' | b'\n' => None,
            _ if field::is_token_byte(byte) => None,
            _ => Some(Self::Malformed("malformed head")),
        }
    }

    /// The status to answer with.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Tls => 400,
            Self::Method => 405,
            Self::Expectation => 417,
            Self::TooLarge => 431,
            Self::Coding => 501,
            Self::Version => 505,
        }
    }
}

/// What the `traceparent` fields are worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Trace {
    #[default]
    None,
    Valid,
    Invalid,
}

/// The fields of a head as they are counted up.
#[derive(Default)]
struct Facts<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    connection: ConnectionOptions<'a>,
    upgrade: &'a [u8],
    expects_continue: bool,
    id: Option<&'a [u8]>,
    trace: Trace,
    user_agent: &'a [u8],
    referer: &'a [u8],
}

/// Understands a complete request head, and appends to `out` the head for the backend.
///
/// `caller` is who has sent it: the client, or a proxy before us.
///
/// # Errors
/// Whatever is malformed, ambiguous or not allowed; `out` may hold a part of a head then.
pub fn translate(head: &[u8], caller: &Caller<'_>, out: &mut Vec<u8>) -> Result<RequestHead, BadRequest> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut request, head, &mut fields);
    match parsed {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(BadRequest::Malformed("malformed head")),
        Err(httparse::Error::TooManyHeaders) => return Err(BadRequest::TooLarge),
        Err(httparse::Error::Version) => return Err(BadRequest::Version),
        Err(_) => return Err(BadRequest::Malformed("malformed head")),
    }
    let version = match request.version {
        Some(1) => Version::Http11,
        _ => Version::Http10,
    };
    let method_text = request.method.unwrap_or_default();
    let target = request.path.unwrap_or_default();
    let facts = read_fields(request.headers, version, caller.headers.underscores)?;
    let (authority, path) = split_target(method_text, target, caller.scheme)?;
    let host = host(authority, facts.host, version)?;
    let framing = match (facts.chunked, facts.length) {
        (true, Some(_)) => return Err(BadRequest::Malformed("both Content-Length and Transfer-Encoding")),
        (true, None) if version == Version::Http10 => {
            return Err(BadRequest::Malformed("Transfer-Encoding in HTTP/1.0"));
        }
        (true, None) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::None,
    };
    let has_body = !matches!(framing, Framing::None | Framing::Length(0));
    let websocket = facts.upgrade.eq_ignore_ascii_case(b"websocket");
    let upgrade = facts.connection.upgrade
        && version == Version::Http11
        && (method_text == "GET" || !websocket)
        && !has_body;
    let keep_alive = !facts.connection.close && (version == Version::Http11 || facts.connection.keep_alive);
    let understood = RequestHead {
        method: Method::new(method_text),
        method_text: Span::of(method_text.as_bytes(), head),
        target: Span::of(target.as_bytes(), head),
        path: Span::of(path.as_bytes(), head),
        host: Span::of(host, head),
        version,
        framing,
        keep_alive,
        is_last: !keep_alive,
        expects_continue: facts.expects_continue && version == Version::Http11 && has_body,
        upgrade: if upgrade { Span::of(facts.upgrade, head) } else { Span::default() },
        client: told_client(request.headers, caller)
            .map_or_else(Span::default, |client| Span::of(client, head)),
        scheme: forwarded::scheme(request.headers, caller),
        id: facts.id.map_or_else(RequestId::make, |id| RequestId::FromClient(Span::of(id, head))),
        user_agent: Span::of(facts.user_agent, head),
        referer: Span::of(facts.referer, head),
    };
    out.reserve(head.len() + 320);
    // RFC 9112 §3.2.1: an empty path is sent as "/".
    let slash: &[u8] = if path.starts_with('?') { b"/" } else { b"" };
    for part in [method_text.as_bytes(), b" ", slash, path.as_bytes(), b" HTTP/1.1\r\n"] {
        out.extend_from_slice(part);
    }
    write_field(out, b"Host", host);
    write_fields(request.headers, &facts, &understood, caller, out);
    write_framing(&understood, out);
    let client = (understood.client_address(head, caller.text), understood.scheme);
    forwarded::write(request.headers, caller, client, host, out);
    write_field(out, b"X-Request-Id", understood.id.text(head));
    if facts.trace != Trace::Valid && caller.headers.traceparent == Traceparent::Make {
        trace::write_new(&understood.id, out);
    }
    if caller.headers.via {
        // RFC 9110 §7.6.3: the version is that of the message as it came.
        out.extend_from_slice(if version == Version::Http11 {
            b"Via: 1.1 uh-proxy\r\n"
        } else {
            b"Via: 1.0 uh-proxy\r\n"
        });
    }
    out.extend_from_slice(b"\r\n");
    Ok(understood)
}

/// The host that is meant. An authority in the target wins over the `Host` field (RFC 9112 §3.2.2).
fn host<'a>(
    authority: Option<&'a str>,
    field: Option<&'a [u8]>,
    version: Version,
) -> Result<&'a [u8], BadRequest> {
    if version == Version::Http11 && field.is_none() {
        return Err(BadRequest::Malformed("the Host field is missing"));
    }
    match authority.map(str::as_bytes).or(field) {
        None => Ok(b""),
        Some(host) if field::is_host(host) => Ok(host),
        Some(_) => Err(BadRequest::Malformed("the host is malformed")),
    }
}

/// The client's address, if it is not the caller's.
fn told_client<'a>(fields: &[httparse::Header<'a>], caller: &Caller<'_>) -> Option<&'a [u8]> {
    if caller.is_trusted() { forwarded::client(fields, caller.headers) } else { None }
}

fn read_fields<'a>(
    fields: &[httparse::Header<'a>],
    version: Version,
    underscores: Underscores,
) -> Result<Facts<'a>, BadRequest> {
    let mut facts = Facts::default();
    for field in fields {
        let value = field.value;
        match classify(field.name.as_bytes()) {
            Known::Host if facts.host.is_some() => {
                return Err(BadRequest::Malformed("more than one Host field"));
            }
            Known::Host => facts.host = Some(value),
            Known::ContentLength if facts.length.is_some() => {
                return Err(BadRequest::Malformed("more than one Content-Length field"));
            }
            Known::ContentLength => match field::parse_length(value) {
                Some(length) => facts.length = Some(length),
                None => return Err(BadRequest::Malformed("malformed Content-Length")),
            },
            Known::TransferEncoding if facts.chunked => {
                return Err(BadRequest::Malformed("more than one Transfer-Encoding field"));
            }
            Known::TransferEncoding if value.eq_ignore_ascii_case(b"chunked") => facts.chunked = true,
            Known::TransferEncoding => return Err(BadRequest::Coding),
            Known::Connection => facts
                .connection
                .add(value)
                .map_err(|_| BadRequest::Malformed("the Connection field names a field it must not"))?,
            Known::Upgrade => facts.upgrade = if is_protocol(value) { value } else { b"" },
            Known::Expect if value.eq_ignore_ascii_case(b"100-continue") => facts.expects_continue = true,
            // RFC 9110 §10.1.1: expectations of HTTP/1.0 are ignored.
            Known::Expect if version == Version::Http10 => {}
            Known::Expect => return Err(BadRequest::Expectation),
            Known::RequestId => facts.id = facts.id.or_else(|| good_request_id(value).then_some(value)),
            Known::UserAgent => facts.user_agent = value,
            Known::Referer => facts.referer = value,
            Known::Traceparent if facts.trace == Trace::None && trace::is_traceparent(value) => {
                facts.trace = Trace::Valid;
            }
            Known::Traceparent => facts.trace = Trace::Invalid,
            Known::Other | Known::ForwardedOther
                if underscores == Underscores::Refuse && !field::is_plain_name(field.name.as_bytes()) =>
            {
                return Err(BadRequest::Malformed(
                    "a field name with more than letters, digits and hyphens in it",
                ));
            }
            _ => {}
        }
    }
    Ok(facts)
}

fn write_fields(
    fields: &[httparse::Header<'_>],
    facts: &Facts<'_>,
    request: &RequestHead,
    caller: &Caller<'_>,
    out: &mut Vec<u8>,
) {
    for field in fields {
        let name = field.name.as_bytes();
        let keep = match classify(name) {
            Known::Expect => request.expects_continue,
            // A trace state is worth nothing without its parent (Trace Context §3.3).
            Known::Traceparent | Known::Tracestate => facts.trace == Trace::Valid,
            Known::RequestStart => caller.request_start.is_none(),
            Known::Other => field::is_plain_name(name) || passes_folded(name, caller.headers.underscores),
            known => known.is_end_to_end(),
        };
        if keep && !facts.connection.nominates(name) {
            write_field(out, name, field.value);
        }
    }
}

/// Whether a field may go on though some apps can't tell its name from another one, with hyphens in it.
fn passes_folded(name: &[u8], underscores: Underscores) -> bool {
    underscores == Underscores::Pass && field::classify_folded(name) == Known::Other
}

fn write_framing(request: &RequestHead, out: &mut Vec<u8>) {
    match request.framing {
        Framing::Chunked => write_field(out, b"Transfer-Encoding", b"chunked"),
        Framing::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            write_number(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Framing::None | Framing::UntilClose => {}
    }
}

/// Whether a protocol to upgrade to is WebSocket (RFC 6455).
#[must_use]
pub fn is_websocket(protocol: &str) -> bool {
    protocol.eq_ignore_ascii_case("websocket")
}

/// Whether a text names one protocol to upgrade to: a token, perhaps with a version (RFC 9110 §7.8).
#[must_use]
pub fn is_protocol(text: &[u8]) -> bool {
    let mut parts = text.splitn(2, |&b| b == b'/');
    parts.all(|part| !part.is_empty() && part.iter().all(|&b| field::is_token_byte(b)))
}

/// Adds the request for an upgrade to a complete head for the backend.
pub fn write_upgrade(protocol: &[u8], out: &mut Vec<u8>) {
    out.truncate(out.len().saturating_sub(2));
    for part in [&b"Connection: upgrade\r\nUpgrade: "[..], protocol, b"\r\n\r\n"] {
        out.extend_from_slice(part);
    }
}

/// Splits a target (RFC 9112 §3.2) into its authority, if it has one, and its path with query.
fn split_target<'a>(
    method: &str,
    target: &'a str,
    scheme: Scheme,
) -> Result<(Option<&'a str>, &'a str), BadRequest> {
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(BadRequest::Method);
    }
    // No client sends a fragment; what it would mean to the app and to the routing is anybody's guess.
    if target.contains('#') {
        return Err(BadRequest::Malformed("the request target has a fragment"));
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok((None, target));
    }
    let after = |prefix: &str| {
        let start = target.get(..prefix.len())?;
        start.eq_ignore_ascii_case(prefix).then(|| &target[prefix.len()..])
    };
    let rest = match scheme {
        Scheme::Http => after("http://"),
        Scheme::Https => after("https://"),
    };
    let rest = rest.ok_or(BadRequest::Malformed("the request target is malformed"))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    match rest.split_at(end) {
        // RFC 9112 §3.2.4 and §3.2.1.
        (authority, "") if method == "OPTIONS" => Ok((Some(authority), "*")),
        (authority, "") => Ok((Some(authority), "/")),
        (authority, path) => Ok((Some(authority), path)),
    }
}

fn good_request_id(value: &[u8]) -> bool {
    let allowed = |&b: &u8| b.is_ascii_alphanumeric() || b"-_.=+/:@".contains(&b);
    (1..=MAX_REQUEST_ID_BYTES).contains(&value.len()) && value.iter().all(allowed)
}

#[cfg(test)]
mod tests;
