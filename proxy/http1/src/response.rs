//! A backend's response head: checked, parsed, and rewritten for the client in one pass.

use std::mem::MaybeUninit;
use std::time::{Duration, SystemTime};

use super::body::Framing;
use super::compression::{Content, Offer, Verdict};
use super::cookie;
use super::date;
use super::field::{
    self, ConnectionOptions, Copier, Kinds, Known, MAX_FIELDS, first_line_end, tokens, write_field,
    write_number,
};
use super::policy::ServerField;
use super::request::{RequestHead, Version};

/// The context in which a response is rewritten.
#[derive(Debug, Clone, Copy)]
pub struct Recipient<'a> {
    /// The request that it answers.
    pub request: &'a RequestHead,
    /// The request's head.
    pub request_head: &'a [u8],
    /// Whether the client's connection may be kept.
    pub keep_alive: bool,
    /// The protocol that the backend was asked to upgrade to.
    pub upgrade: Option<&'a str>,
    /// What to do with the `Server` field.
    pub server: ServerField,
    /// The most fields allowed.
    pub fields: usize,
    /// The current time, for a response without a `Date`.
    pub clock: fn() -> SystemTime,
    /// The `Strict-Transport-Security` field of a response that has none.
    pub hsts: Option<&'a str>,
    /// Whether the response may be compressed.
    pub compress: Option<Offer<'a>>,
    /// Whether anybody asks for [`ResponseHead::is_page`].
    pub seeks_page: bool,
}

/// The relevant parts of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseHead {
    /// Its status.
    pub status: u16,
    /// Where its body ends on the backend's side.
    pub framing: Framing,
    /// Whether the backend's connection can be used again.
    pub upstream_keep_alive: bool,
    /// How long the backend announces to keep an idle connection.
    pub upstream_idle: Option<Duration>,
    /// Whether the response announces to the client that its connection is kept.
    pub client_keep_alive: bool,
    /// How the body is recoded.
    pub coding: Coding,
    /// What happens to its content.
    pub content: Content,
    /// Whether it is a whole page, if [`Recipient::seeks_page`] asks for that.
    pub is_page: bool,
}

/// How a response's body is recoded for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Coding {
    /// Nothing.
    #[default]
    AsItIs,
    /// Chunks are decoded for a client that doesn't support them.
    Unchunk,
    /// Content is sent in chunks made here: that of a body that ends with the backend's connection, so that the client can
    /// detect a truncated one, and content that is compressed. The sender's chunks are decoded.
    Chunk,
    /// Only the content is sent, without chunks: the client's connection has frames of its own.
    Frame,
}

impl ResponseHead {
    /// Another response to the same request follows (RFC 9110 §15.2); `101` is the last one.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// Whether only the end of the connection marks the end of the body for the client.
    #[must_use]
    pub fn ends_with_connection(&self) -> bool {
        match self.coding {
            Coding::AsItIs => self.framing == Framing::UntilClose,
            Coding::Unchunk => true,
            Coding::Chunk | Coding::Frame => false,
        }
    }

    /// Whether the connection is a tunnel from now on.
    #[must_use]
    pub fn is_tunnel(&self) -> bool {
        self.status == 101
    }
}

/// The backend's response is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadResponse(pub &'static str);

#[derive(Default)]
struct HeadFields<'a> {
    length: Option<u64>,
    chunked: bool,
    connection: ConnectionOptions<'a>,
    idle: Option<Duration>,
    has_id: bool,
    has_date: bool,
    has_hsts: bool,
    is_html: bool,
    upgrade: &'a [u8],
}

