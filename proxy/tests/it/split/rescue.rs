//! Rescue: what fails on the new side is asked of the old one, and stays the new one's failure.

use std::time::Duration;

use uh_protocol::status::TrialState;

use super::*;
use crate::exchanges::{WEBSOCKET, echo};
use crate::harness::{SampleApp, until};
use crate::http2::clients::{Client, h2c};

const RESCUE: &str =
    "timeouts = { read = \"300ms\" }\nsplit = { rescue = true }\n[services.app.health]\nenabled = false";

/// An app that answers by the path: with a status, not at all, too late, with half a response, or with a hint before an error.
async fn by_path(name: &'static str) -> Scripted {
    Scripted::start(move |head, mut stream| async move {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let fails = name == "green" || path.starts_with("/both");
        let ok = format!("HTTP/1.1 200 OK\r\nX-Backend: {name}\r\nContent-Length: 2\r\n\r\n");
        let body = if head.starts_with("HEAD") { "" } else { "ok" };
        let error = format!("HTTP/1.1 500 No\r\nX-Backend: {name}\r\nContent-Length: 2\r\n\r\n{body}");
        let (response, then) = match path.trim_start_matches("/both") {
            _ if !fails => (format!("{ok}{body}"), Then::KeepAlive),
            "/close" => (String::new(), Then::Close),
            "/garbage" => ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_owned(), Then::Close),
            "/half" => ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_owned(), Then::Close),
            "/fine" => (format!("{ok}{body}"), Then::KeepAlive),
            "/missing" => (error.replacen("500 No", "404 No", 1), Then::KeepAlive),
            "/late" => {
                tokio::time::sleep(Duration::from_secs(5)).await;
                (String::new(), Then::Close)
            }
            _ => (error, Then::KeepAlive),
        };
        let _ = stream.write_all(response.as_bytes()).await;
        (stream, then)
    })
    .await
}

struct Sides {
    home: Home,
    proxy: Proxy,
    apps: [Scripted; 2],
}

impl Sides {
    async fn start(service: &str, weight: f64) -> Self {
        let apps = [by_path("blue").await, by_path("green").await];
        let home = Home::new(apps[0].address, apps[1].address)
            .server("trusted_proxies = [\"127.0.0.1\"]")
            .service(service);
        let proxy = home.start().await;
        split(&proxy, &green(weight)).await;
        Self { home, proxy, apps }
    }

    async fn send(&self, wire: &mut Wire, method: &str, path: &str, client: u32) -> Response {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + client);
        let body = if method == "POST" { "Content-Length: 2\r\n\r\nhi" } else { "\r\n" };
        wire.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: app.test\r\nX-Forwarded-For: {address}\r\n{body}"
        ))
        .await;
        wire.read(method == "HEAD").await.unwrap()
    }
}

#[tokio::test]
async fn of_a_version_that_fails_everything_its_clients_see_nothing_and_the_trial_ends_the_split() {
    let sides = Sides::start(RESCUE, 50.0).await;
    let service = async || sides.proxy.service().await;
    until("the trial has begun", async || service().await.trial.filter(|trial| !trial.ended)).await;
    let mut wire = Wire::connect(sides.proxy.address).await;
    for client in 0..200 {
        for method in ["GET", "HEAD"] {
            let response = sides.send(&mut wire, method, "/", client).await;
            assert_eq!((response.status, response.header("x-backend")), (200, Some("blue")), "{client}");
        }
    }
    assert!(sides.apps[1].seen() > 10, "the new side was asked");
    until("the split has ended", async || service().await.split.is_none().then_some(())).await;
    let trial = service().await.trial.unwrap();
    assert_eq!((trial.state, trial.failures.old_clients), (TrialState::Bad, 0), "{trial:?}");
    assert!(trial.failures.new_clients >= 3, "{trial:?}");
    let seen = sides.apps[1].seen();
    let metrics = sides.proxy.client.metrics().await.unwrap();
    let count = |text: &str| -> usize {
        let values = metrics.lines().filter(|line| line.starts_with(text));
        values.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
    };
    let rescued = "uh_proxy_rescued_requests_total{service=\"app\",backend=\"green\"";
    assert_eq!(count(&format!("{rescued},result=\"answered\"")), seen, "{metrics}");
    assert_eq!(count(&format!("{rescued},result=\"failed\"")), 0);
    assert_eq!(count("uh_proxy_requests_total{service=\"app\",backend=\"green\",code=\"500\""), seen);
    assert_eq!(count("uh_proxy_requests_total{service=\"app\",backend=\"blue\",code=\"200\""), 400);
    let lines =
        until("all are logged", async || Some(sides.home.access_log()).filter(|lines| lines.len() == 400))
            .await;
    assert!(lines.iter().all(|line| line["backend"] == "blue" && line["status"] == 200));
    assert_eq!(lines.iter().filter(|line| line["rescued_from"] == "green").count(), seen);
}

