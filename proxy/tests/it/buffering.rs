//! Request buffering, with real sockets: what the app gets, and when.

mod disk;
mod http2;
mod limits;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::harness::{Home, Proxy, Scripted, Then, until};
use crate::recorder::{End, OK, Recorder};
use crate::wire::{Response, Wire};

/// All in memory.
const IN_MEMORY: &str = "buffer_requests = { max_bytes = \"1MiB\" }";

/// A body no two parts of which are the same.
fn patterned(bytes: usize) -> String {
    (0..bytes).map(|at| char::from(b'a' + u8::try_from((at * 7 + at / 255) % 26).unwrap())).collect()
}

fn post(path: &str, fields: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

fn length(bytes: usize) -> String {
    format!("Content-Length: {bytes}")
}

/// In chunks of so many bytes.
fn chunked(body: &str, size: usize) -> String {
    let chunk = |part: &[u8]| format!("{:x}\r\n{}\r\n", part.len(), String::from_utf8_lossy(part));
    body.as_bytes().chunks(size).map(chunk).collect::<String>() + "0\r\n\r\n"
}

/// A front door before an app that records what it gets.
async fn recorded(service: &str) -> (Home, Proxy, Recorder) {
    let app = Recorder::start(|target| match target {
        "/closes" => (OK.to_vec(), End::Close),
        _ => (OK.to_vec(), End::Keep),
    })
    .await;
    let home = Home::new(app.address, "127.0.0.1:9").service(service);
    let proxy = home.start().await;
    (home, proxy, app)
}

/// Waits until the app has been asked.
async fn until_in_flight(proxy: &Proxy) {
    let asked = async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(());
    until("a request is in flight", asked).await;
}

/// Waits until a part of a request is in memory.
async fn until_buffered(proxy: &Proxy) {
    let buffered = async || {
        let metrics = proxy.client.metrics().await.unwrap();
        (!metrics.contains("uh_proxy_request_buffer_bytes{place=\"memory\"} 0\n")).then_some(())
    };
    until("it is buffered", buffered).await;
}

async fn ok(wire: &mut Wire) -> Response {
    let response = wire.response().await;
    assert!(response.status == 200 && response.text() == "ok", "{response:?}");
    response
}

#[tokio::test]
async fn a_slow_client_holds_nothing_of_the_app_until_its_request_is_complete() {
    const PARTS: usize = 5;
    const PAUSE: Duration = Duration::from_millis(20);
    let (home, proxy, app) = recorded(IN_MEMORY).await;
    let body = patterned(PARTS * 1_000);
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(post("/", &length(body.len()))).await;
    for (number, part) in (1..).zip(body.as_bytes().chunks(1_000)) {
        assert_eq!(proxy.backend("blue").await.requests_in_flight, 0);
        assert!(app.take().is_empty(), "the app was asked too early");
        wire.send(part).await;
        if number < PARTS {
            until_buffered(&proxy).await;
            tokio::time::sleep(PAUSE).await;
        }
    }
    ok(&mut wire).await;
    let seen = app.take();
    assert!(seen.len() == 1 && seen[0].complete && seen[0].body == body, "{seen:?}");
    // The connection is kept, and what follows isn't taken for a part of the body.
    wire.send(format!("{}abc{}xyz", post("/1", &length(3)), post("/2", &length(3)))).await;
    ok(&mut wire).await;
    ok(&mut wire).await;
    let bodies: Vec<String> = app.take().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, ["abc", "xyz"]);
    proxy
        .until_counted(
            "uh_proxy_request_buffering_total{service=\"app\",backend=\"blue\",result=\"memory\"} 3",
        )
        .await;
    proxy.until_counted("uh_proxy_request_buffer_bytes{place=\"memory\"} 0").await;
    until("all is logged", async || (home.access_log().len() == 3).then_some(())).await;
    let line = home.access_log().remove(0);
    // The app's time is without the client's pauses. Both are in whole milliseconds.
    let waited = line["request_time"].as_f64().unwrap() - line["upstream_time"].as_f64().unwrap();
    let pauses = PAUSE.as_secs_f64() * (PARTS - 1) as f64;
    assert!(waited > pauses - 0.002, "{line}");
}

#[tokio::test]
async fn without_it_the_app_is_asked_at_once() {
    let (_home, proxy, _app) = recorded("").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(post("/", &length(2))).await;
    until_in_flight(&proxy).await;
    wire.send("ab").await;
    ok(&mut wire).await;
    let metrics = proxy.client.metrics().await.unwrap();
    assert!(!metrics.contains("request_buffering_total"), "{metrics}");
}

