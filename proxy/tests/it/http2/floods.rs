//! Floods: what a client can do to exhaust memory or time, as fast as it can, again and again. Other clients are served
//! as before. One second each, or as many as `UH_FLOOD_SECONDS` says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::attacks::memory_kib;
use super::clients::pair;
use super::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, Raw, SETTINGS, block, frame,
    request,
};
use crate::harness::Proxy;
use crate::wire::Wire;

/// The most memory that a flood may take, in KiB.
const MOST_KIB: u64 = 16 << 10;

/// How long each flood lasts, and what other clients may wait longer than twice as long. On a machine that is busy with
/// other tests, that isn't a measurement but an upper bound.
fn settings() -> (Duration, Duration) {
    let seconds = std::env::var("UH_FLOOD_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let noise_ms = if seconds.is_some() { 5 } else { 1000 };
    (Duration::from_secs(seconds.unwrap_or(1)), Duration::from_millis(noise_ms))
}

/// The bytes of one round of a flood. Rounds are numbered, since each stream can be used only once.
type Round = fn(u32) -> Vec<u8>;

fn streams(round: u32, count: u32, of_stream: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(|n| of_stream(2 * (round * count + n) + 1)).collect()
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/", &[]))
}

fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request("POST", "/upload", &[]))
}

const FLOODS: [(&str, Round); 8] = [
    ("resets", |round| {
        streams(round, 50, |stream| [get(stream), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat())
    }),
    ("continuations", |round| {
        let open =
            if round == 0 { frame(HEADERS, END_STREAM, 1, &request("GET", "/", &[])) } else { Vec::new() };
        [open, frame(CONTINUATION, 0, 1, &block(&[("x", "y")])).repeat(500)].concat()
    }),
    ("pings", |_| frame(PING, 0, 0, &[0; 8]).repeat(500)),
    ("settings", |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]).repeat(500)),
    ("empty data", |round| {
        let open = if round == 0 { post(1) } else { Vec::new() };
        [open, frame(DATA, 0, 1, b"").repeat(500)].concat()
    }),
    ("data of one byte", |round| {
        let open = if round == 0 { post(1) } else { Vec::new() };
        [open, frame(DATA, 0, 1, b"x").repeat(500)].concat()
    }),
    ("shut windows", |round| {
        streams(round, 20, |stream| {
            frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/bytes/1000000", &[]))
        })
    }),
    ("header bombs", |round| {
        streams(round, 5, |stream| {
            let mut bomb =
                block(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")]);
            // A field of 4,000 bytes is put into the table, and then named in one byte, again and again.
            bomb.extend([0x40, 1, b'x', 0x7f, 0x80 | 1, 30]);
            bomb.extend(vec![b'v'; 127 + 1 + 30 * 128]);
            bomb.extend(vec![0x80 | 62; 4000]);
            frame(HEADERS, END_HEADERS | END_STREAM, stream, &bomb)
        })
    }),
];

/// Sends rounds, and connects again whenever the connection is closed.
async fn flood(address: SocketAddr, round: Round, stop: Arc<AtomicBool>, closed: Arc<AtomicU64>) {
    while !stop.load(Ordering::Relaxed) {
        let mut raw = Raw::connect(address, &[0, 4, 0, 0, 0, 0]).await;
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            let sent = tokio::time::timeout(Duration::from_millis(200), raw.bytes(&round(number))).await;
            number += 1;
            if sent != Ok(true) {
                closed.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
    }
}

/// The 99th percentile of the time that another client waits, and the most memory meanwhile.
async fn observe(proxy: &Proxy) -> (Duration, u64) {
    let (mut times, mut most) = (Vec::new(), 0);
    let mut wire = Wire::connect(proxy.address).await;
    let until = Instant::now() + settings().0;
    while Instant::now() < until {
        let begun = Instant::now();
        assert_eq!(wire.get("/").await.status, 200);
        times.push(begun.elapsed());
        most = most.max(memory_kib(proxy));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    times.sort_unstable();
    (times[times.len() * 99 / 100], most)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_take_little_memory_and_harm_no_other_client() {
    for (what, round) in FLOODS {
        let (_home, proxy, address, _apps) = pair("", "").await;
        let (calm, before) = observe(&proxy).await;
        let (stop, closed) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let flood = tokio::spawn(flood(address, round, Arc::clone(&stop), Arc::clone(&closed)));
        let (under_flood, most) = observe(&proxy).await;
        stop.store(true, Ordering::Relaxed);
        flood.await.unwrap();
        let taken = most.saturating_sub(before);
        let closed = closed.load(Ordering::Relaxed);
        println!("{what}: p99 {calm:?} -> {under_flood:?}, {taken} KiB, {closed} connections closed");
        assert!(taken < MOST_KIB, "{what}: {taken} KiB");
        assert!(under_flood < 2 * calm + settings().1, "{what}: {calm:?} -> {under_flood:?}");
    }
}
