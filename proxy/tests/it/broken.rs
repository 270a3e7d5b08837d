//! Exchanges that a backend breaks or delays: counted once each when it happens, and never for a client's fault.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use uh_protocol::request::SwitchRequest;

use crate::harness::{Home, Proxy, Scripted, Then, app, backend, until};
use crate::wire::{Wire, get};

const UPGRADE: &str = "GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

/// The reasons that are not zero, of one backend.
async fn broken(proxy: &Proxy, backend: &str) -> BTreeMap<String, u64> {
    let metrics = proxy.client.metrics().await.unwrap();
    let prefix = format!("uh_proxy_exchanges_broken_total{{service=\"app\",backend=\"{backend}\",reason=\"");
    metrics
        .lines()
        .filter_map(|line| line.strip_prefix(&prefix)?.split_once("\"} "))
        .map(|(reason, count)| (reason.to_owned(), count.parse().unwrap()))
        .filter(|&(_, count)| count > 0)
        .collect()
}

async fn overdue(proxy: &Proxy) -> u64 {
    let metrics = proxy.client.metrics().await.unwrap();
    let prefix = "uh_proxy_exchanges_overdue_total{service=\"app\",backend=\"blue\"} ";
    metrics.lines().find_map(|line| line.strip_prefix(prefix)).unwrap().parse().unwrap()
}

/// An app where each path breaks an exchange in a different way.
async fn breaker() -> Scripted {
    Scripted::start(|head, mut stream| async move {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let begun = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789";
        let reply: &[u8] = match path.as_str() {
            "/ok" => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "/500" => b"HTTP/1.1 500 Sorry\r\nContent-Length: 0\r\n\r\n",
            "/cut" | "/reset" | "/stall" => begun,
            "/half-a-head" => b"HTTP/1.1 200 OK\r\nContent-Le",
            "/nonsense" => b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "/two-codings" => {
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            }
            "/length-and-coding" => {
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            }
            "/identity" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok",
            "/bad-chunk" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "/bad-second-chunk" => {
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
            }
            "/slow" => {
                tokio::time::sleep(Duration::from_millis(900)).await;
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            }
            "/tunnel" => {
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello"
            }
            _ => b"",
        };
        let _ = stream.write_all(reply).await;
        match path.as_str() {
            "/ok" | "/500" | "/slow" => return (stream, Then::KeepAlive),
            "/bad-second-chunk" => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let _ = stream.write_all(b"zz\r\n").await;
            }
            "/silent" | "/stall" => tokio::time::sleep(Duration::from_secs(60)).await,
            "/reset" => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            _ => {}
        }
        (stream, Then::Close)
    })
    .await
}

#[tokio::test]
async fn every_way_a_backend_breaks_an_exchange_counts_once_under_its_reason() {
    let app_ = breaker().await;
    let home = Home::new(app_.address, "127.0.0.1:9").service("[services.app.timeouts]\nread = \"2s\"");
    let proxy = home.start().await;
    for (path, status, reason) in [
        ("/ok", 200, None),
        ("/500", 500, None),
        ("/cut", 200, Some("cut_short")),
        ("/reset", 200, Some("cut_short")),
        ("/bad-second-chunk", 200, Some("garbled")),
        ("/stall", 200, Some("stalled")),
        ("/closes", 502, Some("closed")),
        ("/half-a-head", 502, Some("closed")),
        ("/nonsense", 502, Some("not_understood")),
        ("/two-codings", 502, Some("not_understood")),
        ("/bad-chunk", 502, Some("not_understood")),
        ("/silent", 504, Some("timeout")),
    ] {
        let before = broken(&proxy, "blue").await;
        let response = Wire::connect(proxy.address).await.get(path).await;
        assert_eq!(response.status, status, "{path}");
        let mut wanted = before;
        if let Some(reason) = reason {
            *wanted.entry(reason.to_owned()).or_default() += 1;
        }
        assert_eq!(broken(&proxy, "blue").await, wanted, "{path}");
    }
    let force = SwitchRequest { force: true, ..SwitchRequest::to(backend("green")) };
    proxy.client.switch(&app(), &force).await.unwrap();
    assert_eq!(Wire::connect(proxy.address).await.get("/ok").await.status, 502);
    assert_eq!(broken(&proxy, "green").await, BTreeMap::from([("unreachable".to_owned(), 1)]));
}

#[tokio::test]
async fn what_breaks_counts_before_its_exchange_has_ended() {
    let app_ = breaker().await;
    let home = Home::new(app_.address, "127.0.0.1:9");
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(get("/cut")).await;
    let response = wire.response().await;
    assert!(response.status == 200 && !response.complete);
    assert_eq!(broken(&proxy, "blue").await, BTreeMap::from([("cut_short".to_owned(), 1)]));
}

