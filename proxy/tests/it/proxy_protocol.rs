//! The PROXY protocol: load balancers in `server.proxy_protocol_from` name the client, and nobody else can.

mod http2;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Home, Proxy, Scripted, Then, soon, until};
use crate::tls::certificates::{self, Authority};
use crate::tls::clients::Rustls;
use crate::wire::{Wire, get};

const FROM_HERE: &str = "proxy_protocol_from = [\"127.0.0.0/8\"]";

const TEXT: &[u8] = b"PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\r\n";

/// Version 2 with a client's address and an extension.
fn binary(family: u8, client: &[u8]) -> Vec<u8> {
    let addresses = [client, client, &[0xdc, 4, 1, 187], b"\x04\0\x03abc"].concat();
    let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n\x21", &[family][..], &length, &addresses].concat()
}

/// An app that responds with the request head that it got.
async fn mirror() -> Scripted {
    Scripted::start(|head, mut stream| async move {
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
        let _ = stream.write_all(response.as_bytes()).await;
        (stream, Then::KeepAlive)
    })
    .await
}

async fn start(server: &str) -> (Scripted, Home, Proxy) {
    let app = mirror().await;
    let home = Home::new(app.address, "127.0.0.1:9").server(server);
    let proxy = home.start().await;
    (app, home, proxy)
}

/// Sends these bytes, and returns everything until the connection closes.
async fn answer_to(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the end", stream.read_to_end(&mut answer)).await;
    answer
}

async fn refused(proxy: &Proxy, reason: &str) -> u64 {
    let line = format!("uh_proxy_client_connections_refused_total{{reason=\"{reason}\"}} ");
    let metrics = proxy.client.metrics().await.unwrap();
    metrics.lines().find_map(|l| l.strip_prefix(&line)).unwrap().parse().unwrap()
}

async fn until_refused(proxy: &Proxy, reason: &str, count: u64) {
    until(reason, async || (refused(proxy, reason).await == count).then_some(())).await;
}

