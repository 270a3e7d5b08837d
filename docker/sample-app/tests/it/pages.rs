//! The simple endpoints, and what all responses have in common.

use std::time::{Duration, Instant};

use hyper::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{TestApp, empty, request};

#[tokio::test]
async fn the_front_page_names_backend_and_version() {
    let answer = TestApp::start(&[]).await.get("/").await;
    assert_eq!((answer.status, answer.text()), (StatusCode::OK, "green 1.2.3\n"));
    assert!(answer.header("content-type").unwrap().starts_with("text/plain"));
}

#[tokio::test]
async fn every_answer_names_backend_and_version() {
    let app = TestApp::start(&[]).await;
    for (target, status) in [
        ("/", 200),
        ("/api/health", 200),
        ("/status/204", 204),
        ("/bytes/3", 200),
        ("/stream?events=1", 200),
        ("/upload", 405),
        ("/ws", 426),
        ("/slow?ms=soon", 400),
        ("/nowhere", 404),
        ("//", 404),
    ] {
        let answer = app.get(target).await;
        assert_eq!(answer.status, status, "{target}");
        assert_eq!(answer.header("x-backend"), Some("green"), "{target}");
        assert_eq!(answer.header("x-version"), Some("1.2.3"), "{target}");
    }
}

#[tokio::test]
async fn health_has_the_documented_fields() {
    let answer = TestApp::start(&[]).await.get("/api/health").await;
    let health = answer.json();
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["deployment"], "green");
    assert_eq!(health["version"], "1.2.3");
    assert!(health["uptime"].is_f64());
    let timestamp = health["timestamp"].as_str().unwrap();
    assert_eq!((timestamp.len(), timestamp.ends_with('Z')), ("2026-01-01T00:00:00.000Z".len(), true));
    let age = jiff::Timestamp::now().duration_since(timestamp.parse().unwrap());
    assert!(age.abs().as_secs() < 60, "{timestamp}");
}

#[tokio::test]
async fn a_bad_version_fails_its_share_of_requests_and_looks_healthy() {
    let app = TestApp::start(&[("FAIL_PERCENT", "30")]).await;
    let mut failed = 0;
    for _ in 0..100 {
        failed += u32::from(app.get("/").await.status == StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(app.get("/api/health").await.status, StatusCode::OK);
    }
    assert_eq!(failed, 30);
}

#[tokio::test]
async fn a_bad_version_can_hang_or_cut_its_answers_and_looks_healthy() {
    for (how, expected) in [("hang", None), ("cut", Some("HTTP/1.1 200 OK\r\n"))] {
        let app = TestApp::start(&[("FAIL_PERCENT", "100"), ("FAIL_HOW", how)]).await;
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // What hangs is looked at for a moment; what ends may take its time.
        let patience = if expected.is_some() { Duration::from_secs(10) } else { Duration::from_millis(300) };
        let ended = timeout(patience, stream.read_to_end(&mut answer)).await;
        assert_eq!(ended.is_ok(), expected.is_some(), "{how}");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(expected.unwrap_or_default()), "{answer}");
        if let Some((head, body)) = answer.split_once("\r\n\r\n") {
            assert!(head.contains("content-length: 1000"), "{head}");
            assert_eq!(body.len(), 10);
        }
        assert_eq!(app.get("/api/health").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_slow_version_answers_late_and_may_get_better() {
    let late = [("FAIL_PERCENT", "100"), ("FAIL_HOW", "late"), ("FAIL_FOR_MS", "3000")];
    let app = TestApp::start(&late).await;
    let begun = Instant::now();
    assert_eq!(app.get("/").await.status, StatusCode::OK);
    assert!(begun.elapsed() >= Duration::from_millis(400));
    for _ in 0..100 {
        let begun = Instant::now();
        assert_eq!(app.get("/").await.status, StatusCode::OK);
        if begun.elapsed() < Duration::from_millis(400) {
            return;
        }
    }
    panic!("it stays late");
}

#[tokio::test]
async fn an_unhealthy_app_reports_it_and_still_serves() {
    let app = TestApp::start(&[("UNHEALTHY", "1")]).await;
    let health = app.get("/api/health").await;
    assert_eq!(
        (health.status, health.json()["status"].clone()),
        (StatusCode::SERVICE_UNAVAILABLE, json!("unhealthy"))
    );
    assert_eq!(app.get("/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn slow_responds_after_the_requested_time() {
    let app = TestApp::start(&[]).await;
    let asked_at = Instant::now();
    assert_eq!(app.get("/slow?ms=150").await.text(), "green 1.2.3\n");
    assert!(asked_at.elapsed() >= Duration::from_millis(150));
    assert_eq!(app.get("/slow?ms=600001").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn headers_shows_the_request_as_received() {
    let app = TestApp::start(&[]).await;
    let mut request = request("PATCH", "/headers?a=%20b&c", empty());
    request.headers_mut().append("x-one", "1".parse().unwrap());
    request.headers_mut().append("cookie", "a=1".parse().unwrap());
    request.headers_mut().append("cookie", "b=2".parse().unwrap());
    assert_eq!(
        app.fetch(request).await.json(),
        json!({
            "method": "PATCH",
            "target": "/headers?a=%20b&c",
            "version": "HTTP/1.1",
            "headers": [["host", "app.test"], ["x-one", "1"], ["cookie", "a=1"], ["cookie", "b=2"]],
        })
    );
}

#[tokio::test]
async fn status_responds_with_the_requested_status() {
    let app = TestApp::start(&[]).await;
    for code in [200, 204, 304, 404, 429, 500, 503, 999] {
        let answer = app.get(&format!("/status/{code}")).await;
        assert_eq!(answer.status, code);
        assert_eq!(answer.body.is_empty(), matches!(code, 204 | 304), "{code}");
    }
    for wrong in ["100", "199", "1000", "99", "ok", "-1", ""] {
        assert_eq!(app.get(&format!("/status/{wrong}")).await.status, StatusCode::BAD_REQUEST, "{wrong:?}");
    }
}
