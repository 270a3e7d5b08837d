//! Which responses are compressed, and what their heads say.

use super::*;
use crate::forwarded::{Caller, Scheme};
use crate::policy::{HeaderPolicy, ServerField};
use crate::request;
use crate::response::{self, Coding, Recipient, ResponseHead};

#[test]
fn gzip_is_accepted_by_name_or_with_everything_unless_its_quality_is_zero() {
    for (accepted, expected) in [
        ("gzip", true),
        ("GZip", true),
        ("x-gzip", true),
        ("gzip, deflate, br, zstd", true),
        ("br;q=1.0, gzip;q=0.1", true),
        ("*", true),
        ("*;q=0.1", true),
        ("identity, gzip", true),
        ("identity;q=0, *", true),
        ("gzip;q=0.5, identity;q=0.4", true),
        ("", false),
        ("br", false),
        ("gzipped", false),
        ("identity", false),
        ("gzip;q=0", false),
        ("gzip; q=0.000, deflate", false),
        ("gzip;q=0, *", false),
        ("*;q=0", false),
        ("gzip;q=nonsense", false),
        ("gzip;q=0.4, identity;q=0.5", false),
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {accepted}\r\n\r\n");
        assert_eq!(accepts_gzip(head.as_bytes()), expected, "{accepted}");
    }
    assert!(!accepts_gzip(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert!(accepts_gzip(b"GET / HTTP/1.1\r\nAccept-Encoding: br\r\naccept-encoding: gzip\r\n\r\n"));
}

#[test]
fn a_type_is_named_alone_or_with_its_group() {
    let matches = |known: &str, name: &str| {
        known.parse::<MediaType>().unwrap().matches(without_parameters(name.as_bytes()))
    };
    for (known, name) in [
        ("text/html", "text/html"),
        ("Text/HTML", "TEXT/html; charset=utf-8"),
        ("text/*", "text/x-anything;a=b"),
        ("image/svg+xml", "image/svg+xml "),
    ] {
        assert!(matches(known, name), "{known} {name}");
    }
    for (known, name) in
        [("text/html", "text/html5"), ("text/*", "texts/a"), ("text/html", ""), ("text/*", "text")]
    {
        assert!(!matches(known, name), "{known} {name}");
    }
    for bad in ["", "text", "text/", "/html", "*/*", "text/html; charset=utf-8", "a/b/c", "text/ht ml"] {
        assert!(bad.parse::<MediaType>().is_err(), "{bad:?} passed");
    }
    for known in DEFAULT_TYPES {
        assert!(known.parse::<MediaType>().is_ok(), "{known}");
    }
}

/// What happens to a response's head for this request; the first line and `Date` left out.
fn head_of(request: &str, version: &str, response: &str, has_room: bool) -> (ResponseHead, String) {
    let policy = HeaderPolicy::default();
    let caller = Caller {
        address: [192, 0, 2, 1].into(),
        text: "192.0.2.1",
        request_start: None,
        scheme: Scheme::Http,
        http2: version == "2",
        hides_cookies: false,
        headers: &policy,
    };
    let line = if version == "2" { "1.1" } else { version };
    let (method, fields) = request.split_once('|').unwrap_or((request, ""));
    let request_head = format!("{method} / HTTP/{line}\r\nHost: a\r\nX-Request-Id: id\r\n{fields}\r\n");
    let request = request::translate(request_head.as_bytes(), &caller, &mut Vec::new()).unwrap();
    let rules = Compression {
        types: ["text/html", "image/*"].map(|name| name.parse().unwrap()).to_vec(),
        min_bytes: 1024,
        level: 6,
    };
    let to = Recipient {
        request: &request,
        request_head: request_head.as_bytes(),
        keep_alive: true,
        upgrade: None,
        server: ServerField::Pass,
        fields: 100,
        clock: std::time::SystemTime::now,
        hsts: None,
        seeks_page: false,
        compress: Some(Offer { rules: &rules, has_room }),
    };
    let response = format!("HTTP/1.1 {response}Date: then\r\nX-Request-Id: id\r\n\r\n");
    let mut out = Vec::new();
    let head = response::translate(response.as_bytes(), to, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let fields = text.split_once("\r\n").unwrap().1.replace("Date: then\r\nX-Request-Id: id\r\n", "");
    (head, fields.trim_end().replace("\r\n", "|"))
}

const HTML: &str = "Content-Type: text/html; charset=utf-8\r\n";
const GET: &str = "GET|Accept-Encoding: gzip\r\n";

#[test]
fn a_compressed_response_has_a_weak_tag_and_no_length_and_no_ranges() {
    let response = format!("200 OK\r\n{HTML}Content-Length: 1024\r\nETag: \"a\"\r\nAccept-Ranges: bytes\r\n");
    let compressed =
        "Content-Type: text/html; charset=utf-8|Content-Encoding: gzip|ETag: W/\"a\"|Vary: Accept-Encoding";
    for (version, request, coding, added) in [
        ("1.1", GET, Coding::Chunk, "|Transfer-Encoding: chunked"),
        ("1.1", "HEAD|Accept-Encoding: gzip\r\n", Coding::Chunk, "|Transfer-Encoding: chunked"),
        ("2", GET, Coding::Frame, ""),
        ("2", "HEAD|Accept-Encoding: gzip\r\n", Coding::Frame, ""),
    ] {
        let (head, fields) = head_of(request, version, &response, true);
        let mut expected: Vec<&str> =
            compressed.split('|').chain(added.split('|')).filter(|field| !field.is_empty()).collect();
        let mut fields: Vec<&str> = fields.split('|').collect();
        expected.sort_unstable();
        fields.sort_unstable();
        assert_eq!(fields, expected, "{version} {request}");
        assert_eq!((head.content, head.coding), (Content::Gzip, coding));
        assert!(head.client_keep_alive && !head.ends_with_connection());
    }
}

#[test]
fn chunks_are_framed_once() {
    let response = format!("200 OK\r\n{HTML}Transfer-Encoding: chunked\r\n");
    let (head, fields) = head_of(GET, "1.1", &response, true);
    assert_eq!((head.content, fields.matches("chunked").count()), (Content::Gzip, 1), "{fields}");
    let (head, fields) = head_of(GET, "1.1", &format!("200 OK\r\n{HTML}"), true);
    assert_eq!((head.content, fields.matches("chunked").count()), (Content::Gzip, 1), "{fields}");
}

#[test]
fn what_is_left_alone_says_so_where_it_could_be_otherwise() {
    let large = "Content-Length: 5000\r\n";
    for (request, version, status, fields, varies) in [
        ("GET", "1.1", "200 OK", format!("{HTML}{large}"), true),
        ("GET|Accept-Encoding: br\r\n", "1.1", "200 OK", format!("{HTML}{large}"), true),
        ("GET|Accept-Encoding: gzip;q=0\r\n", "1.1", "200 OK", format!("{HTML}{large}"), true),
        (GET, "1.0", "200 OK", format!("{HTML}{large}"), true),
        (GET, "1.1", "200 OK", format!("{HTML}Content-Length: 1023\r\n"), false),
        (
            GET,
            "1.1",
            "206 Partial Content",
            format!("{HTML}{large}Content-Range: bytes 0-4999/9000\r\n"),
            true,
        ),
        (GET, "1.1", "200 OK", format!("{HTML}{large}Content-Range: bytes 0-4999/9000\r\n"), true),
        ("HEAD", "1.1", "200 OK", format!("{HTML}{large}"), true),
        (GET, "1.1", "200 OK", format!("{HTML}{large}Content-Encoding: br\r\n"), false),
        (GET, "1.1", "200 OK", format!("{HTML}{large}Cache-Control: public, No-Transform\r\n"), false),
        (GET, "1.1", "200 OK", format!("{HTML}{large}Repr-Digest: sha-256=:AA==:\r\n"), false),
        (GET, "1.1", "200 OK", format!("Content-Type: text/plain\r\n{large}"), false),
        (GET, "1.1", "200 OK", large.to_owned(), false),
        (GET, "1.1", "200 OK", format!("{HTML}Content-Length: 0\r\n"), false),
        (GET, "1.1", "204 No Content", HTML.to_owned(), false),
        (GET, "1.1", "304 Not Modified", format!("{HTML}ETag: \"a\"\r\n"), false),
        (GET, "1.1", "103 Early Hints", HTML.to_owned(), false),
    ] {
        let (head, left) = head_of(request, version, &format!("{status}\r\n{fields}"), true);
        assert_eq!(head.content, Content::Plain, "{request} {status} {fields}");
        let vary = left.contains("Vary: Accept-Encoding");
        assert_eq!(vary, varies, "{request} {status} {fields}: {left}");
        let others = left
            .replace("|Vary: Accept-Encoding", "")
            .replace("|Connection: close", "")
            .replace("|Connection: keep-alive", "");
        assert_eq!(others.replace('|', "\r\n").trim(), fields.trim(), "nothing else is changed");
    }
}

#[test]
fn what_the_app_says_of_accept_encoding_is_not_said_again() {
    for vary in ["Accept-Encoding", "Origin, accept-encoding", "*"] {
        let response = format!("200 OK\r\n{HTML}Vary: {vary}\r\n");
        let (head, fields) = head_of(GET, "1.1", &response, true);
        assert_eq!((head.content, fields.matches("Vary").count()), (Content::Gzip, 1), "{fields}");
    }
    let (_, fields) = head_of(GET, "1.1", &format!("200 OK\r\n{HTML}Vary: Origin\r\n"), true);
    assert!(fields.contains("Vary: Origin|") && fields.contains("Vary: Accept-Encoding"), "{fields}");
}

#[test]
fn tags_are_weak_or_left_out() {
    for (tag, expected) in [("\"a\"", Some("W/\"a\"")), ("W/\"a\"", Some("W/\"a\"")), ("a", None)] {
        let (_, fields) = head_of(GET, "1.1", &format!("200 OK\r\n{HTML}ETag: {tag}\r\n"), true);
        let written = fields.split('|').find_map(|field| field.strip_prefix("ETag: "));
        assert_eq!(written, expected, "{tag}");
    }
}

#[test]
fn a_304_has_the_tag_that_the_client_holds() {
    for (held, tag, expected) in [
        ("W/\"a\"", "\"a\"", "ETag: W/\"a\"|Vary: Accept-Encoding"),
        ("\"x\", W/\"a\"", "\"a\"", "ETag: W/\"a\"|Vary: Accept-Encoding"),
        ("\"a\"", "\"a\"", "ETag: \"a\""),
        ("W/\"a\"", "W/\"a\"", "ETag: W/\"a\""),
        ("*", "\"a\"", "ETag: \"a\""),
    ] {
        let request = format!("GET|Accept-Encoding: gzip\r\nIf-None-Match: {held}\r\n");
        let (_, fields) = head_of(&request, "1.1", &format!("304 Not Modified\r\nETag: {tag}\r\n"), true);
        assert_eq!(fields, expected, "{held} {tag}");
    }
}

#[test]
fn without_room_nothing_is_compressed_and_that_is_known() {
    let response = format!("200 OK\r\n{HTML}Content-Length: 1024\r\n");
    let (head, fields) = head_of(GET, "1.1", &response, false);
    assert_eq!((head.content, head.coding), (Content::NoRoom, Coding::AsItIs));
    assert!(fields.contains("Content-Length: 1024") && fields.contains("Vary: Accept-Encoding"), "{fields}");
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_it(head in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = accepts_gzip(&head);
    }
}
