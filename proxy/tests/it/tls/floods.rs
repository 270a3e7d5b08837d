//! Floods on the HTTPS port: memory stays bounded, and other clients are still served in time. What is demanded is described
//! in [`crate::floods`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::certificates::Site;
use super::clients::{Rustls, secure};
use crate::floods::{Flood, Targets, decoy, measure, workers};
use crate::wire::get;

/// Flooding clients, and how many connections each keeps open.
const FLOODERS: usize = 16;
const KEPT: usize = 64;

/// What a client sends first: it costs the client nothing to repeat, and the server a key exchange and a signature.
fn hello(site: &Site) -> Vec<u8> {
    let name = ServerName::try_from("app.test").unwrap();
    let mut client = ClientConnection::new(Arc::clone(&Rustls::new(&site.authority).0), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Makes connections that begin with these bytes, and waits for some of the answer, so that the work for it is done.
async fn connect(address: SocketAddr, first: Arc<[u8]>, flood: Arc<Flood>) {
    let mut kept = VecDeque::new();
    while flood.begins().await {
        let Ok(mut stream) = TcpStream::connect(address).await else { continue };
        if stream.write_all(&first).await.is_err() {
            continue;
        }
        let read = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut [0; 512])).await;
        if matches!(read, Ok(Ok(1..))) {
            flood.count();
        }
        kept.push_back(stream);
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }
}

/// Floods the site with connections that each begin with these bytes.
async fn flood(what: &str, site: Site, first: Vec<u8>) {
    // What the first handshakes and requests allocate once isn't the flood's.
    for _ in 0..50 {
        assert_eq!(secure(&site).await.get("/").await.status, 200);
    }
    let mut visitors = Vec::new();
    for _ in 0..4 {
        visitors.push(secure(&site).await);
    }
    let decoy = decoy(Site::start_with(&many_connections(), "")).await;
    let targets = Targets {
        proxy: (&site.proxy, site.address),
        decoy: decoy.as_ref().map(|decoy| (&decoy.proxy, decoy.address)),
    };
    let first = Arc::<[u8]>::from(first);
    let flooder = move |address, flood| Box::pin(connect(address, Arc::clone(&first), flood)) as _;
    let harm = measure(what, targets, visitors, FLOODERS, flooder).await;
    assert!(harm.count > 100, "that was no flood: {harm:?}");
    assert!(harm.faults.is_empty(), "{:#?}", harm.faults);
}

fn many_connections() -> String {
    format!("{}limits = {{ connections_per_address = 0 }}", workers())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_is_bounded() {
    let site = Site::start_with(&many_connections(), "").await;
    let hello = hello(&site);
    flood("handshakes", site, hello).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_plain_http_is_bounded() {
    let site = Site::start_with(&many_connections(), "").await;
    flood("plain HTTP", site, get("/").into_bytes()).await;
}
