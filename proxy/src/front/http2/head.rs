//! A request's header list, written as an HTTP/1 head. From there on it is checked and rewritten like any other: there is
//! one rule set.
//!
//! Nothing may pass that a reader of HTTP/1 would see as something else: the end of a line, another field, another message
//! (RFC 9113 §10.3). The `h2` crate refuses most of that already; it is checked here again, next to the bytes it would harm.

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Uri};
use uh_http1::field::{is_token_byte, write_field};
use uh_http1::request::{BadRequest, Places};

/// What a line has in addition to a name and a value.
const LINE_BYTES: usize = 4;

/// What a head has in addition to its fields, its host and its path.
const FIRST_LINE_BYTES: usize = 80;

/// How large a head may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadLimits {
    /// In bytes, as HTTP/1.
    pub bytes: usize,
    /// In fields. The parts of a cookie, which HTTP/2 sends as fields of their own, have as many again.
    pub fields: usize,
}

/// Whether more than the header list belongs to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// The stream ended with it.
    None,
    /// A body follows, perhaps an empty one.
    Follows,
}

/// Appends the request's head to `out`, which is empty, and notes the places of its parts.
///
/// # Errors
/// If it is malformed or not allowed. Then `out` may hold a part of a head.
pub(super) fn write(
    request: &Parts,
    content: Content,
    limits: HeadLimits,
    (out, places): (&mut Vec<u8>, &mut Places),
) -> Result<(), BadRequest> {
    let fields = &request.headers;
    let seen = Seen::of(fields);
    if fields.len() - seen.cookies > limits.fields || seen.cookies > limits.fields {
        return Err(BadRequest::TooLarge);
    }
    // uh-proxy refuses it like any other method that it doesn't know to forward: what follows is no body.
    if request.method == Method::CONNECT {
        return Err(BadRequest::Method);
    }
    let (host, path) = (host(&request.uri, &seen)?, path(&request.uri)?);
    // At once: a buffer that grows bit by bit takes up to twice the memory, on every stream of a connection.
    out.reserve(seen.bytes + host.len() + path.len() + FIRST_LINE_BYTES);
    places.write_line(request.method.as_str(), path, out);
    // As it is sent to the backend.
    places.write_field("Host", [host], out);
    write_fields(fields, places, out)?;
    if content == Content::Follows && !seen.has_length {
        places.write_field("transfer-encoding", [&b"chunked"[..]], out);
    }
    out.extend_from_slice(b"\r\n");
    if out.len() > limits.bytes { Err(BadRequest::TooLarge) } else { Ok(()) }
}

/// What is found out about a request's fields at once.
#[derive(Default)]
struct Seen<'a> {
    /// Their length as lines.
    bytes: usize,
    cookies: usize,
    hosts: usize,
    host: Option<&'a HeaderValue>,
    has_length: bool,
}

impl<'a> Seen<'a> {
    fn of(fields: &'a header::HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in fields {
            seen.bytes += name.as_str().len() + value.len() + LINE_BYTES;
            match *name {
                header::COOKIE => seen.cookies += 1,
                header::HOST => (seen.hosts, seen.host) = (seen.hosts + 1, Some(value)),
                header::CONTENT_LENGTH => seen.has_length = true,
                _ => {}
            }
        }
        seen
    }
}

/// `:path`, which names no authority (RFC 9113 §8.3.1).
fn path(uri: &Uri) -> Result<&str, BadRequest> {
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    if !path.starts_with('/') && path != "*" {
        return Err(BadRequest::Malformed("the :path isn't a path"));
    }
    if path.bytes().any(|b| b <= b' ' || b == 0x7f || b == b'#') {
        return Err(BadRequest::Malformed("the :path is malformed"));
    }
    Ok(path)
}