/// Parses a complete response head, and appends the head for the client to `out`. An interim response isn't forwarded
/// to an HTTP/1.0 client, which doesn't support it.
///
/// # Errors
/// If it is malformed or ambiguous, or an unrequested `101`. Then `out` may hold a part of a head.
pub fn translate(head: &[u8], to: Recipient<'_>, out: &mut Vec<u8>) -> Result<ResponseHead, BadResponse> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut many: Vec<MaybeUninit<httparse::Header<'_>>>;
    let response = match parse(head, &mut fields) {
        // Few apps send more, so more space is only allocated then.
        Err(httparse::Error::TooManyHeaders) if to.fields > MAX_FIELDS => {
            many = std::iter::repeat_with(MaybeUninit::uninit).take(to.fields).collect();
            parse(head, &mut many)
        }
        parsed => parsed,
    };
    let too_many = BadResponse("the response has more fields than limits.response_fields");
    let response = match response {
        Ok(response) if response.headers.len() > to.fields => return Err(too_many),
        Ok(response) => response,
        Err(httparse::Error::TooManyHeaders) => return Err(too_many),
        Err(_) => return Err(BadResponse("malformed response head")),
    };
    let status = response.code.unwrap_or_default();
    // RFC 9110 §15: three digits; statuses above 599 are defined by the app and its clients.
    if !(100..1000).contains(&status) {
        return Err(BadResponse("the status is out of range"));
    }
    let http11 = response.version == Some(1);
    let kinds = Kinds::of(response.headers);
    let facts = read_fields(response.headers, &kinds, to.seeks_page)?;
    let asked = to.upgrade.is_some_and(|asked| facts.upgrade.eq_ignore_ascii_case(asked.as_bytes()));
    if status == 101 && !(asked && facts.connection.upgrade) {
        return Err(BadResponse("switched protocols without being asked"));
    }
    let framing = framing(status, to.request, &facts)?;
    if facts.chunked && !http11 {
        // RFC 9112 §6.1: the framing is faulty.
        return Err(BadResponse("Transfer-Encoding in HTTP/1.0"));
    }
    let verdict = to.compress.map_or_else(Verdict::default, |offer| {
        let length = if facts.chunked { None } else { facts.length };
        Verdict::new(offer, status, response.headers, length, to.request, to.request_head)
    });
    let coding = match (framing, to.request.version) {
        (_, Version::Http2) => Coding::Frame,
        _ if verdict.content == Content::Gzip => Coding::Chunk,
        (Framing::Chunked, Version::Http10) => Coding::Unchunk,
        (Framing::UntilClose, Version::Http11) if status != 101 => Coding::Chunk,
        _ => Coding::AsItIs,
    };
    let mut understood = ResponseHead {
        status,
        framing,
        upstream_keep_alive: framing != Framing::UntilClose
            && !facts.connection.close
            && (http11 || facts.connection.keep_alive),
        upstream_idle: facts.idle,
        client_keep_alive: false,
        coding,
        content: verdict.content,
        is_page: facts.is_html && status != 206,
    };
    understood.client_keep_alive = to.keep_alive && !understood.ends_with_connection();
    if understood.is_interim() && to.request.version == Version::Http10 {
        return Ok(understood);
    }
    out.reserve(head.len() + 96);
    let copier = write_line(head, &response, out);
    if verdict.changes_fields() {
        let kept =
            |(kind, field): &(Known, &httparse::Header<'_>)| !verdict.drops(*kind, field.name.as_bytes());
        write_fields(kinds.with(response.headers).filter(kept), copier, &facts, to, &understood, out);
        verdict.write(response.headers, out);
    } else {
        write_fields(kinds.with(response.headers), copier, &facts, to, &understood, out);
    }
    if !understood.is_interim() {
        write_connection(to, &facts, &understood, out);
    }
    out.extend_from_slice(b"\r\n");
    Ok(understood)
}

fn parse<'h, 'b>(
    head: &'b [u8],
    fields: &'h mut [MaybeUninit<httparse::Header<'b>>],
) -> Result<httparse::Response<'h, 'b>, httparse::Error> {
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut response, head, fields)? {
        httparse::Status::Complete(length) if length == head.len() => Ok(response),
        // The end of the head differs between the head scanner and the parser.
        httparse::Status::Complete(_) | httparse::Status::Partial => Err(httparse::Error::NewLine),
    }
}

