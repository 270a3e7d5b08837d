//! Request bodies: hashed, and sent back.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Channel};
use hyper::StatusCode;
use hyper::body::Bytes;
use serde_json::json;

use crate::support::{ClientBody, TestApp, full, next_chunk, request, within};

fn chunked() -> (http_body_util::channel::Sender<Bytes, std::io::Error>, ClientBody) {
    let (sender, body) = Channel::new(1);
    (sender, body.boxed_unsync())
}

#[tokio::test]
async fn upload_returns_size_and_hash() {
    let app = TestApp::start(&[]).await;
    // The one-block vector of FIPS 180-2, B.1.
    let expected = json!({
        "bytes": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "backend": "green",
        "version": "1.2.3",
    });
    assert_eq!(app.fetch(request("POST", "/upload", full("abc"))).await.json(), expected);
    assert_eq!(app.fetch(request("PUT", "/upload", full("abc"))).await.json(), expected);

    let (mut sender, body) = chunked();
    let sending = tokio::spawn(async move {
        for piece in ["a", "b", "c"] {
            sender.send_data(Bytes::from(piece)).await.unwrap();
        }
    });
    assert_eq!(app.fetch(request("POST", "/upload", body)).await.json(), expected);
    within("the upload", sending).await.unwrap();
}

#[tokio::test]
async fn a_large_upload_arrives_whole() {
    let app = TestApp::start(&[]).await;
    let answer = app.fetch(request("POST", "/upload", full(vec![b'x'; 5 << 20]))).await;
    assert_eq!(answer.json()["bytes"], 5 << 20);
}

#[tokio::test]
async fn a_slow_reader_pauses_before_each_chunk() {
    let app = TestApp::start(&[]).await;
    let asked_at = Instant::now();
    let answer = app.fetch(request("POST", "/upload?read_delay_ms=100", full("abc"))).await;
    assert_eq!(answer.json()["bytes"], 3);
    // Once before the chunk, once before the end.
    assert!(asked_at.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn upload_takes_post_and_put_only() {
    let answer = TestApp::start(&[]).await.fetch(request("DELETE", "/upload", full("abc"))).await;
    assert_eq!((answer.status, answer.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, Some("POST, PUT")));
}

#[tokio::test]
async fn echo_sends_back_each_chunk_before_the_next_is_sent() {
    let app = TestApp::start(&[]).await;
    let (mut sender, body) = chunked();
    let mut request = request("POST", "/echo", body);
    request.headers_mut().insert("content-type", "application/x-test".parse().unwrap());
    let answer = app.send(request).await;
    assert_eq!(answer.headers()["content-type"], "application/x-test");
    let mut echoed = answer.into_body();
    for piece in ["one", "two", "three"] {
        within("the chunk to be sent", sender.send_data(Bytes::from(piece))).await.unwrap();
        assert_eq!(next_chunk(&mut echoed).await.unwrap(), piece);
    }
    drop(sender);
    assert_eq!(next_chunk(&mut echoed).await, None);
}

#[tokio::test]
async fn echo_keeps_the_length_of_a_sized_body() {
    let answer = TestApp::start(&[]).await.fetch(request("PUT", "/echo", full("sized"))).await;
    assert_eq!((answer.header("content-length"), answer.text()), (Some("5"), "sized"));
}
