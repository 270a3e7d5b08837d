//! A request's header list, written as an HTTP/1 head. From there on it is checked and rewritten like any other: there is
//! one rule set.
//!
//! Nothing may pass that a reader of HTTP/1 would see as something else: the end of a line, another field, another message
//! (RFC 9113 §10.3). The `h2` crate refuses most of that already; it is checked here again, next to the bytes it would harm.

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Uri};
use uh_http1::field::is_token_byte;
use uh_http1::request::BadRequest;

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

/// Appends the request's head to `out`.
///
/// # Errors
/// If it is malformed or not allowed. Then `out` may hold a part of a head.
pub(super) fn write(
    request: &Parts,
    content: Content,
    limits: HeadLimits,
    out: &mut Vec<u8>,
) -> Result<(), BadRequest> {
    let fields = &request.headers;
    let cookies = fields.get_all(header::COOKIE).iter().count();
    if fields.len() - cookies > limits.fields || cookies > limits.fields {
        return Err(BadRequest::TooLarge);
    }
    // uh-proxy refuses it like any other method that it doesn't know to forward: what follows is no body.
    if request.method == Method::CONNECT {
        return Err(BadRequest::Method);
    }
    let host = host(&request.uri, fields.get_all(header::HOST).iter())?;
    // At once: a buffer that grows bit by bit takes up to twice the memory, on every stream of a connection.
    let lines: usize =
        fields.iter().map(|(name, value)| name.as_str().len() + value.len() + LINE_BYTES).sum();
    out.reserve(lines + host.len() + path(&request.uri)?.len() + FIRST_LINE_BYTES);
    for part in
        [request.method.as_str().as_bytes(), b" ", path(&request.uri)?.as_bytes(), b" HTTP/1.1\r\nhost: "]
    {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(host);
    out.extend_from_slice(b"\r\n");
    write_fields(fields, out)?;
    if content == Content::Follows && !fields.contains_key(header::CONTENT_LENGTH) {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if out.len() > limits.bytes { Err(BadRequest::TooLarge) } else { Ok(()) }
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
fn host<'a>(uri: &'a Uri, mut fields: impl Iterator<Item = &'a HeaderValue>) -> Result<&'a [u8], BadRequest> {
    let field = fields.next().map(HeaderValue::as_bytes);
    if fields.next().is_some() {
        return Err(BadRequest::Malformed("more than one Host field"));
    }
    match (uri.authority().map(|authority| authority.as_str().as_bytes()), field) {
        (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => {
            Err(BadRequest::Malformed("the :authority and the Host field differ"))
        }
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(BadRequest::Malformed("neither :authority nor a Host field")),
    }
}

fn write_fields(fields: &header::HeaderMap, out: &mut Vec<u8>) -> Result<(), BadRequest> {
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
                write_cookie(fields, out);
            }
            _ => write_field(name.as_str(), value.as_bytes(), out),
        }
    }
    Ok(())
}

/// One field of all its parts (RFC 9113 §8.2.3): many apps would see only the first.
fn write_cookie(fields: &header::HeaderMap, out: &mut Vec<u8>) {
    for (index, value) in fields.get_all(header::COOKIE).iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"cookie: " } else { b"; " });
        out.extend_from_slice(value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn write_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
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
    name.as_str().bytes().all(|b| is_token_byte(b) && !b.is_ascii_uppercase())
}

/// RFC 9113 §8.2.1, and no other control bytes: white space at the ends would be lost in HTTP/1.
fn is_value(value: &[u8]) -> bool {
    let ends = [value.first(), value.last()];
    ends.into_iter().flatten().all(|end| !matches!(end, b' ' | b'\t'))
        && value.iter().all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f))
}

