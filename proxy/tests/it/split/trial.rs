//! Trials: what a split's two sides are judged by, and the fuse. No test has a controller: the fuse needs none.

mod clients;
mod cross_check;
mod ends;
mod kinds;
mod open;
mod tunnels;

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use uh_protocol::status::{TrialState, TrialStatus};

use super::*;
use crate::harness::until;
use uh_testkit::wait;

/// What an app does with a request: answers with this status, or one of the following.
type Does = u16;
/// A response with less than it announces.
const CUTS: Does = 1;
/// No response.
const HANGS: Does = 2;
/// The end of the connection.
const CLOSES: Does = 3;
/// A tunnel that ends at once.
const DIES: Does = 4;
/// A tunnel that is closed with 1011 when it has been usable for a while.
const FAILS_LATER: Does = 5;
/// A tunnel whose connection is closed when it has been usable for a while.
const ENDS_LATER: Does = 6;
/// A tunnel that is closed when its client closes it.
const FOLLOWS: Does = 7;

/// Longer than a tunnel must last to be usable.
const LATER: Duration = Duration::from_millis(1200);

/// 200 after a while.
const SLOWLY: Does = 8;

/// How long that takes.
const SLOW: Duration = Duration::from_millis(1200);

/// An app that does this with each request. Its probes are good.
async fn scripted(name: &'static str, does: Arc<AtomicU16>) -> Scripted {
    Scripted::start(move |_, stream| {
        let does = does.load(Ordering::SeqCst);
        async move { act(name, does, stream).await }
    })
    .await
}

async fn act(name: &str, does: Does, mut stream: TcpStream) -> (TcpStream, Then) {
    let open = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let head = match does {
        HANGS => std::future::pending().await,
        SLOWLY => {
            tokio::time::sleep(SLOW).await;
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()
        }
        CLOSES => return (stream, Then::Close),
        CUTS => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this".to_owned(),
        DIES | FAILS_LATER | ENDS_LATER | FOLLOWS => open.to_owned(),
        status => format!(
            "HTTP/1.1 {status} Whatever\r\nX-Backend: {name}\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nok"
        ),
    };
    let _ = stream.write_all(head.as_bytes()).await;
    match does {
        CUTS | DIES => return (stream, Then::Close),
        FAILS_LATER | ENDS_LATER => {
            tokio::time::sleep(LATER).await;
            if does == FAILS_LATER {
                let _ = stream.write_all(b"\x88\x02\x03\xf3").await;
                // The client replies, or leaves.
                let _ = stream.readable().await;
            }
            return (stream, Then::Close);
        }
        FOLLOWS => {
            // All of the client's close frame: unread bytes would reset the connection.
            let _ = stream.read_exact(&mut [0; 8]).await;
            let _ = stream.write_all(b"\x88\x02\x03\xe8").await;
            return (stream, Then::Close);
        }
        _ => {}
    }
    (stream, Then::KeepAlive)
}

struct Setup {
    home: Home,
    proxy: Proxy,
    _apps: [Scripted; 2],
    does: [Arc<AtomicU16>; 2],
}

/// Of green, the new side.
const NEW: usize = 1;

impl Setup {
    /// Blue and green, after some requests that make blue's history. `service`: more configuration.
    async fn start(service: &str) -> Self {
        let setup = Self::unknown(service).await;
        setup.ask(0..2000, "/").await;
        setup
    }

    /// The same without a history.
    async fn unknown(service: &str) -> Self {
        let does = [Arc::new(AtomicU16::new(200)), Arc::new(AtomicU16::new(200))];
        let blue = scripted("blue", Arc::clone(&does[0])).await;
        let green = scripted("green", Arc::clone(&does[1])).await;
        let home = Home::new(blue.address, green.address)
            .server("trusted_proxies = [\"127.0.0.1\"]\nlimits = { connections_per_address = 10000 }")
            .service(service);
        let proxy = home.start().await;
        if !service.contains("enabled = false") {
            proxy.until_healthy().await;
        }
        Self { home, proxy, _apps: [blue, green], does }
    }

    fn both_do(&self, what: Does) {
        self.does.iter().for_each(|does| does.store(what, Ordering::SeqCst));
    }

    fn new_one_does(&self, what: Does) {
        self.does[NEW].store(what, Ordering::SeqCst);
    }

    /// Sends a request for each of these clients, one after another, and returns how many didn't get all of a 200.
    async fn ask(&self, clients: Range<u32>, path: &str) -> usize {
        let mut wire = Wire::connect(self.proxy.address).await;
        let mut bad = 0;
        for client in clients {
            wire.send(request(client, path, "")).await;
            let response = wire.response().await;
            bad += usize::from(response.status != 200 || !response.complete);
            if !response.complete || response.header("connection") == Some("close") {
                wire = Wire::connect(self.proxy.address).await;
            }
        }
        bad
    }