fn read_fields<'a>(
    fields: &[httparse::Header<'a>],
    kinds: &Kinds,
    seeks_page: bool,
) -> Result<HeadFields<'a>, BadResponse> {
    let mut facts = HeadFields::default();
    for (kind, field) in kinds.with(fields) {
        match kind {
            Known::ContentLength => {
                let length =
                    field::parse_length(field.value).ok_or(BadResponse("malformed Content-Length"))?;
                if facts.length.is_some_and(|other| other != length) {
                    return Err(BadResponse("two different Content-Length fields"));
                }
                facts.length = Some(length);
            }
            Known::TransferEncoding if facts.chunked => {
                return Err(BadResponse("more than one Transfer-Encoding field"));
            }
            Known::TransferEncoding if field.value.eq_ignore_ascii_case(b"chunked") => {
                facts.chunked = true;
            }
            Known::TransferEncoding => return Err(BadResponse("a transfer coding other than chunked")),
            Known::Connection => {
                // A backend may nominate any field; those that the message depends on are still kept.
                let _ = facts.connection.add(field.value);
            }
            Known::KeepAlive => facts.idle = keep_alive_timeout(field.value),
            Known::Upgrade => facts.upgrade = field.value,
            Known::RequestId => facts.has_id = true,
            Known::Date => facts.has_date = true,
            Known::Hsts => facts.has_hsts = true,
            Known::Other if seeks_page => {
                facts.is_html |= cookie::says_html(field.name.as_bytes(), field.value);
            }
            _ => {}
        }
    }
    Ok(facts)
}

/// RFC 9112 §6.3, in its order.
fn framing(status: u16, request: &RequestHead, facts: &HeadFields<'_>) -> Result<Framing, BadResponse> {
    if status == 101 {
        return Ok(Framing::UntilClose);
    }
    if request.method.is_head() || status < 200 || status == 204 || status == 304 {
        return Ok(Framing::None);
    }
    match (facts.chunked, facts.length) {
        (true, Some(_)) => Err(BadResponse("both Content-Length and Transfer-Encoding")),
        (true, None) => Ok(Framing::Chunked),
        (false, Some(length)) => Ok(Framing::Length(length)),
        (false, None) => Ok(Framing::UntilClose),
    }
}

/// Writes the status line, or lets it be copied together with the fields that follow, if it stays as it is.
fn write_line<'h>(head: &'h [u8], response: &httparse::Response<'_, '_>, out: &mut Vec<u8>) -> Copier<'h> {
    const VERSION: &[u8] = b"HTTP/1.1 ";
    let reason = response.reason.unwrap_or_default();
    let end = first_line_end(head, response.headers);
    if head.starts_with(VERSION)
        && end == VERSION.len() + 4 + reason.len() + 2
        && head[..end].ends_with(b"\r\n")
    {
        return Copier::new(head, end);
    }
    out.extend_from_slice(VERSION);
    write_number(out, u64::from(response.code.unwrap_or_default()));
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    Copier::new(head, 0)
}

fn write_fields<'f, 'b: 'f>(
    fields: impl Iterator<Item = (Known, &'f httparse::Header<'b>)>,
    mut copier: Copier<'_>,
    facts: &HeadFields<'_>,
    to: Recipient<'_>,
    response: &ResponseHead,
    out: &mut Vec<u8>,
) {
    // RFC 9110 §8.6 and RFC 9112 §6.1: neither of the two in a 1xx or a 204.
    let no_framing = response.status < 200 || response.status == 204;
    let mut length_written = false;
    for (kind, field) in fields {
        let name = field.name.as_bytes();
        let keep = match kind {
            Known::Connection | Known::KeepAlive | Known::HopByHop => false,
            // RFC 9112 §6.1: never together with a coding, even if no body follows.
            Known::ContentLength => {
                !no_framing && !facts.chunked && !std::mem::replace(&mut length_written, true)
            }
            Known::TransferEncoding => {
                !no_framing && to.request.version == Version::Http11 && response.coding != Coding::Chunk
            }
            Known::Server => to.server == ServerField::Pass,
            // Also with 426, which lists protocols to upgrade to.
            Known::Upgrade => {
                to.request.version != Version::Http2 && (response.status == 101 || response.status == 426)
            }
            _ => !facts.connection.nominates(name),
        };
        if keep {
            copier.field(field, out);
        }
    }
    copier.finish(out);
    if response.coding == Coding::Chunk {
        write_field(out, b"Transfer-Encoding", b"chunked");
    }
}

