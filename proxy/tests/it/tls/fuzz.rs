//! Nearly valid handshakes through the whole program: whatever a client sends to the HTTPS port, uh-proxy goes on, others are
//! served, and the client gets TLS records or the plain 400 and nothing else. `UH_FUZZ_CASES` runs more.

use std::sync::Arc;

use fastrand::Rng;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::certificates::Site;
use super::clients::{Rustls, secure};
use crate::harness::soon;

fn cases() -> u64 {
    std::env::var("UH_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300)
}

/// The first flight of clients of both versions, with and without a host and protocols, and plain HTTP.
fn seeds(site: &Site) -> Vec<Vec<u8>> {
    let mut seeds = vec![b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n".to_vec(), Vec::new()];
    for version in [&TLS12, &TLS13] {
        for (host, alpn) in
            [("app.test", &[&b"h2"[..], b"http/1.1"][..]), ("127.0.0.1", &[]), ("other.test", &[])]
        {
            let client = Rustls::with(&site.authority, &[version], |config| {
                config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
            });
            let name = ServerName::try_from(host).unwrap();
            let mut client = ClientConnection::new(Arc::clone(&client.0), name).unwrap();
            let mut hello = Vec::new();
            client.write_tls(&mut hello).unwrap();
            seeds.push(hello);
        }
    }
    seeds
}

/// Changes a few bytes, removes a few, repeats a few, or cuts the rest off.
fn change(bytes: &mut Vec<u8>, random: &mut Rng) {
    for _ in 0..random.u8(0..4) {
        if bytes.is_empty() {
            return;
        }
        // Lengths and types are at the front.
        let most = if random.bool() { bytes.len() } else { bytes.len().min(64) };
        let at = random.usize(..most);
        let end = (at + random.usize(1..20)).min(bytes.len());
        match random.u8(..5) {
            0 => bytes[at] ^= 1 << random.u8(..8),
            1 => bytes[at] = [0, 1, 3, 0x16, 0x17, 0x7f, 0xff][random.usize(..7)],
            2 => drop(bytes.drain(at..end)),
            3 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => bytes.truncate(at),
        }
    }
}

/// Whether these bytes are whole TLS records with handshakes, alerts and the like.
fn is_tls(mut bytes: &[u8]) -> bool {
    while let Some((head, rest)) = bytes.split_at_checked(5) {
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if !(20..=23).contains(&head[0]) || head[1] != 3 || rest.len() < length {
            return false;
        }
        bytes = &rest[length..];
    }
    bytes.is_empty()
}

#[tokio::test]
async fn no_handshake_stops_the_proxy_or_gets_anything_but_tls_or_a_400() {
    let limits = "limits = { tls_handshake_timeout = \"2s\" }";
    let mut site = Site::start_with(limits, "").await;
    let seeds = seeds(&site);
    let mut other = secure(&site).await;
    for case in 0..cases() {
        let mut random = Rng::with_seed(case);
        let mut bytes = seeds[random.usize(..seeds.len())].clone();
        change(&mut bytes, &mut random);
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        for part in bytes.chunks(random.usize(1..=bytes.len().max(1))) {
            if stream.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut answer)).await;
        let refused = answer.starts_with(b"HTTP/1.1 400 ");
        assert!(
            refused || is_tls(&answer),
            "case {case}: {} got {}",
            bytes.escape_ascii(),
            answer.escape_ascii()
        );
        if case % 20 == 0 {
            assert_eq!(other.get("/").await.status, 200, "case {case}");
        }
    }
    assert!(site.proxy.is_running());
    assert!(!site.home.messages().contains("panicked"), "{}", site.home.messages());
}
