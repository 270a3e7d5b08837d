//! What an answer with a file looks like: conditions, ranges, types, stored codings; alike in every protocol.

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use hyper::Request;

use super::{FILES, Site, asking};
use crate::http2::clients::url;
use crate::wire::Response;

/// Sets when a file was last modified, and returns that as in a field.
fn modified(path: &std::path::Path) -> &'static str {
    let at = UNIX_EPOCH + Duration::from_secs(1_795_616_178);
    fs::File::open(path).unwrap().set_modified(at).unwrap();
    "Wed, 25 Nov 2026 14:16:18 GMT"
}

#[tokio::test]
async fn a_file_comes_with_its_type_length_and_validators() {
    let site = Site::start(FILES).await;
    let date = modified(&site.put("blue", "a.css", "body{}"));
    for (name, media_type) in [
        ("x.html", "text/html; charset=utf-8"),
        ("x.JS", "text/javascript; charset=utf-8"),
        ("x.json", "application/json"),
        ("x.svg", "image/svg+xml"),
        ("x.woff2", "font/woff2"),
        ("x.unknown", "application/octet-stream"),
        ("x", "application/octet-stream"),
    ] {
        site.put("blue", name, "x");
        let response = site.wire().await.get(&format!("/{name}")).await;
        assert_eq!(response.header("content-type"), Some(media_type), "{name}");
    }
    let mut wire = site.wire().await;
    let response = wire.get("/a.css").await;
    assert_eq!((response.status, response.text().as_str(), response.complete), (200, "body{}", true));
    assert_eq!(response.header("content-length"), Some("6"));
    assert_eq!(response.header("last-modified"), Some(date));
    assert_eq!(response.header("accept-ranges"), Some("bytes"));
    let etag = response.header("etag").unwrap();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "a strong one: {etag}");
    assert!(response.header("date").is_some() && response.header("x-request-id").is_some());
    assert!(response.header("vary").is_none() && response.header("cache-control").is_none());
    wire.send("HEAD /a.css HTTP/1.1\r\nHost: a\r\nRange: bytes=0-0\r\n\r\n").await;
    let head = wire.response_to_head().await;
    let fields = |response: &Response| {
        ["content-length", "content-type", "etag", "last-modified"]
            .map(|name| response.header(name).map(str::to_owned))
    };
    assert_eq!((head.status, fields(&head)), (200, fields(&response)), "HEAD has no ranges");
    site.put("blue", "empty.txt", "");
    let empty = wire.get("/empty.txt").await;
    assert_eq!((empty.status, empty.header("content-length")), (200, Some("0")));
    // HTTP/1.0 closes, unless asked to keep the connection.
    wire.send("GET /a.css HTTP/1.0\r\nHost: a\r\n\r\n").await;
    let old = wire.response().await;
    assert_eq!((old.text().as_str(), old.header("connection")), ("body{}", Some("close")));
    assert!(wire.is_closed().await);
}

