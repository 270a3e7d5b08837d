//! Connections that were closed leave nothing behind: neither memory nor a descriptor, however many there were.

use std::fs;
use std::future::Future;

use tokio::net::TcpStream;

use crate::floods::memory_kib;
use crate::harness::{Proxy, until};
use crate::http2::clients::{Client, H2C, h2c, tls_stream};
use crate::http2::raw::{GOAWAY, Raw};
use crate::tls::certificates::Site;
use crate::wire::Wire;

/// Connections of each kind: what one of them kept, even a kilobyte, would show.
const CONNECTIONS: u64 = 400;

/// How much memory may still move with so many: less than half a kilobyte for each.
const LEFT_KIB: u64 = 200;

fn descriptors(proxy: &Proxy) -> usize {
    fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap().count()
}

/// Opens and closes connections, twice: what the first half allocates once is used by the second.
async fn leave_nothing<F: Future<Output = ()>>(what: &str, proxy: &Proxy, connection: impl Fn() -> F) {
    let mut memory = 0;
    let open = descriptors(proxy);
    for _ in 0..2 {
        memory = memory_kib(proxy, "VmRSS");
        for _ in 0..CONNECTIONS {
            connection().await;
        }
        until("the connections are closed", async || (descriptors(proxy) <= open).then_some(())).await;
    }
    let left = memory_kib(proxy, "VmRSS").saturating_sub(memory);
    assert!(left < LEFT_KIB, "{what}: {CONNECTIONS} closed connections have left {left} KiB");
}

#[tokio::test]
async fn closed_connections_leave_nothing() {
    let site = Site::start_with(&format!("{H2C}\nthreads = 1"), "").await;
    let (plain, two) = (site.proxy.address, h2c(&site.proxy).await);
    // A connection to the app is kept, whoever comes first.
    Wire::connect(plain).await.get("/").await;
    let proxy = &site.proxy;
    leave_nothing("HTTP/1", proxy, async || drop(Wire::connect(plain).await.get("/").await)).await;
    leave_nothing("nothing sent", proxy, async || drop(TcpStream::connect(plain).await.unwrap())).await;
    leave_nothing("HTTP/2 without a request", proxy, async || drop(Raw::connect(two, b"").await)).await;
    leave_nothing("HTTP/2", proxy, async || drop(Client::plain(two).await.get("/").await)).await;
    leave_nothing("HTTP/2 that breaks the rules", proxy, async || {
        let mut raw = Raw::connect(two, b"").await;
        raw.send(0, 0, 0, b"data of no stream").await;
        raw.until("GOAWAY", |frame| frame.kind == GOAWAY).await.unwrap();
    })
    .await;
    leave_nothing("HTTPS", proxy, async || drop(tls_stream(&site, "app.test").await)).await;
    leave_nothing("HTTP/2 over TLS", proxy, async || drop(Client::tls(&site).await.get("/").await)).await;
}