/// The field lines of a request's trailers, for a chunked body. Fields that have a meaning in a head are left out, as
/// they would be refused in HTTP/1.
pub(super) fn write_trailers(trailers: &header::HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in trailers {
        let known = uh_http1::field::classify_folded(name.as_str().as_bytes());
        if known.is_end_to_end() && is_name(name) && is_value(value.as_bytes()) {
            write_field(name.as_str(), value.as_bytes(), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 10 };

    fn request(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn written(parts: &Parts, content: Content) -> Result<String, BadRequest> {
        let mut out = Vec::new();
        write(parts, content, LIMITS, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_head_has_its_host_first_and_its_fields_in_order() {
        let parts =
            request("GET", "https://app.example/a?b=c", &[("x-b", "1"), ("x-a", "2"), ("te", "trailers")]);
        assert_eq!(
            written(&parts, Content::None).unwrap(),
            "GET /a?b=c HTTP/1.1\r\nhost: app.example\r\nx-b: 1\r\nx-a: 2\r\nte: trailers\r\n\r\n"
        );
    }

    #[test]
    fn a_body_without_a_length_is_chunked_and_one_with_a_length_is_not() {
        let parts = request("POST", "https://a/", &[]);
        assert!(
            written(&parts, Content::Follows).unwrap().ends_with("\r\ntransfer-encoding: chunked\r\n\r\n")
        );
        assert!(!written(&parts, Content::None).unwrap().contains("chunked"));
        let parts = request("POST", "https://a/", &[("content-length", "5")]);
        assert!(written(&parts, Content::Follows).unwrap().ends_with("\r\ncontent-length: 5\r\n\r\n"));
    }

    #[test]
    fn the_parts_of_a_cookie_are_one_field_where_the_first_was() {
        let fields = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")];
        let text = written(&request("GET", "https://a/", &fields), Content::None).unwrap();
        assert_eq!(text, "GET / HTTP/1.1\r\nhost: a\r\ncookie: a=1; b=2; c=3\r\nx: y\r\n\r\n");
    }

    #[test]
    fn the_host_is_named_once_or_twice_the_same() {
        let ok = |uri, fields: &[_]| written(&request("GET", uri, fields), Content::None);
        assert!(ok("https://a.b:8443/", &[("host", "A.b:8443")]).unwrap().contains("host: a.b:8443\r\n"));
        assert!(ok("/", &[("host", "a")]).unwrap().contains("host: a\r\n"));
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
            let result = written(&request("GET", "https://a/", &[field]), Content::None);
            assert!(matches!(result, Err(BadRequest::Malformed(_))), "{field:?}");
        }
    }

    #[test]
    fn what_http1_would_read_differently_is_refused() {
        for field in [("x", " a"), ("x", "a "), ("x", "\ta"), ("x", "a\t")] {
            let result = written(&request("GET", "https://a/", &[field]), Content::None);
            assert!(matches!(result, Err(BadRequest::Malformed(_))), "{field:?}");
        }
        let connect = request("CONNECT", "a:443", &[]);
        assert_eq!(written(&connect, Content::Follows), Err(BadRequest::Method));
    }

    #[test]
    fn a_head_that_is_too_large_is_refused() {
        let many: Vec<_> = (0..11).map(|n| (format!("x-{n}"), "v")).collect();
        let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let parts = |fields: &[_]| request("GET", "https://a/", fields);
        assert!(written(&parts(&many[..10]), Content::None).is_ok());
        assert_eq!(written(&parts(&many), Content::None), Err(BadRequest::TooLarge));
        assert!(written(&parts(&[("cookie", "a=b"); 10]), Content::None).is_ok());
        assert_eq!(written(&parts(&[("cookie", "a=b"); 11]), Content::None), Err(BadRequest::TooLarge));
        assert_eq!(written(&parts(&[("x", &"v".repeat(4096))]), Content::None), Err(BadRequest::TooLarge));
    }

    #[test]
    fn trailers_are_field_lines_and_mean_nothing_in_a_head() {
        let parts = request(
            "GET",
            "/",
            &[("x-sum", "1"), ("content-length", "5"), ("host", "b"), ("x_forwarded_for", "c")],
        );
        let mut out = Vec::new();
        write_trailers(&parts.headers, &mut out);
        assert_eq!(out, b"x-sum: 1\r\n");
    }

    proptest! {
        #[test]
        fn a_head_has_as_many_lines_as_fields(names in prop::collection::vec("[a-z0-9_-]{1,8}", 0..8), value in prop::collection::vec(any::<u8>(), 0..20)) {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let mut parts = request("GET", "https://a/", &[]);
            for name in &names {
                parts.headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.clone());
            }
            parts.headers.remove("host");
            parts.headers.remove("cookie");
            let mut out = Vec::new();
            if write(&parts, Content::None, LIMITS, &mut out).is_ok() {
                let lines = out.split(|&b| b == b'\n').count() - 1;
                prop_assert_eq!(lines, parts.headers.len() + 3);
                prop_assert_eq!(out.iter().filter(|&&b| b == b'\r').count(), lines);
            }
        }
    }
}
