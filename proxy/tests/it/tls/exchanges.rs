//! Exchanges over TLS: no byte is lost, none is sent unencrypted, and every orderly close sends `close_notify`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::version::TLS12;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::certificates::{Authority, Site, address, home};
use super::clients::{Rustls, Secure, curl, secure};
use crate::exchanges::{WEBSOCKET, echo};
use crate::harness::{Scripted, Then, soon, until};
use crate::http2::clients as http2;
use crate::wire::{Wire, get};

/// Bytes recorded between a client and a server, by direction.
#[derive(Clone, Default)]
struct Recorded {
    up: Arc<Mutex<Vec<u8>>>,
    down: Arc<Mutex<Vec<u8>>>,
}

impl Recorded {
    /// Starts a recording relay in front of a server, and returns its address.
    async fn before(server: SocketAddr) -> (SocketAddr, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, recorded) = (listener.local_addr().unwrap(), Self::default());
        let tap = recorded.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(server).await.unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(copy(from_client, to_server, Arc::clone(&tap.up)));
                tokio::spawn(copy(from_server, to_client, Arc::clone(&tap.down)));
            }
        });
        (address, recorded)
    }

    /// The types of the TLS records that the server has sent.
    fn records(&self) -> Vec<u8> {
        let down = self.down.lock().unwrap();
        let (mut at, mut types) = (0, Vec::new());
        while let Some(header) = down.get(at..at + 5) {
            types.push(header[0]);
            at += 5 + usize::from(u16::from_be_bytes([header[3], header[4]]));
        }
        types
    }
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    record: Arc<Mutex<Vec<u8>>>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        record.lock().unwrap().extend_from_slice(&buffer[..read]);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// A proxy in front of a scripted app.
async fn scripted<F, R>(
    server: &str,
    script: F,
) -> (Authority, crate::harness::Home, crate::harness::Proxy, SocketAddr)
where
    F: Fn(String, TcpStream) -> R + Clone + Send + 'static,
    R: Future<Output = (TcpStream, Then)> + Send,
{
    let app = Scripted::start(script).await;
    let authority = Authority::new();
    let pair = authority.issue(&["app.test"]);
    let home = home((app.address, app.address), &authority, &[("app", &pair)], server, "");
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let address = address(&proxy).await;
    (authority, home, proxy, address)
}

/// How a TLS connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// With `close_notify`.
    Notified,
    /// TCP was closed without `close_notify`.
    Cut,
}

async fn end(client: &mut Secure) -> End {
    let mut rest = Vec::new();
    match soon("the end", client.stream.read_to_end(&mut rest)).await {
        Ok(_) => End::Notified,
        Err(_) => End::Cut,
    }
}

