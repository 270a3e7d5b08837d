//! Pages that were loaded before a switch: what they ask for is looked for in the version that they came from.

use tokio::io::AsyncWriteExt as _;
use uh_protocol::request::{DrainRequest, SplitRequest, WithdrawRequest};

use super::{FILES, Site};
use crate::harness::{Home, Proxy, SampleApp, Scripted, Then, app, backend, until};
use crate::wire::Wire;

const PREVIOUS: &str = "previous_on_404 = true";

/// An app with one asset, and the page `/`. It knows when it is asked for an asset with another method.
async fn app_with(asset: &'static str) -> Scripted {
    Scripted::start(move |head, mut stream| async move {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let found = path == "/" || path == "/api/health" || path.strip_prefix('/') == Some(asset);
        let (line, body) = if found {
            ("200 OK", format!("{asset}:{path}"))
        } else {
            ("404 Not Found", format!("{asset} has no {path}"))
        };
        let length = body.len();
        let body = if head.starts_with("HEAD ") { "" } else { &body };
        if path == "/hinted.js" && asset == "blue.js" {
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await.unwrap();
        }
        let response = format!("HTTP/1.1 {line}\r\nContent-Length: {length}\r\nX-Of: {asset}\r\n\r\n{body}");
        stream.write_all(response.as_bytes()).await.unwrap();
        (stream, Then::KeepAlive)
    })
    .await
}

async fn apps(service: &str) -> (Home, Proxy, Scripted, Scripted) {
    let (blue, green) = (app_with("blue.js").await, app_with("green.js").await);
    let home = Home::new(blue.address, green.address).server("threads = 1").service(service);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    (home, proxy, blue, green)
}

async fn of(wire: &mut Wire, path: &str) -> (u16, String) {
    let response = wire.get(path).await;
    assert!(response.complete);
    (response.status, response.header("x-of").unwrap_or_default().to_owned())
}

