//! How HTTP/2 connections end: at a stop in two steps, when they are idle, evicted or have carried enough.

use std::time::{Duration, Instant};

use http::Request;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::clients::{Client, before, complete, get, metric, pair, url};
use super::raw::{ACK, GOAWAY, HEADERS, NO_ERROR, PING, RST_STREAM, Raw, request};
use crate::harness::{Scripted, Then, soon, until};

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
    assert_eq!(metric(&proxy, "uh_proxy_http2_connections").await, 0);
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