#[tokio::test]
async fn every_failure_before_the_first_byte_is_rescued_and_nothing_else() {
    let sides = Sides::start(RESCUE, 99.9999).await;
    let mut tried = 0;
    for (method, path, status, backend) in [
        ("GET", "/error", 200, Some("blue")),
        ("HEAD", "/error", 200, Some("blue")),
        ("GET", "/close", 200, Some("blue")),
        ("GET", "/garbage", 200, Some("blue")),
        ("GET", "/late", 200, Some("blue")),
        ("GET", "/fine", 200, Some("green")),
        ("GET", "/missing", 404, Some("green")),
        ("POST", "/error", 500, Some("green")),
        ("POST", "/close", 502, None),
        ("GET", "/both/error", 500, Some("blue")),
        // The old side has no answer either: the new side's is the answer.
        ("GET", "/both/close", 502, None),
    ] {
        // Each is a client of its own, and they are too few for a verdict.
        tried += 1;
        let mut wire = Wire::connect(sides.proxy.address).await;
        let response = sides.send(&mut wire, method, path, tried).await;
        assert_eq!((response.status, response.header("x-backend")), (status, backend), "{method} {path}");
        if response.status == 200 && method == "GET" {
            assert_eq!(response.text(), "ok", "{path}");
        }
        if backend.is_some() && path != "/fine" {
            // What follows on the same connection isn't disturbed.
            let next = sides.send(&mut wire, "GET", "/fine", tried).await;
            assert_eq!(
                (next.status, next.header("x-backend")),
                (200, Some("green")),
                "after {method} {path}"
            );
        }
    }
    let mut wire = Wire::connect(sides.proxy.address).await;
    let cut = sides.send(&mut wire, "GET", "/half", 0).await;
    assert!(cut.status == 200 && !cut.complete, "its head was passed on: {cut:?}");
    for (result, count) in [("answered", 5), ("failed", 2)] {
        let line = format!(
            "uh_proxy_rescued_requests_total{{service=\"app\",backend=\"green\",result=\"{result}\"}} {count}\n"
        );
        sides.proxy.until_counted(&line).await;
    }
    for reason in ["closed", "timeout"] {
        let metrics = sides.proxy.client.metrics().await.unwrap();
        let broken = format!(
            "uh_proxy_exchanges_broken_total{{service=\"app\",backend=\"green\",reason=\"{reason}\"}} "
        );
        let line = metrics.lines().find_map(|line| line.strip_prefix(&broken));
        assert!(line.is_some_and(|count| count != "0"), "{reason}: {metrics}");
    }
}

#[tokio::test]
async fn a_backend_that_is_gone_is_rescued_and_without_the_setting_nothing_is() {
    let old = by_path("blue").await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = Home::new(old.address, free).service(RESCUE);
    let proxy = home.start().await;
    split(&proxy, &green(100.0)).await;
    let mut wire = Wire::connect(proxy.address).await;
    let response = get_as(&mut wire, "192.0.2.1", "/", "").await;
    assert_eq!(response.header("x-backend"), Some("blue"));
    let off = Sides::start("[services.app.health]\nenabled = false", 100.0).await;
    let mut wire = Wire::connect(off.proxy.address).await;
    assert_eq!(off.send(&mut wire, "GET", "/", 1).await.status, 500);
    assert_eq!(off.apps[0].seen(), 0);
    let metrics = off.proxy.client.metrics().await.unwrap();
    assert!(!metrics.contains("rescued_requests_total"));
}

#[tokio::test]
async fn a_file_of_the_old_side_is_its_answer() {
    let files = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(files.path().join("blue")).unwrap();
    std::fs::create_dir_all(files.path().join("green")).unwrap();
    std::fs::write(files.path().join("blue/page.html"), "a file of blue").unwrap();
    let root = files.path().join("{backend}");
    let sides = Sides::start(&format!("files = {root:?}\n{RESCUE}"), 100.0).await;
    let mut wire = Wire::connect(sides.proxy.address).await;
    for path in ["/page.html", "/close"] {
        let response = sides.send(&mut wire, "GET", path, 1).await;
        let expected = if path == "/close" { "ok" } else { "a file of blue" };
        assert_eq!((response.status, response.text()), (200, expected.to_owned()), "{path}");
    }
    assert_eq!((sides.apps[0].seen(), sides.apps[1].seen()), (1, 2));
    let lines =
        until("both are logged", async || Some(sides.home.access_log()).filter(|lines| lines.len() == 2))
            .await;
    assert!(
        lines.iter().all(|line| line["rescued_from"] == "green" && line["backend"] == "blue"),
        "{lines:?}"
    );
}

#[tokio::test]
async fn streams_of_http2_and_handshakes_of_websockets_are_rescued_too() {
    let (old, new) = (SampleApp::start("blue", "1").await, by_path("green").await);
    let home = Home::new(old.address, new.address).server("listen_h2c = [\"127.0.0.1:0\"]").service(RESCUE);
    let proxy = home.start().await;
    split(&proxy, &green(100.0)).await;
    let client = Client::plain(h2c(&proxy).await).await;
    let answer = client.get("/headers").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(WEBSOCKET).await;
    assert_eq!(wire.response().await.status, 101);
    echo(&mut wire, "hello").await;
    assert_eq!((proxy.backend("blue").await.tunnels, proxy.backend("green").await.tunnels), (1, 0));
    assert_eq!(new.seen(), 2);
}