fn write_connection(to: Recipient<'_>, facts: &HeadFields<'_>, response: &ResponseHead, out: &mut Vec<u8>) {
    if !facts.has_date || facts.connection.nominates(b"date") {
        date::write((to.clock)(), out);
    }
    if !facts.has_id {
        write_field(out, b"X-Request-Id", to.request.id.text(to.request_head));
    }
    if let Some(hsts) = to.hsts.filter(|_| !facts.has_hsts) {
        write_field(out, b"Strict-Transport-Security", hsts.as_bytes());
    }
    if to.request.version == Version::Http2 {
        // It has no connection-specific fields (RFC 9113 §8.2.2).
    } else if response.is_tunnel() {
        out.extend_from_slice(b"Connection: upgrade\r\n");
    } else if !response.client_keep_alive {
        out.extend_from_slice(b"Connection: close\r\n");
    } else if to.request.version == Version::Http10 {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
    }
}

/// `Keep-Alive: timeout=5, max=100` → 5 s. Not in any RFC; Node, Apache and others send it.
fn keep_alive_timeout(value: &[u8]) -> Option<Duration> {
    let timeout = tokens(value).find_map(|token| token.strip_prefix(b"timeout="))?;
    field::parse_length(timeout).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarded::{Caller, Scheme};
    use crate::policy::HeaderPolicy;
    use crate::request;

    fn understood(request_head: &str) -> RequestHead {
        understood_over(false, request_head)
    }

    fn understood_over(http2: bool, request_head: &str) -> RequestHead {
        let headers = HeaderPolicy::default();
        let caller = Caller {
            address: [192, 0, 2, 1].into(),
            text: "192.0.2.1",
            request_start: None,
            scheme: Scheme::Http,
            http2,
            hides_cookies: false,
            headers: &headers,
        };
        request::translate(request_head.as_bytes(), &caller, &mut Vec::new()).unwrap()
    }

    fn client(
        request_head: &str,
        head: &str,
        keep_alive: bool,
    ) -> Result<(ResponseHead, String), BadResponse> {
        client_of(&understood(request_head), request_head, head, keep_alive)
    }

    fn client_of(
        request: &RequestHead,
        request_head: &str,
        head: &str,
        keep_alive: bool,
    ) -> Result<(ResponseHead, String), BadResponse> {
        let server = ServerField::Pass;
        let upgrade = (!request.upgrade.of_head(request_head.as_bytes()).is_empty()).then_some("websocket");
        let request_head = request_head.as_bytes();
        let to = Recipient {
            request,
            request_head,
            keep_alive,
            upgrade,
            server,
            fields: FIELDS,
            clock: SystemTime::now,
            hsts: None,
            compress: None,
            seeks_page: true,
        };
        let mut out = Vec::new();
        let response = translate(head.as_bytes(), to, &mut out)?;
        Ok((response, String::from_utf8(out).unwrap()))
    }

    const FIELDS: usize = 200;

    #[test]
    fn a_page_is_whole_and_html() {
        for (status, fields, page) in [
            (200, "Content-Type: text/html\r\n", true),
            (404, "content-type:TEXT/HTML ; charset=utf-8\r\n", true),
            (206, "Content-Type: text/html\r\n", false),
            (200, "Content-Type: text/html \r\n", true),
            (200, "Content-Type: text/html5\r\n", false),
            (200, "Content-Type: text/htm\r\n", false),
            (200, "Content-Type: application/json\r\n", false),
            (200, "Content-Types: text/html\r\n", false),
            (200, "", false),
        ] {
            let head = format!("HTTP/1.1 {status} X\r\n{fields}Content-Length: 0\r\n\r\n");
            assert_eq!(client(GET, &head, true).unwrap().0.is_page, page, "{head}");
        }
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: id\r\n\r\n";
    const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: a\r\nX-Request-Id: id\r\n\r\n";
    const GET10: &str = "GET / HTTP/1.0\r\nConnection: keep-alive\r\nX-Request-Id: id\r\n\r\n";

    #[test]
    fn what_the_client_gets() {
        let head = "HTTP/1.1 200 Fine\r\nContent-Length: 3\r\nDate: then\r\nX-MiXed: kept\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\
                    Keep-Alive: timeout=5, max=9\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n";
        let (response, out) = client(GET, head, true).unwrap();
        assert_eq!(
            out,
            "HTTP/1.1 200 Fine\r\nContent-Length: 3\r\nDate: then\r\nX-MiXed: kept\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\
             X-Request-Id: id\r\n\r\n"
        );
        assert!(response.upstream_keep_alive && response.client_keep_alive);
        assert_eq!(response.upstream_idle, Some(Duration::from_secs(5)));
        let (_, out) = client(GET, head, false).unwrap();
        assert!(out.contains("Connection: close\r\n"), "{out}");
    }

    #[test]
    fn where_the_body_ends() {
        for (request, head, framing) in [
            (GET, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", Framing::Length(3)),
            (GET, "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing::Chunked),
            (GET, "HTTP/1.1 200 OK\r\n\r\n", Framing::UntilClose),
            (GET, "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", Framing::None),
            (GET, "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", Framing::None),
            (GET, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", Framing::None),
            (HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Framing::None),
        ] {
            assert_eq!(client(request, head, true).unwrap().0.framing, framing, "{head:?}");
        }
    }

    #[test]
    fn no_answer_has_two_framings_not_even_where_no_body_follows() {
        let both = "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (request, status) in [(HEAD, 200), (GET, 304)] {
            let (_, out) = client(request, &format!("HTTP/1.1 {status} X\r\n{both}"), true).unwrap();
            assert!(out.contains("chunked") && !out.contains("Content-Length"), "{out}");
        }
    }

    #[test]
    fn every_answer_has_a_date_even_if_the_backend_keeps_its_own_for_us() {
        let head = "HTTP/1.1 204 X\r\nConnection: date\r\nDate: then\r\n\r\n";
        let (_, out) = client(GET, head, true).unwrap();
        assert!(out.contains("Date: ") && !out.contains("then"), "{out}");
    }

    #[test]
    fn an_old_client_gets_no_chunks_and_no_interim_responses() {
        let (response, out) =
            client(GET10, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true).unwrap();
        assert!(response.coding == Coding::Unchunk && !response.client_keep_alive);
        assert!(!out.contains("chunked") && out.contains("Connection: close"), "{out}");
        let (_, out) = client(GET10, "HTTP/1.1 100 Continue\r\n\r\n", true).unwrap();
        assert_eq!(out, "");
        let (_, out) = client(GET10, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true).unwrap();
        assert!(out.contains("Connection: keep-alive"), "{out}");
    }

    #[test]
    fn over_http2_nothing_is_said_about_the_connection_and_nothing_is_framed() {
        let request = understood_over(true, GET);
        for (head, framing, expected) in [
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5\r\nConnection: X-Hop\r\nX-Hop: 1\r\nDate: then\r\n\r\n",
                Framing::Chunked,
                "HTTP/1.1 200 OK\r\nDate: then\r\nX-Request-Id: id\r\n\r\n",
            ),
            (
                "HTTP/1.0 200 OK\r\nDate: then\r\n\r\n",
                Framing::UntilClose,
                "HTTP/1.1 200 OK\r\nDate: then\r\nX-Request-Id: id\r\n\r\n",
            ),
            (
                "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nProxy-Connection: close\r\nContent-Length: 3\r\nDate: then\r\n\r\n",
                Framing::Length(3),
                "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 3\r\nDate: then\r\nX-Request-Id: id\r\n\r\n",
            ),
            (
                "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
                Framing::None,
                "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
            ),
        ] {
            for keep_alive in [true, false] {
                let (response, out) = client_of(&request, GET, head, keep_alive).unwrap();
                assert_eq!((response.framing, response.coding), (framing, Coding::Frame), "{head:?}");
                assert_eq!(out, expected);
                assert!(!response.ends_with_connection(), "its end is marked by its last frame");
            }
        }
        let switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n";
        assert!(client_of(&request, GET, switched, true).is_err());
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
            "HTTP/1.1 200 O\x01K\r\n\r\n",
            "HTTP/1.1 099 Odd\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
        ] {
            assert!(client(GET, head, true).is_err(), "{head:?}");
        }
    }

    #[test]
    fn a_body_that_ends_with_its_connection_is_sent_in_chunks_where_that_is_known() {
        let head = "HTTP/1.0 200 OK\r\nServer: old\r\n\r\n";
        let (response, out) = client(GET, head, true).unwrap();
        assert!(response.coding == Coding::Chunk && response.client_keep_alive, "{response:?}");
        assert!(out.contains("Transfer-Encoding: chunked\r\n") && out.contains("Server: old\r\n"), "{out}");
        let (response, out) = client(GET10, head, true).unwrap();
        assert!(response.ends_with_connection() && !response.client_keep_alive, "{response:?}");
        assert!(!out.contains("chunked") && out.contains("Connection: close\r\n"), "{out}");
        let (response, out) = client(HEAD, head, true).unwrap();
        assert!(response.coding == Coding::AsItIs && !out.contains("chunked"), "{out}");
    }

    #[test]
    fn fields_are_passed_on_up_to_their_limit_and_no_more() {
        for (count, passes) in
            [(MAX_FIELDS, true), (MAX_FIELDS + 1, true), (FIELDS, true), (FIELDS + 1, false)]
        {
            let fields: String = (0..count).map(|n| format!("Set-Cookie: n{n}=1\r\n")).collect();
            let result = client(GET, &format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), true);
            assert_eq!(result.is_ok(), passes, "{count}");
            if let Ok((_, out)) = result {
                assert_eq!(out.matches("Set-Cookie").count(), count);
            }
        }
    }

    #[test]
    fn lines_that_end_in_a_bare_line_feed_are_sent_on_with_a_carriage_return() {
        let (response, out) = client(
            GET,
            "HTTP/1.0 200 OK\nContent-Type: text/plain\r\nContent-Length: 3\nDate: then\n\n",
            true,
        )
        .unwrap();
        assert_eq!(response.framing, Framing::Length(3));
        assert_eq!(
            out,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\nDate: then\r\n\
             X-Request-Id: id\r\n\r\n"
        );
    }

    #[test]
    fn a_status_of_three_digits_is_passed_on_whatever_it_means() {
        for status in [600, 700, 999] {
            let (response, out) =
                client(GET, &format!("HTTP/1.1 {status} Odd\r\nContent-Length: 0\r\n\r\n"), true).unwrap();
            assert_eq!(response.status, status);
            assert!(out.starts_with(&format!("HTTP/1.1 {status} Odd\r\n")), "{out}");
        }
    }

    #[test]
    fn an_upgrade_is_passed_on() {
        let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Accept: x\r\n\r\n";
        let (response, out) = client(request, head, true).unwrap();
        assert!(response.is_tunnel() && !response.upstream_keep_alive);
        assert!(out.contains("Upgrade: websocket\r\n") && out.contains("Connection: upgrade\r\n"), "{out}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_the_parser(head in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let request = understood(GET);
            let server = ServerField::Drop;
            let request_head = GET.as_bytes();
            let (upgrade, fields) = (None, FIELDS);
            let to = Recipient { request: &request, request_head, keep_alive: true, upgrade, server, fields, clock: SystemTime::now, hsts: None, compress: None, seeks_page: false };
            let _ = translate(&head, to, &mut Vec::new());
        }
    }
}
