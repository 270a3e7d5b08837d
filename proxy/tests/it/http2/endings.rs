//! How HTTP/2 connections end: at a stop in two steps, when they are idle, evicted or have carried enough.

use std::time::{Duration, Instant};

use http::{Request, StatusCode};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::clients::{Client, H2C, before, complete, get, h2c, metric, pair, tls_stream, url};
use super::raw::{
    ACK, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, NO_ERROR, PING, PROTOCOL_ERROR, RST_STREAM, Raw, request,
};
use crate::harness::{SampleApp, Scripted, Then, soon, until};
use crate::tls::certificates::{self, Authority, Site};
use crate::tls::clients::Rustls;
use crate::wire::Response;

#[tokio::test]
async fn a_stop_is_announced_first_and_what_is_on_its_way_is_served() {
    let (_home, mut proxy, address, _apps) = pair("", "").await;
    let mut raw = Raw::connect(address, b"").await;
    raw.get(1, "/slow?ms=700").await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    proxy.signal(Signal::TERM);
    let first = raw.until("GOAWAY", |frame| frame.kind == GOAWAY).await.unwrap();
    assert_eq!((first.last_stream(), first.code()), (0x7fff_ffff, NO_ERROR));
    let ping = raw.until("PING", |frame| frame.kind == PING && frame.flags & ACK == 0).await.unwrap();
    // It crossed the announcement.
    raw.get(3, "/slow?ms=100").await;
    raw.send(PING, ACK, 0, &ping.payload).await;
    let second = raw.until("GOAWAY", |frame| frame.kind == GOAWAY).await.unwrap();
    assert_eq!((second.last_stream(), second.code()), (3, NO_ERROR));
    let mut ended = Vec::new();
    while let Some(frame) = raw.next().await {
        if frame.ends() {
            ended.push(frame.stream);
        }
        assert_ne!(frame.kind, RST_STREAM);
    }
    assert_eq!(ended, [3, 1]);
    assert!(proxy.ended().await.success());
}

