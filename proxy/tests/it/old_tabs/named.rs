//! Requests that name the deployment id of the page that sends them: they go to the version that the page came from, as long
//! as that stands by.

use std::collections::HashSet;
use std::sync::Arc;

use http::Request;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use uh_protocol::request::{DrainRequest, WithdrawRequest};

use super::double::App;
use super::register;
use crate::harness::{Home, Proxy, Scripted, Then, app, backend, until};
use crate::http2::clients::{Client, H2C, h2c, url};
use crate::wire::{Response, Wire};

const ON: &str = "deployment_id = \"{version}\"";

/// Two builds; blue is active.
async fn builds(service: &str) -> (Home, Proxy, App, App) {
    let (blue, green) = (App::start("blue").await, App::start("green").await);
    let home = Home::new(blue.app.address, green.app.address).server(H2C).service(service);
    let proxy = home.start().await;
    register(&proxy, "blue", blue.app.address, "1.0.0").await;
    register(&proxy, "green", green.app.address, "1.0.1").await;
    proxy.until_healthy().await;
    (home, proxy, blue, green)
}

fn of(response: &Response) -> &str {
    response.header("x-of").unwrap_or_default()
}

/// Who answers a request with this query and these fields.
async fn ask(wire: &mut Wire, query: &str, fields: &str) -> String {
    wire.send(format!("GET /page{query} HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n")).await;
    let response = wire.response().await;
    assert_eq!(response.status, 200);
    of(&response).to_owned()
}