#[tokio::test]
async fn conditions_and_ranges_are_as_rfc_9110_says() {
    let site = Site::start(FILES).await;
    let date = modified(&site.put("blue", "a.bin", "0123456789"));
    let mut wire = site.wire().await;
    let etag = wire.get("/a.bin").await.header("etag").unwrap().to_owned();
    for (fields, status, body) in [
        (format!("If-None-Match: {etag}"), 304, ""),
        (format!("If-None-Match: \"a\", W/{etag}"), 304, ""),
        (format!("If-None-Match: \"a\"\r\nIf-Modified-Since: {date}"), 200, "0123456789"),
        (format!("If-Modified-Since: {date}"), 304, ""),
        ("If-Modified-Since: Wed, 25 Nov 2099 14:16:18 GMT".to_owned(), 200, "0123456789"),
        (format!("If-Match: {etag}"), 200, "0123456789"),
        ("If-Match: \"a\"".to_owned(), 412, ""),
        ("If-Unmodified-Since: Wed, 25 Nov 2020 14:16:18 GMT".to_owned(), 412, ""),
        ("Range: bytes=2-4".to_owned(), 206, "234"),
        ("Range: bytes=-3".to_owned(), 206, "789"),
        ("Range: bytes=7-".to_owned(), 206, "789"),
        ("Range: bytes=7-99".to_owned(), 206, "789"),
        ("Range: bytes=10-".to_owned(), 416, ""),
        ("Range: bytes=-0".to_owned(), 416, ""),
        ("Range: bytes=0-1,4-5".to_owned(), 200, "0123456789"),
        ("Range: bytes=5-2".to_owned(), 200, "0123456789"),
        ("Range: chapters=1-2".to_owned(), 200, "0123456789"),
        (format!("Range: bytes=0-0\r\nIf-Range: {etag}"), 206, "0"),
        (format!("Range: bytes=0-0\r\nIf-Range: {date}"), 206, "0"),
        ("Range: bytes=0-0\r\nIf-Range: \"a\"".to_owned(), 200, "0123456789"),
        (format!("Range: bytes=0-0\r\nIf-None-Match: {etag}"), 304, ""),
    ] {
        wire.send(asking("/a.bin", &fields)).await;
        let response = wire.response().await;
        assert_eq!((response.status, response.text().as_str()), (status, body), "{fields}");
        match status {
            206 | 416 => {
                let range = response.header("content-range").unwrap();
                assert!(range.starts_with("bytes ") && range.ends_with("/10"), "{fields}: {range}");
            }
            304 => assert_eq!(response.header("etag"), Some(&*etag)),
            _ => assert_eq!(response.header("content-range"), None, "{fields}"),
        }
    }
}

#[tokio::test]
async fn a_file_stored_in_a_coding_goes_to_clients_that_accept_it() {
    let site = Site::start(&format!("{FILES}\nprecompressed = true")).await;
    for (name, content) in [
        ("app.js", "identity"),
        ("app.js.br", "brotli"),
        ("app.js.gz", "gzip"),
        ("only.css", "plain"),
        ("docs/index.html", "<p>"),
        ("docs/index.html.zst", "zstd"),
    ] {
        site.put("blue", name, content);
    }
    let mut wire = site.wire().await;
    let mut etags = Vec::new();
    for (path, accepts, body, coding) in [
        ("/app.js", "gzip, deflate, br, zstd", "brotli", Some("br")),
        ("/app.js", "gzip", "gzip", Some("gzip")),
        ("/app.js", "zstd, gzip;q=0.5", "gzip", Some("gzip")),
        ("/app.js", "br;q=0, *", "gzip", Some("gzip")),
        ("/app.js", "gzip;q=1, br;q=0.1", "gzip", Some("gzip")),
        ("/app.js", "identity", "identity", None),
        ("/app.js", "", "identity", None),
        ("/only.css", "br, gzip", "plain", None),
        ("/docs/", "zstd", "zstd", Some("zstd")),
    ] {
        wire.send(asking(path, &format!("Accept-Encoding: {accepts}"))).await;
        let response = wire.response().await;
        assert_eq!(
            (response.text().as_str(), response.header("content-encoding")),
            (body, coding),
            "{path} {accepts}"
        );
        assert_eq!(response.header("vary"), Some("Accept-Encoding"));
        let html_or_js = response.header("content-type").unwrap();
        assert!(
            !html_or_js.contains("gzip") && html_or_js.contains("utf-8"),
            "that of the file itself: {html_or_js}"
        );
        etags.push((body, response.header("etag").unwrap().to_owned()));
    }
    etags.sort();
    etags.dedup();
    assert_eq!(etags.len(), 5, "each has a tag of its own: {etags:?}");
    // A range is one of the bytes that are sent.
    wire.send(asking("/app.js", "Accept-Encoding: br\r\nRange: bytes=1-2")).await;
    let part = wire.response().await;
    assert_eq!(
        (part.status, part.text().as_str(), part.header("content-range")),
        (206, "ro", Some("bytes 1-2/6"))
    );
    wire.send(asking(
        "/app.js",
        &format!("Accept-Encoding: br\r\nIf-None-Match: {}", part.header("etag").unwrap()),
    ))
    .await;
    let known = wire.response().await;
    assert_eq!((known.status, known.header("vary")), (304, Some("Accept-Encoding")));
}

