//! Large and slow bodies, and idle tunnels.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::exchanges::WEBSOCKET;
use crate::floods::memory_kib;
use crate::harness::{Home, Proxy, SampleApp, Scripted, Then, soon, until};
use crate::wire::{Wire, get};

/// uh-proxy's peak resident memory, in KiB.
pub(crate) fn peak_kib(proxy: &Proxy) -> u64 {
    memory_kib(proxy, "VmHWM")
}

/// How much an app has written once it can't write more, because all sockets on the way are full.
pub(crate) async fn written_until_it_stalls(written: &AtomicU64) -> u64 {
    let mut last = 0;
    until("the backend has to wait", async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = written.load(Ordering::Relaxed);
        let waits = now > 0 && now == std::mem::replace(&mut last, now);
        waits.then_some(())
    })
    .await;
    last
}

#[tokio::test]
async fn large_bodies_take_no_more_memory_than_small_ones() {
    let mib = std::env::var("UH_BODY_MIB").map_or(200, |text| text.parse().unwrap());
    let bytes: usize = mib << 20;
    let app = SampleApp::start("blue", "1").await;
    let any_size = "[services.app.limits]\nbody_bytes = \"0B\"";
    let proxy = Home::new(app.address, "127.0.0.1:9").service(any_size).start().await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(wire.get("/").await.status, 200);
    let before = peak_kib(&proxy);
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(get(&format!("/bytes/{bytes}")).as_bytes()).await.unwrap();
    let (mut piece, mut read) = (vec![0; 64 << 10], 0);
    while read < bytes {
        let got = soon("more of the body", stream.read(&mut piece)).await.unwrap();
        assert!(got > 0, "the response ended after {read}");
        read += got;
    }
    wire.send(format!("POST /upload HTTP/1.1\r\nHost: app.test\r\nContent-Length: {bytes}\r\n\r\n")).await;
    for _ in 0..bytes / piece.len() {
        soon("room for more of the body", wire.stream.write_all(&piece)).await.unwrap();
    }
    let response = wire.response().await;
    assert!(response.text().contains(&format!("\"bytes\":{bytes}")), "{response:?}");
    let peak = peak_kib(&proxy);
    println!("{mib} MiB each way: at most {peak} KiB resident");
    let grown = peak.saturating_sub(before);
    assert!(grown < 8 << 10, "it took {grown} KiB more");
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_the_backend_down() {
    let written = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&written);
    let app = Scripted::start(move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n").await;
            while let Ok(n) = stream.write(&[0; 65_536]).await {
                count.fetch_add(n as u64, Ordering::Relaxed);
            }
            (stream, Then::Close)
        }
    })
    .await;
    let proxy = Home::new(app.address, app.address).start().await;
    let before = peak_kib(&proxy);
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(get("/")).await;
    let last = written_until_it_stalls(&written).await;
    assert!(last < 64 << 20, "{last} bytes went into buffers");
    assert!(peak_kib(&proxy) - before < 8 << 10, "uh-proxy kept what its client didn't read");
}

#[tokio::test]
async fn each_event_arrives_before_the_next_one_is_sent() {
    const EVENTS: usize = 5;
    let seen = Arc::new(Notify::new());
    let next = Arc::clone(&seen);
    let app = Scripted::start(move |_, mut stream| {
        let next = Arc::clone(&next);
        async move {
            let head =
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            let _ = stream.write_all(head).await;
            for event in 0..EVENTS {
                let _ = stream.write_all(format!("9\r\ndata: {event}\n\n\r\n").as_bytes()).await;
                next.notified().await;
            }
            let _ = stream.write_all(b"0\r\n\r\n").await;
            (stream, Then::KeepAlive)
        }
    })
    .await;
    let proxy = Home::new(app.address, app.address).start().await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(get("/")).await;
    for event in 0..EVENTS {
        wire.read_until(format!("data: {event}\n\n").as_bytes()).await;
        seen.notify_one();
    }
    wire.read_until(b"0\r\n\r\n").await;
}

#[tokio::test]
async fn an_idle_tunnel_is_kept_for_its_timeout_and_a_busy_one_indefinitely() {
    let app = SampleApp::start("blue", "1").await;
    // Other timeouts only apply to requests: a tunnel outlives them.
    let service = "[services.app.timeouts]\ntunnel_idle = \"1500ms\"\nread = \"300ms\"\nclient = \"300ms\"";
    let proxy = Home::new(app.address, "127.0.0.1:9").service(service).start().await;
    let open = async || {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(WEBSOCKET).await;
        assert_eq!(wire.response().await.status, 101);
        (wire, Instant::now())
    };
    let (mut idle, since) = open().await;
    let (mut busy, _) = open().await;
    let busy = tokio::spawn(async move {
        for step in 0..10 {
            crate::exchanges::echo(&mut busy, &format!("step {step}")).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    assert!(idle.is_closed().await);
    assert!(since.elapsed() >= Duration::from_millis(1400), "{:?}", since.elapsed());
    busy.await.unwrap();
}

/// Threads that keep every core busy until this is dropped.
struct CpuLoad(Arc<AtomicBool>);

impl CpuLoad {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..threads {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(stop)
    }
}

impl Drop for CpuLoad {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `UH_TEST_HANDSHAKES` sets how many; the default is small enough for every run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_websocket_is_torn_by_a_backend_that_answers_at_once_on_a_busy_machine() {
    const AT_ONCE: usize = 8;
    let handshakes = std::env::var("UH_TEST_HANDSHAKES").ok().and_then(|text| text.parse().ok());
    let handshakes: usize = handshakes.unwrap_or(1_000);
    // Answers before it has read the whole request, and sends data first.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read_u8().await;
                let reply = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                             Upgrade: websocket\r\n\r\nhello";
                let _ = stream.write_all(reply.as_bytes()).await;
                let mut rest = Vec::new();
                let mut buffer = [0; 1024];
                while !rest.ends_with(b"ping") {
                    match stream.read(&mut buffer).await {
                        Ok(n) if n > 0 => rest.extend_from_slice(&buffer[..n]),
                        _ => return,
                    }
                }
                let _ = stream.write_all(b"pong").await;
            });
        }
    });
    let home = Home::new(address, address).service("[services.app.health]\nenabled = false");
    let proxy = home.start().await;
    let _load = CpuLoad::start();
    let target = proxy.address;
    let clients = (0..AT_ONCE).map(|_| {
        tokio::spawn(async move {
            for _ in 0..handshakes / AT_ONCE {
                let mut wire = Wire::connect(target).await;
                wire.send(WEBSOCKET).await;
                assert_eq!(wire.response().await.status, 101);
                wire.read_until(b"hello").await;
                wire.send("ping").await;
                wire.read_until(b"pong").await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    println!("{handshakes} handshakes, none torn");
}
