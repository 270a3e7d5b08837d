//! Compressed responses that don't end as they should.

use http::Request;
use tokio::io::AsyncWriteExt as _;

use super::{ask, before, get, is_gzip, metric, text, unpacked};
use crate::harness::{Scripted, Then, soon, until};
use crate::http2::clients::{Client, complete, h2c, url};
use crate::wire::Wire;

/// An app that breaks off within its response.
async fn broken() -> Scripted {
    Scripted::start(|head, mut stream| async move {
        let framing = match head.split(' ').nth(1).unwrap() {
            "/length" => "Content-Length: 900000\r\n\r\n",
            "/chunks" => "Transfer-Encoding: chunked\r\n\r\nc3500\r\n",
            _ => "Transfer-Encoding: chunked\r\n\r\nnonsense",
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{framing}");
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(&text(500_000)).await;
        (stream, Then::Close)
    })
    .await
}

#[tokio::test]
async fn what_breaks_off_looks_truncated() {
    let app = broken().await;
    let (_home, proxy) = before(&app, "compress = true").await;
    for path in ["/length", "/chunks"] {
        let mut wire = Wire::connect(proxy.address).await;
        let response = ask(&mut wire, path).await;
        assert!(is_gzip(&response) && !response.complete, "{}", response.head);
        let mut decoder = flate2::read::MultiGzDecoder::new(response.body.as_slice());
        let cut = std::io::Read::read_to_end(&mut decoder, &mut Vec::new());
        assert!(cut.is_err(), "it must not look like a whole file");
        let client = Client::plain(h2c(&proxy).await).await;
        let request = Request::get(url(path)).header("accept-encoding", "gzip").body(()).unwrap();
        let (response, _) = client.open(request, true).await;
        let response = soon("a response", response).await.unwrap();
        assert!(complete(response).await.unwrap_err().is_reset());
    }
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(get("/nonsense")).await;
    assert_eq!(wire.response().await.status, 502, "nothing was sent yet");
    let broken = "uh_proxy_exchanges_broken_total{service=\"app\",backend=\"blue\",reason=\"cut_short\"} 4\n";
    proxy.until_counted(broken).await;
    proxy.until_idle("blue").await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_and_frees_its_compressor() {
    let app = Scripted::start(|head, mut stream| async move {
        let endless = head.contains(" /endless ");
        let framing = if endless { "Transfer-Encoding: chunked" } else { "Content-Length: 5000" };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{framing}\r\n\r\n");
        let _ = stream.write_all(head.as_bytes()).await;
        if endless {
            let part = text(4096);
            let chunk = [b"1000\r\n", part.as_slice(), b"\r\n"].concat();
            while stream.write_all(&chunk).await.is_ok() {}
        } else {
            let _ = stream.write_all(&text(5000)).await;
        }
        (stream, if endless { Then::Close } else { Then::KeepAlive })
    })
    .await;
    let home =
        crate::harness::Home::new(app.address, app.address).server("threads = 1").service("compress = true");
    let proxy = home.start().await;
    // More than there are compressors, one group after the other.
    for _ in 0..3 {
        let mut wires = Vec::new();
        for _ in 0..60 {
            let mut wire = Wire::connect(proxy.address).await;
            wire.send(get("/endless")).await;
            wire.read_until(b"Content-Encoding: gzip").await;
            wires.push(wire);
        }
        drop(wires);
        proxy.until_idle("blue").await;
    }
    let mut wire = Wire::connect(proxy.address).await;
    let response = ask(&mut wire, "/").await;
    assert!(is_gzip(&response) && unpacked(&response.body) == text(5000));
    assert_eq!(metric(&proxy, "compression_skipped_total").await, Some(0.0));
}

#[tokio::test]
async fn beyond_the_most_compressors_responses_are_sent_as_they_are() {
    const MOST: usize = 128;
    let app = Scripted::start(|head, mut stream| async move {
        let waits = head.contains(" /waits ");
        let length = if waits { 1_000_000 } else { 5000 };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\r\n");
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(&text(5000)).await;
        if waits {
            std::future::pending::<()>().await;
        }
        (stream, Then::KeepAlive)
    })
    .await;
    let home =
        crate::harness::Home::new(app.address, app.address).server("threads = 1").service("compress = true");
    let proxy = home.start().await;
    let mut wires = Vec::new();
    for _ in 0..MOST {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(get("/waits")).await;
        wire.read_until(b"Content-Encoding: gzip").await;
        wires.push(wire);
    }
    let mut wire = Wire::connect(proxy.address).await;
    let response = ask(&mut wire, "/").await;
    assert!(!is_gzip(&response) && response.body == text(5000), "{}", response.head);
    assert_eq!(response.header("vary"), Some("Accept-Encoding"));
    assert_eq!(metric(&proxy, "compression_skipped_total").await, Some(1.0));
    drop(wires);
    until("there is room again", async || is_gzip(&ask(&mut wire, "/").await).then_some(())).await;
}
