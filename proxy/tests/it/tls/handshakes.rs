//! Handshakes: certificate and version selection, limits, and rejected clients.

use std::time::Duration;

use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::certificates::{Authority, Site, address, der, home, put};
use super::clients::{Rustls, curl, peer_certificate, s_client, secure};
use crate::harness::{Home, SampleApp, soon, until};
use crate::systemd::activated;
use crate::wire::Wire;

async fn failures(site: &Site, reason: &str) -> u64 {
    let metrics = site.proxy.client.metrics().await.unwrap();
    let line = format!("uh_proxy_tls_handshakes_failed_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|found| found.strip_prefix(&line));
    value.unwrap_or_else(|| panic!("{line}is missing in\n{metrics}")).parse().unwrap()
}

/// So many handshakes failed for this reason. A failure is counted after the client has seen it.
async fn failed(site: &Site, reason: &str, times: u64) {
    let what = format!("{reason} is counted");
    let counted = until(&what, async || Some(failures(site, reason).await).filter(|&n| n >= times)).await;
    assert_eq!(counted, times, "{reason}");
}

#[tokio::test]
async fn the_certificate_is_selected_by_sni() {
    let authority = Authority::new();
    let first = authority.issue(&["a.test"]);
    let wildcard = authority.issue(&["*.b.test"]);
    let exact = authority.issue(&["c.b.test", "d.test"]);
    let app = SampleApp::start("blue", "1").await;
    let pairs = [("first", &first), ("wildcard", &wildcard), ("exact", &exact)];
    let home = home((app.address, app.address), &authority, &pairs, "", "");
    let proxy = home.start().await;
    let address = address(&proxy).await;
    let client = Rustls::new(&authority);
    for (host, pair) in
        [("a.test", &first), ("x.b.test", &wildcard), ("C.b.test", &exact), ("d.test", &exact)]
    {
        let found = peer_certificate(&client.connect(address, host).await.unwrap());
        assert_eq!(found, der(&pair.cert), "{host}");
    }
    // A wildcard covers one label.
    for host in ["x.y.b.test", "b.test", "unknown.test"] {
        let said = s_client(address, &["-servername", host]).await;
        assert!(said.contains("unrecognized name"), "{host}: {said}");
    }
    let silent = s_client(address, &["-noservername"]).await;
    let expected: String = first.cert.lines().filter(|line| !line.starts_with("---")).take(2).collect();
    assert!(silent.replace('\n', "").contains(&expected), "no name: not the first certificate\n{silent}");
}

#[tokio::test]
async fn only_allowed_versions_are_negotiated() {
    let site = Site::start().await;
    let old = ["-servername", "app.test", "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"];
    let said = s_client(site.address, &old).await;
    assert!(said.contains("alert handshake failure") && said.contains("Cipher is (NONE)"), "{said}");
    site.home.until_said("is older than server.tls.min_version").await;
    failed(&site, "version", 1).await;
    for (flag, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let said = s_client(site.address, &["-servername", "app.test", flag]).await;
        assert!(said.contains(&format!("New, {version}, Cipher is ")), "{said}");
    }
    let site = Site::start_with("", "min_version = \"1.3\"").await;
    let said = s_client(site.address, &["-servername", "app.test", "-tls1_2"]).await;
    assert!(said.contains("alert protocol version"), "{said}");
    let (code, said) = curl(&site, "/", &["--tlsv1.3"]).await;
    assert!(code == 0 && said.starts_with("HTTP/2 200"), "{said}");
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum() {
    let site = Site::start().await;
    let client = secure(&site).await;
    let group = client.stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn any_worker_resumes_a_session_without_early_data() {
    let site = Site::start_with("threads = 4", "").await;
    for version in [&TLS12, &TLS13] {
        let client = Rustls::with(&site.authority, &[version], |config| config.enable_early_data = true);
        let mut first = client.connect(site.address, "app.test").await.unwrap();
        // The tickets arrive with the first bytes that are read.
        assert_eq!(first.get("/").await.status, 200);
        assert_eq!(first.stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        for _ in 0..8 {
            let mut again = client.connect(site.address, "app.test").await.unwrap();
            let connection = again.stream.get_mut().1;
            assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
            assert!(connection.early_data().is_none(), "a ticket offers early data");
            assert_eq!(again.get("/").await.status, 200);
        }
    }
    let metrics = site.proxy.client.metrics().await.unwrap();
    for version in ["1.2", "1.3"] {
        for (result, count) in [("full", 1), ("resumed", 8)] {
            let line = format!(
                "uh_proxy_tls_handshakes_total{{result=\"{result}\",version=\"{version}\"}} {count}\n"
            );
            assert!(metrics.contains(&line), "{line} is missing in\n{metrics}");
        }
    }
}

#[tokio::test]
async fn a_stalled_handshake_times_out() {
    let site = Site::start_with("limits = { tls_handshake_timeout = \"300ms\" }", "").await;
    for start in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        stream.write_all(start).await.unwrap();
        let mut rest = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut rest)).await;
        assert_eq!(rest, b"", "it received something");
    }
    failed(&site, "timeout", 3).await;
    site.home.until_said("server.limits.tls_handshake_timeout").await;
}

#[tokio::test]
async fn stalled_handshakes_are_evicted_for_new_clients() {
    let site = Site::start_with("threads = 1\nlimits = { tls_handshakes = 4 }", "").await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        stream.write_all(b"\x16\x03\x01").await.unwrap();
        stalled.push(stream);
    }
    assert_eq!(secure(&site).await.get("/").await.status, 200);
    until("the oldest are evicted", async || (failures(&site, "evicted").await >= 16).then_some(())).await;
    let metrics = site.proxy.client.metrics().await.unwrap();
    assert!(metrics.contains("uh_proxy_tls_handshakes_in_progress 3\n"), "{metrics}");
    let mut oldest = Vec::new();
    let _ = soon("its end", stalled[0].read_to_end(&mut oldest)).await;
}

