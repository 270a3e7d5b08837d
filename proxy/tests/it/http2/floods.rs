//! Floods over HTTP/2, each as fast as a few clients can. Other clients are served as before. What is demanded is described
//! in [`crate::floods`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::clients::{Client, H2C, h2c};
use super::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, Raw, SETTINGS, block, frame,
};
use crate::floods::{Flood, FloodedApp, Targets, decoy, measure, workers};
use crate::harness::{Home, Proxy, SampleApp};
use crate::wire::Wire;

/// Flooding clients.
const FLOODERS: usize = 4;

/// The bytes of one round of a flood. Rounds are numbered, since each stream can be used only once.
type Round = fn(u32) -> Vec<u8>;

fn streams(round: u32, count: u32, of_stream: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(|n| of_stream(2 * (round * count + n) + 1)).collect()
}

fn request(method: &str, path: &str) -> Vec<u8> {
    block(&[(":method", method), (":scheme", "http"), (":path", path), (":authority", "flooded.test")])
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/"))
}

fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request("POST", "/upload"))
}

const FLOODS: [(&str, Round); 8] = [
    ("resets", |round| {
        streams(round, 50, |stream| [get(stream), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat())
    }),
    ("continuations", |round| {
        let open = if round == 0 { frame(HEADERS, END_STREAM, 1, &request("GET", "/")) } else { Vec::new() };
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
            frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/bytes/1000000"))
        })
    }),
    ("header bombs", |round| {
        streams(round, 5, |stream| {
            let mut bomb = block(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "flooded.test"),
            ]);
            // A field of 4,000 bytes is put into the table, and then named in one byte, again and again.
            bomb.extend([0x40, 1, b'x', 0x7f, 0x80 | 1, 30]);
            bomb.extend(vec![b'v'; 127 + 1 + 30 * 128]);
            bomb.extend(vec![0x80 | 62; 4000]);
            frame(HEADERS, END_HEADERS | END_STREAM, stream, &bomb)
        })
    }),
];

/// Sends rounds, and connects again whenever the connection is closed. Counts the rounds.
async fn send_rounds(address: SocketAddr, round: Round, flood: Arc<Flood>) {
    while flood.begins().await {
        let mut raw = Raw::connect(address, &[0, 4, 0, 0, 0, 0]).await;
        let mut number = 0;
        while flood.goes_on() {
            let sent = tokio::time::timeout(Duration::from_millis(200), raw.bytes(&round(number))).await;
            number += 1;
            if sent != Ok(true) {
                break;
            }
            flood.count();
        }
    }
}

/// A uh-proxy with a service that is flooded, and one for the others, each with an app of its own.
async fn flooded_and_visited() -> (Home, Proxy, SocketAddr, (FloodedApp, SampleApp)) {
    let apps = (FloodedApp::start(), SampleApp::start("visited", "1").await);
    let flooded = format!(
        "[services.flooded]\nhosts = [\"flooded.test\"]\nactive = \"only\"\n\
         [services.flooded.backends.only]\nendpoints = [\"{}\"]",
        apps.0.address
    );
    let home = Home::new(apps.1.address, "127.0.0.1:9").server(H2C).server(workers()).service(&flooded);
    let proxy = home.start().await;
    let address = h2c(&proxy).await;
    (home, proxy, address, apps)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_take_little_memory_and_harm_no_other_client() {
    let mut faults = Vec::new();
    for (what, round) in FLOODS {
        let (_home, proxy, address, _apps) = flooded_and_visited().await;
        // What the first requests allocate once isn't the flood's.
        let client = Client::plain(address).await;
        for _ in 0..50 {
            assert_eq!(client.get("/bytes/100000").await.status, 200);
        }
        let mut visitors = Vec::new();
        for _ in 0..4 {
            visitors.push(Wire::connect(proxy.address).await);
        }
        let decoy = decoy(flooded_and_visited()).await;
        let targets = Targets {
            proxy: (&proxy, address),
            decoy: decoy.as_ref().map(|(_, proxy, address, _)| (proxy, *address)),
        };
        let flooder = move |address, flood| Box::pin(send_rounds(address, round, flood)) as _;
        let harm = measure(what, targets, visitors, FLOODERS, flooder).await;
        assert!(harm.count > 10, "{what} was no flood: {harm:?}");
        faults.extend(harm.faults);
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
