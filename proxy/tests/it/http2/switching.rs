//! Switches under load over HTTP/2: no stream fails, no connection is closed, and no old answer comes after the reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::Request;
use uh_protocol::request::{DrainRequest, MaintenanceRequest};

use super::clients::{Answer, Client, complete, get, metric, pair, url};
use crate::harness::{Proxy, app, backend, soon, until};
use crate::tls::certificates::Site;
use crate::wire::Wire;

/// As many as a test that is run often can afford. More with `UH_SWITCHES`.
fn switches() -> u64 {
    std::env::var("UH_SWITCHES").ok().and_then(|count| count.parse().ok()).unwrap_or(200)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switches_under_load_fail_no_stream_and_close_no_connection() {
    let site = Site::start().await;
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut load = Vec::new();
    let mut clients = Vec::new();
    for n in 0..4 {
        let client = Arc::new(Client::tls(&site).await);
        for _ in 0..4 {
            let (client, stop, served) = (Arc::clone(&client), Arc::clone(&stop), Arc::clone(&served));
            load.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = match n % 2 {
                        0 => client.get("/bytes/10000").await,
                        _ => client.post("/upload", &[b'x'; 5000]).await.unwrap(),
                    };
                    assert_eq!(answer.status, 200);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        clients.push(client);
    }
    let observer = Client::tls(&site).await;
    for n in 0..switches() {
        let to = if n % 2 == 0 { "green" } else { "blue" };
        site.proxy.switch(to).await;
        // Opened after the reply: it must be served by the new backend.
        let answer = observer.get("/").await;
        assert!(answer.text().contains(to), "switch {n}: {}", answer.text());
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        soon("the load", task).await.unwrap();
    }
    assert!(served.load(Ordering::Relaxed) > switches(), "too little load to mean anything");
    assert!(clients.iter().all(|client| !client.ended.is_finished()) && !observer.ended.is_finished());
    let text = site.proxy.client.metrics().await.unwrap();
    assert!(!text.contains("uh_proxy_http2_resets_total{"), "{text}");
}

#[tokio::test]
async fn a_drain_waits_for_streams_and_cuts_those_that_are_late() {
    let (_home, proxy, address, _apps) = pair("", "").await;
    let client = Client::plain(address).await;
    let (short, _) = client.open(get("/slow?ms=300"), true).await;
    let (long, _) = client.open(get("/slow?ms=60000"), true).await;
    let (begun, _) = client.open(get("/stream?events=0&interval_ms=20"), true).await;
    let begun = soon("a response", begun).await.unwrap();
    until("all are in flight", async || (proxy.backend("blue").await.requests_in_flight == 3).then_some(()))
        .await;
    proxy.switch("green").await;
    let drain = DrainRequest { timeout_ms: Some(1000), cut: Some(true) };
    let drained = proxy.client.drain(&app(), &backend("blue"), &drain).await.unwrap();
    assert!(!drained.drained || drained.finished > 0, "{drained:?}");
    assert_eq!(soon("a response", short).await.unwrap().status(), 200);
    assert_eq!(soon("a response", long).await.unwrap().status(), 503);
    let broken = complete(begun).await.unwrap_err();
    assert_eq!(broken.reason(), Some(h2::Reason::INTERNAL_ERROR));
    assert!(client.get("/").await.text().contains("green"), "the connection is kept");
}

async fn maintain(proxy: &Proxy, on: bool) {
    let (message, retry_after_s) = (on.then(|| "back soon".to_owned()), on.then_some(30));
    let order = MaintenanceRequest { on, message, retry_after_s };
    proxy.client.maintenance(&app(), &order).await.unwrap();
}

/// Sends the same request over HTTP/1.1, and expects the same response.
async fn same_as_over_http1(proxy: &Proxy, answer: &Answer, path: &str, field: (&str, &str)) {
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n{}: {}\r\n\r\n", field.0, field.1)).await;
    let response = wire.response().await;
    assert_eq!(answer.status.as_u16(), response.status, "{path} {field:?}");
    for name in ["content-type", "cache-control", "retry-after", "x-backend", "vary"] {
        let over_two = answer.headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(over_two, response.header(name), "{path} {field:?}: {name}");
    }
    if response.status == 200 {
        // The app's: its health differs from one request to the next.
        return;
    }
    // Each request has an id of its own.
    let id = |text: &str, id: &str| text.replace(id, "ID");
    let own = answer.headers.get("x-request-id").map_or("-", |id| id.to_str().unwrap());
    let theirs = response.header("x-request-id").unwrap_or("-");
    assert_eq!(id(answer.text(), own), id(&response.text(), theirs), "{path} {field:?}");
}

#[tokio::test]
async fn maintenance_and_its_bypass_are_as_over_http1() {
    let bypass = "[services.app.maintenance]\nbypass_header = \"X-Look: a long secret\"\nbypass_addresses = [\"192.0.2.0/24\"]";
    let trusted = "trusted_proxies = [\"127.0.0.0/8\"]";
    let (_home, proxy, address, _apps) = pair(trusted, bypass).await;
    let client = Client::plain(address).await;
    maintain(&proxy, true).await;
    let html = ("accept", "text/html");
    for (path, (name, value), status) in [
        ("/", html, 503),
        ("/", ("accept", "application/json"), 503),
        ("/", ("x-look", "a long secret"), 200),
        ("/", ("x-look", "a wrong secret"), 503),
        ("/", ("x-look", ""), 503),
        ("/", ("x-forwarded-for", "192.0.2.7"), 200),
        ("/", ("x-forwarded-for", "203.0.113.9"), 503),
        ("/", ("x-forwarded-for", "192.0.2.7, 203.0.113.9"), 503),
        ("/api/health", html, 200),
        ("/api/health?deep=1", html, 200),
    ] {
        let request = Request::get(url(path)).header(name, value).body(()).unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.status, status, "{path} {name}: {value}");
        if status == 503 {
            assert_eq!(answer.headers["retry-after"], "30");
            assert!(answer.text().contains("back soon"), "{}", answer.text());
        }
        same_as_over_http1(&proxy, &answer, path, (name, value)).await;
    }
    // The connection is kept, even if a body isn't read.
    let post = Request::post(url("/upload")).header("content-length", 1_000_000).body(()).unwrap();
    let (response, mut stream) = client.open(post, false).await;
    assert_eq!(soon("a response", response).await.unwrap().status(), 503);
    let stopped = soon("the end of the stream", std::future::poll_fn(|cx| stream.poll_reset(cx))).await;
    assert_eq!(stopped.unwrap(), h2::Reason::NO_ERROR);
    // An operator sees what a switch has done.
    proxy.switch("green").await;
    let look = || Request::get(url("/")).header("x-look", "a long secret").body(()).unwrap();
    assert!(client.send(look()).await.unwrap().text().contains("green"));
    assert_eq!(client.get("/").await.status, 503, "a switch ended it");
    maintain(&proxy, false).await;
    assert_eq!(client.get("/").await.status, 200);
    assert!(!client.ended.is_finished());
    assert_eq!(metric(&proxy, "uh_proxy_http2_streams_total").await, 14);
}

#[tokio::test]
async fn over_tls_maintenance_has_the_same_bypass() {
    let service = "bypass_header = \"X-Look: a long secret\"";
    let site =
        Site::start_as("", "", |home| home.service(&format!("[services.app.maintenance]\n{service}"))).await;
    maintain(&site.proxy, true).await;
    let client = Client::tls(&site).await;
    assert_eq!(client.get("/").await.status, 503);
    let look = Request::get(url("/")).header("x-look", "a long secret").body(()).unwrap();
    assert_eq!(client.send(look).await.unwrap().status, 200);
    assert_eq!(client.get("/api/health").await.status, 200);
}
