//! Maintenance: what clients get, which requests bypass it, and what survives a restart.

use std::fs;

use tokio::io::AsyncWriteExt as _;
use uh_protocol::request::{MaintenanceRequest, SwitchRequest};

use crate::harness::{Home, Proxy, SampleApp, Scripted, Then, app, backend, cli, pair, until};
use crate::wire::{Response, Wire, get};

const MESSAGE: &str = "back <b>soon</b> & \"well\"";

async fn begin(proxy: &Proxy) {
    let request =
        MaintenanceRequest { on: true, message: Some(MESSAGE.to_owned()), retry_after_s: Some(120) };
    let maintained = proxy.client.maintenance(&app(), &request).await.unwrap();
    assert!(maintained.on && maintained.persisted, "{maintained:?}");
}

async fn end(proxy: &Proxy) {
    let request = MaintenanceRequest { on: false, message: None, retry_after_s: None };
    let maintained = proxy.client.maintenance(&app(), &request).await.unwrap();
    assert!(!maintained.on && maintained.changed, "{maintained:?}");
}

async fn ask(proxy: &Proxy, path: &str, field: &str) -> Response {
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n")).await;
    wire.response().await
}

async fn scripted() -> Scripted {
    Scripted::start(|_, mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        (stream, Then::KeepAlive)
    })
    .await
}

#[tokio::test]
async fn clients_get_the_message_and_no_backend_gets_their_requests() {
    let blue = scripted().await;
    let home = Home::new(blue.address, "127.0.0.1:9");
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(wire.get("/").await.status, 200);
    let seen = blue.seen();
    begin(&proxy).await;
    // The same connection, which stays open.
    for _ in 0..2 {
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n").await;
        let page = wire.response().await;
        assert_eq!((page.status, page.header("retry-after")), (503, Some("120")));
        assert_eq!(page.header("connection"), Some("keep-alive"));
        assert!(
            page.text().contains("back &lt;b&gt;soon&lt;/b&gt; &amp; &quot;well&quot;"),
            "{}",
            page.text()
        );
    }
    let problem = ask(&proxy, "/", "Accept: application/json").await;
    let problem: serde_json::Value = serde_json::from_slice(&problem.body).unwrap();
    assert_eq!((&problem["detail"], &problem["retry_after_s"]), (&MESSAGE.into(), &120.into()));
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n").await;
    let refused = wire.response().await;
    assert_eq!((refused.status, refused.header("connection")), (503, Some("close")), "its body was not read");
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket";
    assert_eq!(ask(&proxy, "/ws", upgrade).await.status, 503);
    assert_eq!(blue.seen(), seen, "a backend was asked");
    let service = proxy.service().await;
    assert!(service.maintenance, "{service:?}");
    assert_eq!(service.maintenance_details.unwrap().message, MESSAGE);
    let metrics = proxy.client.metrics().await.unwrap();
    assert!(metrics.contains("uh_proxy_maintenance{service=\"app\"} 1\n"), "{metrics}");
    until("it is logged", async || {
        home.access_log().iter().find(|line| line["termination"] == "MT").map(|line| {
            assert_eq!((&line["service"], &line["status"]), (&"app".into(), &503.into()));
        })
    })
    .await;
    end(&proxy).await;
    assert_eq!(ask(&proxy, "/", "A: b").await.status, 200);
    assert!(proxy.client.metrics().await.unwrap().contains("uh_proxy_maintenance{service=\"app\"} 0\n"));
}

#[tokio::test]
async fn what_is_in_flight_when_maintenance_begins_completes() {
    let (_home, proxy, _blue, _green) = pair().await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=700")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    begin(&proxy).await;
    assert_eq!(ask(&proxy, "/", "A: b").await.status, 503);
    assert_eq!(slow.response().await.status, 200);
    assert_eq!(slow.get("/").await.status, 503);
}

#[tokio::test]
async fn health_is_answered_by_the_backend_or_else_by_us() {
    let blue = SampleApp::start("blue", "1").await;
    let home = Home::new(blue.address, "127.0.0.1:9");
    let proxy = home.start().await;
    begin(&proxy).await;
    let health = ask(&proxy, "/api/health", "A: b").await;
    assert!(health.status == 200 && health.text().contains("blue"), "{health:?}");
    let switch = SwitchRequest { force: true, ..SwitchRequest::to(backend("green")) };
    proxy.client.switch(&app(), &switch).await.unwrap();
    let health = ask(&proxy, "/api/health", "A: b").await;
    assert_eq!((health.status, health.text().as_str()), (200, "{\"status\":\"maintenance\"}\n"));
    assert_eq!(ask(&proxy, "/", "A: b").await.status, 503);
    end(&proxy).await;
    assert_eq!(ask(&proxy, "/api/health", "A: b").await.status, 502, "only maintenance hides a dead backend");
}

#[tokio::test]
async fn operators_get_through_by_secret_or_address_and_see_what_a_switch_did() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let bypass = |lines: &str| {
        Home::new(blue.address, green.address).service(&format!("[services.app.maintenance]\n{lines}"))
    };
    let home = bypass("bypass_header = \"X-Look: a long secret\"\nbypass_addresses = [\"192.0.2.0/24\"]");
    let proxy = home.start().await;
    proxy.until_healthy().await;
    begin(&proxy).await;
    assert_eq!(ask(&proxy, "/", "X-Look: a wrong secret").await.status, 503);
    assert_eq!(ask(&proxy, "/", "x-look:  a long secret").await.header("x-version"), Some("1"));
    proxy.switch("green").await;
    assert!(proxy.service().await.maintenance, "a switch ended it");
    assert_eq!(ask(&proxy, "/", "X-Look: a long secret").await.header("x-version"), Some("2"));
    assert_eq!(ask(&proxy, "/", "A: b").await.status, 503);
    drop(proxy);
    let home = bypass("bypass_addresses = [\"127.0.0.0/8\"]");
    let proxy = home.start().await;
    begin(&proxy).await;
    assert_eq!(ask(&proxy, "/", "A: b").await.status, 200);
}