#[tokio::test]
async fn a_client_that_leaves_breaks_nothing() {
    let app_ = breaker().await;
    let home = Home::new(app_.address, "127.0.0.1:9");
    let proxy = home.start().await;
    let mut stream = Wire::connect(proxy.address).await;
    stream.send(get("/stall")).await;
    stream.read_until(b"0123456789").await;
    socket2::SockRef::from(&stream.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    let mut upload = Wire::connect(proxy.address).await;
    upload.send("POST /silent HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await;
    until("it is in flight", async || (app_.seen() == 2).then_some(())).await;
    drop(upload);
    let mut tunnel = Wire::connect(proxy.address).await;
    tunnel.send(UPGRADE).await;
    assert_eq!(tunnel.response().await.status, 101);
    drop(tunnel);
    proxy.until_idle("blue").await;
    assert_eq!(broken(&proxy, "blue").await, BTreeMap::new());
}

#[tokio::test]
async fn an_exchange_is_overdue_once_and_while_it_still_waits() {
    let app_ = breaker().await;
    let home = Home::new(app_.address, "127.0.0.1:9").service("[services.app.timeouts]\noverdue = \"300ms\"");
    let proxy = home.start().await;
    let mut hangs = Wire::connect(proxy.address).await;
    hangs.send(get("/silent")).await;
    until("it is overdue", async || (overdue(&proxy).await == 1).then_some(())).await;
    assert_eq!(proxy.backend("blue").await.requests_in_flight, 1, "it is still waited for");
    let mut slow = Wire::connect(proxy.address).await;
    assert_eq!(slow.get("/slow").await.status, 200);
    assert_eq!(overdue(&proxy).await, 2, "one for each exchange");
    assert_eq!(slow.get("/ok").await.status, 200);
    // A response that has begun may take its time.
    let mut stalls = Wire::connect(proxy.address).await;
    stalls.send(get("/stall")).await;
    stalls.read_until(b"0123456789").await;
    // A slow client isn't the backend's fault.
    let mut upload = Wire::connect(proxy.address).await;
    upload.send("POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(overdue(&proxy).await, 2);
    assert_eq!(broken(&proxy, "blue").await, BTreeMap::new(), "late is not broken");
}

#[tokio::test]
async fn nothing_is_overdue_where_that_is_off() {
    let app_ = breaker().await;
    let home = Home::new(app_.address, "127.0.0.1:9")
        .service("[services.app.timeouts]\nread = \"700ms\"\noverdue = \"off\"");
    let proxy = home.start().await;
    assert_eq!(Wire::connect(proxy.address).await.get("/silent").await.status, 504);
    assert_eq!(overdue(&proxy).await, 0);
}

#[tokio::test]
async fn the_log_names_the_endpoint_and_why_a_response_was_invalid() {
    let app_ = breaker().await;
    let home = Home::new(app_.address, "127.0.0.1:9");
    let proxy = home.start().await;
    for path in
        ["/ok", "/two-codings", "/two-codings", "/length-and-coding", "/identity", "/bad-second-chunk"]
    {
        Wire::connect(proxy.address).await.get(path).await;
    }
    let force = SwitchRequest { force: true, ..SwitchRequest::to(backend("green")) };
    proxy.client.switch(&app(), &force).await.unwrap();
    assert_eq!(Wire::connect(proxy.address).await.get("/refused").await.status, 502);
    let lines = until("the lines are there", async || Some(home.access_log()).filter(|l| l.len() == 7)).await;
    let endpoint = app_.address.to_string();
    for (path, endpoint, reason) in [
        ("/ok", &*endpoint, None),
        ("/two-codings", &endpoint, Some("more than one Transfer-Encoding field")),
        ("/length-and-coding", &endpoint, Some("both Content-Length and Transfer-Encoding")),
        ("/identity", &endpoint, Some("a transfer coding other than chunked")),
        ("/bad-second-chunk", &endpoint, Some("malformed chunks in the response body")),
        ("/refused", "127.0.0.1:9", Some("connection refused")),
    ] {
        let line = lines.iter().find(|line| line["path"] == path).unwrap();
        assert_eq!(line["endpoint"], endpoint, "{line}");
        assert_eq!(line.get("reason").and_then(|reason| reason.as_str()), reason, "{line}");
    }
    // One warning, however many requests break.
    home.until_said("invalid response from the backend").await;
    let said = home.messages();
    let warnings: Vec<&str> =
        said.lines().filter(|line| line.contains("invalid response from the backend")).collect();
    assert_eq!(warnings.len(), 1, "{said}");
    assert!(said.contains("cannot connect to the backend"), "{said}");
    for word in ["app", "blue", &endpoint, "more than one Transfer-Encoding field"] {
        assert!(warnings[0].contains(word), "{word} is missing in {}", warnings[0]);
    }
}