#[tokio::test]
async fn the_app_and_the_log_see_the_client_that_the_header_names() {
    let (_app, home, proxy) = start(&format!("{FROM_HERE}\nheaders = {{ forwarded = true }}")).await;
    let ipv6: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
    let mapped: std::net::Ipv6Addr = "::ffff:203.0.113.9".parse().unwrap();
    let cases = [
        (TEXT.to_vec(), "203.0.113.7", "203.0.113.7"),
        (binary(0x11, &[203, 0, 113, 8]), "203.0.113.8", "203.0.113.8"),
        (binary(0x21, &ipv6.octets()), "2001:db8::7", "\"[2001:db8::7]\""),
        (binary(0x21, &mapped.octets()), "203.0.113.9", "203.0.113.9"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1", "127.0.0.1"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), "127.0.0.1", "127.0.0.1"),
    ];
    for (header, client, quoted) in &cases {
        let mut wire = Wire::connect(proxy.address).await;
        // The header and the request in one segment, then a second request on the same connection.
        let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
        wire.send([&header[..], request.as_bytes()].concat()).await;
        for _ in 0..2 {
            let seen = wire.response().await.text();
            for field in [
                format!("X-Forwarded-For: {client}\r\n"),
                format!("X-Real-IP: {client}\r\n"),
                format!("Forwarded: for={quoted};"),
            ] {
                assert!(seen.contains(&field), "{field:?} is missing in {seen}");
            }
            wire.send(request).await;
        }
    }
    let logged = until("all are in the log", async || {
        let lines = home.access_log();
        (lines.len() >= 2 * cases.len()).then_some(lines)
    })
    .await;
    for (_, client, _) in &cases {
        assert!(logged.iter().filter(|line| line["client"] == *client).count() >= 2, "{client}: {logged:?}");
    }
}

#[tokio::test]
async fn a_header_may_arrive_byte_by_byte() {
    let (_app, _home, proxy) = start(FROM_HERE).await;
    for header in [TEXT.to_vec(), binary(0x11, &[203, 0, 113, 7])] {
        let bytes = [&header[..], get("/").as_bytes()].concat();
        let cuts = (1..=header.len()).map(|cut| {
            let (address, bytes) = (proxy.address, bytes.clone());
            tokio::spawn(async move {
                let mut wire = Wire::connect(address).await;
                wire.stream.set_nodelay(true).unwrap();
                wire.send(&bytes[..cut]).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                wire.send(&bytes[cut..]).await;
                assert!(wire.response().await.text().contains("X-Real-IP: 203.0.113.7\r\n"), "{cut}");
            })
        });
        for cut in cuts.collect::<Vec<_>>() {
            cut.await.unwrap();
        }
        let mut wire = Wire::connect(proxy.address).await;
        wire.stream.set_nodelay(true).unwrap();
        for byte in bytes {
            wire.send([byte]).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(wire.response().await.text().contains("X-Real-IP: 203.0.113.7\r\n"));
    }
}

#[tokio::test]
async fn a_connection_without_a_valid_header_is_closed_and_reported() {
    let (app, home, proxy) = start(&format!("{FROM_HERE}\nlimits = {{ header_timeout = \"300ms\" }}")).await;
    for (bytes, reason, count) in [
        (get("/").into_bytes(), "no_proxy_header", 1),
        (b"\x16\x03\x01".to_vec(), "no_proxy_header", 2),
        (b"PROXY TCP4 1.2.3.4\r\n".to_vec(), "bad_proxy_header", 1),
        (format!("PROXY UNKNOWN{}", " ".repeat(100)).into_bytes(), "bad_proxy_header", 2),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec(), "bad_proxy_header", 3),
        (b"PROXY TCP4 203.0.113.7".to_vec(), "proxy_header_timeout", 1),
        (b"".to_vec(), "proxy_header_timeout", 2),
    ] {
        assert_eq!(answer_to(proxy.address, &bytes).await, b"", "{}", bytes.escape_ascii());
        until_refused(&proxy, reason, count).await;
    }
    // A health check that sends nothing is no mistake, a header that breaks off is.
    drop(TcpStream::connect(proxy.address).await.unwrap());
    let mut cut_off = TcpStream::connect(proxy.address).await.unwrap();
    cut_off.write_all(&TEXT[..20]).await.unwrap();
    drop(cut_off);
    until_refused(&proxy, "bad_proxy_header", 4).await;
    assert_eq!((app.seen(), refused(&proxy, "no_proxy_header").await), (0, 2));
    let messages = home.messages();
    let lines: Vec<_> = messages.lines().filter(|line| line.contains("connection rejected")).collect();
    assert_eq!(lines.len(), 3, "one for each reason: {messages}");
    assert!(lines[0].contains("server.proxy_protocol_from"), "{messages}");
    until("all are closed", async || {
        let metrics = proxy.client.metrics().await.unwrap();
        metrics.contains("uh_proxy_client_connections{state=\"idle\"} 0\n").then_some(())
    })
    .await;
}

#[tokio::test]
async fn from_anyone_else_a_header_is_a_malformed_request() {
    let (app, _home, proxy) = start("proxy_protocol_from = [\"192.0.2.1\"]").await;
    for (header, status) in [(TEXT.to_vec(), 505), (binary(0x11, &[203, 0, 113, 7]), 400)] {
        let bytes = [&header[..], get("/").as_bytes()].concat();
        let answer = String::from_utf8(answer_to(proxy.address, &bytes).await).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    assert_eq!(app.seen(), 0);
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.status, 200);
}

#[tokio::test]
async fn the_limit_for_one_address_counts_the_client_and_not_the_load_balancer() {
    let (_app, _home, proxy) =
        start(&format!("{FROM_HERE}\nlimits = {{ connections_per_address = 2 }}")).await;
    let connect = async |client: &str| {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(format!("PROXY TCP4 {client} 198.51.100.1 1 2\r\n{}", get("/"))).await;
        let status = wire.response().await.status;
        (wire, status)
    };
    let mut open = Vec::new();
    for client in ["203.0.113.1", "203.0.113.1", "203.0.113.2", "203.0.113.2", "203.0.113.3"] {
        let (wire, status) = connect(client).await;
        assert_eq!(status, 200, "{client}");
        open.push(wire);
    }
    assert_eq!(connect("203.0.113.1").await.1, 429);
    open.remove(0);
    until("the slot is free again", async || (connect("203.0.113.1").await.1 == 200).then_some(())).await;
}

#[tokio::test]
async fn a_trusted_proxy_behind_the_load_balancer_is_trusted() {
    let (_app, _home, proxy) = start(&format!("{FROM_HERE}\ntrusted_proxies = [\"203.0.113.7\"]")).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n";
    let mut wire = Wire::connect(proxy.address).await;
    wire.send([TEXT, request.as_bytes()].concat()).await;
    let seen = wire.response().await.text();
    assert!(seen.contains("X-Forwarded-For: 192.0.2.9, 203.0.113.7\r\nX-Real-IP: 192.0.2.9\r\n"), "{seen}");
}

#[tokio::test]
async fn over_tls_the_header_comes_before_the_handshake() {
    let app = mirror().await;
    let authority = Authority::new();
    let pair = authority.issue(&["app.test"]);
    let apps = (app.address, app.address);
    let home = certificates::home(apps, &authority, &[("app", &pair)], FROM_HERE, "");
    let proxy = home.start().await;
    let address = certificates::address(&proxy).await;
    for header in [TEXT.to_vec(), binary(0x11, &[203, 0, 113, 7])] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&header).await.unwrap();
        let mut client = Rustls::new(&authority).over(stream, "app.test").await.unwrap();
        let seen = client.get("/").await.text();
        assert!(seen.contains("X-Real-IP: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n"), "{seen}");
    }
    let stream = TcpStream::connect(address).await.unwrap();
    assert!(Rustls::new(&authority).over(stream, "app.test").await.is_err());
    until_refused(&proxy, "no_proxy_header", 1).await;
}

#[tokio::test]
async fn a_reload_turns_it_on_for_new_connections() {
    let (_app, home, proxy) = start("").await;
    let mut before = Wire::connect(proxy.address).await;
    assert_eq!(before.get("/").await.status, 200);
    home.write_config(&home.config().replacen("[server]\n", &format!("[server]\n{FROM_HERE}\n"), 1));
    let done = proxy.client.reload().await.unwrap();
    assert!(done.needs_restart.is_empty(), "{done:?}");
    assert_eq!(before.get("/").await.status, 200);
    let mut wire = Wire::connect(proxy.address).await;
    wire.send([TEXT, get("/").as_bytes()].concat()).await;
    assert!(wire.response().await.text().contains("X-Real-IP: 203.0.113.7\r\n"));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_header() {
    let (_app, _home, mut proxy) = start(FROM_HERE).await;
    let mut stalled = TcpStream::connect(proxy.address).await.unwrap();
    stalled.write_all(b"PROXY ").await.unwrap();
    until("it is accepted", async || {
        let metrics = proxy.client.metrics().await.unwrap();
        metrics.contains("uh_proxy_client_connections_accepted_total 1\n").then_some(())
    })
    .await;
    let begun = Instant::now();
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ended().await.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
}