#[tokio::test]
async fn an_operator_behind_a_trusted_proxy_is_known_by_the_address_that_it_tells() {
    let blue = SampleApp::start("blue", "1").await;
    let home = Home::new(blue.address, "127.0.0.1:9")
        .server("trusted_proxies = [\"127.0.0.0/8\"]")
        .service("[services.app.maintenance]\nbypass_addresses = [\"192.0.2.0/24\", \"127.0.0.0/8\"]");
    let proxy = home.start().await;
    begin(&proxy).await;
    assert_eq!(ask(&proxy, "/", "X-Forwarded-For: 192.0.2.7").await.status, 200);
    // Not by the proxy's address, which is the same for all clients.
    assert_eq!(ask(&proxy, "/", "X-Forwarded-For: 203.0.113.9").await.status, 503);
    assert_eq!(ask(&proxy, "/", "X-Forwarded-For: 192.0.2.7, 203.0.113.9").await.status, 503, "a claim");
}

#[tokio::test]
async fn maintenance_outlasts_a_reload() {
    let (home, proxy, _blue, _green) = pair().await;
    begin(&proxy).await;
    home.write_config(
        &home.config().replace("active = \"blue\"", "active = \"blue\"\ndrain_timeout = \"7s\""),
    );
    assert_eq!(proxy.client.reload().await.unwrap().changed, ["services.app.drain_timeout"]);
    assert_eq!(ask(&proxy, "/", "A: b").await.status, 503);
    assert!(proxy.service().await.maintenance);
}

#[tokio::test]
async fn maintenance_outlasts_the_process_and_its_own_page_is_shown() {
    let blue = SampleApp::start("blue", "1").await;
    let home = Home::new(blue.address, "127.0.0.1:9");
    let pages = home.path("pages");
    fs::create_dir(&pages).unwrap();
    fs::write(pages.join("maintenance.html"), "<p>ours: {{detail}}</p>").unwrap();
    let home = home.server(&format!("error_pages = {pages:?}"));
    let mut proxy = home.start().await;
    let args = ["maintenance", "on", "--message", MESSAGE, "--retry-after", "120"];
    let (code, output, errors) = cli(&home.socket(), &args).await;
    assert_eq!(code, 0, "{errors}");
    assert!(output.contains("app: in maintenance since "), "{output}");
    proxy.kill();
    let proxy = home.start().await;
    let page = ask(&proxy, "/", "A: b").await;
    assert_eq!((page.status, page.header("retry-after")), (503, Some("120")));
    assert_eq!(page.text(), "<p>ours: back &lt;b&gt;soon&lt;/b&gt; &amp; &quot;well&quot;</p>");
    let (_, output, _) = cli(&home.socket(), &["status"]).await;
    assert!(output.contains("in maintenance since ") && output.contains(MESSAGE), "{output}");
    let (code, output, _) = cli(&home.socket(), &["maintenance", "off"]).await;
    assert_eq!((code, output.as_str()), (0, "app: maintenance is off\n"));
    let (code, output, _) = cli(&home.socket(), &["maintenance", "off"]).await;
    assert_eq!((code, output.as_str()), (0, "app: not in maintenance\n"));
    assert_eq!(ask(&proxy, "/", "A: b").await.status, 200);
}

#[tokio::test]
async fn a_maintenance_call_that_is_refused_changes_nothing() {
    let blue = SampleApp::start("blue", "1").await;
    let home = Home::new(blue.address, "127.0.0.1:9");
    let proxy = home.start().await;
    let call = async |service: &str, on, message: Option<&str>, retry_after_s| {
        let request = MaintenanceRequest { on, message: message.map(str::to_owned), retry_after_s };
        proxy.client.maintenance(&service.parse().unwrap(), &request).await.map_err(|e| e.to_string())
    };
    for (service, on, message, retry_after_s) in [
        ("other", true, None, None),
        ("app", true, Some(""), None),
        ("app", true, Some("a\u{1b}[2J"), None),
        ("app", true, Some("x".repeat(1001).as_str()), None),
        ("app", true, None, Some(0)),
        ("app", true, None, Some(u32::MAX)),
        ("app", false, Some("m"), None),
    ] {
        let refused = call(service, on, message, retry_after_s).await;
        assert!(refused.is_err(), "{service} {on} {message:?} {retry_after_s:?}: {refused:?}");
        assert!(!proxy.service().await.maintenance);
    }
    assert_eq!(ask(&proxy, "/", "A: b").await.status, 200);
    // Changing the message doesn't restart maintenance, nor does it change the active backend.
    let first = call("app", true, Some("one\ntwo"), None).await.unwrap();
    let second = call("app", true, Some("other"), Some(5)).await.unwrap();
    let third = call("app", true, Some("other"), Some(5)).await.unwrap();
    assert!(first.changed && second.changed && !third.changed);
    assert_eq!(first.details.unwrap().since, second.details.unwrap().since);
    assert_eq!(proxy.status().await.generation, 0);
    home.until_said("action=\"maintenance\"").await;
}
