//! uh-proxy's own answers: their form, their pages, and what they never show.

use std::fs;

use crate::harness::{Home, SampleApp, cli, pair};
use crate::wire::Wire;

async fn ask(home: &Home, method: &str, accept: &str) -> crate::wire::Response {
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!(
        "{method} /<b>?<script>=1 HTTP/1.1\r\nHost: other.test\r\nAccept: {accept}\r\nX-Request-Id: id-1\r\n\r\n"
    ))
    .await;
    let response = if method == "HEAD" { wire.response_to_head().await } else { wire.response().await };
    // The connection is fine, so it stays open.
    wire.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    assert_eq!(wire.response().await.status, 200);
    response
}

#[tokio::test]
async fn an_answer_has_the_form_that_the_client_prefers() {
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(app.address, "127.0.0.1:9").service("hosts = [\"app.test\"]");
    let (html, text) = ("text/html; charset=utf-8", "text/plain; charset=utf-8");
    let browser = "text/html,application/xhtml+xml,*/*;q=0.8";
    for (accept, form) in [(browser, html), ("*/*", text), ("text/plain", text), ("image/png", text)] {
        let page = ask(&home, "GET", accept).await;
        assert_eq!((page.status, page.header("content-type")), (404, Some(form)), "{accept}");
        assert_eq!(page.header("cache-control"), Some("no-store"));
        assert_eq!(page.header("content-security-policy").is_some(), form == html, "{page:?}");
        assert!(page.text().contains("id-1") && !page.text().contains("<script>"), "{}", page.text());
        assert!(!page.text().contains("<b>"), "{}", page.text());
    }
    let problem = ask(&home, "GET", "text/html;q=0.1, application/json").await;
    assert_eq!(problem.header("content-type"), Some("application/problem+json"));
    let problem: serde_json::Value = serde_json::from_slice(&problem.body).unwrap();
    assert_eq!((&problem["status"], &problem["request_id"]), (&404.into(), &"id-1".into()));
    let head = ask(&home, "HEAD", browser).await;
    assert!(head.status == 404 && head.header("content-length") != Some("0"), "{head:?}");
}

#[tokio::test]
async fn the_operators_pages_are_served_and_bad_ones_are_refused_at_once() {
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(app.address, "127.0.0.1:9").service("hosts = [\"app.test\"]");
    let pages = home.path("pages");
    fs::create_dir(&pages).unwrap();
    fs::write(pages.join("404.html"), "<h1>ours {{status}} {{request_id}}</h1>").unwrap();
    let home = home.server(&format!("error_pages = {pages:?}"));
    let page = ask(&home, "GET", "*/*").await;
    assert_eq!((page.status, page.text().as_str()), (404, "<h1>ours 404 id-1</h1>"));
    assert!(page.header("content-security-policy").is_none(), "the operator's page may load what it wants");
    assert_eq!(
        ask(&home, "GET", "application/json").await.header("content-type"),
        Some("application/problem+json")
    );
    fs::write(pages.join("notes.txt"), "").unwrap();
    fs::write(pages.join("5xx.html"), "{{stauts}}").unwrap();
    let config = home.path("uh-proxy.toml");
    for command in ["check", "run"] {
        let (code, _, errors) = cli(&home.socket(), &[command, "--config", config.to_str().unwrap()]).await;
        assert_eq!(code, 1, "{command}: {errors}");
        for part in ["notes.txt", "{{stauts}}"] {
            assert!(errors.contains(part), "{command} does not name {part}: {errors}");
        }
    }
}

#[tokio::test]
async fn what_is_no_request_gets_an_answer_with_an_id() {
    let (home, proxy, _blue, _green) = pair().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\nHost: <script>\r\nAccept: application/json\r\n\r\n").await;
    let response = wire.response().await;
    assert_eq!(response.status, 400);
    let problem: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    let id = problem["request_id"].as_str().unwrap().to_owned();
    assert_eq!(response.header("x-request-id"), Some(id.as_str()));
    crate::harness::until("it is in the log", async || {
        home.access_log().into_iter().find(|line| line["request_id"] == id.as_str())
    })
    .await;
}