    /// The same at once, on one connection each. The responses aren't awaited.
    async fn send(&self, clients: Range<u32>, path: &str, fields: &str) -> Vec<Wire> {
        let mut wires = Vec::new();
        for client in clients {
            let mut wire = Wire::connect(self.proxy.address).await;
            wire.send(request(client, path, fields)).await;
            wires.push(wire);
        }
        wires
    }

    /// Opens a tunnel for each of these clients.
    async fn tunnels(&self, clients: Range<u32>) -> Vec<Wire> {
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let mut wires = self.send(clients, "/ws", upgrade).await;
        for wire in &mut wires {
            assert_eq!(wire.response().await.status, 101);
        }
        wires
    }

    async fn trial(&self) -> TrialStatus {
        self.proxy.service().await.trial.unwrap()
    }

    async fn begin(&self, weight: f64) {
        split(&self.proxy, &green(weight)).await;
        until("the trial has begun", async || {
            self.proxy.service().await.trial.filter(|trial| !trial.ended).map(drop)
        })
        .await;
    }

    async fn is_split(&self) -> bool {
        self.proxy.service().await.split.is_some()
    }

    /// Sends requests of one client after another until the split has ended. Returns the next client, and how many have
    /// failed.
    async fn ask_until_it_ends(&self, path: &str) -> (u32, usize) {
        let (mut client, mut failed) = (10_000, 0);
        until("the split has ended", async || {
            failed += self.ask(client..client + 20, path).await;
            client += 20;
            (!self.is_split().await).then_some(())
        })
        .await;
        (client, failed)
    }

    async fn until_stopped(&self) -> TrialStatus {
        let ended = async || (!self.is_split().await).then_some(());
        if wait::until("the split has ended", ended).await.is_err() {
            panic!("the split goes on: {:?}", self.trial().await);
        }
        let trial = self.trial().await;
        assert_eq!((trial.state, trial.ended), (TrialState::Bad, true));
        trial
    }

    /// How many requests on a side were bad in this way.
    async fn counted(&self, side: &str, kind: &str) -> u64 {
        let metrics = self.proxy.client.metrics().await.unwrap();
        let name = format!(
            "uh_proxy_trial_failures_total{{service=\"app\",backend=\"green\",side=\"{side}\",kind=\"{kind}\"}} "
        );
        let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
        value.unwrap_or_else(|| panic!("{name} isn't in the metrics")).parse().unwrap()
    }
}

fn request(client: u32, path: &str, fields: &str) -> String {
    let address = Ipv4Addr::from(0x0a00_0000 + client);
    format!("GET {path} HTTP/1.1\r\nHost: app.test\r\nX-Forwarded-For: {address}\r\n{fields}\r\n")
}

#[tokio::test]
async fn a_version_that_fails_loses_its_clients_at_once() {
    let setup = Setup::start("").await;
    setup.new_one_does(500);
    setup.begin(10.0).await;
    let (client, failed) = setup.ask_until_it_ends("/orders/4711").await;
    assert!(failed <= 100, "{failed} clients have seen an error");
    assert_eq!(setup.ask(client..client + 200, "/").await, 0, "all are back on the old version");
    let trial = setup.until_stopped().await;
    assert!(trial.failures.new_clients >= 3 && trial.failures.old_clients == 0, "{trial:?}");
    assert_eq!(trial.routes[0].template, "/orders/*");
    assert!(!trial.request_ids.is_empty());
    setup.proxy.until_counted("uh_proxy_trial_state{service=\"app\",backend=\"green\"} 2").await;
    let (code, status, _) = crate::harness::cli(&setup.home.socket(), &["status"]).await;
    assert_eq!(code, 0);
    for line in
        ["trial of green: it was worse, so its clients were taken back", "green failed first: /orders/*"]
    {
        assert!(status.contains(line), "{status}");
    }
    setup.home.until_said("the new version is worse: all clients return to the old one").await;
    setup.home.until_said("the trial found its backend worse").await;
}

#[tokio::test]
async fn an_outage_of_both_versions_ends_no_split() {
    let setup = Setup::start("").await;
    setup.begin(50.0).await;
    setup.ask(10_000..11_000, "/").await;
    setup.both_do(500);
    assert_eq!(setup.ask(20_000..21_000, "/").await, 1000);
    setup.both_do(200);
    setup.ask(30_000..30_500, "/").await;
    assert!(setup.is_split().await);
    let trial = setup.trial().await;
    assert_eq!(trial.failures.new_clients + trial.failures.old_clients, 1000);
    assert!(trial.failures.ln_history > 100.0, "compared with before, it looks certain: {trial:?}");
}
