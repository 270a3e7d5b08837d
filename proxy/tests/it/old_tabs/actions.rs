//! Server actions of a page that was loaded before a switch: executed by the version that the page came from, at most once.

use http::Request;
use tokio::net::TcpListener;
use uh_protocol::request::{DrainRequest, WithdrawRequest};

use super::double::App;
use crate::harness::{Home, Proxy, app, backend, until};
use crate::http2::clients::{Client, H2C, complete, h2c, send_body, url};
use crate::wire::{Response, Wire};

const ON: &str = "previous_for_actions = true";

/// The largest body that is sent again.
const MOST: usize = 64 << 10;

/// Two builds; green has replaced blue.
async fn switched(service: &str) -> (Home, Proxy, App, App) {
    let (blue, green) = (App::start("blue").await, App::start("green").await);
    let home = Home::new(blue.app.address, green.app.address).server(H2C).service(service);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    proxy.switch("green").await;
    (home, proxy, blue, green)
}

fn head(action: &str, fields: &str) -> String {
    format!("POST /cart HTTP/1.1\r\nHost: app.test\r\nNext-Action: {action}\r\n{fields}\r\n\r\n")
}

/// Calls an action with so large a body.
async fn act(wire: &mut Wire, action: &str, body: &[u8]) -> Response {
    wire.send(head(action, &format!("Content-Length: {}", body.len()))).await;
    wire.send(body).await;
    wire.response().await
}

fn is_not_found(response: &Response) -> bool {
    response.status == 404
        && response.header("x-nextjs-action-not-found") == Some("1")
        && response.text() == "Server action not found."
}

fn patterned(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

fn counted(metrics: &str, result: &str) -> u64 {
    let series =
        format!("uh_proxy_previous_actions_total{{service=\"app\",backend=\"blue\",result=\"{result}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn an_old_page_calls_actions_of_its_own_build_and_each_is_executed_once() {
    let (home, proxy, blue, green) = switched(ON).await;
    let mut wire = Wire::connect(proxy.address).await;
    for size in [0, 1, 1_000, 20_000, MOST] {
        let body = patterned(size);
        let response = act(&mut wire, "blue-1", &body).await;
        assert_eq!((response.status, response.text()), (200, format!("{size} bytes")));
        assert!(blue.executed() == [("blue-1".to_owned(), body.clone())], "{size}");
        assert_eq!(green.executed(), []);
        let response = act(&mut wire, "green-1", &body).await;
        assert_eq!((response.status, response.header("x-of")), (200, Some("green")));
        assert!(green.executed() == [("green-1".to_owned(), body)] && blue.executed().is_empty(), "{size}");
    }
    // What the action itself answers is the answer.
    for (action, status) in [("blue-fail", 500), ("blue-redirect", 303)] {
        let response = act(&mut wire, action, b"[]").await;
        assert_eq!((response.status, response.header("x-of")), (status, Some("blue")));
    }
    assert_eq!(blue.executed().len(), 2);
    assert_eq!(counted(&proxy.client.metrics().await.unwrap(), "answered"), 7);
    proxy.switch("blue").await;
    assert_eq!(act(&mut wire, "green-2", b"[]").await.header("x-of"), Some("green"));
    assert_eq!(green.executed().len(), 1);
    let logged = until("it is logged", async || {
        home.access_log().into_iter().rev().find(|line| line["status"] == 303)
    })
    .await;
    assert_eq!((&logged["backend"], &logged["method"]), (&"blue".into(), &"POST".into()));
    for name in ["blue", "green"] {
        proxy.until_idle(name).await;
    }
}

#[tokio::test]
async fn a_body_in_chunks_and_one_that_comes_slowly_are_sent_whole() {
    let (_home, proxy, blue, green) = switched(ON).await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(head("blue-1", "Transfer-Encoding: chunked")).await;
    wire.send("3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n").await;
    assert_eq!(wire.response().await.text(), "8 bytes");
    assert_eq!(blue.executed(), [("blue-1".to_owned(), b"abcdefgh".to_vec())]);
    // Green has long answered when the rest of the body arrives.
    wire.send(head("blue-2", "Content-Length: 6")).await;
    wire.send("abc").await;
    until("green has answered", async || (green.app.seen() == 2).then_some(())).await;
    wire.send("def").await;
    assert_eq!(wire.response().await.text(), "6 bytes");
    assert_eq!(blue.executed(), [("blue-2".to_owned(), b"abcdef".to_vec())]);
    // What follows on the connection is still read as the next request.
    wire.send(head("blue-3", "Content-Length: 2") + "[]" + &head("green-4", "Content-Length: 2") + "{}")
        .await;
    assert_eq!(wire.response().await.header("x-of"), Some("blue"));
    assert_eq!(wire.response().await.header("x-of"), Some("green"));
    assert_eq!(blue.executed(), [("blue-3".to_owned(), b"[]".to_vec())]);
}

#[tokio::test]
async fn the_same_over_http2() {
    let (_home, proxy, blue, green) = switched(ON).await;
    let client = Client::plain(h2c(&proxy).await).await;
    for (size, announced) in [(0, true), (1, false), (1_000, true), (50_000, false), (MOST, true)] {
        let body = patterned(size);
        let request = Request::post(url("/cart")).header("next-action", "blue-1");
        let request = if announced { request.header("content-length", size) } else { request };
        let (response, mut stream) = client.open(request.body(()).unwrap(), false).await;
        send_body(&mut stream, &body).await.unwrap();
        let answer = complete(response.await.unwrap()).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text()), (200, format!("{size} bytes").as_str()));
        assert!(blue.executed() == [("blue-1".to_owned(), body)], "{size}");
    }
    assert_eq!(green.executed(), []);
}

