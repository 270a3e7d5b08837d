//! Long exchanges during a switch and a drain.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use uh_protocol::client::ClientError;
use uh_protocol::request::DrainRequest;

use crate::harness::{Home, Proxy, SampleApp, Scripted, Then, app, backend, pair, soon, until};
use crate::wire::{Wire, get};

pub(crate) const WEBSOCKET: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A masked text frame, with a mask of zeros.
fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(text.as_bytes());
    frame
}

async fn until_a_drain_waits(proxy: &Proxy) {
    until("a drain waits", async || {
        let metrics = proxy.client.metrics().await.unwrap();
        metrics.contains("uh_proxy_drains_waiting 1\n").then_some(())
    })
    .await;
}

pub(crate) async fn echo<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>, text: &str) {
    wire.send(frame(text)).await;
    wire.read_until(text.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_and_a_drain_let_long_exchanges_finish_where_they_began() {
    const SECONDS: usize = 20;
    let (home, proxy, _blue, _green) = pair().await;
    let address = proxy.address;
    let download = tokio::spawn(async move {
        let mut wire = Wire::connect(address).await;
        wire.send(get(&format!("/bytes/{}?rate=1000", SECONDS * 1000))).await;
        let mut response = Vec::new();
        wire.stream.read_to_end(&mut response).await.map(|_| ()).ok();
        response
    });
    let mut upload = Wire::connect(address).await;
    upload.send(format!("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: {SECONDS}\r\n\r\n")).await;
    let upload = tokio::spawn(async move {
        for _ in 0..SECONDS {
            upload.send("x").await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        upload.response().await
    });
    let mut events = Wire::connect(address).await;
    events.send(get("/stream?events=60&interval_ms=200")).await;
    events.read_until(b"data: ").await;
    let mut socket = Wire::connect(address).await;
    socket.send(WEBSOCKET).await;
    assert_eq!(socket.response().await.status, 101);
    echo(&mut socket, "before the switch").await;
    until("all four are in flight", async || {
        let blue = proxy.backend("blue").await;
        (blue.requests_in_flight == 3 && blue.tunnels == 1).then_some(())
    })
    .await;

    let switched = proxy.switch("green").await;
    assert_eq!(switched.in_flight_previous, 4);
    assert_eq!(Wire::connect(address).await.get("/").await.header("x-backend"), Some("green"));
    let order = DrainRequest { timeout_ms: Some(200), cut: Some(false) };
    let drained = proxy.client.drain(&app(), &backend("blue"), &order).await.unwrap();
    assert!(!drained.drained);
    assert_eq!((drained.remaining.requests, drained.remaining.tunnels, drained.cut), (3, 1, 0));
    echo(&mut socket, "after the switch").await;

    let order = DrainRequest { timeout_ms: Some(60_000), cut: Some(false) };
    let client = proxy.client.clone();
    let drain = tokio::spawn(async move { client.drain(&app(), &backend("blue"), &order).await.unwrap() });
    let uploaded = upload.await.unwrap();
    assert_eq!((uploaded.status, uploaded.header("x-backend")), (200, Some("blue")));
    assert!(uploaded.text().contains(&format!("\"bytes\":{SECONDS}")), "{}", uploaded.text());
    let streamed = events.response().await;
    assert_eq!(streamed.header("x-backend"), Some("blue"));
    assert!(streamed.complete);
    assert_eq!(streamed.text().matches("data: ").count(), 60);
    echo(&mut socket, "still there").await;
    // The download is the last request, but its client keeps the connection, so it is read by its length.
    until("the requests are over", async || {
        (proxy.backend("blue").await.requests_in_flight == 0).then_some(())
    })
    .await;
    drop(socket);
    let drained = drain.await.unwrap();
    assert!(drained.drained, "{drained:?}");
    assert_eq!((drained.finished, drained.cut, drained.remaining.total()), (4, 0, 0));
    drop(proxy);
    let downloaded = download.await.unwrap();
    let text = String::from_utf8_lossy(&downloaded);
    assert!(text.contains("x-backend: blue"));
    assert_eq!(downloaded.len() - text.find("\r\n\r\n").unwrap() - 4, SECONDS * 1000);
    drop(home);
}

#[tokio::test]
async fn a_drain_at_its_deadline_cuts_what_is_left_if_asked_to() {
    let (home, proxy, _blue, _green) = pair().await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=60000")).await;
    let mut download = Wire::connect(proxy.address).await;
    download.send(get("/bytes/100000?rate=1000")).await;
    download.read_until(b"\r\n\r\n").await;
    let mut socket = Wire::connect(proxy.address).await;
    socket.send(WEBSOCKET).await;
    assert_eq!(socket.response().await.status, 101);
    proxy.switch("green").await;
    let order = DrainRequest { timeout_ms: Some(100), cut: Some(true) };
    let drained = proxy.client.drain(&app(), &backend("blue"), &order).await.unwrap();
    assert!(drained.drained, "{drained:?}");
    assert_eq!((drained.cut, drained.finished), (3, 0));
    // Clients without a response yet get one; the others see theirs cut off.
    let refused = slow.response().await;
    assert_eq!((refused.status, refused.header("connection")), (503, Some("close")));
    let mut rest = Vec::new();
    let _ = download.stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 100_000);
    let mut rest = Vec::new();
    socket.stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"\x88\x02\x03\xe9", "a close frame that says going away");
    until("the log has all three", async || {
        let cut = home.access_log().iter().filter(|line| line["termination"] == "DRAIN").count();
        (cut == 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_rollback_during_a_drain_is_reported_to_the_waiting_caller() {
    let (_home, proxy, _blue, _green) = pair().await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=1500")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    proxy.switch("green").await;
    let client = proxy.client.clone();
    let drain = tokio::spawn(async move {
        client
            .drain(&app(), &backend("blue"), &DrainRequest { timeout_ms: Some(30_000), cut: Some(true) })
            .await
    });
    until_a_drain_waits(&proxy).await;
    proxy.switch("blue").await;
    assert_eq!(slow.response().await.status, 200);
    let error = drain.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("active"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_bodies_flow_at_once() {
    // Far more than all buffers hold: a proxy that relays one direction at a time would deadlock.
    const BYTES: usize = 32 << 20;
    let (_home, proxy, _blue, _green) = pair().await;
    let stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let sender = tokio::spawn(async move {
        let head =
            format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {BYTES}\r\nConnection: close\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![b'x'; 1 << 16];
        for _ in 0..BYTES / piece.len() {
            write.write_all(&piece).await.unwrap();
        }
        write
    });
    let mut received = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = tokio::time::timeout(Duration::from_secs(20), read.read(&mut buffer))
            .await
            .expect("a lock-up")
            .unwrap();
        if n == 0 {
            break;
        }
        received += buffer[..n].iter().filter(|&&b| b == b'x').count();
    }
    assert!(received >= BYTES, "{received} of {BYTES}");
    drop(sender.await.unwrap());
    proxy.until_idle("blue").await;
}

#[tokio::test]
async fn a_redeployed_backend_inherits_no_connection() {
    let old = SampleApp::start("blue", "1").await;
    let new = SampleApp::start("blue", "2").await;
    let home = Home::new(old.address, "127.0.0.1:9").server("threads = 1");
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(wire.get("/").await.header("x-version"), Some("1"));
    until("a connection is kept", async || (proxy.backend("blue").await.connections.idle == 1).then_some(()))
        .await;
    let request = uh_protocol::request::BackendRequest {
        endpoints: vec![new.address.to_string()],
        version: Some("2".to_owned()),
        expect_generation: None,
        force: true,
    };
    proxy.client.set_backend(&app(), &backend("blue"), &request).await.unwrap();
    let blue = proxy.backend("blue").await;
    assert_eq!((blue.connections.active, blue.connections.idle), (0, 0), "a connection outlived its backend");
    assert_eq!(wire.get("/").await.header("x-version"), Some("2"));
}

#[tokio::test]
async fn a_drain_ends_at_once_when_its_backend_becomes_active_again() {
    let (_home, proxy, _blue, _green) = pair().await;
    let in_flight = async |count| {
        until("they are in flight", async || {
            (proxy.backend("blue").await.requests_in_flight == count).then_some(())
        })
        .await;
    };
    let mut first = Wire::connect(proxy.address).await;
    first.send(get("/slow?ms=60000")).await;
    in_flight(1).await;
    proxy.switch("green").await;
    let client = proxy.client.clone();
    let drain = tokio::spawn(async move {
        client
            .drain(&app(), &backend("blue"), &DrainRequest { timeout_ms: Some(600_000), cut: Some(true) })
            .await
    });
    until_a_drain_waits(&proxy).await;
    proxy.switch("blue").await;
    let ended = soon("the drain ends", drain).await.unwrap();
    let Err(ClientError::Problem(problem)) = ended else { panic!("{ended:?}") };
    assert_eq!(problem.code, uh_protocol::Code::BackendActive);
    // Neither was cut, and the next drain counts what began since.
    let mut second = Wire::connect(proxy.address).await;
    second.send(get("/slow?ms=60000")).await;
    in_flight(2).await;
    proxy.switch("green").await;
    let order = DrainRequest { timeout_ms: Some(1), cut: Some(false) };
    let drained = proxy.client.drain(&app(), &backend("blue"), &order).await.unwrap();
    assert!(!drained.drained && drained.remaining.requests == 2, "{drained:?}");
}

#[tokio::test]
async fn a_backend_that_answers_first_still_gets_the_whole_request() {
    let received = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&received);
    let early = Scripted::start(move |_, mut stream| {
        let count = std::sync::Arc::clone(&count);
        async move {
            let _ = stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok").await;
            for _ in 0..1000 {
                if stream.read_u8().await.is_err() {
                    break;
                }
                count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
            (stream, Then::KeepAlive)
        }
    })
    .await;
    let home = Home::new(early.address, "127.0.0.1:9").server("threads = 1");
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    for round in 1..=2 {
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n").await;
        wire.send([b'x'; 500]).await;
        assert_eq!(wire.response().await.status, 202);
        assert_eq!(
            proxy.backend("blue").await.requests_in_flight,
            1,
            "a request that is still going up is in flight"
        );
        wire.send([b'x'; 500]).await;
        until("all of it has arrived", async || {
            (received.load(std::sync::atomic::Ordering::SeqCst) == round * 1000).then_some(())
        })
        .await;
        proxy.until_idle("blue").await;
    }
}
