//! Renewal, while clients use the certificate.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::authority::{Apps, Pebble, Ports, https, until_issued, visit};
use crate::harness::cli;

/// The certificates' lifetime: they are renewed at two thirds of it.
const LIFETIME_S: u64 = 12;

#[tokio::test]
async fn a_renewal_under_load_drops_nothing() {
    let ports = Ports::new();
    let Some(pebble) = Pebble::start_with(ports, LIFETIME_S, 5).await else { return };
    let apps = Apps::start().await;
    let home = apps.home_for(&pebble, ports, "", "hosts = [\"app.test\"]");
    let proxy = home.start().await;
    proxy.until_healthy().await;
    until_issued(&home, &proxy).await;
    let client = Arc::new(pebble.client().await);
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|index| {
            let (client, stop) = (Arc::clone(&client), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut requests, mut seen) = (0, BTreeSet::new());
                let mut kept = client.connect(https(ports), "app.test").await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    // One half opens a connection for each request, the other keeps its own.
                    if index % 2 == 0 {
                        let (status, served) = visit(&client, ports, "app.test").await;
                        assert_eq!(status, 200);
                        seen.insert(served);
                    } else {
                        kept.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
                        assert_eq!(kept.response().await.status, 200);
                    }
                    requests += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                (requests, seen)
            })
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(6 * LIFETIME_S);
    while pebble.orders() < 3 {
        assert!(Instant::now() < deadline, "it isn't renewed:\n{}", home.messages());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let mut seen = BTreeSet::new();
    for load in load {
        let (requests, served) = load.await.unwrap();
        assert!(requests > 0);
        seen.extend(served);
    }
    assert!(seen.len() >= 3, "{} certificates were served", seen.len());
    let said = home.messages();
    assert!(!said.contains("ERROR"), "{said}");
}

#[tokio::test]
async fn an_expired_certificate_is_logged_and_fails_the_command() {
    let ports = Ports::new();
    let Some(pebble) = Pebble::start_with(ports, 8, 5).await else { return };
    let apps = Apps::start().await;
    let home = apps.home_for(&pebble, ports, "", "hosts = [\"app.test\"]");
    let proxy = home.start().await;
    until_issued(&home, &proxy).await;
    // Its renewal fails from now on.
    drop(pebble);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !home.messages().contains("a certificate has expired; clients reject it") {
        assert!(Instant::now() < deadline, "{}", home.messages());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (code, out, _) = cli(&home.socket(), &["certificates"]).await;
    assert!(code == 1 && out.contains("last error: "), "{code}: {out}");
    assert_eq!(home.messages().matches("a certificate has expired").count(), 1);
}
