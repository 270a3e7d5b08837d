//! What uh-proxy answers by itself for a path: fixed answers and redirects. And the path that the app gets.

use super::{echo, home, with_rules};
use crate::harness::{cli, until};
use crate::http2::clients::{Client, H2C, h2c};
use crate::wire::Wire;

const RULES: &str = "\
[[paths]]
match = \"/ping\"
exact = true
answer = { body = \"pong\\n\" }
response_headers = { set = { Cache-Control = \"max-age=60\" } }
[[paths]]
match = \"/empty\"
answer = { status = 204 }
[[paths]]
match = \"/json\"
answer = { status = 410, body = \"{}\", content_type = \"application/json\" }
[[paths]]
match = [\"/.git\", \"/.env\"]
answer = { status = 404 }
[[paths]]
match = \"/old\"
redirect = { to = \"/new\" }
[[paths]]
match = \"/moved\"
redirect = { to = \"https://example.com/?\", status = 302 }
";

#[tokio::test]
async fn a_path_has_a_fixed_answer() {
    let app = echo().await;
    let home = home(&app, "", RULES).server(H2C);
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    let client = Client::plain(h2c(&proxy).await).await;
    for (path, status, body, content_type) in [
        ("/ping", 200, "pong\n", Some("text/plain; charset=utf-8")),
        ("/ping?x=y", 200, "pong\n", Some("text/plain; charset=utf-8")),
        ("/empty", 204, "", None),
        ("/json/x", 410, "{}", Some("application/json")),
    ] {
        let response = wire.get(path).await;
        let found = (response.status, response.text(), response.header("content-type"));
        assert_eq!(found, (status, body.to_owned(), content_type), "{path}");
        assert_eq!(response.header("connection"), Some("keep-alive"));
        assert_eq!(response.header("content-length").is_none(), status == 204);
        assert!(response.header("x-request-id").is_some());
        let answer = client.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (status, body), "{path} over HTTP/2");
    }
    assert_eq!(wire.get("/ping").await.header("cache-control"), Some("max-age=60"));
    wire.send("HEAD /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = wire.response_to_head().await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("5")));
    // An error without a body is explained.
    for path in ["/.git/config", "/.env", "/%2Egit/config", "//.git/config"] {
        let response = wire.get(path).await;
        assert_eq!(response.status, 404, "{path}");
        assert!(response.text().starts_with("404 Not Found: "), "{}", response.text());
    }
    assert_eq!(app.seen(), 0, "no backend is involved");
    assert_eq!(wire.get("/ping/x").await.status, 200);
    assert_eq!(app.seen(), 1);
    let lines = until("the last one is logged", async || {
        let lines = home.access_log();
        lines.iter().any(|line| line["path"] == "/ping/x").then_some(lines)
    })
    .await;
    let first = &lines[0];
    assert_eq!(
        (&first["termination"], &first["service"], &first["backend"]),
        (&"FA".into(), &"app".into(), &serde_json::Value::Null)
    );
}

#[tokio::test]
async fn a_path_is_redirected_and_the_query_is_kept_unless_the_target_says_otherwise() {
    let app = echo().await;
    let (home, proxy) = with_rules(&app, RULES).await;
    let mut wire = Wire::connect(proxy.address).await;
    for (path, status, location) in [
        ("/old", 308, "/new"),
        ("/old/x?a=b&c=%2F", 308, "/new?a=b&c=%2F"),
        ("/moved?a=b", 302, "https://example.com/"),
    ] {
        wire.send(format!("POST {path} HTTP/1.1\r\nHost: evil.test\r\nContent-Length: 0\r\n\r\n")).await;
        let response = wire.response().await;
        assert_eq!((response.status, response.header("location")), (status, Some(location)), "{path}");
    }
    assert_eq!(app.seen(), 0);
    until("it is logged", async || {
        home.access_log().iter().any(|line| line["termination"] == "RD").then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_needs_no_backend_is_answered_in_maintenance_too() {
    let app = echo().await;
    let (home, proxy) = with_rules(&app, RULES).await;
    let (exit, _, said) = cli(&home.socket(), &["maintenance", "on"]).await;
    assert_eq!(exit, 0, "{said}");
    let mut wire = Wire::connect(proxy.address).await;
    for (path, status) in [("/ping", 200), ("/old", 308), ("/.git", 404), ("/", 503)] {
        assert_eq!(wire.get(path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn the_app_gets_the_path_with_the_new_prefix() {
    let app = echo().await;
    let rules = "\
[[paths]]
match = [\"/v1\", \"/api/v1\"]
replace_prefix = \"/api/v2/\"
[[paths]]
match = \"/static\"
replace_prefix = \"/\"
[[paths]]
match = \"/favicon.ico\"
exact = true
replace_prefix = \"/assets/icon.ico\"
";
    let (_home, proxy) = with_rules(&app, rules).await;
    let mut wire = Wire::connect(proxy.address).await;
    for (path, expected) in [
        ("/v1", "/api/v2"),
        ("/v1/", "/api/v2/"),
        ("/v1/users/%2e?q=/v1", "/api/v2/users/%2e?q=/v1"),
        ("/api/v1?x", "/api/v2?x"),
        ("/v1/../x", "/v1/../x"),
        ("/v11", "/v11"),
        ("/static/a.js", "/a.js"),
        ("/static", "/"),
        ("/static?x", "/?x"),
        ("/favicon.ico?1", "/assets/icon.ico?1"),
        ("/favicon.ico/x", "/favicon.ico/x"),
    ] {
        let text = wire.get(path).await.text();
        assert!(text.starts_with(&format!("GET {expected} HTTP/1.1\r\n")), "{path}: {text}");
        assert!(!text.contains("X-Forwarded-Prefix"), "{text}");
    }
}
