//! Changes of weight under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt as _;
use uh_protocol::request::DrainRequest;

use super::{green, off, split};
use crate::harness::{Home, SampleApp, Scripted, Then, app, backend};
use crate::invariants::busy_clients;
use crate::wire::Wire;

/// As many as a test that is run often can afford. More with `UH_SPLITS`.
fn changes() -> usize {
    std::env::var("UH_SPLITS").ok().and_then(|count| count.parse().ok()).unwrap_or(300)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_weight_fails_no_request_and_holds_from_the_reply_on() {
    let (blue, other) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    // No connection ends because it has carried enough requests.
    let home =
        Home::new(blue.address, other.address).server("limits = { requests_per_connection = 1000000000 }");
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients = busy_clients(8, proxy.address, &stop);
    let mut wire = Wire::connect(proxy.address).await;
    for n in 0..changes() {
        // 100 %, some share, 0 %: sent after the reply, a request is where that sends it.
        let expected = match n % 3 {
            0 => {
                split(&proxy, &green(100.0)).await;
                Some("green")
            }
            1 => {
                split(&proxy, &green((n % 99 + 1) as f64)).await;
                None
            }
            _ => {
                off(&proxy).await;
                Some("blue")
            }
        };
        let answered = wire.get("/").await;
        assert_eq!(answered.status, 200, "change {n}");
        if let Some(expected) = expected {
            assert_eq!(answered.header("x-backend"), Some(expected), "change {n}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > changes() / 10, "the clients hardly ran");
    }
    // Nothing is left behind: every exchange of every activation has ended.
    off(&proxy).await;
    for name in ["blue", "green"] {
        proxy.until_idle(name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_exchange_starts_on_the_backend_of_a_split_after_its_drain_is_reported() {
    const ROUNDS: usize = 60;
    let (closed, late) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let blue = SampleApp::start("blue", "1").await;
    let app_of_split = {
        let (closed, late) = (Arc::clone(&closed), Arc::clone(&late));
        Scripted::start(move |_, mut stream| {
            late.fetch_add(usize::from(closed.load(Ordering::SeqCst)), Ordering::SeqCst);
            async move {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                (stream, Then::KeepAlive)
            }
        })
        .await
    };
    let home = Home::new(blue.address, app_of_split.address);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients = busy_clients(8, proxy.address, &stop);
    for _ in 0..ROUNDS {
        closed.store(false, Ordering::SeqCst);
        split(&proxy, &green(100.0)).await;
        off(&proxy).await;
        let order = DrainRequest { timeout_ms: Some(10_000), cut: Some(false) };
        let drained = proxy.client.drain(&app(), &backend("green"), &order).await.unwrap();
        assert!(drained.drained, "{drained:?}");
        closed.store(true, Ordering::SeqCst);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(app_of_split.seen() > ROUNDS / 4, "green hardly got any");
    assert_eq!(late.load(Ordering::SeqCst), 0, "requests reached green after its drain was reported");
}
