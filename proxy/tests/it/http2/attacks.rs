//! Clients that want to exhaust uh-proxy: each is stopped at a limit that has a name, and others aren't harmed.

use std::time::Duration;

use super::clients::{Client, before, metric, pair};
use super::raw::{
    CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, INTERNAL_ERROR, PING,
    REFUSED_STREAM, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, block, request,
};
use crate::floods::memory_kib;
use crate::harness::{Scripted, Then, until};

/// An app that never answers.
async fn silent() -> Scripted {
    Scripted::start(|_, stream| async move {
        tokio::time::sleep(Duration::from_secs(600)).await;
        (stream, Then::Close)
    })
    .await
}

/// CVE-2023-44487: requests that are cancelled as fast as they are made.
#[tokio::test]
async fn a_client_may_cancel_so_many_requests_and_no_more() {
    let app = silent().await;
    let (_home, proxy, address) = before(app.address, "limits = { h2_cancelled_requests = 30 }", "").await;
    let mut raw = Raw::connect(address, b"").await;
    let mut sent = 0;
    for n in 0..60 {
        let stream = 2 * n + 1;
        if !raw.get(stream, "/").await {
            break;
        }
        let seen = usize::try_from(n).unwrap() + 1;
        let arrived = async {
            while app.seen() < seen {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(2), arrived).await.is_err() {
            break;
        }
        sent += 1;
        raw.send(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()).await;
    }
    assert_eq!(sent, 31);
    assert_eq!(raw.go_away().await, Some(ENHANCE_YOUR_CALM));
    proxy.until_idle("blue").await;
    assert_eq!(metric(&proxy, "uh_proxy_http2_goaways_total{reason=\"cancelled_requests\"}").await, 1);
    // Before it is accepted, `h2` stops the same.
    let mut raw = Raw::connect(address, b"").await;
    let mut burst = Vec::new();
    for n in 0..200_u32 {
        let stream = 2 * n + 1;
        burst.extend(super::raw::frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/", &[])));
        burst.extend(super::raw::frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    }
    raw.bytes(&burst).await;
    assert_eq!(raw.go_away().await, Some(ENHANCE_YOUR_CALM));
    proxy.until_idle("blue").await;
}

/// A page that is left before its images have arrived.
#[tokio::test]
async fn requests_that_were_answered_may_be_cancelled() {
    let (_home, _proxy, address, _apps) = pair("limits = { h2_cancelled_requests = 5 }", "").await;
    let mut raw = Raw::connect(address, b"").await;
    for n in 0..100 {
        let stream = 2 * n + 1;
        raw.get(stream, "/bytes/1000000").await;
        let head = raw.until("a head", |frame| frame.stream == stream && frame.kind == HEADERS).await;
        assert!(head.is_some(), "{n}");
        raw.send(WINDOW_UPDATE, 0, 0, &65_535_u32.to_be_bytes()).await;
        raw.send(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()).await;
    }
    raw.get(1001, "/").await;
    assert_eq!(raw.end_of(1001).await, None);
}

/// A client that has as many streams as it may and opens more, again and again.
#[tokio::test]
async fn a_client_may_be_refused_so_many_streams_and_no_more() {
    let app = silent().await;
    let limits = "limits = { h2_streams = 10, h2_control_frames = 300 }";
    let (_home, proxy, address) = before(app.address, limits, "").await;
    let mut raw = Raw::connect(address, b"").await;
    for n in 0..30 {
        raw.get(2 * n + 1, "/").await;
    }
    for n in 10..30 {
        assert_eq!(raw.end_of(2 * n + 1).await, Some(REFUSED_STREAM), "{n}");
    }
    until("those that were accepted are in flight", async || (app.seen() == 10).then_some(())).await;
    // One that is refused costs one of 300, if it was read and refused alone; more, if others were read with it.
    for n in 30..400 {
        raw.get(2 * n + 1, "/").await;
    }
    assert_eq!(raw.go_away().await, Some(ENHANCE_YOUR_CALM));
    proxy.until_counted("uh_proxy_http2_goaways_total{reason=\"flood\"} 1").await;
    proxy.until_idle("blue").await;
}

#[tokio::test]
async fn frames_that_move_nothing_are_limited() {
    let (home, proxy, address, _apps) = pair("limits = { h2_control_frames = 200 }", "").await;
    let post = request("POST", "/upload", &[]);
    let floods: [(&str, u8, u8, u32, &[u8]); 6] = [
        ("PING", PING, 0, 0, &[0; 8]),
        ("SETTINGS", SETTINGS, 0, 0, &[]),
        ("empty DATA", DATA, 0, 1, &[]),
        ("PRIORITY", 2, 0, 3, &[0, 0, 0, 0, 16]),
        ("WINDOW_UPDATE", WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        ("an unknown one", 0x42, 0, 0, b"?"),
    ];
    for (what, kind, flags, stream, payload) in floods {
        let mut raw = Raw::connect(address, b"").await;
        raw.send(HEADERS, END_HEADERS, 1, &post).await;
        let flood = super::raw::frame(kind, flags, stream, payload).repeat(300);
        raw.bytes(&flood).await;
        assert_eq!(raw.go_away().await, Some(ENHANCE_YOUR_CALM), "{what}");
    }
    let mut raw = Raw::connect(address, b"").await;
    raw.send(HEADERS, END_STREAM, 1, &request("GET", "/", &[])).await;
    let part = super::raw::frame(CONTINUATION, 0, 1, &block(&[("x", "y")])).repeat(300);
    raw.bytes(&part).await;
    assert_eq!(raw.go_away().await, Some(ENHANCE_YOUR_CALM), "CONTINUATION");
    // One that `h2` ends is counted after the client knows.
    proxy.until_counted("uh_proxy_http2_goaways_total{reason=\"flood\"} 7").await;
    // As many as that within one request's time do no harm.
    let mut raw = Raw::connect(address, b"").await;
    for n in 0..100 {
        for _ in 0..5 {
            raw.send(PING, 0, 0, &[0; 8]).await;
        }
        raw.get(2 * n + 1, "/").await;
        assert_eq!(raw.end_of(2 * n + 1).await, None);
    }
    drop(home);
}

/// CVE-2026-49975 and its kind: heads as large as they may be, held by windows that stay shut.
#[tokio::test]
async fn large_heads_on_all_streams_of_a_connection_take_little_memory() {
    let app = silent().await;
    let (_home, proxy, address) = before(app.address, "threads = 1", "").await;
    let before = memory_kib(&proxy, "VmRSS");
    let value = "v".repeat(280);
    let names: Vec<String> = (0..90).map(|n| format!("x-{n:02}")).collect();
    let fields: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
    let head = request("GET", "/", &fields);
    assert!(head.len() > 25_000);
    let mut raw = Raw::connect(address, &[0, 4, 0, 0, 0, 0]).await;
    for n in 0..128_u32 {
        let stream = 2 * n + 1;
        let parts: Vec<&[u8]> = head.chunks(16_000).collect();
        raw.send(HEADERS, END_STREAM, stream, parts[0]).await;
        raw.send(CONTINUATION, END_HEADERS, stream, parts[1]).await;
    }
    until("all are in flight", async || (app.seen() == 128).then_some(())).await;
    let taken = memory_kib(&proxy, "VmRSS").saturating_sub(before);
    assert!(taken < 8 << 10, "{taken} KiB for 128 streams");
    // One more than allowed is refused, and may be sent again.
    raw.get(257, "/").await;
    let refused = raw.until("a reset", |frame| frame.kind == RST_STREAM).await.unwrap();
    assert_eq!((refused.stream, refused.code()), (257, REFUSED_STREAM));
    // A bomb: 4,000 references to one field of 4 KB in the table, in 8 KB.
    let mut bomb = block(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")]);
    bomb.push(0x40);
    bomb.extend([1, b'x', 127]);
    bomb.extend([0x80 | 1, 30]);
    bomb.extend(vec![b'v'; 127 + 1 + 30 * 128]);
    bomb.extend(vec![0x80 | 62; 4000]);
    let before = memory_kib(&proxy, "VmRSS");
    let client = Raw::connect(address, b"");
    let mut raw = client.await;
    for n in 0..200_u32 {
        let parts: Vec<&[u8]> = bomb.chunks(16_000).collect();
        assert_eq!(parts.len(), 1);
        if !raw.send(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, parts[0]).await {
            break;
        }
    }
    raw.send(PING, 0, 0, &[7; 8]).await;
    let _ = raw.until("an answer", |frame| frame.kind == PING).await;
    let taken = memory_kib(&proxy, "VmRSS").saturating_sub(before);
    assert!(taken < 8 << 10, "{taken} KiB for a header bomb");
    assert_eq!(app.seen(), 128, "a bomb reached the app");
    let _ = Client::plain(address).await;
}

/// A window that stays shut holds a stream, its request at the app and its memory. Each stream has its own deadline.
#[tokio::test]
async fn streams_whose_window_stays_shut_end_at_their_deadline() {
    let service = "[services.app.timeouts]\nclient = \"700ms\"";
    let (home, proxy, address, _apps) = pair("", service).await;
    // The windows of the streams, then that of the connection, which is 64 KiB.
    for (window, streams) in [(0_u32, 10), (1 << 20, 4)] {
        let mut raw = Raw::connect(address, &[&[0, 4][..], &window.to_be_bytes()].concat()).await;
        for n in 0..streams {
            raw.get(2 * n + 1, "/bytes/1000000").await;
        }
        let mut ended = Vec::new();
        while ended.len() < usize::try_from(streams).unwrap() {
            let frame =
                raw.until("a reset", |frame| frame.kind == RST_STREAM).await.expect("the connection is kept");
            assert_eq!(frame.code(), INTERNAL_ERROR, "{frame:?}");
            ended.push(frame.stream);
        }
        proxy.until_idle("blue").await;
        // What the app had answered was given up, and others are served on the same connection.
        raw.send(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes()).await;
        raw.send(HEADERS, END_HEADERS | END_STREAM, 1001, &request("HEAD", "/", &[])).await;
        assert_eq!(raw.end_of(1001).await, None);
    }
    let cut = until("all are logged", async || {
        let lines = home.access_log();
        (lines.len() == 16).then(|| lines.iter().filter(|line| line["termination"] == "DT").count())
    })
    .await;
    assert_eq!(cut, 14);
}