fn asked(metrics: &str, backend: &str, result: &str) -> u64 {
    let labels = [format!("backend=\"{backend}\""), format!("result=\"{result}\"")];
    let mut series = metrics.lines().filter(|line| line.starts_with("uh_proxy_previous_asked_total{"));
    let found = series.find(|line| labels.iter().all(|label| line.contains(label)));
    found.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn an_old_page_gets_its_assets_after_a_switch_and_after_a_rollback() {
    let (home, proxy, ..) = apps(PREVIOUS).await;
    let mut wire = Wire::connect(proxy.address).await;
    let blue = || "blue.js".to_owned();
    let green = || "green.js".to_owned();
    assert_eq!(of(&mut wire, "/green.js").await, (404, blue()), "nothing was active before");
    proxy.switch("green").await;
    for _ in 0..3 {
        assert_eq!(of(&mut wire, "/blue.js").await, (200, blue()));
        assert_eq!(of(&mut wire, "/green.js").await, (200, green()));
        assert_eq!(of(&mut wire, "/").await, (200, green()));
        assert_eq!(of(&mut wire, "/neither.js").await, (404, green()), "the active backend's answer");
    }
    wire.send("HEAD /blue.js HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(wire.response_to_head().await.status, 200);
    // Never with another method, nor with a body.
    wire.send("POST /blue.js HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(wire.response().await.status, 404);
    wire.send("GET /blue.js HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(wire.response().await.status, 404);
    let metrics = proxy.client.metrics().await.unwrap();
    assert_eq!((asked(&metrics, "blue", "answered"), asked(&metrics, "blue", "missing")), (4, 3));
    proxy.switch("blue").await;
    assert_eq!(of(&mut wire, "/green.js").await, (200, green()));
    assert_eq!(of(&mut wire, "/blue.js").await, (200, blue()));
    let logged = until("it is logged", async || {
        home.access_log()
            .into_iter()
            .rev()
            .find(|line| line["path"] == "/green.js" && line["backend"] == "green")
    })
    .await;
    assert_eq!((&logged["status"], &logged["termination"]), (&200.into(), &"-".into()));
    for name in ["blue", "green"] {
        proxy.until_idle(name).await;
    }
}

#[tokio::test]
async fn hints_of_the_previous_backend_do_not_reach_a_client_that_gets_the_active_ones_answer() {
    let (_home, proxy, ..) = apps(PREVIOUS).await;
    proxy.switch("green").await;
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..2 {
        let response = wire.get("/hinted.js").await;
        assert_eq!((response.status, response.text()), (404, "green.js has no /hinted.js".to_owned()));
    }
    assert_eq!(asked(&proxy.client.metrics().await.unwrap(), "blue", "missing"), 2);
}

#[tokio::test]
async fn a_withdrawn_backend_is_never_asked() {
    let (_home, proxy, ..) = apps(PREVIOUS).await;
    let mut wire = Wire::connect(proxy.address).await;
    proxy.switch("green").await;
    assert_eq!(of(&mut wire, "/blue.js").await.0, 200);
    proxy.client.withdraw(&app(), &backend("blue"), &WithdrawRequest::default()).await.unwrap();
    let drain = DrainRequest { timeout_ms: Some(5000), cut: Some(false) };
    assert!(proxy.client.drain(&app(), &backend("blue"), &drain).await.unwrap().drained);
    assert_eq!(of(&mut wire, "/blue.js").await, (404, "green.js".to_owned()));
    assert_eq!(proxy.backend("blue").await.connections.idle, 0);
}

#[tokio::test]
async fn a_backend_that_is_down_is_not_asked() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let home = Home::new(blue.address, green.address).service(PREVIOUS);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    proxy.switch("green").await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(wire.get("/no-such-page").await.status, 404);
    drop(blue);
    until("blue is unhealthy", async || (proxy.backend("blue").await.healthy == Some(false)).then_some(()))
        .await;
    assert_eq!(wire.get("/no-such-page").await.status, 404);
    let metrics = proxy.client.metrics().await.unwrap();
    assert_eq!(asked(&metrics, "blue", "missing"), 1, "only while it was up");
}

#[tokio::test]
async fn it_is_off_unless_it_is_configured() {
    let (_home, proxy, blue, _green) = apps("").await;
    let mut wire = Wire::connect(proxy.address).await;
    proxy.switch_by_force("green").await;
    let before = blue.seen();
    assert_eq!(of(&mut wire, "/blue.js").await.0, 404);
    assert_eq!(blue.seen(), before);
}

#[tokio::test]
async fn files_of_the_previous_backend_are_found_with_and_without_an_app() {
    for only in [true, false] {
        let site = Site::start(&format!("{FILES}\nfiles_only = {only}\n{PREVIOUS}")).await;
        site.put("blue", "blue.js", "of blue");
        site.put("green", "green.js", "of green");
        let mut wire = site.wire().await;
        site.proxy.switch("green").await;
        for (path, status, text) in
            [("/blue.js", 200, "of blue"), ("/green.js", 200, "of green"), ("/red.js", 404, "")]
        {
            let response = wire.get(path).await;
            assert_eq!(response.status, status, "{path}");
            assert!(status == 404 || response.text() == text, "{path}: {}", response.text());
        }
        let lines = until("all is logged", async || {
            let lines = site.home.access_log();
            (lines.len() == 3).then_some(lines)
        })
        .await;
        assert_eq!((&lines[0]["backend"], &lines[0]["termination"]), (&"blue".into(), &"SF".into()));
        assert_eq!(lines[2]["backend"], "green");
    }
}

#[tokio::test]
async fn a_page_of_one_side_of_a_split_gets_its_assets_on_the_new_side() {
    let (_home, proxy, ..) = apps(PREVIOUS).await;
    let everybody = SplitRequest { to: Some(backend("green")), weight: 100.0, ..SplitRequest::default() };
    proxy.client.split(&app(), &everybody).await.unwrap();
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(of(&mut wire, "/green.js").await, (200, "green.js".to_owned()));
    assert_eq!(
        of(&mut wire, "/blue.js").await,
        (200, "blue.js".to_owned()),
        "the page of before is still open"
    );
    assert_eq!(of(&mut wire, "/none.js").await, (404, "green.js".to_owned()), "neither has it");
}
