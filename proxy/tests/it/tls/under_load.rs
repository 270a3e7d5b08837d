//! Clients over HTTPS while traffic is switched and certificates are replaced: no request fails, and no connection
//! is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use rustls::client::Resumption;
use tokio::task::JoinHandle;
use uh_testkit::judgement::{Switch, Verdict};
use uh_testkit::load::{Recording, Sample};

use super::certificates::{Site, der, put};
use super::clients::{Rustls, peer_certificate};
use crate::harness::backend;
use crate::http2;

/// Between two requests of a client: other tests need the processor, too.
const PAUSE: Duration = Duration::from_millis(1);

/// Clients that send requests one after the other over HTTP/1.1, each on one connection.
struct Clients {
    stop: Arc<AtomicBool>,
    running: Vec<JoinHandle<Vec<Sample>>>,
}

impl Clients {
    async fn start(site: &Site, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = Rustls::new(&site.authority);
        let mut running = Vec::new();
        for _ in 0..count {
            let mut connection = client.connect(site.address, "app.test").await.unwrap();
            let stop = Arc::clone(&stop);
            running.push(tokio::spawn(async move {
                let mut samples = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let sent_at = Instant::now();
                    let response = connection.get("/").await;
                    assert!(response.status == 200 && response.complete, "{response:?}");
                    assert_eq!(response.header("connection"), None, "the connection is to be closed");
                    let done_at = Instant::now();
                    let outcome = Ok(response.header("x-backend").unwrap().parse().unwrap());
                    let latency = done_at - sent_at;
                    tokio::time::sleep(PAUSE).await;
                    samples.push(Sample {
                        group: 0,
                        sent_at,
                        done_at,
                        latency,
                        late: Duration::ZERO,
                        user: None,
                        outcome,
                    });
                }
                samples
            }));
        }
        Self { stop, running }
    }

    /// Stops them, and returns all requests in the order of sending. A failed one, or a closed connection, has made its
    /// client panic.
    async fn stop(self) -> Recording {
        self.stop.store(true, Ordering::Relaxed);
        let mut samples = Vec::new();
        for client in self.running {
            let own = client.await.expect("no request fails, and no connection is closed");
            assert!(!own.is_empty(), "a client has done nothing");
            samples.extend(own);
        }
        samples.sort_by_key(|sample| sample.sent_at);
        Recording { samples, closed_by_server: 0 }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_switches_fail_no_request_and_no_answer_is_old() {
    const SWITCHES: usize = 1000;
    let _alone = crate::floods::ALONE.lock().await;
    let site = Site::start().await;
    let clients = Clients::start(&site, 8).await;
    let mut switches = Vec::with_capacity(SWITCHES);
    for number in 0..SWITCHES {
        let to = backend(if number % 2 == 0 { "green" } else { "blue" });
        let called_at = Instant::now();
        site.proxy.switch(to.as_str()).await;
        switches.push(Switch { to, called_at, replied_at: Instant::now() });
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let recording = clients.stop().await;
    let verdict = Verdict::of(&recording, &backend("blue"), &switches);
    assert_eq!(verdict.faults(), Vec::<String>::new());
    let answers = |name: &str| recording.samples.iter().filter(|s| s.outcome == Ok(backend(name))).count();
    let (blue, green) = (answers("blue"), answers("green"));
    println!("{} switches, {} requests: {blue} blue, {green} green", switches.len(), verdict.requests);
    assert!(blue > SWITCHES / 10 && green > SWITCHES / 10, "the clients hardly ran");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_certificate_swaps_fail_no_request_and_no_handshake() {
    const SWAPS: usize = 100;
    let _alone = crate::floods::ALONE.lock().await;
    let site = Site::start().await;
    let clients = Clients::start(&site, 16).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut streams = Vec::new();
    for _ in 0..4 {
        let client = http2::clients::Client::tls(&site).await;
        let stop = Arc::clone(&stop);
        streams.push(tokio::spawn(async move {
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                let pair = tokio::join!(client.get("/"), client.get("/bytes/1000"));
                assert_eq!((pair.0.status, pair.1.status), (StatusCode::OK, StatusCode::OK));
                answers += 2;
                tokio::time::sleep(PAUSE).await;
            }
            assert!(!client.ended.is_finished(), "an HTTP/2 connection was closed");
            answers
        }));
    }
    // A resumed session has no certificate.
    let rustls = Rustls::with(&site.authority, rustls::ALL_VERSIONS, |config| {
        config.resumption = Resumption::disabled();
    });
    // New clients all the time: each gets a certificate whole, whichever.
    let newcomers = {
        let (stop, rustls, address) = (Arc::clone(&stop), Rustls(Arc::clone(&rustls.0)), site.address);
        tokio::spawn(async move {
            let mut handshakes = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut connection = rustls.connect(address, "app.test").await.unwrap();
                assert_eq!(connection.get("/").await.status, 200);
                handshakes += 1;
                tokio::time::sleep(PAUSE).await;
            }
            handshakes
        })
    };
    for _ in 0..SWAPS {
        let new = site.authority.issue(&["app.test"]);
        // The certificate first and the key a moment later, as most tools do it.
        put(&site.home, "app", &new);
        let done = site.proxy.client.reload().await.unwrap();
        assert_eq!(done.changed, ["server.tls.certificates"]);
        let connection = rustls.connect(site.address, "app.test").await.unwrap();
        assert!(peer_certificate(&connection) == der(&new.cert), "a new client gets an old certificate");
    }
    stop.store(true, Ordering::Relaxed);
    let handshakes = newcomers.await.expect("no handshake fails");
    let mut over_http2 = 0;
    for stream in streams {
        over_http2 += stream.await.expect("no stream fails");
    }
    let recording = clients.stop().await;
    let requests = recording.samples.len();
    println!("{SWAPS} swaps, {requests} requests, {over_http2} over HTTP/2, {handshakes} new connections");
    let enough = requests > SWAPS && over_http2 > SWAPS && handshakes > SWAPS / 10;
    assert!(enough, "the clients hardly ran");
}
