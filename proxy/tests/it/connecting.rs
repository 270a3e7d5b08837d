//! What ends an exchange while its connection to the backend is being opened.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use uh_protocol::request::DrainRequest;

use crate::harness::{Home, Proxy, SampleApp, app, backend, until};
use crate::wire::{Wire, get};

/// An endpoint that never completes a connect, like a host that is gone: its accept queue is full.
struct BlackHole {
    _listener: Socket,
    _queued: Vec<TcpStream>,
    address: std::net::SocketAddr,
}

impl BlackHole {
    fn open() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queued.push(stream);
            assert!(queued.len() < 100, "the queue never fills");
        }
        Self { _listener: listener, _queued: queued, address }
    }
}

async fn connecting(extra_server: &str, timeouts: &str) -> (BlackHole, Home, Proxy, Wire) {
    connecting_beside("127.0.0.1:9", extra_server, timeouts).await
}

async fn connecting_beside(
    green: impl ToString,
    extra_server: &str,
    timeouts: &str,
) -> (BlackHole, Home, Proxy, Wire) {
    let hole = BlackHole::open();
    let home = Home::new(hole.address, green)
        .server(extra_server)
        .service(&format!("[services.app.timeouts]\nconnect = \"10m\"\n{timeouts}"));
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(get("/")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    (hole, home, proxy, wire)
}

#[tokio::test]
async fn a_client_that_leaves_while_its_backend_is_connected_to_ends_the_exchange() {
    let (_hole, home, proxy, wire) = connecting("", "half_closed = \"300ms\"").await;
    drop(wire);
    proxy.until_idle("blue").await;
    let line = until("the line is there", async || home.access_log().pop()).await;
    assert!(line["status"] == 499 && line["termination"] == "DC", "{line}");
}

/// Nothing was sent yet, so the new backend can answer, whatever the method.
#[tokio::test]
async fn a_drain_that_cuts_moves_what_is_still_connecting_to_the_active_backend() {
    let green = SampleApp::start("green", "2").await;
    let (_hole, _home, proxy, mut wire) = connecting_beside(green.address, "", "").await;
    let mut post = Wire::connect(proxy.address).await;
    post.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok").await;
    until("both are in flight", async || (proxy.backend("blue").await.requests_in_flight == 2).then_some(()))
        .await;
    proxy.switch_by_force("green").await;
    let request = DrainRequest { timeout_ms: Some(300), cut: Some(true) };
    let drained = proxy.client.drain(&app(), &backend("blue"), &request).await.unwrap();
    assert_eq!((drained.drained, drained.finished, drained.cut), (true, 2, 0), "{drained:?}");
    for wire in [&mut wire, &mut post] {
        let response = wire.response().await;
        assert_eq!((response.status, response.text().contains("green")), (200, true), "{response:?}");
    }
}

#[tokio::test]
async fn a_drain_that_cuts_ends_what_is_still_connecting_where_no_retry_is_allowed() {
    let (_hole, _home, proxy, mut wire) =
        connecting("", "\n[services.app.retries]\npercent = 0\nper_second = 0").await;
    proxy.switch_by_force("green").await;
    let request = DrainRequest { timeout_ms: Some(300), cut: Some(true) };
    let drained = proxy.client.drain(&app(), &backend("blue"), &request).await.unwrap();
    assert_eq!(drained.cut, 1, "{drained:?}");
    proxy.until_idle("blue").await;
    assert_eq!(wire.response().await.status, 503);
}

#[tokio::test]
async fn the_deadline_of_a_stop_ends_what_is_still_connecting() {
    let (_hole, _home, mut proxy, mut wire) = connecting("shutdown_timeout = \"1s\"", "").await;
    let begun = Instant::now();
    proxy.signal(Signal::TERM);
    proxy.ended().await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(wire.response().await.status, 503, "it was cut without a word");
}

#[tokio::test]
async fn a_request_that_waits_for_a_connection_is_overdue_too() {
    let (_hole, _home, proxy, _wire) = connecting("", "overdue = \"300ms\"").await;
    until("it is overdue", async || {
        let metrics = proxy.client.metrics().await.unwrap();
        metrics
            .contains("uh_proxy_exchanges_overdue_total{service=\"app\",backend=\"blue\"} 1\n")
            .then_some(())
    })
    .await;
}

/// What it sends was written by the old rule, so what it gets is, too.
#[tokio::test]
async fn a_request_that_moves_to_another_backend_after_a_reload_keeps_its_rule() {
    let green = SampleApp::start("green", "2").await;
    let rule = "\n[[services.app.paths]]\nmatch = \"/\"\nresponse_headers = { set = { X-Mark = \"one\" } }\n";
    let (_hole, home, proxy, mut wire) = connecting_beside(green.address, "", rule).await;
    home.write_config(&home.config().replace("\"one\"", "\"two\""));
    proxy.client.reload().await.unwrap();
    proxy.switch_by_force("green").await;
    let request = DrainRequest { timeout_ms: Some(300), cut: Some(true) };
    proxy.client.drain(&app(), &backend("blue"), &request).await.unwrap();
    for mark in ["one", "two"] {
        let response = wire.response().await;
        assert_eq!((response.header("x-backend"), response.header("x-mark")), (Some("green"), Some(mark)));
        wire.send(get("/")).await;
    }
}
