//! Server-sent events and downloads.

use std::time::{Duration, Instant};

use hyper::StatusCode;
use uh_app_shim::drain::DrainOutcome;

use crate::support::{TestApp, empty, next_chunk, request, within};

#[tokio::test]
async fn a_stream_sends_the_requested_events_and_ends() {
    let app = TestApp::start(&[]).await;
    let answer = app.get("/stream?events=3&interval_ms=1").await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(answer.text(), "data: green 1.2.3 0\n\ndata: green 1.2.3 1\n\ndata: green 1.2.3 2\n\n");
    assert_eq!(app.get("/stream?interval_ms=0").await.text().matches("data: ").count(), 10);
}

#[tokio::test]
async fn each_event_is_sent_when_it_is_due() {
    let app = TestApp::start(&[]).await;
    let asked_at = Instant::now();
    let mut body = app.send(request("GET", "/stream?events=0&interval_ms=100", empty())).await.into_body();
    for index in 0..3 {
        // One event per chunk: if they had been buffered, they would have arrived together.
        assert_eq!(next_chunk(&mut body).await.unwrap(), format!("data: green 1.2.3 {index}\n\n"));
        assert!(asked_at.elapsed() >= Duration::from_millis(100) * index);
    }
}

#[tokio::test]
async fn an_endless_stream_ends_when_its_client_leaves() {
    let app = TestApp::start(&[("DRAIN_TIMEOUT_MS", "100")]).await;
    let mut body = app.send(request("GET", "/stream?events=0&interval_ms=600000", empty())).await.into_body();
    assert!(next_chunk(&mut body).await.is_some());
    let drain = app.stop().await;
    assert_eq!(drain.finish().await, DrainOutcome::Cut(1));
    drop(body);
    within("the stream to end", async {
        while drain.in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn bytes_are_sized_or_chunked_and_always_in_the_same_pattern() {
    let app = TestApp::start(&[]).await;
    for count in [0, 1, 251, 65_536, 1_000_003] {
        let expected: Vec<u8> = (0..count).map(|index| (index % 251) as u8).collect();
        let sized = app.get(&format!("/bytes/{count}")).await;
        assert_eq!(sized.header("content-length"), Some(count.to_string().as_str()));
        assert!(sized.body == expected, "{count}");
        let chunked = app.get(&format!("/bytes/{count}?chunked=1")).await;
        assert_eq!(chunked.header("content-length"), None);
        assert_eq!(chunked.header("transfer-encoding"), Some("chunked"));
        assert!(chunked.body == expected, "{count} chunked");
    }
}

#[tokio::test]
async fn a_rate_paces_the_download() {
    let app = TestApp::start(&[]).await;
    let asked_at = Instant::now();
    let mut body = app.send(request("GET", "/bytes/30000?rate=100000", empty())).await.into_body();
    let mut received = next_chunk(&mut body).await.unwrap().len();
    assert!(received < 30_000, "the bytes flow, they don't come all at the end");
    while let Some(chunk) = next_chunk(&mut body).await {
        received += chunk.len();
    }
    assert_eq!(received, 30_000);
    assert!(asked_at.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_size_or_rate_out_of_range_is_rejected() {
    let app = TestApp::start(&[]).await;
    for target in
        ["/bytes/68719476737", "/bytes/x", "/bytes/1?rate=0", "/bytes/1?chunked=yes", "/stream?events=-1"]
    {
        assert_eq!(app.get(target).await.status, StatusCode::BAD_REQUEST, "{target}");
    }
    let largest = app.send(request("HEAD", "/bytes/68719476736", empty())).await;
    assert_eq!(largest.headers()["content-length"], "68719476736");
}
