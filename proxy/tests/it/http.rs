//! HTTP/1.1 over raw sockets, as clients and backends see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Home, SampleApp, Scripted, Then, pair, until};
use crate::wire::{Wire, get};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// uh-proxy in front of one scripted app.
async fn before(app: &Scripted, service: &str) -> (Home, crate::harness::Proxy) {
    let home = Home::new(app.address, "127.0.0.1:9").server("threads = 1").service(service);
    let proxy = home.start().await;
    (home, proxy)
}

#[tokio::test]
async fn a_backend_sees_who_asked_and_keeps_the_connection() {
    let (_home, proxy, _blue, _green) = pair().await;
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..3 {
        wire.send(
            "GET /headers?a=%zz;b HTTP/1.1\r\nHost: app.test:8080\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: x-hop\r\n\
             X-Hop: 1\r\nX-Request-Id: abc\r\nTE: trailers\r\n\r\n",
        )
        .await;
        let response = wire.response().await;
        assert_eq!(response.header("x-request-id"), Some("abc"));
        let seen: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(seen["target"], "/headers?a=%zz;b");
        let headers: Vec<(String, String)> = serde_json::from_value(seen["headers"].clone()).unwrap();
        let of = |name: &str| {
            headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(of("host"), ["app.test:8080"]);
        assert_eq!(of("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(of("x-forwarded-proto"), ["http"]);
        assert_eq!(of("x-forwarded-host"), ["app.test:8080"]);
        assert_eq!(of("x-request-id"), ["abc"]);
        for name in ["x-hop", "connection", "te", "keep-alive"] {
            assert!(of(name).is_empty(), "{name} was passed on");
        }
    }
    let blue = proxy.backend("blue").await;
    assert_eq!(blue.connections.active + blue.connections.idle, 1, "one connection was enough: {blue:?}");
}

#[tokio::test]
async fn bodies_arrive_whole_sized_and_chunked() {
    let (_home, proxy, _blue, _green) = pair().await;
    let mut wire = Wire::connect(proxy.address).await;
    // SHA-256 of 200,000 times "a".
    let body = "a".repeat(200_000);
    let mut chunked = String::from("POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in body.as_bytes().chunks(777) {
        chunked.push_str(&format!("{:x};ext=1\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).unwrap()));
    }
    chunked.push_str("0\r\nX-Trailer: yes\r\n\r\n");
    wire.send(format!("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
        .await;
    let sized = wire.response().await;
    wire.send(chunked).await;
    let by_chunks = wire.response().await;
    let hash = |response: &crate::wire::Response| {
        let value: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(value["bytes"], 200_000);
        value["sha256"].as_str().unwrap().to_owned()
    };
    assert_eq!(hash(&sized), hash(&by_chunks));
    for path in ["/bytes/300000", "/bytes/300000?chunked=1", "/bytes/0"] {
        let response = wire.get(path).await;
        assert!(response.complete, "{path}");
        let wanted = if path == "/bytes/0" { 0 } else { 300_000 };
        assert_eq!(response.body.len(), wanted, "{path}");
    }
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it_from_the_backend() {
    let (_home, proxy, _blue, _green) = pair().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(wire.response().await.status, 100);
    wire.send("body").await;
    let response = wire.response().await;
    assert_eq!(response.status, 200);
    assert!(response.text().contains("\"bytes\":4"));
    assert_eq!(wire.get("/").await.status, 200, "the connection was not kept");
}

#[tokio::test]
async fn an_early_answer_is_passed_on_and_the_rest_of_the_request_read_away() {
    let app = Scripted::start(|_, mut stream| async move {
        let reply = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbig!";
        let _ = stream.write_all(reply).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        (stream, Then::Close)
    })
    .await;
    let (_home, proxy) = before(&app, "").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").await;
    wire.send(vec![b'x'; 300_000]).await;
    let response = wire.response().await;
    assert_eq!((response.status, response.text().as_str()), (413, "big!"));
}

/// A whole first message of a TLS client: one record with one `ClientHello` that offers one cipher suite and the extension
/// `supported_groups`, whose number 10 looks like a line feed.
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x00\x35\x01\x00\x00\x31\x03\x03\
    0123456789abcdef0123456789abcdef\
    \x00\x00\x02\x13\x01\x01\x00\x00\x06\x00\x0a\x00\x02\x00\x1d";

#[tokio::test]
async fn tls_on_the_plain_port_is_refused_at_the_first_byte() {
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(app.address, "127.0.0.1:9").server("limits = { header_timeout = \"10m\" }");
    let proxy = home.start().await;
    assert!(CLIENT_HELLO.windows(2).any(|pair| pair == b"\x00\x0a"));
    for bytes in [CLIENT_HELLO, &CLIENT_HELLO[..1], b"\0", b"\x80\x2e"] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(bytes).await;
        let response = wire.response().await;
        assert_eq!((response.status, response.header("connection")), (400, Some("close")));
    }
    home.until_said("reason=\"tls\"").await;
    let metrics = proxy.client.metrics().await.unwrap();
    assert!(metrics.contains("uh_proxy_client_connections_refused_total{reason=\"tls\"} 2"), "{metrics}");
    until("it is in the access log", async || (home.access_log().len() == 4).then_some(())).await;
    assert_eq!(home.access_log()[0]["termination"], "BR");
}

#[tokio::test]
async fn an_app_may_send_as_many_fields_as_the_service_allows() {
    let app = Scripted::start(|head, mut stream| async move {
        let count: usize = head.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        let cookies: String = (0..count - 1).map(|n| format!("Set-Cookie: c{n}=1\r\n")).collect();
        let _ = stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{cookies}\r\n").as_bytes())
            .await;
        (stream, Then::KeepAlive)
    })
    .await;
    for (limits, most) in [("", 1000), ("[services.app.limits]\nresponse_fields = 50", 50)] {
        let (_home, proxy) = before(&app, limits).await;
        let mut wire = Wire::connect(proxy.address).await;
        let response = wire.get(&format!("/{most}")).await;
        assert_eq!((response.status, response.head.matches("Set-Cookie").count()), (200, most - 1));
        assert_eq!(wire.get(&format!("/{}", most + 1)).await.status, 502);
    }
}

/// Clients that write the whole upload before they read, as most HTTP libraries do.
#[tokio::test]
async fn an_early_answer_reaches_a_client_that_reads_only_after_its_upload_of_any_size() {
    const UPLOAD: usize = 48 << 20;
    let app = Scripted::start(|_, mut stream| async move {
        let reply = b"HTTP/1.1 401 Who\r\nContent-Length: 4\r\nConnection: close\r\n\r\nwho?";
        let _ = stream.write_all(reply).await;
        let _ = stream.shutdown().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        (stream, Then::Close)
    })
    .await;
    let (_home, proxy) = before(&app, "[services.app.limits]\nbody_bytes = \"64MiB\"").await;
    let upload = vec![b'x'; UPLOAD];
    let beyond = 128 << 20;
    for (length, sent, status) in [(UPLOAD, UPLOAD, 401), (beyond, UPLOAD, 413)] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")).await;
        wire.send(&upload[..sent]).await;
        assert_eq!(wire.response().await.status, status);
    }
    // By an app that keeps its connection but doesn't read the rest.
    let deaf = Scripted::start(|_, mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 401 Who\r\nContent-Length: 4\r\n\r\nwho?").await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        (stream, Then::Close)
    })
    .await;
    let (_deaf_home, deaf_proxy) = before(&deaf, "").await;
    let mut wire = Wire::connect(deaf_proxy.address).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {UPLOAD}\r\n\r\n")).await;
    wire.send(&upload).await;
    assert_eq!(wire.response().await.status, 401);
    // Rejected because its body turns out to be too large.
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n7000000\r\n").await;
    wire.send(&upload).await;
    wire.send(&upload).await;
    assert!([401, 413].contains(&wire.response().await.status));
}

/// Slower than most, but faster than `limits.min_body_rate`.
#[tokio::test]
async fn an_early_answer_reaches_a_client_whose_upload_is_as_slow_as_is_allowed() {
    let app = Scripted::start(|_, mut stream| async move {
        let reply = b"HTTP/1.1 401 Who\r\nContent-Length: 4\r\nConnection: close\r\n\r\nwho?";
        let _ = stream.write_all(reply).await;
        (stream, Then::Close)
    })
    .await;
    let (_home, proxy) = before(&app, "").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8000\r\n\r\n").await;
    for _ in 0..16 {
        wire.send([b'x'; 500]).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(wire.response().await.status, 401);
}

#[tokio::test]
async fn old_clients_get_no_chunks_and_no_interim_responses() {
    let app = Scripted::start(|_, mut stream| async move {
        let reply = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n\
                      HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        let _ = stream.write_all(reply).await;
        (stream, Then::KeepAlive)
    })
    .await;
    let (_home, proxy) = before(&app, "").await;
    let mut old = Wire::connect(proxy.address).await;
    old.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    let response = old.response().await;
    assert_eq!((response.status, response.text().as_str()), (200, "abcde"));
    assert_eq!((response.header("transfer-encoding"), response.header("connection")), (None, Some("close")));
    let mut new = Wire::connect(proxy.address).await;
    assert_eq!(new.get("/").await.status, 103);
    let response = new.response().await;
    assert_eq!(response.text(), "abcde");
    assert!(response.complete);
    until("the one connection, which was enough for both, is idle", async || {
        let blue = proxy.backend("blue").await.connections;
        assert!(blue.active + blue.idle <= 1, "{blue:?}");
        (blue.idle == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (_home, proxy, _blue, _green) = pair().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("{}{}{}", get("/slow?ms=200"), get("/status/404"), get("/bytes/3"))).await;
    assert_eq!(wire.response().await.status, 200);
    assert_eq!(wire.response().await.status, 404);
    assert_eq!(wire.response().await.body.len(), 3);
}

#[tokio::test]
async fn a_client_that_closed_its_sending_side_is_answered() {
    let (_home, proxy, _blue, _green) = pair().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(get("/slow?ms=200")).await;
    wire.stream.shutdown().await.unwrap();
    assert_eq!(wire.response().await.status, 200);
    assert!(wire.is_closed().await);
}

#[tokio::test]
async fn responses_without_a_body_end_at_their_head() {
    let (_home, proxy, _blue, _green) = pair().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("HEAD /bytes/100 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = wire.response_to_head().await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("100")));
    for status in [204, 304] {
        assert_eq!(wire.get(&format!("/status/{status}")).await.status, status);
    }
    assert_eq!(wire.get("/").await.status, 200);
}

#[tokio::test]
async fn a_truncated_response_looks_truncated() {
    let app = Scripted::start(|head, mut stream| async move {
        let reply: &[u8] = if head.contains("/chunked") {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello"
        };
        let _ = stream.write_all(reply).await;
        (stream, Then::Close)
    })
    .await;
    let (_home, proxy) = before(&app, "").await;
    for path in ["/sized", "/chunked"] {
        let response = Wire::connect(proxy.address).await.get(path).await;
        assert!(!response.complete, "{path}: {response:?}");
        assert_eq!(response.text(), "hello");
    }
}

#[tokio::test]
async fn ambiguous_requests_are_refused_and_never_reach_a_backend() {
    let app = Scripted::start(|_, mut stream| async move {
        let _ = stream.write_all(OK).await;
        (stream, Then::KeepAlive)
    })
    .await;
    let (_home, proxy) = before(&app, "").await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for (head, status) in [
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 501),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n", 400),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("GARBAGE\r\n\r\n", 400),
    ] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(format!("{head}{smuggled}")).await;
        let response = wire.response().await;
        assert_eq!(response.status, status, "{head:?}");
        assert_eq!(response.header("connection"), Some("close"), "{head:?}");
        assert!(wire.is_closed().await, "{head:?}: something came after the refusal");
    }
    assert_eq!(app.seen(), 0, "a refused request reached the backend");
}

#[tokio::test]
async fn a_head_has_a_size_and_a_time() {
    let app = SampleApp::start("blue", "1").await;
    let limits = "limits = { header_bytes = \"2KiB\", header_timeout = \"300ms\", idle_timeout = \"300ms\" }";
    let home = Home::new(app.address, "127.0.0.1:9").server(limits);
    let proxy = home.start().await;
    let mut large = Wire::connect(proxy.address).await;
    large.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(3000))).await;
    assert_eq!(large.response().await.status, 431);
    let mut slow = Wire::connect(proxy.address).await;
    slow.send("GET / HTTP/1.1\r\n").await;
    assert_eq!(slow.response().await.status, 408);
    // A client that sends nothing is closed without an answer, at first or after a request.
    assert!(Wire::connect(proxy.address).await.is_closed().await);
    let mut idle = Wire::connect(proxy.address).await;
    assert_eq!(idle.get("/").await.status, 200);
    assert!(idle.is_closed().await);
}

#[tokio::test]
async fn a_dead_pooled_connection_is_replaced_where_that_is_safe() {
    // Keeps a connection for one request, and closes it when the next one arrives: the race caused by a backend's
    // keep-alive timeout.
    let mode = Arc::new(AtomicUsize::new(0));
    let script_mode = Arc::clone(&mode);
    let app = Scripted::start(move |head, mut stream| {
        let mode = Arc::clone(&script_mode);
        async move {
            if head.starts_with("GET /again") && mode.swap(1, Ordering::SeqCst) == 0 {
                return (stream, Then::Close);
            }
            let _ = stream.write_all(OK).await;
            (stream, Then::KeepAlive)
        }
    })
    .await;
    let (_home, proxy) = before(&app, "").await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(wire.get("/first").await.status, 200);
    assert_eq!(wire.get("/again").await.status, 200, "a stale connection became an error");
    let metrics = proxy.client.metrics().await.unwrap();
    let retried = "uh_proxy_retries_total{service=\"app\",backend=\"blue\",reason=\"stale_connection\"} 1";
    assert!(metrics.contains(retried), "{metrics}");
}

#[tokio::test]
async fn a_pooled_connection_that_the_backend_closed_is_not_used() {
    let app = Scripted::start(|_, mut stream| async move {
        let _ = stream.write_all(OK).await;
        (stream, Then::Close)
    })
    .await;
    let (_home, proxy) = before(&app, "").await;
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..20 {
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(wire.response().await.status, 200);
        // The end of the backend's connection is on its way; when it has arrived, the connection is no longer kept.
        until("the closed connection is gone", async || {
            let blue = proxy.backend("blue").await.connections;
            (blue.active + blue.idle == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn own_answers_name_what_happened() {
    let app = Scripted::start(|_, stream| async move {
        tokio::time::sleep(Duration::from_secs(30)).await;
        (stream, Then::Close)
    })
    .await;
    let service = "hosts = [\"app.test\"]\n[services.app.timeouts]\nread = \"200ms\"";
    let (_home, proxy) = before(&app, service).await;
    let mut wire = Wire::connect(proxy.address).await;
    let timed_out = wire.get("/").await;
    assert_eq!(timed_out.status, 504);
    assert!(timed_out.text().contains(timed_out.header("x-request-id").unwrap()));
    wire.send("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").await;
    assert_eq!(
        wire.response().await.status,
        404,
        "the connection was not kept, or an unknown host was served"
    );
}

#[tokio::test]
async fn a_websocket_works_however_fast_the_backend_answers() {
    const HANDSHAKES: usize = 300;
    // Answers before it has read the whole request, and sends data immediately.
    let app = Scripted::start(|_, mut stream| async move {
        let reply =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello";
        let _ = stream.write_all(reply).await;
        let mut buffer = [0; 4];
        let _ = stream.read_exact(&mut buffer).await;
        let _ = stream.write_all(&buffer).await;
        (stream, Then::Close)
    })
    .await;
    let (_home, proxy) = before(&app, "").await;
    for _ in 0..HANDSHAKES {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nping").await;
        assert_eq!(wire.response().await.status, 101);
        wire.read_until(b"helloping").await;
    }
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_passed_over() {
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(format!("127.0.0.1:9\", \"{}", app.address), "127.0.0.1:9").server("threads = 1");
    let proxy = home.start().await;
    for _ in 0..10 {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await;
        assert_eq!(wire.response().await.status, 200);
    }
}

#[tokio::test]
async fn a_backend_behind_a_unix_socket_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while matches!(stream.read(&mut buffer).await, Ok(n) if n > 0) {
                    let _ = stream.write_all(OK).await;
                }
            });
        }
    });
    let home = Home::new(format!("unix:{}", path.display()), "127.0.0.1:9");
    let proxy = home.start().await;
    until("it is healthy", async || (proxy.backend("blue").await.healthy == Some(true)).then_some(())).await;
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.text(), "ok");
}

#[tokio::test]
async fn a_client_that_breaks_off_ends_its_request_at_once() {
    let (_home, proxy, _blue, _green) = pair().await;
    for request in [
        get("/slow?ms=60000"),
        "POST /slow?ms=60000 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi".into(),
    ] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(&request).await;
        until("it is in flight", async || {
            (proxy.backend("blue").await.requests_in_flight == 1).then_some(())
        })
        .await;
        // Closing with linger 0 sends a reset, as a broken or killed client does.
        socket2::SockRef::from(&wire.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(wire);
        proxy.until_idle("blue").await;
    }
}

#[tokio::test]
async fn an_address_claimed_by_a_client_is_not_trusted() {
    let (_home, proxy, _blue, _green) = pair().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("GET /headers HTTP/1.1\r\nHost: a\r\nX-Real-IP: 6.6.6.6\r\nX-Forwarded-Ssl: on\r\nForwarded: for=6.6.6.6\r\n\r\n").await;
    let seen = wire.response().await.text();
    for lie in ["6.6.6.6", "x-forwarded-ssl"] {
        assert!(!seen.contains(lie), "{seen}");
    }
}

#[tokio::test]
async fn a_tunnel_carries_the_backends_last_words() {
    let app = Scripted::start(|_, mut stream| async move {
        let reply = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let _ = stream.write_all(reply).await;
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        let _ = stream.write_all(b"goodbye").await;
        (stream, Then::Close)
    })
    .await;
    let (_home, proxy) = before(&app, "").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(wire.response().await.status, 101);
    wire.stream.shutdown().await.unwrap();
    wire.read_until(b"goodbye").await;
    proxy.until_idle("blue").await;
}