#[tokio::test]
async fn nothing_else_is_sent_twice() {
    let (_home, proxy, blue, green) = switched(&format!("{ON}\nprevious_on_404 = true")).await;
    let mut wire = Wire::connect(proxy.address).await;
    let asked = blue.app.seen();
    // Another 404 than that of an unknown action, and an unknown action that fails.
    for action in ["red-plain-404", "green-fail", "green-redirect"] {
        assert_ne!(act(&mut wire, action, b"[]").await.status, 200);
    }
    for request in ["POST", "PUT"] {
        let field = if request == "PUT" { "Next-Action: blue-1\r\n" } else { "" };
        wire.send(format!("{request} /cart HTTP/1.1\r\nHost: a\r\n{field}Content-Length: 2\r\n\r\n[]")).await;
        assert_eq!(wire.response().await.status, 404, "{request}");
    }
    assert_eq!((blue.app.seen(), blue.executed()), (asked, vec![]));
    // Neither build knows it: the active one's answer, complete and on a connection that is kept.
    assert!(is_not_found(&act(&mut wire, "red-1", b"[]").await));
    assert!(is_not_found(&act(&mut wire, "red-hint", b"[]").await), "hints of the previous one are dropped");
    assert_eq!(blue.app.seen(), asked + 2);
    // Too large, with and without a length.
    assert!(is_not_found(&act(&mut wire, "blue-1", &patterned(MOST + 1)).await));
    wire.send(head("blue-1", "Transfer-Encoding: chunked")).await;
    wire.send(format!("{MOST:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(MOST))).await;
    assert!(is_not_found(&wire.response().await));
    assert_eq!((blue.app.seen(), blue.executed()), (asked + 2, vec![]));
    assert_eq!(green.executed().len(), 2);
    let metrics = proxy.client.metrics().await.unwrap();
    let results = ["answered", "missing", "failed", "not_kept"].map(|result| counted(&metrics, result));
    assert_eq!(results, [0, 2, 0, 2]);
}

#[tokio::test]
async fn it_is_off_unless_it_is_configured() {
    let (_home, proxy, blue, _green) = switched("previous_on_404 = true").await;
    let mut wire = Wire::connect(proxy.address).await;
    let asked = blue.app.seen();
    assert!(is_not_found(&act(&mut wire, "blue-1", b"[]").await));
    assert_eq!(blue.app.seen(), asked);
    assert!(!proxy.client.metrics().await.unwrap().contains("previous_actions"));
}

/// It may have executed it, so it isn't asked again, and the client doesn't learn that nothing was executed.
#[tokio::test]
async fn a_previous_backend_that_does_not_answer_is_asked_once() {
    let (home, proxy, blue, _green) = switched(ON).await;
    let mut wire = Wire::connect(proxy.address).await;
    for calls in 1..=3 {
        // The connection to blue is a pooled one from the second time on.
        assert_eq!(act(&mut wire, "blue-1", b"[]").await.status, 200);
        assert_eq!(act(&mut wire, "blue-close", b"[]").await.status, 502);
        assert_eq!(blue.executed().len(), 2, "{calls}");
    }
    proxy
        .until_counted(
            "uh_proxy_exchanges_broken_total{service=\"app\",backend=\"blue\",reason=\"closed\"} 3",
        )
        .await;
    let metrics = proxy.client.metrics().await.unwrap();
    assert_eq!((counted(&metrics, "answered"), counted(&metrics, "failed")), (3, 3));
    let logged =
        until("it is logged", async || home.access_log().into_iter().find(|line| line["status"] == 502))
            .await;
    assert_eq!((&logged["backend"], &logged["termination"]), (&"blue".into(), &"UC".into()));
}

#[tokio::test]
async fn a_previous_backend_that_is_gone_leaves_the_answer_as_it_is() {
    let green = App::start("green").await;
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let home =
        Home::new(gone, green.app.address).service(&format!("{ON}\n[services.app.health]\nenabled = false"));
    let proxy = home.start().await;
    proxy.switch("green").await;
    let mut wire = Wire::connect(proxy.address).await;
    assert!(is_not_found(&act(&mut wire, "blue-1", b"[]").await));
    assert_eq!(act(&mut wire, "green-1", b"[]").await.status, 200);
    assert_eq!(counted(&proxy.client.metrics().await.unwrap(), "failed"), 1);
}

#[tokio::test]
async fn a_withdrawn_backend_executes_what_it_has_and_gets_nothing_more() {
    let (_home, proxy, blue, _green) = switched(ON).await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(head("blue-hang", "Content-Length: 2") + "[]").await;
    until("blue has the action", async || (blue.app.seen() == 1).then_some(())).await;
    assert_eq!(proxy.backend("blue").await.requests_in_flight, 1);
    // It holds up no deploy, but a stop.
    let drain = |timeout_ms| DrainRequest { timeout_ms: Some(timeout_ms), cut: Some(false) };
    let drained =
        async |timeout| proxy.client.drain(&app(), &backend("blue"), &drain(timeout)).await.unwrap().drained;
    assert!(drained(5_000).await);
    proxy.client.withdraw(&app(), &backend("blue"), &WithdrawRequest::default()).await.unwrap();
    assert!(!drained(50).await);
    let mut wire = Wire::connect(proxy.address).await;
    assert!(is_not_found(&act(&mut wire, "blue-1", b"[]").await));
    assert_eq!(blue.executed().len(), 1, "only the one before");
    drop(slow);
    assert!(drained(10_000).await);
}
