//! Files belong to the active backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uh_protocol::request::DrainRequest;

use super::{FILES, Site};
use crate::harness::{app, backend, soon, until};
use crate::wire::get;

/// The page and the asset that it names are of one version, whenever both are asked for after the switch's reply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_and_assets_change_in_one_step() {
    let site = Arc::new(Site::start(FILES).await);
    for name in ["blue", "green"] {
        site.put(name, "index.html", format!("{name} page"));
        site.put(name, "app.js", format!("{name} asset {}", "x".repeat(100_000)));
    }
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (site, stop, served) = (Arc::clone(&site), Arc::clone(&stop), Arc::clone(&served));
            tokio::spawn(async move {
                let mut wire = site.wire().await;
                while !stop.load(Ordering::Relaxed) {
                    for path in ["/", "/app.js"] {
                        let response = wire.get(path).await;
                        assert!(response.complete && response.status == 200);
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    let mut wire = site.wire().await;
    for n in 0..100 {
        let to = if n % 2 == 0 { "green" } else { "blue" };
        site.proxy.switch(to).await;
        for path in ["/", "/app.js"] {
            let response = wire.get(path).await;
            assert!(response.text().starts_with(to), "switch {n}, {path}: {}", &response.text()[..12]);
        }
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        soon("the load", task).await.unwrap();
    }
    assert!(served.load(Ordering::Relaxed) > 200, "too little load to mean anything");
}

#[tokio::test]
async fn a_file_that_is_being_sent_is_waited_for_by_a_drain_and_can_be_cut() {
    let site = Site::start(FILES).await;
    site.put("blue", "large.bin", vec![b'x'; 32 << 20]);
    let mut wire = site.wire().await;
    wire.send(get("/large.bin")).await;
    until("it is in flight", async || {
        (site.proxy.backend("blue").await.requests_in_flight == 1).then_some(())
    })
    .await;
    site.proxy.switch("green").await;
    let drain = |cut| DrainRequest { timeout_ms: Some(200), cut: Some(cut) };
    let drained = site.proxy.client.drain(&app(), &backend("blue"), &drain(false)).await.unwrap();
    assert!(!drained.drained, "{drained:?}");
    site.proxy.client.drain(&app(), &backend("blue"), &drain(true)).await.unwrap();
    let response = wire.response().await;
    assert!(!response.complete);
    until("it is logged", async || {
        let lines = site.home.access_log();
        (lines.len() == 1).then(|| assert_eq!(lines[0]["termination"], "DRAIN"))
    })
    .await;
}