fn counted(metrics: &str, name: &str) -> Option<u64> {
    let series = format!("uh_proxy_previous_named_total{{service=\"app\",backend=\"{name}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&series)).map(|value| value.parse().unwrap())
}

#[tokio::test]
async fn what_names_the_version_of_an_old_page_goes_to_it() {
    let (home, proxy, blue, green) = builds(ON).await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(ask(&mut wire, "?dpl=1.0.1", "").await, "blue", "green has never been active");
    proxy.switch("green").await;
    for (query, fields, expected) in [
        ("", "", "green"),
        ("?dpl=1.0.0", "", "blue"),
        ("?a=b&dpl=1-0-0", "", "blue"),
        ("", "x-deployment-id: 1.0.0\r\n", "blue"),
        ("?dpl=1.0.1", "", "green"),
        ("", "X-Deployment-Id: 1_0_1\r\n", "green"),
        ("?dpl=0.9.9", "", "green"),
        ("?dpl=", "", "green"),
        ("?dpl=blue", "x-deployment-id:\r\n", "green"),
    ] {
        assert_eq!(ask(&mut wire, query, fields).await, expected, "{query} {fields}");
    }
    assert_eq!(counted(&proxy.client.metrics().await.unwrap(), "blue"), Some(3));
    // With a body, which only the named one gets.
    let action = "POST /cart HTTP/1.1\r\nHost: a\r\nNext-Action: blue-1\r\nx-deployment-id: 1.0.0\r\nContent-Length: 2\r\n\r\n[]";
    let seen = green.app.seen();
    wire.send(action).await;
    assert_eq!(of(&wire.response().await), "blue");
    assert_eq!((green.app.seen(), blue.executed().len()), (seen, 1));
    let client = Client::plain(h2c(&proxy).await).await;
    let request = Request::get(url("/page")).header("x-deployment-id", "1.0.0").body(()).unwrap();
    assert_eq!(client.send(request).await.unwrap().headers["x-of"], "blue");
    // Back: now the other one is the old one.
    proxy.switch("blue").await;
    assert_eq!(ask(&mut wire, "?dpl=1.0.1", "").await, "green");
    assert_eq!(ask(&mut wire, "?dpl=1.0.0", "").await, "blue");
    let logged = until("it is logged", async || {
        let lines = home.access_log();
        (lines.len() >= 14).then_some(lines)
    })
    .await;
    let last = logged.iter().find(|line| line["path"] == "/page?dpl=1.0.1" && line["backend"] == "green");
    assert_eq!(last.unwrap()["version"], "1.0.1");
    for name in ["blue", "green"] {
        proxy.until_idle(name).await;
    }
}

#[tokio::test]
async fn a_backend_that_is_withdrawn_or_another_version_now_is_not_the_named_one() {
    let (_home, proxy, blue, _green) = builds(ON).await;
    proxy.switch("green").await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(
        "POST /cart?dpl=1.0.0 HTTP/1.1\r\nHost: a\r\nNext-Action: blue-hang\r\nContent-Length: 2\r\n\r\n[]",
    )
    .await;
    until("blue has it", async || (blue.app.seen() == 1).then_some(())).await;
    let drained = async |timeout_ms| {
        let drain = DrainRequest { timeout_ms: Some(timeout_ms), cut: Some(false) };
        proxy.client.drain(&app(), &backend("blue"), &drain).await.unwrap().drained
    };
    assert!(drained(5_000).await, "it holds up no deploy");
    proxy.client.withdraw(&app(), &backend("blue"), &WithdrawRequest::default()).await.unwrap();
    assert!(!drained(50).await, "but a stop");
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(ask(&mut wire, "?dpl=1.0.0", "").await, "green");
    drop(slow);
    assert!(drained(10_000).await);
    // The next version, which isn't active yet.
    register(&proxy, "blue", blue.app.address, "1.0.2").await;
    proxy.until_healthy().await;
    for version in ["1.0.0", "1.0.2"] {
        assert_eq!(ask(&mut wire, &format!("?dpl={version}"), "").await, "green");
    }
    assert_eq!(blue.app.seen(), 1);
}

#[tokio::test]
async fn one_that_cannot_be_reached_leaves_its_requests_to_the_active_one() {
    let green = App::start("green").await;
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let service = format!("{ON}\n[services.app.health]\nenabled = false");
    let home = Home::new(gone, green.app.address).service(&service);
    let proxy = home.start().await;
    register(&proxy, "blue", gone, "1.0.0").await;
    proxy.switch("green").await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(ask(&mut wire, "?dpl=1.0.0", "").await, "green");
    wire.send("POST /page?dpl=1.0.0 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n[]").await;
    assert_eq!(of(&wire.response().await), "green");
    assert_eq!(counted(&proxy.client.metrics().await.unwrap(), "blue"), Some(2));
}

/// A connection that dies with a request on it: the next attempt is on the same version.
#[tokio::test]
async fn another_attempt_goes_to_the_named_one_again() {
    let used = Arc::<Mutex<HashSet<_>>>::default();
    let blue = Scripted::start(move |_, mut stream| {
        let first = used.lock().insert(stream.peer_addr().unwrap());
        async move {
            if !first {
                return (stream, Then::Close);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nX-Of: blue\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            (stream, Then::KeepAlive)
        }
    })
    .await;
    let green = App::start("green").await;
    let home = Home::new(blue.address, green.app.address).server("threads = 1").service(ON);
    let proxy = home.start().await;
    register(&proxy, "blue", blue.address, "1.0.0").await;
    proxy.until_healthy().await;
    proxy.switch("green").await;
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..6 {
        assert_eq!(ask(&mut wire, "?dpl=1.0.0", "").await, "blue");
    }
    proxy
        .until_counted(
            "uh_proxy_retries_total{service=\"app\",backend=\"blue\",reason=\"stale_connection\"} 5",
        )
        .await;
}

#[tokio::test]
async fn it_is_off_unless_it_is_configured() {
    let rule = "[[services.app.paths]]\nmatch = \"/page/off\"\ndeployment_id = \"off\"";
    let (_home, proxy, ..) = builds(&format!("{ON}\n{rule}")).await;
    proxy.switch("green").await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(ask(&mut wire, "?dpl=1.0.0", "").await, "blue");
    assert_eq!(ask(&mut wire, "/off?dpl=1.0.0", "").await, "green");
    let (_home, proxy, ..) = builds("previous_on_404 = true").await;
    proxy.switch("green").await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(ask(&mut wire, "?dpl=1.0.0", "x-deployment-id: 1.0.0\r\n").await, "green");
    assert_eq!(counted(&proxy.client.metrics().await.unwrap(), "blue"), None);
}