/// `:authority` and `Host` name the same host if both are there (RFC 9113 §8.3.1).
fn host<'a>(uri: &'a Uri, seen: &Seen<'a>) -> Result<&'a [u8], BadRequest> {
    if seen.hosts > 1 {
        return Err(BadRequest::Malformed("more than one Host field"));
    }
    let field = seen.host.map(HeaderValue::as_bytes);
    match (uri.authority().map(|authority| authority.as_str().as_bytes()), field) {
        (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => {
            Err(BadRequest::Malformed("the :authority and the Host field differ"))
        }
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(BadRequest::Malformed("neither :authority nor a Host field")),
    }
}

fn write_fields(
    fields: &header::HeaderMap,
    places: &mut Places,
    out: &mut Vec<u8>,
) -> Result<(), BadRequest> {
    let mut cookie_written = false;
    for (name, value) in fields {
        if is_connection_specific(name, value) {
            return Err(BadRequest::Malformed("a connection-specific field in HTTP/2"));
        }
        if !is_name(name) || !is_value(value.as_bytes()) {
            return Err(BadRequest::Malformed("malformed field"));
        }
        match *name {
            header::HOST => {}
            header::COOKIE if cookie_written => {}
            header::COOKIE => {
                cookie_written = true;
                // One field of all its parts (RFC 9113 §8.2.3): many apps would see only the first.
                // An empty part adds nothing, not even a separator: a value must not end with a space.
                let parts = fields.get_all(header::COOKIE).iter().filter(|part| !part.is_empty()).enumerate();
                let value = parts.flat_map(|(index, part)| {
                    let separator: &[u8] = if index == 0 { b"" } else { b"; " };
                    [separator, part.as_bytes()]
                });
                places.write_field("cookie", value, out);
            }
            _ => places.write_field(name.as_str(), [value.as_bytes()], out),
        }
    }
    Ok(())
}

/// RFC 9113 §8.2.2.
fn is_connection_specific(name: &HeaderName, value: &HeaderValue) -> bool {
    match *name {
        header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE => true,
        header::TE => value.as_bytes() != b"trailers",
        _ => matches!(name.as_str(), "keep-alive" | "proxy-connection"),
    }
}

/// RFC 9113 §8.2.1: in lower case.
fn is_name(name: &HeaderName) -> bool {
    const MAY_STAND: [bool; 256] = {
        let (mut table, mut byte) = ([false; 256], 0);
        while byte < u8::MAX {
            table[byte as usize] = is_token_byte(byte) && !byte.is_ascii_uppercase();
            byte += 1;
        }
        table
    };
    name.as_str().bytes().all(|b| MAY_STAND[usize::from(b)])
}

/// RFC 9113 §8.2.1, and no other control bytes: white space at the ends would be lost in HTTP/1.
fn is_value(value: &[u8]) -> bool {
    let ends = [value.first(), value.last()];
    // All of it, whatever is found: so it is done many bytes at a time.
    let is_bad = |b: u8| (b < b' ' && b != b'\t') | (b == 0x7f);
    ends.into_iter().flatten().all(|end| !matches!(end, b' ' | b'\t'))
        && !value.iter().fold(false, |bad, &b| bad | is_bad(b))
}

/// The field lines of a request's trailers, for a chunked body. Fields that have a meaning in a head are left out, as
/// they would be refused in HTTP/1.
pub(super) fn write_trailers(trailers: &header::HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in trailers {
        let known = uh_http1::field::classify_folded(name.as_str().as_bytes());
        if known.is_end_to_end() && is_name(name) && is_value(value.as_bytes()) {
            write_field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;
    use uh_http1::forwarded::{Caller, Scheme};
    use uh_http1::policy::{HeaderPolicy, Underscores};
    use uh_http1::request::{self, RequestHead};

    const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 10 };

    fn parts_of(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn written(parts: &Parts, content: Content) -> Result<String, BadRequest> {
        let mut out = Vec::new();
        write(parts, content, LIMITS, (&mut out, &mut Places::default()))?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_head_has_its_host_first_and_its_fields_in_order() {
        let parts =
            parts_of("GET", "https://app.example/a?b=c", &[("x-b", "1"), ("x-a", "2"), ("te", "trailers")]);
        assert_eq!(
            written(&parts, Content::None).unwrap(),
            "GET /a?b=c HTTP/1.1\r\nHost: app.example\r\nx-b: 1\r\nx-a: 2\r\nte: trailers\r\n\r\n"
        );
    }

    #[test]
    fn a_body_without_a_length_is_chunked_and_one_with_a_length_is_not() {
        let parts = parts_of("POST", "https://a/", &[]);
        assert!(
            written(&parts, Content::Follows).unwrap().ends_with("\r\ntransfer-encoding: chunked\r\n\r\n")
        );
        assert!(!written(&parts, Content::None).unwrap().contains("chunked"));
        let parts = parts_of("POST", "https://a/", &[("content-length", "5")]);
        assert!(written(&parts, Content::Follows).unwrap().ends_with("\r\ncontent-length: 5\r\n\r\n"));
    }

    #[test]
    fn the_parts_of_a_cookie_are_one_field_where_the_first_was() {
        let fields = [
            ("cookie", ""),
            ("x", "y"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("cookie", "c=3"),
            ("cookie", ""),
        ];
        let text = written(&parts_of("GET", "https://a/", &fields), Content::None).unwrap();
        assert_eq!(text, "GET / HTTP/1.1\r\nHost: a\r\ncookie: a=1; b=2; c=3\r\nx: y\r\n\r\n");
    }

    #[test]
    fn the_host_is_named_once_or_twice_the_same() {
        let ok = |uri, fields: &[_]| written(&parts_of("GET", uri, fields), Content::None);
        assert!(ok("https://a.b:8443/", &[("host", "A.b:8443")]).unwrap().contains("Host: a.b:8443\r\n"));
        assert!(ok("/", &[("host", "a")]).unwrap().contains("Host: a\r\n"));
        for (uri, fields) in [
            ("https://a/", &[("host", "b")][..]),
            ("https://a/", &[("host", "a:443")]),
            ("https://a/", &[("host", "a"), ("host", "a")]),
            ("/", &[("host", "a"), ("host", "b")]),
            ("/", &[]),
        ] {
            assert!(matches!(ok(uri, fields), Err(BadRequest::Malformed(_))), "{uri} {fields:?}");
        }
    }

    #[test]
    fn what_only_one_connection_means_is_refused() {
        for field in [
            ("connection", "close"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
            ("te", "trailers, gzip"),
        ] {
            let result = written(&parts_of("GET", "https://a/", &[field]), Content::None);
            assert!(matches!(result, Err(BadRequest::Malformed(_))), "{field:?}");
        }
    }

    #[test]
    fn what_http1_would_read_differently_is_refused() {
        for field in [("x", " a"), ("x", "a "), ("x", "\ta"), ("x", "a\t")] {
            let result = written(&parts_of("GET", "https://a/", &[field]), Content::None);
            assert!(matches!(result, Err(BadRequest::Malformed(_))), "{field:?}");
        }
        let connect = parts_of("CONNECT", "a:443", &[]);
        assert_eq!(written(&connect, Content::Follows), Err(BadRequest::Method));
    }

    #[test]
    fn a_head_that_is_too_large_is_refused() {
        let many: Vec<_> = (0..11).map(|n| (format!("x-{n}"), "v")).collect();
        let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let parts = |fields: &[_]| parts_of("GET", "https://a/", fields);
        assert!(written(&parts(&many[..10]), Content::None).is_ok());
        assert_eq!(written(&parts(&many), Content::None), Err(BadRequest::TooLarge));
        assert!(written(&parts(&[("cookie", "a=b"); 10]), Content::None).is_ok());
        assert_eq!(written(&parts(&[("cookie", "a=b"); 11]), Content::None), Err(BadRequest::TooLarge));
        assert_eq!(written(&parts(&[("x", &"v".repeat(4096))]), Content::None), Err(BadRequest::TooLarge));
    }

    #[test]
    fn trailers_are_field_lines_and_mean_nothing_in_a_head() {
        let parts = parts_of(
            "GET",
            "/",
            &[("x-sum", "1"), ("content-length", "5"), ("host", "b"), ("x_forwarded_for", "c")],
        );
        let mut out = Vec::new();
        write_trailers(&parts.headers, &mut out);
        assert_eq!(out, b"x-sum: 1\r\n");
    }

    /// What is understood of a head, and the one for the backend.
    type Understood = Result<(String, String), BadRequest>;

    fn understood(head: &[u8], translated: Result<RequestHead, BadRequest>, out: &[u8]) -> Understood {
        let request = translated?;
        let RequestHead { method_text, target, path, host, upgrade, client, user_agent, referer, .. } =
            request;
        let spans = [method_text, target, path, host, upgrade, client, user_agent, referer];
        let texts = spans.map(|span| String::from_utf8_lossy(span.of_head(head)).into_owned());
        let RequestHead { method, version, framing, keep_alive, expects_continue, scheme, .. } = request;
        let rest = (method, version, framing, keep_alive, expects_continue, scheme);
        Ok((format!("{texts:?} {rest:?}"), String::from_utf8_lossy(out).into_owned()))
    }

    /// The same by the places of its parts, and by its text.
    fn both_ways(parts: &Parts, content: Content, headers: &HeaderPolicy) -> Option<[Understood; 2]> {
        let (mut head, mut places) = (Vec::new(), Places::default());
        write(parts, content, HeadLimits { bytes: 4096, fields: 40 }, (&mut head, &mut places)).ok()?;
        let caller = Caller {
            address: "192.0.2.7".parse().unwrap(),
            text: "192.0.2.7",
            request_start: Some(1),
            scheme: Scheme::Https,
            http2: true,
            hides_cookies: false,
            headers,
        };
        let (mut by_places, mut by_text) = (Vec::new(), Vec::new());
        let first = request::translate_written(&head, &places, &caller, &mut by_places);
        let second = request::translate(&head, &caller, &mut by_text);
        Some([understood(&head, first, &by_places), understood(&head, second, &by_text)])
    }

    proptest! {
        #[test]
        fn a_head_means_the_same_by_its_places_and_by_its_text(
            method in "GET|POST|OPTIONS|TRACE|X-ODD",
            uri in "(/|/[a-zé%?=]{0,6}|\\*)",
            fields in prop::collection::vec(
                (
                    "[a-z_-]{1,6}|cookie|user-agent|referer|expect|te|content-length|x-forwarded-for|x-forwarded-proto|forwarded|traceparent",
                    prop_oneof![Just(Vec::new()), Just(b"3".to_vec()), Just(b"trailers".to_vec()), prop::collection::vec(any::<u8>(), 0..9)],
                ),
                0..30,
            ),
            host in "[a-z.:@]{1,6}",
            (follows, trusted, refuse) in any::<(bool, bool, bool)>(),
        ) {
            let Ok(uri) = uri.parse::<Uri>() else { return Ok(()) };
            let mut parts = Request::builder().method(method.as_str()).uri(uri).body(()).unwrap().into_parts().0;
            for (name, value) in &fields {
                let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
                let Ok(value) = HeaderValue::from_bytes(value) else { continue };
                parts.headers.append(name, value);
            }
            parts.headers.insert("host", HeaderValue::from_str(&host).unwrap());
            // Otherwise each gets an id of its own.
            parts.headers.insert("x-request-id", HeaderValue::from_static("abc"));
            let headers = HeaderPolicy {
                trusted_proxies: if trusted { vec!["192.0.2.0/24".parse().unwrap()] } else { Vec::new() },
                underscores: if refuse { Underscores::Refuse } else { Underscores::Drop },
                via: true,
                ..HeaderPolicy::default()
            };
            let content = if follows { Content::Follows } else { Content::None };
            if let Some([by_places, by_text]) = both_ways(&parts, content, &headers) {
                prop_assert_eq!(by_places, by_text);
            }
        }

        #[test]
        fn a_head_has_as_many_lines_as_fields(names in prop::collection::vec("[a-z0-9_-]{1,8}", 0..8), value in prop::collection::vec(any::<u8>(), 0..20)) {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let mut parts = parts_of("GET", "https://a/", &[]);
            for name in &names {
                parts.headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.clone());
            }
            parts.headers.remove("host");
            parts.headers.remove("cookie");
            let mut out = Vec::new();
            if write(&parts, Content::None, LIMITS, (&mut out, &mut Places::default())).is_ok() {
                let lines = out.split(|&b| b == b'\n').count() - 1;
                prop_assert_eq!(lines, parts.headers.len() + 3);
                prop_assert_eq!(out.iter().filter(|&&b| b == b'\r').count(), lines);
            }
        }
    }
}
