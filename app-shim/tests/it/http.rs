//! Requests through the shim.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::client::{Wire, get, response};
use crate::shim::{Shim, TALKER, command, within};

/// A shim in front of a listener of the test, which acts as the app.
async fn scripted(options: &[&str]) -> (Shim, std::net::SocketAddr, TcpListener) {
    Shim::before_listener(options, TALKER).await
}

/// A client and the app's side of a connection that the shim keeps, after one exchange on each.
async fn kept(address: std::net::SocketAddr, app: &TcpListener) -> (Wire, Wire) {
    let mut client = Wire::open(address).await;
    client.get("/first").await;
    let mut first = Wire::accept(app).await;
    first.head().await;
    first.send(response("one")).await;
    client.answer().await;
    (client, first)
}

#[tokio::test]
async fn a_request_reaches_the_app_and_its_response_the_client() {
    let (_shim, address) = Shim::serving(&[]).await;
    let answer = get(address, "/").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\ngreen 1.2.3\n"),
        "{answer}"
    );
    let seen = get(address, "/headers?a=%20b").await;
    assert!(
        seen.contains(r#""target":"/headers?a=%20b""#) && seen.contains(r#"["host","a.test"]"#),
        "{seen}"
    );
    assert!(
        seen.contains(r#"["x-forwarded-for","127.0.0.1"]"#) && !seen.contains(r#"["connection""#),
        "{seen}"
    );
}

#[tokio::test]
async fn both_bodies_stream_at_once() {
    let (_shim, address) = Shim::serving(&[]).await;
    let mut wire = Wire::open(address).await;
    wire.send("POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    wire.head().await;
    for text in ["one", "two"] {
        wire.send(format!("3\r\n{text}\r\n")).await;
        assert_eq!(wire.until(&format!("{text}\r\n")).await, format!("3\r\n{text}\r\n"));
    }
    wire.send("0\r\n\r\n").await;
    assert_eq!(wire.until("0\r\n\r\n").await, "0\r\n\r\n");
    wire.get("/").await;
    assert!(wire.answer().await.ends_with("green 1.2.3\n"), "the connection goes on");
}

/// A GET rarely has a body, but it must not be lost.
#[tokio::test]
async fn the_body_of_a_get_arrives_in_chunks_too() {
    let (_shim, address, app) = scripted(&[]).await;
    let mut client = Wire::open(address).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    let mut app = Wire::accept(&app).await;
    assert!(app.head().await.contains("transfer-encoding: chunked\r\n"));
    assert_eq!(app.until("0\r\n\r\n").await, "3\r\nabc\r\n0\r\n\r\n");
    app.send(response("ok")).await;
    assert!(client.answer().await.ends_with("ok"));
}

#[tokio::test]
async fn a_large_body_arrives_whole() {
    let (_shim, address) = Shim::serving(&[]).await;
    let mut wire = Wire::open(address).await;
    wire.get("/bytes/5000000").await;
    wire.head().await;
    let body = wire.read_exact(5_000_000).await;
    assert!(body.iter().enumerate().all(|(index, byte)| usize::from(*byte) == index % 251));
}

#[tokio::test]
async fn a_waiting_client_gets_100_continue_when_the_app_sends_it() {
    let (_shim, address) = Shim::serving(&[]).await;
    let mut wire = Wire::open(address).await;
    wire.send("POST /upload HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await;
    assert_eq!(wire.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    wire.send("abc").await;
    assert!(wire.answer().await.contains(r#""bytes":3"#));
    // This one is rejected by its head alone, so the body is never requested.
    wire.send("POST /status/413 HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
        .await;
    assert!(wire.answer().await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn an_app_without_100_continue_still_gets_the_body() {
    let (_shim, address, app) = scripted(&[]).await;
    let mut client = Wire::open(address).await;
    client.send("PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await;
    let mut app = Wire::accept(&app).await;
    app.head().await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("abc").await;
    assert_eq!(app.until("abc").await, "abc");
    app.send(response("ok")).await;
    assert!(client.answer().await.ends_with("ok"));
}

#[tokio::test]
async fn announced_trailers_pass_in_both_directions() {
    let (_shim, address, app) = scripted(&[]).await;
    let mut client = Wire::open(address).await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n").await;
    client.send("3\r\nabc\r\n0\r\nx-sum: up\r\n\r\n").await;
    let mut app = Wire::accept(&app).await;
    let head = app.head().await;
    assert!(head.contains("te: trailers\r\n") && head.contains("trailer: x-sum\r\n"), "{head}");
    assert_eq!(app.until("up\r\n\r\n").await, "3\r\nabc\r\n0\r\nx-sum: up\r\n\r\n");
    app.send("HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: down\r\n\r\n")
        .await;
    assert!(client.head().await.contains("trailer: x-sum\r\n"));
    assert_eq!(client.until("down\r\n\r\n").await, "2\r\nok\r\n0\r\nx-sum: down\r\n\r\n");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_app_s_work() {
    let (_shim, address, app) = scripted(&[]).await;
    let mut client = Wire::open(address).await;
    client.get("/waits").await;
    let mut waiting = Wire::accept(&app).await;
    waiting.head().await;
    drop(client);
    assert_eq!(waiting.rest().await.unwrap(), b"", "before the answer");

    let mut client = Wire::open(address).await;
    client.get("/streams").await;
    let mut streaming = Wire::accept(&app).await;
    streaming.head().await;
    streaming.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome").await;
    client.until("some").await;
    drop(client);
    let _ = within("the end", streaming.rest()).await;
}

#[tokio::test]
async fn a_safe_request_survives_an_idle_connection_that_the_app_closes() {
    let (_shim, address, app) = scripted(&[]).await;
    let (mut client, mut first) = kept(address, &app).await;
    // The request is written while the app closes.
    client.get("/second").await;
    assert!(first.head().await.starts_with("GET /second "));
    drop(first);
    let mut fresh = Wire::accept(&app).await;
    assert!(fresh.head().await.starts_with("GET /second "));
    fresh.send(response("two")).await;
    assert!(client.answer().await.ends_with("two"));
}

#[tokio::test]
async fn an_unsafe_request_is_never_sent_twice() {
    let (_shim, address, app) = scripted(&[]).await;
    let (mut client, mut first) = kept(address, &app).await;
    client.send("POST /order HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").await;
    assert!(first.head().await.starts_with("POST /order "));
    first.until("abc").await;
    drop(first);
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("closed the connection"), "{answer}");
    // The next request is the next one the app sees.
    client.get("/third").await;
    let mut fresh = Wire::accept(&app).await;
    assert!(fresh.head().await.starts_with("GET /third "));
}

#[tokio::test]
async fn an_unsafe_request_does_not_use_a_connection_that_the_app_has_closed() {
    let (_shim, address, app) = scripted(&[]).await;
    for round in 0..20 {
        let mut client = Wire::open(address).await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").await;
        let mut served = Wire::accept(&app).await;
        served.until("abc").await;
        served.send(response("ok")).await;
        assert!(client.answer().await.starts_with("HTTP/1.1 200 "), "round {round}");
        drop(served);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_app_that_is_down_gives_502_with_the_reason() {
    let (_shim, address, app) = scripted(&[]).await;
    let at = app.local_addr().unwrap();
    drop(app);
    let answer = get(address, "/").await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    assert!(
        answer.ends_with(&format!("app-shim: the app on {at} can't be reached: Connection refused\n")),
        "{answer}"
    );
    let health = get(address, "/api/health").await;
    assert!(health.starts_with("HTTP/1.1 503 ") && health.contains(r#""status":"unhealthy""#), "{health}");
    assert!(health.contains("can't reach the app on") && health.contains("Connection refused\""), "{health}");
}

#[tokio::test]
async fn a_truncated_response_does_not_look_complete() {
    let (_shim, address, app) = scripted(&[]).await;
    for head in ["content-length: 100", "transfer-encoding: chunked"] {
        let mut client = Wire::open(address).await;
        client.get("/").await;
        let mut broken = Wire::accept(&app).await;
        broken.head().await;
        broken.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n4\r\nsome\r\n")).await;
        client.until("some").await;
        drop(broken);
        let rest = client.rest().await.unwrap_or_default();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{head}");
    }
}

#[tokio::test]
async fn until_the_app_accepts_requests_get_503_and_health_says_starting() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("app.sock");
    let mut shim = Shim::start(&format!("unix:{}", socket.display()), &[], TALKER);
    let address = shim.address().await;
    let answer = get(address, "/").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1\r\n"), "{answer}");
    let health = get(address, "/api/health").await;
    assert!(health.starts_with("HTTP/1.1 503 ") && health.contains(r#""status":"starting""#), "{health}");
    let app = tokio::net::UnixListener::bind(&socket).unwrap();
    shim.log.wait_for("App accepts connections on unix:").await;
    let health = get(address, "/api/health").await;
    assert!(health.starts_with("HTTP/1.1 200 ") && health.contains(r#""status":"healthy""#), "{health}");
    drop(app);
    shim.signal(rustix::process::Signal::TERM);
    assert_eq!(shim.code().await, Some(0));
}

#[tokio::test]
async fn health_can_come_from_the_shim_the_app_or_both() {
    let app = crate::shim::sample_app_with(&[("UNHEALTHY", "1")]).await.to_string();
    for (source, status, from_app, reason) in [
        ("shim", "HTTP/1.1 200 ", false, false),
        ("app", "HTTP/1.1 503 ", true, false),
        ("both", "HTTP/1.1 503 ", false, true),
    ] {
        let mut command =
            command(&["--listen", "127.0.0.1:0", "--app", &app, "--health", source], &["sh", "-c", TALKER]);
        command.env("DEPLOYMENT_ENV", "violet").env("APP_VERSION", "7.0.0");
        let shim = Shim::spawn(command);
        let address = shim.address().await;
        shim.log.wait_for("App accepts connections").await;
        let answer = get(address, "/api/health").await;
        assert!(answer.starts_with(status), "{source}: {answer}");
        assert_eq!(answer.contains("x-backend: green"), from_app, "{source}: {answer}");
        assert_eq!(
            answer.contains(r#""deployment":"violet","version":"7.0.0""#),
            !from_app,
            "{source}: {answer}"
        );
        assert_eq!(answer.contains("the app answers 503"), reason, "{source}: {answer}");
    }
}

#[tokio::test]
async fn heads_have_a_limit() {
    let (_shim, address) = Shim::serving(&[]).await;
    let mut wire = Wire::open(address).await;
    wire.send(format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(100_000))).await;
    let answer = wire.until("\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let many: String = (0..500).map(|index| format!("x-{index}: 1\r\n")).collect();
    let mut wire = Wire::open(address).await;
    wire.send(format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n")).await;
    assert!(wire.until("\r\n").await.starts_with("HTTP/1.1 431 "));
    assert!(get(address, "/").await.starts_with("HTTP/1.1 200 "), "others are served");
}

/// uh-proxy forwards at most 128 fields, and adds a dozen.
#[tokio::test]
async fn as_many_fields_as_uh_proxy_forwards_are_accepted() {
    let (_shim, address) = Shim::serving(&[]).await;
    for count in [95, 101, 140] {
        let many: String = (1..count).map(|index| format!("x-{index}: 1\r\n")).collect();
        let mut wire = Wire::open(address).await;
        wire.send(format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n")).await;
        let answer = wire.until("\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{count} fields: {answer}");
    }
    let (_shim, address, app) = scripted(&[]).await;
    let mut client = Wire::open(address).await;
    client.get("/").await;
    let mut app = Wire::accept(&app).await;
    app.head().await;
    let many: String = (0..900).map(|index| format!("set-cookie: c{index}=1\r\n")).collect();
    app.send(format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{many}\r\n")).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.matches("set-cookie").count() == 900, "{head}");
}

#[tokio::test]
async fn metrics_are_served_on_a_separate_port() {
    let (shim, address) = Shim::serving(&["--metrics", "127.0.0.1:0"]).await;
    let line = shim.log.all().into_iter().find(|line| line.contains("(metrics)")).unwrap();
    let metrics = line.split("Listening on ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    get(address, "/").await;
    get(address, "/status/404").await;
    let text = get(metrics, "/metrics").await;
    for line in [
        "app_shim_responses_total{code=\"2xx\"} 1",
        "app_shim_responses_total{code=\"4xx\"} 1",
        "app_shim_requests_in_flight 0",
        "app_shim_draining 0",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line} is not in {text}");
    }
    assert!(get(metrics, "/api/health").await.starts_with("HTTP/1.1 200 "));
    assert!(get(address, "/metrics").await.starts_with("HTTP/1.1 404 "), "the app has no such page");
    assert!(TcpStream::connect(metrics).await.is_ok());
}
