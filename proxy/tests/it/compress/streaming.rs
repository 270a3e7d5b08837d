//! Bodies that arrive bit by bit: nothing is held back for longer than a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flate2::{Decompress, FlushDecompress};
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

use super::{app, ask, before, get, text};
use crate::harness::{Scripted, Then, soon};
use crate::http2::clients::{Client, h2c, url};
use crate::streams::{peak_kib, written_until_it_stalls};
use crate::wire::Wire;

/// An app that sends the next part once the last one was seen.
async fn bit_by_bit(content_type: &'static str, parts: usize) -> (Scripted, Arc<Notify>) {
    let seen = Arc::new(Notify::new());
    let next = Arc::clone(&seen);
    let app = Scripted::start(move |_, mut stream| {
        let next = Arc::clone(&next);
        async move {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
            );
            let _ = stream.write_all(head.as_bytes()).await;
            for part in 0..parts {
                let data = format!("data: {part}\n\n");
                let _ = stream.write_all(format!("{:x}\r\n{data}\r\n", data.len()).as_bytes()).await;
                next.notified().await;
            }
            let _ = stream.write_all(b"0\r\n\r\n").await;
            (stream, Then::KeepAlive)
        }
    })
    .await;
    (app, seen)
}

/// Unpacks what arrives in chunks.
struct Unpacker {
    raw: Vec<u8>,
    inflate: Decompress,
    text: Vec<u8>,
}

impl Unpacker {
    fn new() -> Self {
        Self { raw: Vec::new(), inflate: Decompress::new_gzip(15), text: Vec::with_capacity(1 << 16) }
    }

    /// Takes content.
    fn take(&mut self, content: &[u8]) {
        self.inflate.decompress_vec(content, &mut self.text, FlushDecompress::Sync).unwrap();
    }

    /// Takes what came over HTTP/1.1, and unpacks its complete chunks.
    fn take_chunks(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
        while let Some(line) = self.raw.windows(2).position(|end| end == b"\r\n") {
            let size = usize::from_str_radix(std::str::from_utf8(&self.raw[..line]).unwrap(), 16).unwrap();
            if size == 0 || self.raw.len() < line + 2 + size + 2 {
                return;
            }
            let chunk: Vec<u8> = self.raw.drain(..line + 2 + size + 2).collect();
            self.take(&chunk[line + 2..line + 2 + size]);
        }
    }
}

#[tokio::test]
async fn each_part_can_be_read_before_the_next_one_is_sent() {
    const PARTS: usize = 20;
    for content_type in ["text/html", "text/event-stream"] {
        let (app, seen) = bit_by_bit(content_type, PARTS).await;
        let service = "compress = { types = [\"text/html\", \"text/event-stream\"] }";
        let (_home, proxy) = before(&app, service).await;
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(get("/")).await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(wire.stream.read_u8().await.unwrap());
        }
        assert!(String::from_utf8(head).unwrap().contains("Content-Encoding: gzip"));
        let (mut unpacker, start) = (Unpacker::new(), Instant::now());
        for part in 0..PARTS {
            let expected = format!("data: {part}\n\n");
            while !unpacker.text.ends_with(expected.as_bytes()) {
                let mut bytes = [0; 4096];
                let read = soon("the next part", wire.stream.read(&mut bytes)).await.unwrap();
                assert!(read > 0, "the connection ended");
                unpacker.take_chunks(&bytes[..read]);
            }
            seen.notify_one();
        }
        // A timer of a few milliseconds for each part would take longer, and so would a loaded machine.
        println!("{content_type}: {PARTS} parts, each within {:?}", start.elapsed() / PARTS as u32);
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn each_part_can_be_read_over_http2_too() {
    const PARTS: usize = 5;
    let (app, seen) = bit_by_bit("text/html", PARTS).await;
    let (_home, proxy) = before(&app, "compress = true").await;
    let client = Client::plain(h2c(&proxy).await).await;
    let request = Request::get(url("/")).header("accept-encoding", "gzip").body(()).unwrap();
    let (response, _) = client.open(request, true).await;
    let mut body = soon("a response", response).await.unwrap().into_body();
    let mut unpacker = Unpacker::new();
    for part in 0..PARTS {
        let expected = format!("data: {part}\n\n");
        while !unpacker.text.ends_with(expected.as_bytes()) {
            let data = soon("the next part", body.data()).await.unwrap().unwrap();
            unpacker.take(&data);
        }
        seen.notify_one();
    }
    while let Some(data) = soon("the end", body.data()).await {
        unpacker.take(&data.unwrap());
    }
}

#[tokio::test]
async fn an_event_stream_is_left_alone_unless_it_is_listed() {
    let (app, seen) = bit_by_bit("text/event-stream", 2).await;
    let (_home, proxy) = before(&app, "compress = true").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(get("/")).await;
    for part in 0..2 {
        wire.read_until(format!("data: {part}\n\n").as_bytes()).await;
        seen.notify_one();
    }
    wire.read_until(b"0\r\n\r\n").await;
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_the_backend_down() {
    let written = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&written);
    let app = Scripted::start(move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1073741824\r\n\r\n";
            let _ = stream.write_all(head).await;
            // Can't be compressed, or little would leave.
            let mut noise = vec![0; 65_536];
            fastrand::Rng::with_seed(1).fill(&mut noise);
            while let Ok(n) = stream.write(&noise).await {
                count.fetch_add(n as u64, Ordering::Relaxed);
            }
            (stream, Then::Close)
        }
    })
    .await;
    let (_home, proxy) = before(&app, "compress = true").await;
    let before = peak_kib(&proxy);
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(get("/")).await;
    let last = written_until_it_stalls(&written).await;
    assert!(last < 64 << 20, "{last} bytes went into buffers");
    let grown = peak_kib(&proxy) - before;
    assert!(grown < 8 << 10, "{grown} KiB more for one response");
}

#[tokio::test]
async fn others_are_answered_while_much_is_compressed() {
    const BUSY: usize = 8;
    let app = app().await;
    let home =
        crate::harness::Home::new(app.address, app.address).server("threads = 1").service("compress = true");
    let proxy = home.start().await;
    let address = proxy.address;
    let busy: Vec<_> = (0..BUSY)
        .map(|_| {
            tokio::spawn(async move {
                let mut wire = Wire::connect(address).await;
                let response = ask(&mut wire, "/8000000").await;
                assert!(response.complete && super::unpacked(&response.body).len() == 8_000_000);
            })
        })
        .collect();
    let mut wire = Wire::connect(address).await;
    let begun = Instant::now();
    let (mut asked, mut slowest) = (0, Duration::ZERO);
    while asked < 20 || busy.iter().any(|busy| !busy.is_finished()) {
        let start = Instant::now();
        assert_eq!(ask(&mut wire, "/100").await.body, text(100));
        slowest = slowest.max(start.elapsed());
        asked += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for busy in busy {
        busy.await.unwrap();
    }
    let all = begun.elapsed();
    println!("{asked} small responses next to {BUSY} of 8 MB: the slowest took {slowest:?} of {all:?}");
    // Without turns, a small one waits for all large ones. A busy machine makes everything slower.
    assert!(slowest < Duration::from_secs(2).max(all / 2), "{slowest:?} of {all:?}");
}
