//! Previews over TLS, HTTP/2 and WebSockets.

use super::{by_cookie, green};
use crate::exchanges::{WEBSOCKET, echo};
use crate::harness::{Home, SampleApp, until};
use crate::http2::clients::{Client, url};
use crate::tls::certificates::Site;
use crate::tls::clients::Rustls;
use crate::wire::Wire;

#[tokio::test]
async fn over_tls_the_cookie_is_secure_and_over_http2_it_is_the_same() {
    let site = Site::start_as("", "", |home| home.service("hosts = [\"app.test\"]")).await;
    let reply = green(&site.proxy).await;
    let token = reply.token;
    assert_eq!(reply.link.unwrap(), format!("https://app.test/?__uh-preview={token}"));
    let mut wire = Rustls::new(&site.authority).connect(site.address, "app.test").await.unwrap();
    wire.send(format!("GET /x?__uh-preview={token} HTTP/1.1\r\nHost: app.test\r\n\r\n")).await;
    let moved = wire.response().await;
    assert_eq!((moved.status, moved.header("location")), (303, Some("/x")));
    assert!(
        moved.header("set-cookie").unwrap().ends_with("; HttpOnly; SameSite=Lax; Secure"),
        "{}",
        moved.head
    );
    wire.send(format!("GET /api/health HTTP/1.1\r\nHost: app.test\r\n{}\r\n", by_cookie(&token))).await;
    let answer = wire.response().await;
    assert!(answer.text().contains("green"), "{answer:?}");
    let client = Client::tls(&site).await;
    let moved = client.get(&format!("/x?__uh-preview={token}")).await;
    assert_eq!(
        (moved.status, moved.headers["location"].as_bytes()),
        (http::StatusCode::SEE_OTHER, &b"/x"[..])
    );
    assert!(moved.headers["set-cookie"].to_str().unwrap().contains("Secure"));
    for (name, value) in [("cookie", format!("__uh-preview={token}")), ("x-uh-preview", token)] {
        let request = http::Request::get(url("/api/health")).header("cookie", "a=1").header(name, value);
        let answer = client.send(request.body(()).unwrap()).await.unwrap();
        assert!(answer.text().contains("green"), "{answer:?}");
        assert_eq!(answer.headers["cache-control"], "private, no-store");
        assert_eq!(answer.headers["x-robots-tag"], "noindex");
    }
    assert!(client.get("/api/health").await.text().contains("blue"));
}

#[tokio::test]
async fn a_websocket_is_a_preview_by_its_handshake() {
    let (blue, other) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let home = Home::new(blue.address, other.address);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let token = green(&proxy).await.token;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(WEBSOCKET.replacen("\r\n\r\n", &format!("\r\n{}\r\n", by_cookie(&token)), 1)).await;
    assert_eq!(wire.response().await.status, 101);
    echo(&mut wire, "hello").await;
    assert_eq!((proxy.backend("green").await.tunnels, proxy.backend("blue").await.tunnels), (1, 0));
    // A switch leaves it where it is.
    proxy.switch("green").await;
    proxy.switch("blue").await;
    echo(&mut wire, "still here").await;
    drop(wire);
    until("it is logged", async || {
        let lines = home.access_log();
        let line = lines.iter().find(|line| line["status"] == 101)?;
        (line["preview"] == true && line["backend"] == "green").then_some(())
    })
    .await;
}
