//! Compressed responses, with real sockets and another decoder.

mod endings;
mod nginx;
mod responses;
mod streaming;

use std::io::Read as _;

use flate2::read::MultiGzDecoder;
use tokio::io::AsyncWriteExt as _;

use crate::harness::{Home, Proxy, Scripted, Then};
use crate::http2::clients::H2C;
use crate::wire::{Response, Wire};

/// Some text, as long as this.
fn text(bytes: usize) -> Vec<u8> {
    let words =
        ["the ", "quick ", "brown ", "fox ", "jumps ", "over ", "<li>", "</li>\n", "a ", "lazy ", "dog "];
    let mut random = fastrand::Rng::with_seed(7);
    let mut text = Vec::with_capacity(bytes + 8);
    while text.len() < bytes {
        text.extend_from_slice(words[random.usize(..words.len())].as_bytes());
    }
    text.truncate(bytes);
    text
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    MultiGzDecoder::new(bytes).read_to_end(&mut all).unwrap();
    all
}

/// An app whose answer is in the request: `/BYTES?field|field…`, with `_` for a space. A length is added, unless a field
/// frames the body. `status=` sets the status.
async fn app() -> Scripted {
    Scripted::start(|head, mut stream| async move {
        let _ = stream.write_all(&answer(&head)).await;
        (stream, Then::KeepAlive)
    })
    .await
}

fn answer(request: &str) -> Vec<u8> {
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let bytes: usize = path[1..].parse().unwrap();
    let (mut status, mut fields, mut chunked, mut has_type) = ("200", String::new(), false, false);
    for part in query.split('|').filter(|part| !part.is_empty()) {
        match part.strip_prefix("status=") {
            Some(given) => status = given,
            None => fields.push_str(&format!("{}\r\n", part.replace('_', " "))),
        }
        chunked |= part.starts_with("Transfer-Encoding");
        has_type |= part.starts_with("Content-Type");
    }
    if !has_type {
        fields.push_str("Content-Type: text/html; charset=utf-8\r\n");
    }
    let body = text(bytes);
    let no_body = method == "HEAD" || matches!(status, "204" | "304");
    if !chunked && !matches!(status, "204" | "304") {
        fields.push_str(&format!("Content-Length: {bytes}\r\n"));
    }
    let mut out = format!("HTTP/1.1 {status} X\r\n{fields}\r\n").into_bytes();
    if !no_body && chunked {
        for chunk in body.chunks(5000) {
            out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\n\r\n");
    } else if !no_body {
        out.extend_from_slice(&body);
    }
    out
}

async fn before(app: &Scripted, service: &str) -> (Home, Proxy) {
    let home = Home::new(app.address, app.address).server(H2C).service(service);
    let proxy = home.start().await;
    (home, proxy)
}

/// A request that accepts gzip.
fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\nAccept-Encoding: br, gzip\r\n\r\n")
}

async fn ask(wire: &mut Wire, target: &str) -> Response {
    wire.send(get(target)).await;
    wire.response().await
}

fn is_gzip(response: &Response) -> bool {
    response.header("content-encoding") == Some("gzip")
}

/// The value of a metric of the active backend.
async fn metric(proxy: &Proxy, name: &str) -> Option<f64> {
    let name = format!("uh_proxy_{name}{{service=\"app\",backend=\"blue\"}} ");
    let text = proxy.client.metrics().await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
}