#[tokio::test]
async fn a_chunked_body_that_fits_gets_a_length() {
    let (_home, proxy, app) = recorded(IN_MEMORY).await;
    let mut wire = Wire::connect(proxy.address).await;
    for bytes in [0, 1, 70_000, 300_000] {
        let body = patterned(bytes);
        wire.send(post("/", "Transfer-Encoding: chunked\r\nTrailer: x")).await;
        wire.send(chunked(&body, 999)).await;
        ok(&mut wire).await;
        let seen = app.take().remove(0);
        let head = seen.head.to_ascii_lowercase();
        assert!(seen.complete && seen.body == body, "{bytes}");
        assert!(head.ends_with(&format!("|content-length: {bytes}")), "{head}");
        assert!(!head.contains("transfer-encoding") && !head.contains("trailer"), "{head}");
    }
}

#[tokio::test]
async fn what_is_too_large_is_streamed() {
    let (_home, proxy, app) = recorded("buffer_requests = { max_bytes = \"8KiB\" }").await;
    let body = patterned(20_000);
    let mut wire = Wire::connect(proxy.address).await;
    // Its length says so.
    wire.send(post("/", &length(body.len()))).await;
    until_in_flight(&proxy).await;
    wire.send(&body).await;
    ok(&mut wire).await;
    assert_eq!(app.take().remove(0).body, body);
    proxy.until_idle("blue").await;
    // It turns out. What was buffered goes first.
    wire.send(post("/", "Transfer-Encoding: chunked")).await;
    wire.send(format!("4e20\r\n{}", &body[..7_000])).await;
    assert_eq!(proxy.backend("blue").await.requests_in_flight, 0);
    wire.send(&body[7_000..9_000]).await;
    until_in_flight(&proxy).await;
    wire.send(format!("{}\r\n0\r\n\r\n", &body[9_000..])).await;
    ok(&mut wire).await;
    assert_eq!(app.take().remove(0).body, format!("4e20\r\n{body}\r\n0\r\n\r\n"));
    proxy.until_counted("result=\"too_large\"} 2").await;
    proxy.until_counted("uh_proxy_request_buffer_bytes{place=\"memory\"} 0").await;
}

#[tokio::test]
async fn an_upload_that_can_be_resumed_is_streamed() {
    let (_home, proxy, _app) = recorded(IN_MEMORY).await;
    for field in ["Tus-Resumable: 1.0.0", "upload-offset: 70"] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(format!("PATCH /files/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n{field}\r\n\r\nabc"))
            .await;
        until_in_flight(&proxy).await;
        wire.send("defghi").await;
        ok(&mut wire).await;
    }
    proxy.until_counted("result=\"resumable\"} 2").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("HEAD /files/1 HTTP/1.1\r\nHost: a\r\nTus-Resumable: 1.0.0\r\n\r\n").await;
    assert_eq!(wire.response_to_head().await.status, 200);
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it_from_us_and_the_app_does_not_see_that_it_waited() {
    let (_home, proxy, app) = recorded(IN_MEMORY).await;
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..2 {
        wire.send(post("/", "Expect: 100-continue\r\nContent-Length: 4")).await;
        assert_eq!(wire.response().await.status, 100);
        assert!(app.take().is_empty());
        wire.send("body").await;
        ok(&mut wire).await;
        let seen = app.take().remove(0);
        assert!(seen.body == "body" && !seen.head.to_ascii_lowercase().contains("expect"), "{seen:?}");
    }
    // Not if the body is refused anyway.
    let (_home, proxy, app) = recorded(&format!("{IN_MEMORY}\nlimits = {{ body_bytes = \"3B\" }}")).await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(post("/", "Expect: 100-continue\r\nContent-Length: 4")).await;
    assert_eq!(wire.response().await.status, 413);
    assert!(app.take().is_empty());
}

