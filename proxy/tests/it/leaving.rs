//! Clients that leave before they have their response, and clients that only have nothing more to send.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use uh_protocol::request::DrainRequest;

use crate::harness::{Home, Proxy, Scripted, Then, app, backend, until};
use crate::wire::{Wire, get};

/// An app that answers `/after/MS` after so many milliseconds, never answers `/silent`, sends events on `/events`, and
/// counts the connections that were closed meanwhile.
async fn slow_app(closed: &Arc<AtomicUsize>) -> Scripted {
    let closed = Arc::clone(closed);
    Scripted::start(move |head, mut stream| {
        let closed = Arc::clone(&closed);
        async move {
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            if let Some(ms) = path.strip_prefix("/after/") {
                tokio::time::sleep(Duration::from_millis(ms.parse().unwrap())).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                return (stream, Then::KeepAlive);
            }
            if path.starts_with("/events") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
                for _ in 0..8 {
                    let _ = stream.write_all(b"data: x\n\n").await;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                if path == "/events-that-end" {
                    return (stream, Then::Close);
                }
            }
            if path == "/deaf" {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            closed.fetch_add(1, Ordering::SeqCst);
            (stream, Then::Close)
        }
    })
    .await
}

async fn front_door(timeouts: &str) -> (Home, Proxy, Scripted, Arc<AtomicUsize>) {
    let closed = Arc::default();
    let blue = slow_app(&closed).await;
    let home = Home::new(blue.address, blue.address)
        .service(&format!("[services.app.timeouts]\nread = \"30s\"\n{timeouts}"));
    let proxy = home.start().await;
    proxy.until_healthy().await;
    (home, proxy, blue, closed)
}

/// Sends a request and closes its sending side, as `nc -N` does.
async fn half_closed(proxy: &Proxy, requests: &str) -> Wire {
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(requests).await;
    wire.stream.shutdown().await.unwrap();
    wire
}

/// The lines of the log once there are this many, as path, status and termination.
async fn lines(home: &Home, count: usize) -> Vec<(String, u64, String)> {
    let lines =
        until("the lines are there", async || Some(home.access_log()).filter(|l| l.len() >= count)).await;
    let of = |line: &serde_json::Value| {
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        (text("path"), line["status"].as_u64().unwrap(), text("termination"))
    };
    lines.iter().map(of).collect()
}

fn line(path: &str, status: u64, termination: &str) -> (String, u64, String) {
    (path.to_owned(), status, termination.to_owned())
}

#[tokio::test]
async fn a_client_that_gave_up_is_a_499_and_no_error_of_the_app() {
    let (home, proxy, app_, closed) = front_door("half_closed = \"300ms\"").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(get("/silent")).await;
    until("the app has it", async || (app_.seen() == 1).then_some(())).await;
    drop(wire);
    proxy.until_idle("blue").await;
    until("the app's connection is closed", async || (closed.load(Ordering::SeqCst) == 1).then_some(()))
        .await;
    assert_eq!(lines(&home, 1).await, [line("/silent", 499, "DC")]);
    let metrics = proxy.client.metrics().await.unwrap();
    assert!(
        metrics.contains(
            "uh_proxy_requests_total{service=\"app\",backend=\"blue\",code=\"499\",method=\"GET\"} 1\n"
        ),
        "{metrics}"
    );
    assert!(!metrics.contains("code=\"504\""), "{metrics}");
}

#[tokio::test]
async fn an_answer_that_comes_after_its_client_has_left_is_a_499() {
    let (home, proxy, app_, _closed) = front_door("half_closed = \"10s\"").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(get("/after/500")).await;
    until("the app has it", async || (app_.seen() == 1).then_some(())).await;
    drop(wire);
    assert_eq!(lines(&home, 1).await, [line("/after/500", 499, "DC")]);
    proxy.until_idle("blue").await;
}

#[tokio::test]
async fn a_half_closed_client_gets_an_answer_of_two_seconds_and_none_of_five() {
    let (home, proxy, _app, _closed) = front_door("").await;
    let mut two = half_closed(&proxy, &get("/after/2000")).await;
    let mut five = half_closed(&proxy, &get("/after/5000")).await;
    let begun = Instant::now();
    let response = two.response().await;
    assert!(response.status == 200 && response.text() == "ok", "{response:?}");
    assert!(two.is_closed().await, "nothing more can come");
    assert_eq!(five.read(false).await, None);
    assert!(begun.elapsed() >= Duration::from_millis(2900), "{:?}", begun.elapsed());
    let mut lines = lines(&home, 2).await;
    lines.sort();
    assert_eq!(lines, [line("/after/2000", 200, "-"), line("/after/5000", 499, "DC")]);
}

#[tokio::test]
async fn where_it_is_off_a_half_closed_client_is_waited_for_to_the_end() {
    let (_home, proxy, _app, _closed) = front_door("half_closed = \"off\"").await;
    let mut wire = half_closed(&proxy, &get("/after/4000")).await;
    assert_eq!(wire.response().await.status, 200);
}

#[tokio::test]
async fn the_time_counts_only_while_nothing_moves() {
    let (home, proxy, _app, _closed) = front_door("half_closed = \"700ms\"").await;
    let mut wire = half_closed(&proxy, &get("/events-that-end")).await;
    let response = wire.response().await;
    assert!(response.complete && response.text().matches("data").count() == 8, "{response:?}");
    assert_eq!(lines(&home, 1).await, [line("/events-that-end", 200, "-")]);
}

#[tokio::test]
async fn a_stream_whose_client_has_left_ends() {
    let (home, proxy, _app, closed) = front_door("half_closed = \"300ms\"").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(get("/events")).await;
    for _ in 0..2 {
        wire.read_until(b"data").await;
    }
    // It only closes its sending side: no reset follows, and it is silent before that is noticed.
    wire.stream.shutdown().await.unwrap();
    until("the app's connection is closed", async || (closed.load(Ordering::SeqCst) == 1).then_some(()))
        .await;
    assert_eq!(lines(&home, 1).await, [line("/events", 200, "DC")]);
    proxy.until_idle("blue").await;
}

#[tokio::test]
async fn no_drain_waits_for_a_client_that_has_left() {
    let (_home, proxy, app_, _closed) = front_door("half_closed = \"500ms\"").await;
    let mut ghosts = Vec::new();
    for path in ["/silent", "/events", "/after/20000"] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(get(path)).await;
        ghosts.push(wire);
    }
    until("the app has them", async || (app_.seen() == 3).then_some(())).await;
    proxy.switch("green").await;
    drop(ghosts);
    let request = DrainRequest { timeout_ms: Some(15_000), cut: Some(false) };
    let drained = proxy.client.drain(&app(), &backend("blue"), &request).await.unwrap();
    assert!(drained.drained && drained.remaining.requests == 0 && drained.cut == 0, "{drained:?}");
}