#[tokio::test]
async fn idle_connections_are_gone_within_the_grace_of_a_stop() {
    let (_home, mut proxy, address, _apps) = pair("shutdown_idle_grace = \"2s\"", "").await;
    let mut clients = Vec::new();
    for n in 0..100 {
        let client = Client::plain(address).await;
        if n % 2 == 0 {
            assert_eq!(client.get("/").await.status, 200);
        }
        clients.push(client);
    }
    let begun = Instant::now();
    proxy.signal(Signal::TERM);
    for client in clients {
        let ended = soon("the end of a connection", client.ended).await.unwrap();
        assert!(ended.is_ok(), "{ended:?}");
    }
    assert!(proxy.ended().await.success());
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_is_cut_at_a_stop_is_reset() {
    let (home, mut proxy, address, _apps) = pair("shutdown_timeout = \"500ms\"", "").await;
    let client = Client::plain(address).await;
    let (response, _) = client.open(get("/stream?events=0&interval_ms=50"), true).await;
    let response = soon("a response", response).await.unwrap();
    let (unanswered, _) = client.open(get("/slow?ms=60000"), true).await;
    proxy.signal(Signal::TERM);
    let broken = complete(response).await.unwrap_err();
    assert_eq!(broken.reason(), Some(h2::Reason::INTERNAL_ERROR), "{broken:?}");
    assert!(broken.is_reset() && broken.is_remote(), "{broken:?}");
    assert_eq!(soon("a response", unanswered).await.unwrap().status(), 503);
    assert!(proxy.ended().await.success());
    assert!(home.access_log().iter().all(|line| line["termination"] == "STOP"));
    assert_eq!(home.access_log().len(), 2);
}

#[tokio::test]
async fn a_connection_that_is_idle_is_ended_and_one_that_is_used_is_not() {
    let limits = "limits = { idle_timeout = \"400ms\", header_timeout = \"400ms\" }";
    let (_home, proxy, address, _apps) = pair(limits, "").await;
    let silent = Client::plain(address).await;
    let mut half = Raw::connect(address, b"").await;
    half.send(HEADERS, 0, 1, &request("GET", "/", &[])).await;
    let mut mute = TcpStream::connect(address).await.unwrap();
    mute.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let used = Client::plain(address).await;
    for _ in 0..5 {
        assert_eq!(used.get("/slow?ms=300").await.status, 200);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(soon("the end", silent.ended).await.unwrap().is_ok());
    assert_eq!(half.go_away().await, Some(NO_ERROR));
    let mut mute = Raw { stream: mute };
    while mute.next().await.is_some() {}
    assert!(soon("the end", used.ended).await.unwrap().is_ok());
    assert_eq!(metric(&proxy, "uh_proxy_http2_goaways_total{reason=\"idle\"}").await, 3);
    // uh-proxy still has to see that the last client has closed.
    until("none is open", async || (metric(&proxy, "uh_proxy_http2_connections").await == 0).then_some(()))
        .await;
}

#[tokio::test]
async fn the_longest_idle_connection_makes_room_for_a_new_one() {
    let (_home, proxy, address, _apps) = pair("limits = { connections = 2 }", "").await;
    let busy = Client::plain(address).await;
    let (slow, _) = busy.open(get("/slow?ms=1000"), true).await;
    let idle = Client::plain(address).await;
    assert_eq!(idle.get("/").await.status, 200);
    // It is idle once uh-proxy knows that its response was sent.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let new = Client::plain(address).await;
    assert_eq!(new.get("/").await.status, 200);
    assert!(soon("the end", idle.ended).await.unwrap().is_ok());
    assert_eq!(soon("a response", slow).await.unwrap().status(), 200);
    assert_eq!(metric(&proxy, "uh_proxy_http2_goaways_total{reason=\"evicted\"}").await, 1);
}

#[tokio::test]
async fn a_connection_carries_so_many_requests_and_no_more() {
    let (_home, proxy, address, _apps) = pair("limits = { requests_per_connection = 5 }", "").await;
    let client = Client::plain(address).await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert!(soon("the end", client.ended).await.unwrap().is_ok());
    assert_eq!(metric(&proxy, "uh_proxy_http2_goaways_total{reason=\"requests_per_connection\"}").await, 1);
}

/// A client that closes while its requests are in flight: each is logged, and none is left at the app.
#[tokio::test]
async fn a_connection_that_breaks_ends_its_requests() {
    let app = Scripted::start(|_, stream| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        (stream, Then::Close)
    })
    .await;
    let (home, proxy, address) = before(app.address, "", "").await;
    let client = Client::plain(address).await;
    let mut responses = Vec::new();
    for n in 0..10 {
        let request = Request::post(url(&format!("/{n}"))).body(()).unwrap();
        responses.push(client.open(request, n % 2 == 0).await);
    }
    until("all are in flight", async || (app.seen() == 10).then_some(())).await;
    client.ended.abort();
    proxy.until_idle("blue").await;
    until("all are logged", async || (home.access_log().len() == 10).then_some(())).await;
    assert!(home.access_log().iter().all(|line| line["termination"] == "DC"));
}

/// Without it, a client can't tell an end from a cut (RFC 8446 §6.1).
#[tokio::test]
async fn every_end_over_tls_sends_close_notify() {
    let limits = "limits = { idle_timeout = \"300ms\", header_timeout = \"300ms\", requests_per_connection = 3, h2_control_frames = 50 }";
    let mut site = Site::start_with(limits, "").await;
    let goes_away = async |what: &str, mut raw: Raw<TlsStream<TcpStream>>, code: u32| {
        let last =
            raw.until("GOAWAY", |frame| frame.kind == GOAWAY && frame.last_stream() != 0x7fff_ffff).await;
        assert_eq!(last.unwrap_or_else(|| panic!("{what}: no GOAWAY")).code(), code, "{what}");
        let mut rest = Vec::new();
        let end = soon("the end", raw.stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "{what}: {end:?}");
    };
    let connect = async || Raw::over(tls_stream(&site, "app.test").await, b"").await;
    goes_away("without a request", connect().await, NO_ERROR).await;
    let mut raw = connect().await;
    raw.get(1, "/").await;
    assert_eq!(raw.end_of(1).await, None);
    goes_away("idle", raw, NO_ERROR).await;
    let mut raw = connect().await;
    for stream in [1, 3, 5] {
        raw.get(stream, "/").await;
    }
    let ping = raw.until("PING", |frame| frame.kind == PING && frame.flags & ACK == 0).await.unwrap();
    raw.send(PING, ACK, 0, &ping.payload).await;
    goes_away("after so many requests", raw, NO_ERROR).await;
    let mut raw = connect().await;
    for _ in 0..60 {
        raw.send(PING, 0, 0, &[0; 8]).await;
    }
    goes_away("a flood", raw, ENHANCE_YOUR_CALM).await;
    let mut raw = connect().await;
    raw.get(2, "/").await;
    goes_away("an error", raw, PROTOCOL_ERROR).await;
    let mut raw = connect().await;
    raw.get(1, "/slow?ms=200").await;
    until("it is in flight", async || {
        (site.proxy.backend("blue").await.requests_in_flight == 1).then_some(())
    })
    .await;
    site.proxy.signal(Signal::TERM);
    let ping = raw.until("PING", |frame| frame.kind == PING && frame.flags & ACK == 0).await.unwrap();
    raw.send(PING, ACK, 0, &ping.payload).await;
    goes_away("at a stop", raw, NO_ERROR).await;
    assert!(site.proxy.ended().await.success());
}

/// While it is stopped, the kernel completes connections and queues them; the stop signal comes last.
#[tokio::test]
async fn who_is_in_the_queues_at_the_end_is_let_in_and_answered_in_its_own_protocol() {
    let authority = Authority::new();
    let pair = authority.issue(&["app.test"]);
    let app = SampleApp::start("blue", "1").await;
    let home = certificates::home((app.address, app.address), &authority, &[("app", &pair)], H2C, "");
    let mut proxy = home.start().await;
    proxy.until_healthy().await;
    let (plain, secure) = (h2c(&proxy).await, certificates::address(&proxy).await);
    proxy.signal(Signal::STOP);
    let mut queued = Vec::new();
    for n in 0..20 {
        let alpn: &[u8] = if n % 2 == 0 { b"h2" } else { b"http/1.1" };
        let rustls = Rustls::with(&authority, rustls::ALL_VERSIONS, |config| {
            config.alpn_protocols = vec![alpn.to_vec()];
        });
        let stream = TcpStream::connect(secure).await.unwrap();
        queued.push(tokio::spawn(async move {
            let mut wire = rustls.over(stream, "app.test").await.expect("a handshake");
            if n % 2 == 0 {
                Client::over(wire.stream).await.get("/").await.status
            } else {
                status(wire.get("/").await)
            }
        }));
        let stream = TcpStream::connect(plain).await.unwrap();
        queued.push(tokio::spawn(async move { Client::over(stream).await.get("/").await.status }));
    }
    // Their first bytes are in the sockets by now, or on their way.
    tokio::task::yield_now().await;
    proxy.signal(Signal::TERM);
    proxy.signal(Signal::CONT);
    for client in queued {
        assert_eq!(soon("an answer", client).await.unwrap(), 200);
    }
    assert!(proxy.ended().await.success());
}

fn status(response: Response) -> StatusCode {
    StatusCode::from_u16(response.status).unwrap()
}
