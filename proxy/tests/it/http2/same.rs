//! The same request over HTTP/1 and HTTP/2 reaches the app as the same bytes.

use http::Request;

use super::clients::{Client, before, url};
use crate::recorder::{End, OK, Recorder, Seen};
use crate::wire::Wire;

fn ok(_: &str) -> (Vec<u8>, End) {
    (OK.to_vec(), End::Keep)
}

/// Words for fields, from harmless to ones that uh-proxy reads, replaces or removes.
const NAMES: &[&str] = &[
    "accept",
    "user-agent",
    "referer",
    "x-request-id",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-other",
    "x-real-ip",
    "forwarded",
    "traceparent",
    "tracestate",
    "x-request-start",
    "x_underscore",
    "proxy",
    "te",
    "date",
    "server",
    "x-plain",
    "via",
    "range",
    "if-match",
];

const VALUES: &[&str] = &[
    "a",
    "",
    "trailers",
    "abc-1",
    "6.6.6.6",
    "https",
    "for=6.6.6.6;proto=https",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "a, b",
    "\"q\"",
    "bytes=0-1",
    "x=y; z",
    "1.1 other",
];

const PATHS: &[&str] =
    &["/", "/a", "/a?b=c", "/%zz", "//x", "/a;b", "/a?", "/~'()*!", "/a/../b", "/a?http://b/"];

/// What differs by nature is taken out: how a body of unknown length was cut into chunks.
fn comparable(seen: Seen) -> (String, bool, String) {
    let mut content = String::new();
    if seen.head.contains("chunked") {
        let mut rest = seen.body.as_str();
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            content.push_str(&after[..size]);
            rest = after[size..].trim_start_matches("\r\n");
        }
    } else {
        content = seen.body;
    }
    (seen.head, seen.complete, content)
}

#[tokio::test]
async fn a_request_reaches_the_app_as_the_same_bytes_over_both_protocols() {
    let recorder = Recorder::start(ok).await;
    let server = "headers = { forwarded = true, underscores = \"pass\" }";
    let (_home, proxy, address) = before(recorder.address, server, "").await;
    let client = Client::plain(address).await;
    let mut wire = Wire::connect(proxy.address).await;
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..400 {
        let method = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PURGE"][random.usize(..8)];
        let path = PATHS[random.usize(..PATHS.len())];
        let mut fields: Vec<(&str, String)> = Vec::new();
        let mut names = NAMES.to_vec();
        random.shuffle(&mut names);
        for name in names.into_iter().take(random.usize(..8)) {
            let value = if name == "te" { "trailers" } else { VALUES[random.usize(..VALUES.len())] };
            fields.push((name, value.to_owned()));
        }
        if random.bool() {
            fields.push(("cookie", "a=1; b=2".to_owned()));
        }
        let body = if matches!(method, "POST" | "PUT" | "PATCH") { "hello" } else { "" };
        let sized = random.bool();
        if !body.is_empty() && sized {
            fields.push(("content-length", body.len().to_string()));
        }
        let mut old = format!("{method} {path} HTTP/1.1\r\nhost: app.test\r\n");
        let mut new = Request::builder().method(method).uri(url(path));
        for (name, value) in &fields {
            old.push_str(&format!("{name}: {value}\r\n"));
            new = new.header(*name, value);
        }
        if !body.is_empty() && !sized {
            old.push_str("transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        } else {
            old.push_str(&format!("\r\n{body}"));
        }
        wire.send(old.as_bytes()).await;
        let over_one = wire.read(method == "HEAD").await.unwrap();
        let (response, mut stream) = client.open(new.body(()).unwrap(), body.is_empty()).await;
        if !body.is_empty() {
            stream.send_data(body.into(), true).unwrap();
        }
        let over_two = crate::harness::soon("a response", response).await.unwrap();
        assert_eq!(over_two.status().as_u16(), over_one.status, "{old}");
        if over_one.status != 200 {
            wire = Wire::connect(proxy.address).await;
        }
        let mut seen = recorder.take().into_iter().map(comparable);
        assert_eq!(seen.next(), seen.next(), "round {round}: {old}");
    }
}
