//! A file on its way: to slow clients, while it changes, and what is left behind.

use std::fs;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use hyper::Request;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::{FILES, Site, asking};
use crate::harness::{soon, until};
use crate::http2::clients::{complete, url};
use crate::wire::{Wire, get};

/// More than all buffers between uh-proxy and a client that doesn't read.
const LARGE: usize = 32 << 20;

/// Asks for the large file, and truncates it once the response has begun.
async fn ends_early<S: AsyncRead + AsyncWrite + Unpin>(mut wire: Wire<S>, truncate: impl AsyncFnOnce()) {
    wire.send(get("/large.bin")).await;
    wire.read_until(b"\r\n\r\n").await;
    truncate().await;
    let mut rest = Vec::new();
    let _ = soon("the end", wire.stream.read_to_end(&mut rest)).await;
    assert!(rest.len() < LARGE && rest.iter().all(|&b| b == b'x'), "never padded");
}

#[tokio::test]
async fn a_file_that_is_truncated_while_it_is_sent_is_visibly_incomplete() {
    let site = Site::start(FILES).await;
    // To a client that reads nothing yet, so that it isn't sent to its end before it is truncated.
    for protocol in ["plain", "tls", "http2"] {
        let path = site.put("blue", "large.bin", vec![b'x'; LARGE]);
        let truncate = async || {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_len(1 << 20).unwrap();
        };
        match protocol {
            "plain" => ends_early(site.wire().await, truncate).await,
            "tls" => ends_early(site.secure().await, truncate).await,
            _ => {
                let client = site.http2().await;
                let (response, _) =
                    client.open(Request::get(url("/large.bin")).body(()).unwrap(), true).await;
                let response = soon("a response", response).await.unwrap();
                truncate().await;
                assert!(complete(response).await.unwrap_err().is_reset());
            }
        }
        site.proxy.until_counted("reason=\"closed\"").await;
    }
    let ended = until("all are logged", async || {
        let lines = site.home.access_log();
        (lines.len() == 3)
            .then(|| lines.into_iter().map(|line| line["termination"].clone()).collect::<Vec<_>>())
    })
    .await;
    assert_eq!(ended, ["UC", "UC", "UC"]);
}

#[tokio::test]
async fn a_file_that_is_changed_in_place_while_it_is_sent_is_never_complete() {
    let site = Site::start(FILES).await;
    let path = site.put("blue", "large.bin", vec![b'x'; LARGE]);
    let mut file = fs::File::options().write(true).open(&path).unwrap();
    // The system's clock for files has ticks of some milliseconds: within one, a change can't be seen.
    file.set_modified(SystemTime::now() - Duration::from_secs(10)).unwrap();
    let mut wire = site.wire().await;
    wire.send(get("/large.bin")).await;
    wire.read_until(b"\r\n\r\n").await;
    file.write_all(b"another content, of the same length").unwrap();
    drop(file);
    assert!(!wire.response().await.complete);
    // A file that is replaced, as it should be, is sent to its end.
    let mut wire = site.wire().await;
    wire.send(get("/large.bin")).await;
    // Until then, the other file may be the answer.
    wire.read_until(b"\r\n\r\n").await;
    let next = site.put("blue", "next.bin", "new");
    fs::rename(next, &path).unwrap();
    let old = wire.response().await;
    assert!(old.complete && old.body.len() == LARGE);
    assert_eq!(wire.get("/large.bin").await.text(), "new");
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_closed_like_any_other() {
    let limits = "[services.app.limits]\nmin_response_rate = \"1MiB\"\nrate_window = \"300ms\"";
    let site = Site::start(&format!("{FILES}\n{limits}")).await;
    site.put("blue", "large.bin", vec![b'x'; LARGE]);
    let mut plain = site.wire().await;
    let mut secure = site.secure().await;
    plain.send(get("/large.bin")).await;
    secure.send(get("/large.bin")).await;
    until("both are closed", async || {
        let lines = site.home.access_log();
        (lines.len() == 2).then(|| assert!(lines.iter().all(|line| line["termination"] == "DT"), "{lines:?}"))
    })
    .await;
}

#[tokio::test]
async fn no_descriptor_is_left_behind() {
    let site = Site::start(&format!("{FILES}\nprecompressed = true\nspa = \"/index.html\"")).await;
    site.put("blue", "large.bin", vec![b'x'; 1 << 20]);
    site.put("blue", "index.html", "<p>");
    let mut wire = site.wire().await;
    let open = || fs::read_dir(format!("/proc/{}/fd", site.proxy.pid())).unwrap().count();
    assert_eq!(wire.get("/large.bin").await.status, 200);
    let before = open();
    for _ in 0..30 {
        for (path, fields) in [
            ("/large.bin", "A: b"),
            ("/large.bin", "Range: bytes=5-6"),
            ("/large.bin", "Range: bytes=99999999-"),
            ("/large.bin", "If-None-Match: *"),
            ("/large.bin", "If-Match: \"x\""),
            ("/missing", "Accept: text/html"),
            ("/", "Accept-Encoding: br, gzip"),
        ] {
            wire.send(asking(path, fields)).await;
            wire.response().await;
        }
        // Clients that leave in the middle.
        let mut leaves = site.wire().await;
        leaves.send(get("/large.bin")).await;
        drop(leaves);
    }
    until("all are closed", async || (open() <= before).then_some(())).await;
    site.proxy.until_idle("blue").await;
}

/// What isn't in memory is read by another thread, and nothing of it is lost.
#[tokio::test]
async fn a_file_that_is_not_in_memory_comes_whole() {
    let site = Site::start(FILES).await;
    let content: Vec<u8> = (0..1_500_007_u32).flat_map(u32::to_le_bytes).collect();
    let path = site.put("blue", "large.bin", &content);
    let forget = || {
        let file = fs::File::open(&path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    };
    forget();
    let plain = site.wire().await.get("/large.bin").await;
    forget();
    let mut secure = site.secure().await;
    let secure = secure.get("/large.bin").await;
    forget();
    let http2 = site.http2().await.get("/large.bin").await;
    assert!(plain.complete && plain.body == content, "plain");
    assert!(secure.complete && secure.body == content, "TLS");
    assert!(http2.body == content, "HTTP/2");
}