#[tokio::test]
async fn what_a_client_has_pipelined_before_its_end_is_answered() {
    let (home, proxy, _app, _closed) = front_door("").await;
    let mut wire = half_closed(&proxy, &(get("/after/300") + &get("/after/301"))).await;
    assert_eq!(wire.response().await.status, 200);
    assert_eq!(wire.response().await.status, 200);
    assert!(wire.is_closed().await);
    assert_eq!(lines(&home, 2).await, [line("/after/300", 200, "-"), line("/after/301", 200, "-")]);
}

#[tokio::test]
async fn a_client_that_pipelines_and_leaves_is_noticed() {
    let (home, proxy, app_, _closed) = front_door("half_closed = \"300ms\"").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(get("/silent") + &get("/after/1")).await;
    until("the app has the first", async || (app_.seen() == 1).then_some(())).await;
    drop(wire);
    proxy.until_idle("blue").await;
    assert_eq!(lines(&home, 1).await, [line("/silent", 499, "DC")]);
}

#[tokio::test]
async fn an_upload_that_the_app_does_not_take_ends_when_its_client_resets() {
    let (home, proxy, app_, _closed) = front_door("").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("POST /deaf HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n").await;
    let piece = vec![b'x'; 1 << 16];
    while tokio::time::timeout(Duration::from_millis(500), wire.stream.write_all(&piece)).await.is_ok() {}
    assert_eq!(app_.seen(), 1);
    socket2::SockRef::from(&wire.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(wire);
    assert_eq!(lines(&home, 1).await, [line("/deaf", 499, "DC")]);
    proxy.until_idle("blue").await;
}

/// An app that reads nothing of an upload until it is notified; then it reads all of it and answers.
async fn reluctant_app(may_read: &Arc<Notify>) -> Scripted {
    let may_read = Arc::clone(may_read);
    Scripted::start(move |head, mut stream| {
        let may_read = Arc::clone(&may_read);
        async move {
            if head.starts_with("POST") {
                may_read.notified().await;
                let (mut seen, mut piece) = (Vec::new(), vec![0; 1 << 16]);
                while !seen.ends_with(b"\r\n0\r\n\r\n") {
                    let count = stream.read(&mut piece).await.unwrap_or(0);
                    if count == 0 {
                        return (stream, Then::Close);
                    }
                    seen.extend_from_slice(&piece[..count]);
                    let needless = seen.len().saturating_sub(16);
                    seen.drain(..needless);
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            (stream, Then::KeepAlive)
        }
    })
    .await
}

/// How much of the client's data is unread in the proxy's socket.
fn unread(wire: &Wire) -> u64 {
    let port = |address: std::io::Result<std::net::SocketAddr>| format!(":{:04X}", address.unwrap().port());
    let (client, proxy) = (port(wire.stream.local_addr()), port(wire.stream.peer_addr()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let queue = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ours = fields.get(1)?.ends_with(&proxy) && fields.get(2)?.ends_with(&client);
        ours.then(|| u64::from_str_radix(fields[4].split(':').nth(1).unwrap(), 16).unwrap())
    });
    queue.unwrap_or(0)
}

/// Its close is known long before its data has been read.
#[tokio::test]
async fn all_that_a_client_sent_before_its_end_is_served_however_late_it_is_read() {
    for half_closed in ["10s", "500ms"] {
        let may_read = Arc::new(Notify::new());
        let app = reluctant_app(&may_read).await;
        let timeouts = format!("[services.app.timeouts]\nhalf_closed = \"{half_closed}\"");
        let home = Home::new(app.address, app.address).service(&timeouts);
        let proxy = home.start().await;
        proxy.until_healthy().await;
        let mut wire = Wire::connect(proxy.address).await;
        wire.send("POST /slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let chunk = [b"4000\r\n".as_slice(), &[b'x'; 0x4000], b"\r\n"].concat();
        // Until the app's connection is full and the rest waits in the proxy's socket.
        let mut waiting = 0;
        while waiting < 20 {
            waiting = if unread(&wire) > 0 { waiting + 1 } else { 0 };
            if waiting == 0 {
                wire.send(&chunk).await;
            } else {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        wire.send(&[b"0\r\n\r\n", get("/second").as_bytes()].concat()).await;
        wire.stream.shutdown().await.unwrap();
        // Longer than it takes to notice its close, and than the shorter of the two timeouts.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        may_read.notify_one();
        let response = wire.response().await;
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "the upload, {half_closed}");
        assert_eq!(wire.response().await.status, 200, "the second request, {half_closed}");
        assert!(wire.is_closed().await);
    }
}