#[tokio::test]
async fn plain_http_on_the_https_port_gets_a_plain_400() {
    let site = Site::start().await;
    let response = Wire::connect(site.address).await.get("/").await;
    assert_eq!(response.status, 400);
    assert!(response.text().contains("use https://"), "{}", response.text());
    failed(&site, "plain_http", 1).await;
    // Anything else is closed at once, without an answer.
    let mut other = TcpStream::connect(site.address).await.unwrap();
    other.write_all(b"\x00\x01\x02").await.unwrap();
    let mut rest = Vec::new();
    let _ = soon("the end", other.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    failed(&site, "not_tls", 1).await;
}

#[tokio::test]
async fn a_connection_over_the_limit_is_closed_before_its_handshake() {
    let site = Site::start_with("limits = { connections = 1 }", "").await;
    let mut first = secure(&site).await;
    // In the middle of a request, so that it can't be closed to make room.
    first.send("GET / HTTP/1.1\r\n").await;
    let mut second = TcpStream::connect(site.address).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the end", second.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"", "a TLS client can't read plain HTTP");
    first.send("Host: app.test\r\n\r\n").await;
    assert_eq!(first.response().await.status, 200);
    let metrics = site.proxy.client.metrics().await.unwrap();
    assert!(metrics.contains("uh_proxy_client_connections_refused_total{reason=\"full\"} 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_connection_counts_before_its_first_byte() {
    let site = Site::start_with("limits = { connections_per_address = 2 }", "").await;
    let silent =
        [TcpStream::connect(site.address).await.unwrap(), TcpStream::connect(site.address).await.unwrap()];
    let mut third = TcpStream::connect(site.address).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the end", third.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"");
    let metrics = site.proxy.client.metrics().await.unwrap();
    assert!(
        metrics.contains("uh_proxy_client_connections_refused_total{reason=\"address\"} 1\n"),
        "{metrics}"
    );
    drop(silent);
    until("the slots are free again", async || {
        Rustls::new(&site.authority).connect(site.address, "app.test").await.ok().map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_client_that_rejects_the_certificate_is_logged() {
    let site = Site::start().await;
    let stranger = Rustls::new(&Authority::new());
    assert!(stranger.connect(site.address, "app.test").await.is_err());
    site.home.until_said("the client rejected the certificate").await;
    failed(&site, "distrusted", 1).await;
    let (code, _) = curl(&site, "/", &["--cacert", "/dev/null"]).await;
    assert_ne!(code, 0);
}

#[tokio::test]
async fn the_protocol_is_selected_by_alpn_and_others_than_http_are_rejected() {
    let site = Site::start().await;
    let said = s_client(site.address, &["-servername", "app.test", "-alpn", "spdy/3"]).await;
    assert!(said.contains("no application protocol"), "{said}");
    for (offered, selected) in [("http/1.1", "http/1.1"), ("http/1.1,h2", "h2"), ("h2", "h2")] {
        let said = s_client(site.address, &["-servername", "app.test", "-alpn", offered]).await;
        assert!(said.contains(&format!("ALPN protocol: {selected}\n")), "{said}");
    }
    failed(&site, "protocol", 1).await;
}

#[tokio::test]
async fn a_stop_soon_ends_handshakes_in_progress() {
    let mut site = Site::start().await;
    let mut stalled = TcpStream::connect(site.address).await.unwrap();
    stalled.write_all(b"\x16\x03\x01").await.unwrap();
    until("it is in progress", async || {
        let metrics = site.proxy.client.metrics().await.unwrap();
        metrics.contains("uh_proxy_tls_handshakes_in_progress 1\n").then_some(())
    })
    .await;
    let begun = std::time::Instant::now();
    site.proxy.signal(rustix::process::Signal::TERM);
    assert_eq!(site.proxy.ended().await.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
}

#[tokio::test]
async fn systemds_sockets_for_http_and_https_are_served_and_connections_wait_during_a_restart() {
    let authority = Authority::new();
    let pair = authority.issue(&["app.test"]);
    let app = SampleApp::start("blue", "1").await;
    let [plain, secure] = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let [http, https] = [&plain, &secure].map(|listener| listener.local_addr().unwrap());
    let home = Home::new(app.address, app.address)
        .server(&format!("listen = [\"{http}\"]\nlisten_tls = [\"{https}\"]"));
    let entry = put(&home, "app", &pair);
    let home = home.server(&format!("[server.tls]\ncertificates = [{entry}]"));
    let client = Rustls::new(&authority);
    // Each socket is recognised by its address, in whichever order they are passed.
    let mut proxy = home.start_as(activated(&home, &[&secure, &plain])).await;
    proxy.until_healthy().await;
    assert_eq!(client.connect(https, "app.test").await.unwrap().get("/").await.status, 200);
    assert_eq!(Wire::connect(http).await.get("/").await.status, 200);
    proxy.signal(rustix::process::Signal::TERM);
    assert_eq!(proxy.ended().await.code(), Some(0));
    // These connections wait in the sockets' accept queues.
    let over_tls =
        tokio::spawn(async move { client.connect(https, "app.test").await.unwrap().get("/").await });
    let in_plain = tokio::spawn(async move { Wire::connect(http).await.get("/").await });
    let _proxy = home.start_as(activated(&home, &[&plain, &secure])).await;
    assert_eq!((over_tls.await.unwrap().status, in_plain.await.unwrap().status), (200, 200));
}