#[tokio::test]
async fn answers_are_alike_over_tls_and_http2() {
    let site = Site::start(FILES).await;
    let large: Vec<u8> = (0..1_000_003_u32).flat_map(u32::to_le_bytes).collect();
    site.put("blue", "large.bin", &large);
    site.put("blue", "small.txt", "small");
    let (mut plain, mut secure, http2) = (site.wire().await, site.secure().await, site.http2().await);
    for (path, fields) in [
        ("/small.txt", None),
        ("/large.bin", None),
        ("/large.bin", Some(("range", "bytes=1000-2000999"))),
        ("/large.bin", Some(("range", "bytes=9999999-"))),
        ("/small.txt", Some(("if-match", "\"x\""))),
        ("/small.txt", Some(("if-none-match", "*"))),
    ] {
        let field = fields.map_or_else(|| "A: b".to_owned(), |(name, value)| format!("{name}: {value}"));
        plain.send(asking(path, &field)).await;
        secure.send(asking(path, &field)).await;
        let (plain, secure) = (plain.response().await, secure.response().await);
        let mut request = Request::get(url(path));
        if let Some((name, value)) = fields {
            request = request.header(name, value);
        }
        let http2 = http2.send(request.body(()).unwrap()).await.unwrap();
        assert!(
            plain.complete && secure.complete && plain.body == secure.body && plain.body == http2.body,
            "{path}"
        );
        for name in
            ["etag", "last-modified", "content-type", "content-length", "content-range", "accept-ranges"]
        {
            let of_http2 = http2.headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(
                (plain.header(name), plain.header(name)),
                (secure.header(name), of_http2),
                "{path} {name}"
            );
        }
        assert_eq!((plain.status, plain.status), (secure.status, http2.status.as_u16()), "{path} {field}");
    }
    let head = http2.send(Request::head(url("/large.bin")).body(()).unwrap()).await.unwrap();
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(head.headers["content-length"], large.len().to_string());
}

#[tokio::test]
async fn what_is_no_file_has_the_header_fields_of_its_path_too() {
    let rule = "[[services.app.paths]]\nmatch = \"/static\"\nfiles = \"FILES\"\nfiles_only = true\n\
        response_headers = { set = { Cache-Control = \"max-age=60\", X-Frame-Options = \"DENY\" }, \
        default = { Referrer-Policy = \"same-origin\" } }";
    let site = Site::start(rule).await;
    site.put("blue", "docs/index.html", "<p>");
    let (mut plain, mut secure, http2) = (site.wire().await, site.secure().await, site.http2().await);
    for (method, path, status) in [
        ("GET", "/static/docs/", 200),
        ("GET", "/static/docs", 308),
        ("GET", "/static/none", 404),
        ("POST", "/static/docs/", 405),
    ] {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: app.test\r\nContent-Length: 0\r\n\r\n");
        plain.send(&request).await;
        secure.send(&request).await;
        let responses = [plain.response().await, secure.response().await];
        let request = Request::builder().method(method).uri(url(path)).body(()).unwrap();
        let of_http2 = http2.send(request).await.unwrap();
        for (name, value) in
            [("cache-control", "max-age=60"), ("x-frame-options", "DENY"), ("referrer-policy", "same-origin")]
        {
            for response in &responses {
                assert_eq!(
                    (response.status, response.header(name)),
                    (status, Some(value)),
                    "{method} {path}"
                );
            }
            assert_eq!(
                (of_http2.status.as_u16(), &of_http2.headers[name]),
                (status, &value.parse().unwrap())
            );
        }
        let allow = (status == 405).then_some("GET, HEAD");
        assert_eq!(responses[0].header("allow"), allow, "{method} {path}");
    }
}