#[tokio::test]
async fn curl_gets_a_response_and_the_app_sees_https() {
    let site = Site::start().await;
    let (code, said) = curl(&site, "/headers", &["--http1.1"]).await;
    assert!(code == 0 && said.starts_with("HTTP/1.1 "), "{said}");
    let (heads, seen) = tokio::sync::mpsc::channel(8);
    let (authority, _home, _proxy, address) =
        scripted("headers = { forwarded = true }", move |head, mut stream: TcpStream| {
            let heads = heads.clone();
            async move {
                heads.send(head).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                (stream, Then::KeepAlive)
            }
        })
        .await;
    let mut seen = seen;
    let mut client = Rustls::new(&authority).connect(address, "app.test").await.unwrap();
    assert_eq!(client.get("/").await.status, 200);
    let head = seen.recv().await.unwrap();
    for field in ["X-Forwarded-Proto: https\r\n", "X-Forwarded-Port: 443\r\n", ";proto=https\r\n"] {
        assert!(head.contains(field), "{field} is missing in {head}");
    }
    // The port that the client used.
    client.send("GET / HTTP/1.1\r\nHost: app.test:8443\r\n\r\n").await;
    assert_eq!(client.response().await.status, 200);
    let head = seen.recv().await.unwrap();
    for field in ["X-Forwarded-Port: 8443\r\n", ";host=\"app.test:8443\";proto=https\r\n"] {
        assert!(head.contains(field), "{field} is missing in {head}");
    }
    // A target in absolute form.
    for scheme in ["https", "http"] {
        client.send(format!("GET {scheme}://app.test/x HTTP/1.1\r\nHost: app.test\r\n\r\n")).await;
        assert_eq!(client.response().await.status, 200);
        let head = seen.recv().await.unwrap();
        assert!(head.starts_with("GET /x HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("X-Forwarded-Proto: https\r\n"), "{head}");
    }
}

#[tokio::test]
async fn large_bodies_arrive_whole_and_are_never_sent_unencrypted() {
    const BYTES: usize = 4 << 20;
    let plain = [b'x'; 32];
    let (authority, _home, _proxy, address) = scripted("", |head, mut stream: TcpStream| async move {
        if head.starts_with("POST") {
            let mut body = vec![0; BYTES];
            stream.read_exact(&mut body).await.unwrap();
            assert!(body.iter().all(|&b| b == b'x'), "the upload was changed");
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; BYTES]).await.unwrap();
        (stream, Then::KeepAlive)
    })
    .await;
    let (tap, recorded) = Recorded::before(address).await;
    let mut client = Rustls::new(&authority).connect(tap, "app.test").await.unwrap();
    let response = client.get("/").await;
    assert!(response.complete && response.body.len() == BYTES && response.body.iter().all(|&b| b == b'x'));
    client.send(format!("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: {BYTES}\r\n\r\n")).await;
    client.send(vec![b'x'; BYTES]).await;
    let response = client.response().await;
    assert!(response.complete && response.body.len() == BYTES);
    for (direction, bytes) in [("up", &recorded.up), ("down", &recorded.down)] {
        let bytes = bytes.lock().unwrap();
        assert!(bytes.len() > BYTES, "{direction}");
        assert!(
            !bytes.windows(plain.len()).any(|window| window == plain),
            "{direction}: plain text on the wire"
        );
    }
}

#[tokio::test]
async fn a_slow_reader_gets_the_last_byte_on_a_connection_that_is_kept() {
    let site = Site::start().await;
    for bytes in [1_000_000, 1_000_001, 3_333_333] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(site.address).await.unwrap();
        let host = rustls::pki_types::ServerName::try_from("app.test").unwrap();
        let connector = TlsConnector::from(Arc::clone(&Rustls::new(&site.authority).0));
        let mut client = Wire::over(connector.connect(host, stream).await.unwrap());
        client.send(get(&format!("/bytes/{bytes}"))).await;
        // Don't read before the response has started, so that the socket's buffer fills up.
        until("the response is under way", async || {
            (site.proxy.backend("blue").await.requests_in_flight == 1).then_some(())
        })
        .await;
        let response = client.response().await;
        assert!(response.complete && response.body.len() == bytes, "{bytes}: got {}", response.body.len());
        assert_eq!(client.get("/").await.status, 200, "the connection is kept");
    }
}

#[tokio::test]
async fn head_and_body_of_a_small_response_are_one_record() {
    let (authority, _home, _proxy, address) = scripted("", |_, mut stream: TcpStream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await.unwrap();
        (stream, Then::KeepAlive)
    })
    .await;
    let (tap, recorded) = Recorded::before(address).await;
    // In TLS 1.2 the record type isn't encrypted, so application data can be counted.
    let client = Rustls::with(&authority, &[&TLS12], |_| {});
    let mut client = client.connect(tap, "app.test").await.unwrap();
    assert_eq!(client.get("/").await.text(), "hello");
    assert_eq!(recorded.records().iter().filter(|kind| **kind == 23).count(), 1);
}

#[tokio::test]
async fn over_http2_head_and_body_of_a_small_response_are_one_record() {
    let (authority, _home, _proxy, address) = scripted("", |_, mut stream: TcpStream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await.unwrap();
        (stream, Then::KeepAlive)
    })
    .await;
    let (tap, recorded) = Recorded::before(address).await;
    let client = Rustls::with(&authority, &[&TLS12], |config| config.alpn_protocols = vec![b"h2".to_vec()]);
    let client = http2::Client::over(client.connect(tap, "app.test").await.unwrap().stream).await;
    // Settings and their acknowledgements come with the first.
    assert_eq!(client.get("/").await.text(), "hello");
    let data = || recorded.records().iter().filter(|kind| **kind == 23).count();
    let before = data();
    for _ in 0..10 {
        assert_eq!(client.get("/").await.text(), "hello");
    }
    assert_eq!(data() - before, 10);
}

