//! Splits of a service's traffic between its active backend and another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::AsyncWriteExt as _;
use uh_protocol::client::ClientError;
use uh_protocol::request::{SplitReply, SplitRequest};

use crate::harness::{Home, Proxy, Scripted, Then, app, backend};
use crate::wire::{Response, Wire};

mod assignment;
mod cookies;
#[cfg(feature = "fault-points")]
mod crash;
mod ends;
mod load;
mod refused;
mod rescue;
mod trial;
mod tunnels;

/// A request for `weight` percent to green.
fn green(weight: f64) -> SplitRequest {
    SplitRequest { to: Some(backend("green")), weight, ..SplitRequest::default() }
}

async fn split(proxy: &Proxy, request: &SplitRequest) -> SplitReply {
    proxy.client.split(&app(), request).await.unwrap()
}

async fn off(proxy: &Proxy) -> SplitReply {
    split(proxy, &SplitRequest { to: None, ..green(0.0) }).await
}

/// An app that answers `/html` with a page and everything else with text, with the field that the query asks for:
/// `/html?Cache-Control:public`. It knows whether it has ever got a cookie of uh-proxy's.
struct Pages {
    app: Scripted,
    saw_ours: Arc<AtomicBool>,
}

impl Pages {
    async fn start(name: &'static str) -> Self {
        let saw_ours = Arc::new(AtomicBool::new(false));
        let saw = Arc::clone(&saw_ours);
        let app = Scripted::start(move |head, mut stream| {
            saw.fetch_or(head.contains("__uh-"), Ordering::SeqCst);
            async move {
                let target = head.split(' ').nth(1).unwrap_or_default();
                let (path, field) = target.split_once('?').unwrap_or((target, "X-None:"));
                let kind = if path == "/html" { "text/html; charset=utf-8" } else { "text/plain" };
                let cookie = head.lines().find_map(|line| line.strip_prefix("Cookie: ")).unwrap_or("-");
                let response = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nX-Backend: {name}\r\nX-Cookie: {cookie}\r\n{field}\r\nContent-Length: 2\r\n\r\nok"
                );
                let _ = stream.write_all(response.as_bytes()).await;
                (stream, Then::KeepAlive)
            }
        })
        .await;
        Self { app, saw_ours }
    }
}

/// Blue and green behind a uh-proxy that believes what 127.0.0.1 says about its clients, so that one connection can speak
/// for any number of them.
async fn pages(service: &str) -> (Home, Proxy, [Pages; 2]) {
    let apps = [Pages::start("blue").await, Pages::start("green").await];
    let home = Home::new(apps[0].app.address, apps[1].app.address)
        // No connection ends because it has carried enough requests.
        .server("trusted_proxies = [\"127.0.0.1\"]\nlimits = { requests_per_connection = 1000000000 }")
        .service(service);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    (home, proxy, apps)
}

/// Sends a `GET` for a client at this address, with more fields.
async fn get_as(wire: &mut Wire, client: &str, path: &str, fields: &str) -> Response {
    let head = format!("GET {path} HTTP/1.1\r\nHost: app.test\r\nX-Forwarded-For: {client}\r\n{fields}\r\n");
    wire.send(head).await;
    let response = wire.response().await;
    assert!(response.status == 200 && response.complete, "{response:?}");
    response
}

/// Whether green answers a client.
async fn is_new(wire: &mut Wire, client: &str, fields: &str) -> bool {
    get_as(wire, client, "/", fields).await.header("x-backend") == Some("green")
}

fn code(error: ClientError) -> uh_protocol::Code {
    match error {
        ClientError::Problem(problem) => problem.code,
        other => panic!("{other}"),
    }
}
