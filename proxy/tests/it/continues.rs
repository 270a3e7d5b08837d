//! `Expect: 100-continue`: which side sends "100 Continue", and when.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Home, Proxy, Scripted, Then};
use crate::wire::Wire;

const EXPECTS: &str = "Host: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";

/// An app that ignores the expectation, follows it after a while, or refuses the body.
async fn front_door() -> (Home, Proxy, Scripted) {
    let app = Scripted::start(|head, mut stream| async move {
        let mut body = [0; 4];
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path == "/refuses" {
            let _ = stream
                .write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await;
            return (stream, Then::Close);
        }
        if path == "/breaks" {
            let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
            let _ = stream.read_exact(&mut body).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").await;
            return (stream, Then::Close);
        }
        if let Some(ms) = path.strip_prefix("/follows/") {
            tokio::time::sleep(Duration::from_millis(ms.parse().unwrap())).await;
            let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
        }
        if stream.read_exact(&mut body).await.is_err() {
            return (stream, Then::Close);
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await;
        let _ = stream.write_all(&body).await;
        (stream, Then::KeepAlive)
    })
    .await;
    let home = Home::new(app.address, "127.0.0.1:9");
    let proxy = home.start().await;
    (home, proxy, app)
}

#[tokio::test]
async fn a_client_gets_100_soon_though_the_app_ignores_that_it_waits() {
    let (_home, proxy, _app) = front_door().await;
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..2 {
        wire.send(format!("POST /ignores HTTP/1.1\r\n{EXPECTS}")).await;
        let begun = Instant::now();
        assert_eq!(wire.response().await.status, 100);
        assert!(begun.elapsed() >= Duration::from_millis(250), "the app has its time: {:?}", begun.elapsed());
        wire.send("body").await;
        let response = wire.response().await;
        assert!(response.status == 200 && response.text() == "body", "{response:?}");
    }
}

#[tokio::test]
async fn a_client_gets_100_once_whichever_side_sends_it() {
    let (_home, proxy, _app) = front_door().await;
    for ms in [0, 1_000] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(format!("POST /follows/{ms} HTTP/1.1\r\n{EXPECTS}")).await;
        assert_eq!(wire.response().await.status, 100);
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        wire.send("body").await;
        let response = wire.response().await;
        assert!(response.status == 200 && response.text() == "body", "{ms}: {response:?}");
    }
}

#[tokio::test]
async fn an_app_that_answers_at_once_is_not_preceded_by_100() {
    let (_home, proxy, _app) = front_door().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("POST /refuses HTTP/1.1\r\n{EXPECTS}")).await;
    assert_eq!(wire.response().await.status, 413);
}

#[tokio::test]
async fn a_client_with_only_interim_responses_gets_an_error() {
    let (_home, proxy, _app) = front_door().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("POST /breaks HTTP/1.1\r\n{EXPECTS}")).await;
    assert_eq!(wire.response().await.status, 100);
    wire.send("body").await;
    assert_eq!(wire.response().await.status, 502);
}