#[tokio::test]
async fn every_orderly_close_sends_close_notify() {
    let site = Site::start_with(
        "shutdown_idle_grace = \"100ms\"\nlimits = { idle_timeout = \"300ms\", header_timeout = \"300ms\" }",
        "",
    )
    .await;
    let mut closed = secure(&site).await;
    closed.send("GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(closed.response().await.status, 200);
    assert_eq!(end(&mut closed).await, End::Notified, "after Connection: close");
    let mut bad = secure(&site).await;
    bad.send("GET / HTTP/1.1\r\nbad\r\n\r\n").await;
    assert_eq!(bad.response().await.status, 400);
    assert_eq!(end(&mut bad).await, End::Notified, "after a bad request");
    let mut idle = secure(&site).await;
    assert_eq!(idle.get("/").await.status, 200);
    assert_eq!(end(&mut idle).await, End::Notified, "after the idle timeout");
    let mut silent = secure(&site).await;
    assert_eq!(end(&mut silent).await, End::Notified, "without a request");
    let mut old = secure(&site).await;
    old.send("GET /stream?events=2&interval_ms=1 HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.response().await.status, 200);
    let mut ended = secure(&site).await;
    ended.stream.shutdown().await.unwrap();
    assert_eq!(end(&mut ended).await, End::Notified, "after the client's own close_notify");
    let mut stopped = secure(&site).await;
    site.proxy.signal(rustix::process::Signal::TERM);
    assert_eq!(end(&mut stopped).await, End::Notified, "at a stop");
}

#[tokio::test]
async fn a_truncated_response_ends_without_close_notify() {
    let (authority, _home, _proxy, address) = scripted("", |_, mut stream: TcpStream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello").await.unwrap();
        (stream, Then::Close)
    })
    .await;
    let mut client = Rustls::new(&authority).connect(address, "app.test").await.unwrap();
    client.send(get("/")).await;
    client.read_until(b"hello").await;
    assert_eq!(end(&mut client).await, End::Cut);
}

#[tokio::test]
async fn a_client_that_closes_tcp_without_close_notify_after_its_request_is_answered() {
    let (authority, _home, _proxy, address) = scripted("", |head, mut stream: TcpStream| async move {
        if head.starts_with("POST") {
            let mut body = [0; 5];
            if stream.read_exact(&mut body).await.is_err() {
                return (stream, Then::Close);
            }
        }
        // Respond after the proxy has seen the client's close.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        (stream, Then::KeepAlive)
    })
    .await;
    let client = Rustls::new(&authority);
    let post = |body: &str| format!("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\n\r\n{body}");
    for request in [get("/"), post("hello")] {
        let mut client = client.connect(address, "app.test").await.unwrap();
        client.send(request).await;
        client.stream.get_mut().0.shutdown().await.unwrap();
        assert_eq!(client.response().await.text(), "ok");
        assert_eq!(end(&mut client).await, End::Notified);
    }
    let mut client = client.connect(address, "app.test").await.unwrap();
    client.send(post("hel")).await;
    client.stream.get_mut().0.shutdown().await.unwrap();
    assert!(client.read(false).await.is_none(), "a truncated request was answered");
}

#[tokio::test]
async fn websockets_work_over_tls_and_across_a_switch() {
    let site = Site::start().await;
    let mut socket = secure(&site).await;
    socket.send(WEBSOCKET).await;
    assert_eq!(socket.response().await.status, 101);
    echo(&mut socket, "before").await;
    site.proxy.switch("green").await;
    echo(&mut socket, "after").await;
}

#[tokio::test]
async fn the_access_log_has_what_the_handshake_negotiated() {
    let site = Site::start().await;
    let mut client = secure(&site).await;
    assert_eq!(client.get("/").await.status, 200);
    let mut plain = Wire::connect(site.proxy.address).await;
    assert_eq!(plain.get("/").await.status, 200);
    let older = Rustls::with(&site.authority, &[&TLS12], |config| {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
    });
    assert_eq!(older.connect(site.address, "app.test").await.unwrap().get("/").await.status, 200);
    let lines = until("all are logged", async || {
        let lines = site.home.access_log();
        (lines.len() == 3).then_some(lines)
    })
    .await;
    let found = |version: &str| lines.iter().find(|line| line["tls_version"] == version).unwrap();
    let cipher = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    for (version, cipher, alpn) in
        [("TLSv1.3", "TLS_AES_256_GCM_SHA384", ""), ("TLSv1.2", cipher, "http/1.1")]
    {
        let line = found(version);
        assert_eq!(
            (&line["cipher"], &line["sni"], &line["alpn"]),
            (&cipher.into(), &"app.test".into(), &alpn.into())
        );
    }
    assert!(lines.iter().any(|line| line.get("tls_version").is_none()), "plain HTTP has no TLS version");
}
