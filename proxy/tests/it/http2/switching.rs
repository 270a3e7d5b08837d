//! Switches under load over HTTP/2: no stream fails, no connection is closed, and no old answer comes after the reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uh_protocol::request::{DrainRequest, MaintenanceRequest};

use super::clients::{Client, complete, get, metric, pair};
use crate::harness::{app, backend, soon, until};
use crate::tls::certificates::Site;

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

#[tokio::test]
async fn maintenance_and_its_bypass_are_as_over_http1() {
    let (_home, proxy, address, _apps) = pair("", "").await;
    let client = Client::plain(address).await;
    let order = |on: bool| MaintenanceRequest {
        on,
        message: on.then(|| "back soon".to_owned()),
        retry_after_s: on.then_some(30),
    };
    proxy.client.maintenance(&app(), &order(true)).await.unwrap();
    let answer = client.get("/").await;
    assert_eq!((answer.status.as_u16(), &answer.headers["retry-after"]), (503, &"30".parse().unwrap()));
    assert!(answer.text().contains("back soon"));
    assert_eq!(client.get("/api/health").await.status, 200, "health checks pass");
    proxy.client.maintenance(&app(), &order(false)).await.unwrap();
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(metric(&proxy, "uh_proxy_http2_streams_total").await, 3);
}
