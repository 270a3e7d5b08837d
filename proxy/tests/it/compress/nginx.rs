//! The same requests to nginx and to uh-proxy, before the same app: what is compressed, and what is said about it.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use tokio::net::UnixStream;

use super::{app, before, unpacked};
use crate::harness::until;
use crate::wire::{Response, Wire};

struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// nginx before this app, on a socket in this directory; `None`: it isn't installed.
async fn nginx(dir: &Path, app: std::net::SocketAddr) -> Option<(Nginx, std::path::PathBuf)> {
    let (socket, at) = (dir.join("nginx.sock"), dir.display());
    let types = uh_http1::compression::DEFAULT_TYPES.into_iter().filter(|name| *name != "text/html");
    let types: Vec<&str> = types.collect();
    let text = format!(
        "daemon off; master_process off; pid {at}/nginx.pid; error_log {at}/error.log;\nevents {{}}\n\
         http {{\naccess_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         gzip on; gzip_comp_level 6; gzip_min_length 1024; gzip_proxied any; gzip_vary on; gzip_types {};\n\
         server {{ listen unix:{};\nlocation / {{ proxy_pass http://{app}; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_set_header Accept-Encoding $http_accept_encoding; proxy_force_ranges off; }} }}\n}}\n",
        types.join(" "),
        socket.display()
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let child = Command::new("nginx").arg("-c").arg(&file).arg("-p").arg(dir).stderr(Stdio::null()).spawn();
    let nginx = Nginx(child.ok()?);
    until("nginx listens", async || UnixStream::connect(&socket).await.ok()).await;
    Some((nginx, socket))
}

/// What matters of a response.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    status: u16,
    encoding: Option<String>,
    vary: bool,
    etag: Option<String>,
    length: Option<String>,
    ranges: Option<String>,
    body: Vec<u8>,
}

fn facts(response: &Response) -> Facts {
    let field = |name: &str| response.header(name).map(str::to_owned);
    assert!(response.complete);
    let encoding = field("content-encoding");
    let packed = encoding.as_deref() == Some("gzip") && !response.body.is_empty();
    Facts {
        status: response.status,
        vary: response.head.to_ascii_lowercase().contains("vary: accept-encoding"),
        etag: field("etag"),
        length: field("content-length"),
        ranges: field("accept-ranges"),
        body: if packed { unpacked(&response.body) } else { response.body.clone() },
        encoding,
    }
}

#[tokio::test]
async fn as_nginx_does_it() {
    let app = app().await;
    let dir = tempfile::tempdir().unwrap();
    let Some((_nginx, socket)) = nginx(dir.path(), app.address).await else {
        println!("skipped: nginx isn't installed");
        return;
    };
    let (_home, proxy) = before(&app, "compress = true").await;
    let accepted = "Accept-Encoding: gzip, deflate, br\r\n";
    let cases = [
        ("GET", "/5000", accepted),
        ("GET", "/5000", ""),
        ("GET", "/5000", "Accept-Encoding: br\r\n"),
        ("GET", "/5000", "Accept-Encoding: gzip;q=0\r\n"),
        ("GET", "/5000", "Accept-Encoding: gzip; q=0.0, br\r\n"),
        ("GET", "/5000", "Accept-Encoding: deflate, gzip;q=0.1\r\n"),
        ("GET", "/5000", "Accept-Encoding: gzip\r\nVia: 1.1 x\r\n"),
        ("GET", "/1023", accepted),
        ("GET", "/1024", accepted),
        ("GET", "/200?Transfer-Encoding:_chunked", accepted),
        ("GET", "/300000?Transfer-Encoding:_chunked", accepted),
        ("GET", "/300000", accepted),
        ("POST", "/5000", accepted),
        ("GET", "/5000?Content-Type:_application/json", accepted),
        ("GET", "/5000?Content-Type:_image/svg+xml;charset=utf-8", accepted),
        ("GET", "/5000?Content-Type:_image/png", accepted),
        ("GET", "/5000?Content-Type:_text/event-stream", accepted),
        ("GET", "/5000?Content-Encoding:_br", accepted),
        ("GET", "/5000?ETag:_\"a\"|Accept-Ranges:_bytes", accepted),
        ("GET", "/5000?ETag:_W/\"a\"", accepted),
        ("GET", "/5000?ETag:_a", accepted),
        ("GET", "/5000?ETag:_\"a\"|Accept-Ranges:_bytes", ""),
        ("GET", "/5000?Cache-Control:_public,_max-age=60", accepted),
        ("GET", "/5000?status=404", accepted),
        ("GET", "/5000?status=204", accepted),
    ];
    let mut ours = Wire::connect(proxy.address).await;
    let mut theirs = Wire::over(UnixStream::connect(&socket).await.unwrap());
    for (method, target, fields) in cases {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        ours.send(&request).await;
        theirs.send(&request).await;
        let (ours, theirs) = (ours.response().await, theirs.response().await);
        assert_eq!(facts(&ours), facts(&theirs), "{request}{}\n{}", ours.head, theirs.head);
    }
}

/// Where uh-proxy differs on purpose: the request, and whether nginx and uh-proxy compress.
#[tokio::test]
async fn not_as_nginx_does_it() {
    let app = app().await;
    let dir = tempfile::tempdir().unwrap();
    let Some((_nginx, socket)) = nginx(dir.path(), app.address).await else {
        println!("skipped: nginx isn't installed");
        return;
    };
    let (_home, proxy) = before(&app, "compress = true").await;
    for (target, fields, theirs_packed, ours_packed, why) in [
        ("/5000", "Accept-Encoding: *\r\n", false, true, "* is everything"),
        ("/5000", "Accept-Encoding: x-gzip\r\n", false, true, "another name of gzip"),
        ("/5000", "Accept-Encoding: gzip;q=0.1, identity\r\n", true, false, "the client prefers it plain"),
        ("/5000?Cache-Control:_no-transform", "Accept-Encoding: gzip\r\n", true, false, "the app forbids it"),
        (
            "/5000?Repr-Digest:_sha-256=:AA==:",
            "Accept-Encoding: gzip\r\n",
            true,
            false,
            "the digest would be wrong",
        ),
        ("/5000?status=500", "Accept-Encoding: gzip\r\n", false, true, "errors may be long, too"),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let mut ours = Wire::connect(proxy.address).await;
        let mut theirs = Wire::over(UnixStream::connect(&socket).await.unwrap());
        ours.send(&request).await;
        theirs.send(&request).await;
        let (ours, theirs) = (facts(&ours.response().await), facts(&theirs.response().await));
        let packed = |facts: &Facts| facts.encoding.as_deref() == Some("gzip");
        assert_eq!((packed(&theirs), packed(&ours)), (theirs_packed, ours_packed), "{why}: {request}");
        assert!(ours.body == theirs.body, "{why}");
    }
}
