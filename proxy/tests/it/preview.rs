//! Previews: whoever has a token gets a standby, and nobody else does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::AsyncWriteExt as _;
use uh_protocol::request::{PreviewReply, PreviewRequest};

use crate::harness::{Home, Proxy, Scripted, Then, app, backend};
use crate::wire::{Response, Wire};

mod answers;
mod calls;
mod clients;
mod hosts;
mod moves;
mod tokens;

/// An app that says who it is, and that everybody may cache that. It notices whether anything of a preview reaches it.
struct Versions {
    app: Scripted,
    saw_token: Arc<AtomicBool>,
}

impl Versions {
    async fn start(name: &'static str) -> Self {
        let saw_token = Arc::new(AtomicBool::new(false));
        let saw = Arc::clone(&saw_token);
        let app = Scripted::start(move |head, mut stream| {
            saw.fetch_or(head.to_ascii_lowercase().contains("uh-preview"), Ordering::SeqCst);
            async move {
                let missing = head.starts_with("GET /missing ");
                let status = if missing && name == "green" { "404 Not Found" } else { "200 OK" };
                let response = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nX-Backend: {name}\r\nCache-Control: public, max-age=60\r\n\
                     CDN-Cache-Control: max-age=60\r\nExpires: later\r\nContent-Length: 2\r\n\r\nok"
                );
                let _ = stream.write_all(response.as_bytes()).await;
                (stream, Then::KeepAlive)
            }
        })
        .await;
        Self { app, saw_token }
    }
}

/// Blue and green behind uh-proxy.
async fn versions(server: &str, service: &str) -> (Home, Proxy, [Versions; 2]) {
    let apps = [Versions::start("blue").await, Versions::start("green").await];
    let home = Home::new(apps[0].app.address, apps[1].app.address).server(server).service(service);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    (home, proxy, apps)
}

/// A preview of green.
async fn green(proxy: &Proxy) -> PreviewReply {
    let request = PreviewRequest { to: backend("green"), ttl_ms: None };
    proxy.client.preview(&app(), &request).await.unwrap()
}

/// Sends a `GET` with more fields, each with its line end.
async fn get(wire: &mut Wire, path: &str, fields: &str) -> Response {
    get_of(wire, "app.test", path, fields).await
}

async fn get_of(wire: &mut Wire, host: &str, path: &str, fields: &str) -> Response {
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).await;
    wire.response().await
}

fn by_field(token: &str) -> String {
    format!("X-UH-Preview: {token}\r\n")
}

fn by_cookie(token: &str) -> String {
    format!("Cookie: a=1; __uh-preview={token}; b=2\r\n")
}

fn assert_private(response: &Response) {
    let fields = ["cache-control", "x-robots-tag", "expires", "cdn-cache-control"];
    let found = fields.map(|name| response.header(name));
    assert_eq!(found, [Some("private, no-store"), Some("noindex"), None, None], "{}", response.head);
}

fn assert_usual(response: &Response, backend: &str) {
    assert_eq!((response.status, response.header("x-backend")), (200, Some(backend)), "{}", response.head);
    assert_eq!(response.header("cache-control"), Some("public, max-age=60"), "{}", response.head);
    assert_eq!(response.header("x-robots-tag"), None, "{}", response.head);
}