#[tokio::test]
async fn an_early_answer_reaches_the_client() {
    let app = Scripted::start(|_, mut stream| async move {
        let _ =
            stream.write_all(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").await;
        (stream, Then::Close)
    })
    .await;
    let home = Home::new(app.address, "127.0.0.1:9").service(IN_MEMORY);
    let proxy = home.start().await;
    let body = patterned(900_000);
    for _ in 0..20 {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(post("/", &length(body.len()))).await;
        wire.send(&body).await;
        let response = wire.response().await;
        assert!(response.status == 401 && response.text() == "no", "{response:?}");
        // Its request was read, so the next one begins where it ended.
        wire.send(post("/", &length(1))).await;
        wire.send("x").await;
        assert_eq!(wire.response().await.status, 401);
    }
}

#[tokio::test]
async fn a_request_goes_to_the_backend_that_is_active_when_it_is_complete() {
    let (blue, green) = (
        Recorder::start(|_| (OK.to_vec(), End::Keep)).await,
        Recorder::start(|_| (OK.to_vec(), End::Keep)).await,
    );
    let home = Home::new(blue.address, green.address).service(IN_MEMORY);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(post("/", &length(4))).await;
    wire.send("bo").await;
    proxy.switch("green").await;
    // Nothing of it is left on the old one.
    proxy.until_idle("blue").await;
    wire.send("dy").await;
    ok(&mut wire).await;
    assert!(blue.take().is_empty() && green.take().remove(0).body == "body");
}

#[tokio::test]
async fn maintenance_that_begins_meanwhile_is_the_answer() {
    let (_home, proxy, app) = recorded(IN_MEMORY).await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(post("/", &length(4))).await;
    wire.send("bo").await;
    let (code, _, said) = crate::harness::cli(&_home.socket(), &["maintenance", "on"]).await;
    assert_eq!(code, 0, "{said}");
    wire.send("dy").await;
    assert_eq!(wire.response().await.status, 503);
    assert!(app.take().is_empty());
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(wire.response().await.status, 503, "the connection isn't kept");
}

#[tokio::test]
async fn a_stop_waits_for_a_request_that_is_being_buffered() {
    let (_home, mut proxy, app) = recorded(IN_MEMORY).await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(post("/", &length(4))).await;
    wire.send("bo").await;
    until_buffered(&proxy).await;
    proxy.signal(rustix::process::Signal::TERM);
    wire.send("dy").await;
    ok(&mut wire).await;
    assert_eq!(app.take().remove(0).body, "body");
    assert!(proxy.ended().await.success());
}

#[tokio::test]
async fn paths_may_differ_from_their_service() {
    let rules = format!("{IN_MEMORY}\n[[services.app.paths]]\nmatch = \"/live\"\nbuffer_requests = false");
    let (_home, proxy, _app) = recorded(&rules).await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(post("/live/1", &length(2))).await;
    until_in_flight(&proxy).await;
    wire.send("ab").await;
    ok(&mut wire).await;
}

#[tokio::test]
async fn many_at_once_get_what_is_theirs() {
    let echo = Scripted::start(|head, mut stream| async move {
        let bytes = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; bytes.unwrap_or(0)];
        if tokio::io::AsyncReadExt::read_exact(&mut stream, &mut body).await.is_err() {
            return (stream, Then::Close);
        }
        let _ = stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())
            .await;
        let _ = stream.write_all(&body).await;
        (stream, Then::KeepAlive)
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let home = Home::new(echo.address, "127.0.0.1:9")
        .server(&format!("request_buffers = {{ directory = {:?} }}", directory.path()))
        .service("buffer_requests = { max_bytes = \"4MiB\", memory_bytes = \"16KiB\" }");
    let proxy = home.start().await;
    let address = proxy.address;
    let done = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for client in 0..24_usize {
        let done = Arc::clone(&done);
        clients.push(tokio::spawn(async move {
            let mut wire = Wire::connect(address).await;
            for round in 0..6_usize {
                let body = patterned(1 + client * 997 * (round + 1) * 3)[client..].to_owned();
                if (client + round) % 2 == 0 {
                    wire.send(post("/", &length(body.len()))).await;
                    wire.send(&body).await;
                } else {
                    wire.send(post("/", "Transfer-Encoding: chunked")).await;
                    wire.send(chunked(&body, 5_001)).await;
                }
                let response = wire.response().await;
                assert!(response.status == 200 && response.text() == body, "{client} {round}");
                done.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    for client in clients {
        crate::harness::soon("a client", client).await.unwrap();
    }
    assert_eq!(done.load(Ordering::SeqCst), 24 * 6);
    proxy.until_counted("uh_proxy_request_buffer_bytes{place=\"disk\"} 0").await;
    proxy.until_counted("uh_proxy_request_buffer_bytes{place=\"memory\"} 0").await;
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
