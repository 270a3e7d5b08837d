//! Random frames through the whole program: whatever a client sends, the proxy goes on, other connections are served, and
//! the app sees only requests that it understands.

use fastrand::Rng;

use super::clients::before;
use super::raw::{END_HEADERS, END_STREAM, HEADERS, PREFACE, Raw, SETTINGS, block, frame, request};
use crate::recorder::{End, OK, Recorder};

fn ok(_: &str) -> (Vec<u8>, End) {
    (OK.to_vec(), End::Keep)
}

fn cases() -> u64 {
    std::env::var("UH_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300)
}

const NAMES: &[&str] = &[
    ":method",
    ":path",
    ":scheme",
    ":authority",
    ":status",
    ":protocol",
    "host",
    "cookie",
    "content-length",
    "te",
    "transfer-encoding",
    "connection",
    "upgrade",
    "expect",
    "x",
    "X",
    "",
    "x\r\ny",
    "x y",
    "trailer",
];

const VALUES: &[&str] = &[
    "GET",
    "POST",
    "CONNECT",
    "/",
    "*",
    "http://b/",
    "/a b",
    "/a\r\nb",
    "http",
    "https",
    "app.test",
    "b@c",
    "0",
    "5",
    "5, 5",
    "-1",
    "chunked",
    "trailers",
    "close",
    "websocket",
    "100-continue",
    "",
    " x",
    "\0",
    "\u{80}",
];

fn pick<'a>(random: &mut Rng, words: &[&'a str]) -> &'a str {
    words[random.usize(..words.len())]
}

/// A frame that may be valid, or nearly so.
fn any_frame(random: &mut Rng) -> Vec<u8> {
    let stream = [0, 1, 1, 3, 3, 5, 7, 2, u32::MAX >> 1][random.usize(..9)];
    let flags = if random.bool() { END_HEADERS | END_STREAM } else { random.u8(..) };
    let kind = if random.u8(..4) == 0 { random.u8(..) } else { random.u8(..10) };
    let payload = match random.u8(..4) {
        0 => request(pick(random, VALUES), pick(random, VALUES), &[]),
        1 => {
            let fields: Vec<_> =
                (0..random.usize(..8)).map(|_| (pick(random, NAMES), pick(random, VALUES))).collect();
            request("POST", "/", &fields)
        }
        2 => {
            let fields: Vec<_> =
                (0..random.usize(..8)).map(|_| (pick(random, NAMES), pick(random, VALUES))).collect();
            block(&fields)
        }
        _ => (0..random.usize(..40)).map(|_| random.u8(..)).collect(),
    };
    let mut bytes = frame(kind, flags, stream, &payload);
    if random.u8(..8) == 0 {
        let at = random.usize(..bytes.len());
        bytes[at] = random.u8(..);
    }
    bytes
}

#[tokio::test]
async fn no_frames_stop_the_proxy_or_smuggle_a_request() {
    let recorder = Recorder::start(ok).await;
    let (home, mut proxy, address) =
        before(recorder.address, "limits = { header_timeout = \"2s\" }", "").await;
    let mut served = 0;
    for case in 0..cases() {
        let mut random = Rng::with_seed(case);
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut raw = Raw { stream };
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, b""));
        for _ in 0..random.usize(1..12) {
            bytes.extend(any_frame(&mut random));
        }
        // Cut anywhere, as packets are.
        for part in bytes.chunks(random.usize(1..bytes.len())) {
            if !raw.bytes(part).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(raw);
        if case % 20 == 0 {
            let mut other = Raw::connect(address, b"").await;
            other.send(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/other", &[])).await;
            assert_eq!(other.end_of(1).await, None, "case {case}");
        }
        for seen in recorder.take() {
            served += 1;
            let line = seen.head.split('|').next().unwrap();
            let parts: Vec<&str> = line.split(' ').collect();
            assert!(parts.len() == 3 && parts[2] == "HTTP/1.1", "case {case}: {line}");
            assert!(parts[1].starts_with('/') || parts[1] == "*", "case {case}: {line}");
            assert_eq!(seen.head.matches("|Host: ").count(), 1, "case {case}: {}", seen.head);
        }
    }
    assert!(proxy.is_running() && served >= cases() / 20, "{served} requests were served");
    assert!(!home.messages().contains("panicked"), "{}", home.messages());
}
