//! The PROXY protocol before TLS and HTTP/2: the header comes first, then the handshake, then the client's preface.

use std::net::{Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{FROM_HERE, TEXT, answer_to, binary, mirror, until_refused};
use crate::harness::{Home, Proxy, Scripted, soon, until};
use crate::http2::clients::{Client, H2C, get, h2c};
use crate::tls::certificates::{self, Authority};
use crate::tls::clients::Rustls;

/// uh-proxy behind a load balancer, with both listeners that speak HTTP/2.
struct Behind {
    app: Scripted,
    home: Home,
    proxy: Proxy,
    rustls: Rustls,
    https: SocketAddr,
    h2c: SocketAddr,
}

impl Behind {
    async fn start(app: Scripted, server: &str) -> Self {
        let authority = Authority::new();
        let pair = authority.issue(&["app.test"]);
        let server = format!("{FROM_HERE}\n{H2C}\n{server}");
        let apps = (app.address, app.address);
        let home = certificates::home(apps, &authority, &[("app", &pair)], &server, "");
        let proxy = home.start().await;
        let (https, h2c) = (certificates::address(&proxy).await, h2c(&proxy).await);
        let rustls = Rustls::with(&authority, rustls::ALL_VERSIONS, |config| {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        });
        Self { app, home, proxy, rustls, https, h2c }
    }

    /// A connection over TLS after this header, in as many pieces.
    async fn secure(&self, header: &[u8], pieces: usize) -> Client {
        let mut stream = TcpStream::connect(self.https).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in header.chunks(header.len().div_ceil(pieces)) {
            stream.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let stream = self.rustls.over(stream, "app.test").await.unwrap().stream;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        Client::over(stream).await
    }

    /// A connection without TLS after this header.
    async fn plain(&self, header: &[u8]) -> Client {
        let mut stream = TcpStream::connect(self.h2c).await.unwrap();
        stream.write_all(header).await.unwrap();
        Client::over(stream).await
    }
}

#[tokio::test]
async fn each_stream_has_the_client_that_the_header_names() {
    let behind = Behind::start(mirror().await, "headers = { forwarded = true }").await;
    let ipv6: Ipv6Addr = "2001:db8::7".parse().unwrap();
    let cases = [
        (TEXT.to_vec(), "203.0.113.7", "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::8 2001:db8::1 1 2\r\n".to_vec(), "2001:db8::8", "\"[2001:db8::8]\""),
        (binary(0x11, &[203, 0, 113, 8]), "203.0.113.8", "203.0.113.8"),
        (binary(0x21, &ipv6.octets()), "2001:db8::7", "\"[2001:db8::7]\""),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1", "127.0.0.1"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), "127.0.0.1", "127.0.0.1"),
    ];
    for (header, client, quoted) in &cases {
        let connections = [
            (behind.secure(header, 1).await, "https"),
            (behind.secure(header, 5).await, "https"),
            (behind.plain(header).await, "http"),
        ];
        for (connection, scheme) in connections {
            // A field that the client adds itself is no more trusted than usual.
            let mut request = get("/");
            request.headers_mut().insert("x-forwarded-for", "6.6.6.6".parse().unwrap());
            for _ in 0..2 {
                let seen = connection.send(request.clone()).await.unwrap();
                for field in [
                    format!("X-Forwarded-For: {client}\r\n"),
                    format!("X-Real-IP: {client}\r\n"),
                    format!("X-Forwarded-Proto: {scheme}\r\n"),
                    format!("Forwarded: for={quoted};"),
                ] {
                    assert!(seen.text().contains(&field), "{field:?} is missing in {}", seen.text());
                }
            }
        }
    }
    let logged = until("all are in the log", async || {
        let lines = behind.home.access_log();
        (lines.len() == 6 * cases.len()).then_some(lines)
    })
    .await;
    assert!(logged.iter().all(|line| line["protocol"] == "HTTP/2.0"), "{logged:?}");
    for client in ["203.0.113.7", "2001:db8::8", "203.0.113.8", "2001:db8::7"] {
        assert_eq!(logged.iter().filter(|line| line["client"] == client).count(), 6, "{client}: {logged:?}");
    }
}

#[tokio::test]
async fn a_connection_without_a_valid_header_is_closed_before_its_handshake() {
    let behind = Behind::start(mirror().await, "limits = { header_timeout = \"300ms\" }").await;
    let hello = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut counts = [("no_proxy_header", 0), ("bad_proxy_header", 0), ("proxy_header_timeout", 0)];
    for (address, first) in [(behind.https, &hello[..]), (behind.h2c, &preface[..])] {
        // A text header that never ends, and one that breaks off; binary ones that are too long and of no version.
        let endless = format!("PROXY UNKNOWN{}", " ".repeat(100)).into_bytes();
        let cases: [(&[u8], usize); 7] = [
            (first, 0),
            (b"PROXY TCP4 1.2.3.4\r\n", 1),
            (&endless, 1),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", 1),
            (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c", 1),
            (b"PROXY TCP4 203.0.113.7", 2),
            (b"", 2),
        ];
        for (bytes, reason) in cases {
            // Neither an alert nor a frame: the load balancer speaks neither.
            assert_eq!(answer_to(address, bytes).await, b"", "{}", bytes.escape_ascii());
            counts[reason].1 += 1;
            until_refused(&behind.proxy, counts[reason].0, counts[reason].1).await;
        }
    }
    // The deadline is one for the whole header, however slowly it arrives.
    let mut slow = TcpStream::connect(behind.https).await.unwrap();
    let begun = std::time::Instant::now();
    let closed = async {
        for byte in TEXT.iter().cycle() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            if *byte == b'\r' || slow.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        let _ = slow.read(&mut [0; 8]).await;
    };
    soon("the end", closed).await;
    assert!(begun.elapsed() > std::time::Duration::from_millis(250), "{:?}", begun.elapsed());
    until_refused(&behind.proxy, "proxy_header_timeout", counts[2].1 + 1).await;
    assert_eq!(behind.app.seen(), 0);
    let metrics = behind.proxy.client.metrics().await.unwrap();
    for line in metrics.lines().filter(|line| line.starts_with("uh_proxy_tls_handshakes_failed_total")) {
        assert!(line.ends_with(" 0"), "no handshake was begun: {line}");
    }
    until("all are closed", async || {
        let metrics = behind.proxy.client.metrics().await.unwrap();
        metrics.contains("uh_proxy_client_connections{state=\"idle\"} 0\n").then_some(())
    })
    .await;
}

fn header_for(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 198.51.100.1 1 2\r\n").into_bytes()
}

#[tokio::test]
async fn the_limits_of_an_address_are_those_of_the_client_that_the_header_names() {
    let limits = "limits = { connections_per_address = 2, requests_in_flight_per_address = 3 }";
    let silent = Scripted::start(|head, mut stream: TcpStream| async move {
        if !head.starts_with("GET /fast") {
            tokio::time::sleep(std::time::Duration::from_secs(600)).await;
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        (stream, crate::harness::Then::KeepAlive)
    })
    .await;
    let behind = Behind::start(silent, limits).await;
    let (one, other) = (header_for("203.0.113.1"), header_for("203.0.113.2"));
    let clients = [behind.secure(&one, 1).await, behind.plain(&one).await];
    let mut waiting = Vec::new();
    for n in 0..3 {
        waiting.push(clients[n % 2].open(get("/slow"), true).await);
    }
    until("all are in flight", async || (behind.app.seen() == 3).then_some(())).await;
    for client in &clients {
        assert_eq!(client.get("/fast").await.status, 429);
    }
    // Another client of the same load balancer isn't affected, in requests or in connections.
    let others = [behind.secure(&other, 1).await, behind.plain(&other).await];
    for client in &others {
        assert_eq!(client.get("/fast").await.status, 200);
    }
    // One connection too many is closed before its handshake.
    for address in [behind.https, behind.h2c] {
        assert_eq!(answer_to(address, &one).await, b"");
    }
    until_refused(&behind.proxy, "address", 2).await;
    drop(waiting);
    drop(clients);
    until("the places are free again", async || {
        let mut stream = TcpStream::connect(behind.https).await.unwrap();
        stream.write_all(&one).await.unwrap();
        let connected = behind.rustls.over(stream, "app.test").await.ok()?;
        let client = Client::over(connected.stream).await;
        (client.get("/fast").await.status == 200).then_some(())
    })
    .await;
}
