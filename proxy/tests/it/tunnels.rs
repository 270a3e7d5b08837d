//! What happens to tunnels when their backend is drained, or uh-proxy stops.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use uh_protocol::request::{DrainRequest, Drained};

use crate::exchanges::{WEBSOCKET, echo};
use crate::harness::{Home, Proxy, SampleApp, Scripted, Then, app, backend, soon, until};
use crate::wire::{Wire, get};

/// The server's close frame with 1001, "going away" (RFC 6455 §7.4.1).
const GOING_AWAY: &[u8] = b"\x88\x02\x03\xe9";

const UPGRADED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

async fn fronted(server: &str, service: &str) -> (Home, Proxy, SampleApp, SampleApp) {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let home = Home::new(blue.address, green.address).server(server).service(service);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    (home, proxy, blue, green)
}

async fn tunnels(proxy: &Proxy, count: usize) -> Vec<Wire> {
    let mut tunnels = Vec::new();
    for _ in 0..count {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(WEBSOCKET).await;
        assert_eq!(wire.response().await.status, 101);
        tunnels.push(wire);
    }
    tunnels
}

async fn drain_blue(proxy: &Proxy, timeout_ms: u64, cut: Option<bool>) -> Drained {
    let order = DrainRequest { timeout_ms: Some(timeout_ms), cut };
    proxy.client.drain(&app(), &backend("blue"), &order).await.unwrap()
}

/// The rest of the data on a connection, until it is closed cleanly.
async fn rest(wire: &mut Wire) -> Vec<u8> {
    let mut rest = Vec::new();
    soon("the end", wire.stream.read_to_end(&mut rest)).await.unwrap();
    rest
}

async fn until_said(home: &Home, termination: &str, count: usize) {
    until(&format!("{count} lines say {termination}"), async || {
        let lines = home.access_log();
        (lines.iter().filter(|line| line["termination"] == termination).count() == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn tunnels_stay_until_the_drains_deadline_and_are_then_closed() {
    const TUNNELS: usize = 20;
    let (home, proxy, _blue, _green) = fronted("", "").await;
    let mut tunnels = tunnels(&proxy, TUNNELS).await;
    proxy.switch("green").await;
    let client = proxy.client.clone();
    let start = Instant::now();
    let order = DrainRequest { timeout_ms: Some(1_000), cut: None };
    let drain = tokio::spawn(async move { client.drain(&app(), &backend("blue"), &order).await.unwrap() });
    for wire in &mut tunnels {
        echo(wire, "still here").await;
    }
    for wire in &mut tunnels {
        assert_eq!(rest(wire).await, GOING_AWAY);
        assert!(start.elapsed() >= Duration::from_millis(900), "closed before the deadline");
    }
    let drained = drain.await.unwrap();
    assert!(drained.drained, "{drained:?}");
    assert_eq!((drained.cut, drained.finished), (TUNNELS as u64, 0));
    until_said(&home, "DRAIN", TUNNELS).await;
    let metrics = proxy.client.metrics().await.unwrap();
    let counted = format!("uh_proxy_drain_cut_total{{service=\"app\",backend=\"blue\"}} {TUNNELS}");
    assert!(metrics.contains(&counted), "{metrics}");
}

#[tokio::test]
async fn a_tunnel_is_no_body_and_may_carry_more_than_one() {
    let (_home, proxy, _blue, _green) = fronted("", "[services.app.limits]\nbody_bytes = \"64B\"").await;
    let mut wire = tunnels(&proxy, 1).await.remove(0);
    for _ in 0..20 {
        echo(&mut wire, "a text of more than sixty-four bytes, so that one alone is too large a body").await;
    }
}

#[tokio::test]
async fn each_service_configures_what_a_drain_does_with_its_tunnels() {
    let (_home, proxy, _blue, _green) = fronted("", "tunnels_at_drain = \"keep\"").await;
    let mut kept = tunnels(&proxy, 2).await;
    proxy.switch("green").await;
    let drained = drain_blue(&proxy, 100, None).await;
    assert_eq!((drained.drained, drained.remaining.tunnels, drained.cut), (false, 2, 0));
    echo(&mut kept[0], "kept").await;
    // An explicit cut is carried out.
    let drained = drain_blue(&proxy, 100, Some(true)).await;
    assert_eq!((drained.drained, drained.cut), (true, 2));
    assert_eq!(rest(&mut kept[0]).await, GOING_AWAY);

    let (_home, proxy, _blue, _green) = fronted("", "tunnels_at_drain = \"close\"").await;
    let mut closed = tunnels(&proxy, 2).await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=1000")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    proxy.switch("green").await;
    let drained = drain_blue(&proxy, 30_000, None).await;
    assert_eq!((drained.drained, drained.cut, drained.finished), (true, 2, 1));
    assert!(drained.waited_ms < 15_000, "{drained:?}");
    assert_eq!(slow.response().await.status, 200, "a request was cut, too");
    assert_eq!(rest(&mut closed[1]).await, GOING_AWAY);
}

#[tokio::test]
async fn who_asks_for_nothing_to_be_cut_keeps_everything() {
    let (_home, proxy, _blue, _green) = fronted("", "tunnels_at_drain = \"close\"").await;
    let mut kept = tunnels(&proxy, 1).await;
    proxy.switch("green").await;
    let drained = drain_blue(&proxy, 100, Some(false)).await;
    assert_eq!((drained.drained, drained.remaining.tunnels, drained.cut), (false, 1, 0));
    echo(&mut kept[0], "kept").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tunnels_are_closed_one_after_the_other_and_not_all_at_once() {
    const TUNNELS: usize = 200;
    let (_home, proxy, _blue, _green) = fronted("", "tunnel_close_spread = \"1500ms\"").await;
    let tunnels = tunnels(&proxy, TUNNELS).await;
    proxy.switch("green").await;
    let ends = tunnels.into_iter().map(|mut wire| {
        tokio::spawn(async move {
            assert_eq!(rest(&mut wire).await, GOING_AWAY);
            Instant::now()
        })
    });
    let ends: Vec<_> = ends.collect();
    let start = Instant::now();
    let drained = drain_blue(&proxy, 0, Some(true)).await;
    assert_eq!((drained.drained, drained.cut), (true, TUNNELS as u64));
    let mut early = 0;
    let mut last = start;
    for end in ends {
        let end = end.await.unwrap();
        early += usize::from(end - start < Duration::from_millis(500));
        last = last.max(end);
    }
    // A third of them is expected in the first third of the time.
    assert!(early < TUNNELS * 2 / 3, "{early} of {TUNNELS} were closed within half a second");
    assert!(last - start >= Duration::from_secs(1), "{:?}", last - start);
}

#[tokio::test]
async fn a_tunnel_is_closed_between_two_frames_and_never_within_one() {
    // Half a frame; the other half and one more frame when it is allowed to continue.
    let app = Scripted::start(|_, mut stream| async move {
        let _ = stream.write_all(UPGRADED).await;
        let _ = stream.write_all(b"\x82\x08half").await;
        let mut word = [0; 2];
        let _ = stream.read_exact(&mut word).await;
        let _ = stream.write_all(b"full\x82\x04more").await;
        let _ = stream.read(&mut word).await;
        (stream, Then::Close)
    })
    .await;
    let home = Home::new(app.address, app.address);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let mut finished = Wire::connect(proxy.address).await;
    let mut unfinished = Wire::connect(proxy.address).await;
    for wire in [&mut finished, &mut unfinished] {
        wire.send(WEBSOCKET).await;
        assert_eq!(wire.response().await.status, 101);
        wire.read_until(b"half").await;
    }
    proxy.switch("green").await;
    let client = proxy.client.clone();
    let order = DrainRequest { timeout_ms: Some(0), cut: Some(true) };
    let drain =
        tokio::spawn(async move { client.drain(&crate::harness::app(), &backend("blue"), &order).await });
    // uh-proxy waits for the end of the frame for a while.
    tokio::time::sleep(Duration::from_millis(100)).await;
    finished.send("go").await;
    assert_eq!(rest(&mut finished).await, [b"full", GOING_AWAY].concat());
    assert_eq!(rest(&mut unfinished).await, b"", "a close frame within another frame");
    assert!(drain.await.unwrap().unwrap().drained);
}

#[tokio::test]
async fn a_stop_tells_tunnels_to_go_before_it_cuts_them() {
    let (home, mut proxy, _blue, _green) = fronted("shutdown_timeout = \"2s\"", "").await;
    let mut tunnels = tunnels(&proxy, 5).await;
    let start = Instant::now();
    proxy.signal(Signal::TERM);
    echo(&mut tunnels[0], "still here").await;
    for wire in &mut tunnels {
        assert_eq!(rest(wire).await, GOING_AWAY);
    }
    assert!(start.elapsed() > Duration::from_secs(1), "they were not kept");
    drop(tunnels);
    assert_eq!(proxy.ended().await.code(), Some(0));
    until_said(&home, "STOP", 5).await;

    let (_home, mut proxy, _blue, _green) = fronted("", "tunnels_at_drain = \"close\"").await;
    let mut tunnels = self::tunnels(&proxy, 5).await;
    let start = Instant::now();
    proxy.signal(Signal::TERM);
    for wire in &mut tunnels {
        assert_eq!(rest(wire).await, GOING_AWAY);
    }
    drop(tunnels);
    assert_eq!(proxy.ended().await.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(15), "it waited for tunnels that were to be closed");
}

/// An app that upgrades to the requested protocol, or to the one in the path, and echoes.
async fn upgrader(service: &str) -> (Home, Proxy, Scripted) {
    let app = Scripted::start(|head, mut stream| async move {
        let asked =
            head.lines().find_map(|line| line.strip_prefix("Upgrade: ")).unwrap_or("nothing").to_owned();
        let path = head.split(' ').nth(1).unwrap_or_default();
        let other = path.strip_prefix("/as/").unwrap_or(&asked);
        if asked == "nothing" && path == "/" {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            return (stream, Then::KeepAlive);
        }
        let head =
            format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {other}\r\n\r\n");
        let _ = stream.write_all(head.as_bytes()).await;
        while let Ok(byte) = stream.read_u8().await {
            if stream.write_u8(byte).await.is_err() {
                break;
            }
        }
        (stream, Then::Close)
    })
    .await;
    let home = Home::new(app.address, app.address).service(service);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    (home, proxy, app)
}

fn upgrade(method: &str, path: &str, protocol: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n")
}

#[tokio::test]
async fn only_what_the_service_names_is_upgraded_to() {
    let (_home, proxy, _app) = upgrader("upgrades = [\"echo/1\", \"tcp\"]").await;
    for (method, protocol) in [("GET", "echo/1"), ("POST", "TCP")] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(upgrade(method, "/", protocol)).await;
        assert_eq!(wire.response().await.status, 101, "{protocol}");
        wire.send("ping").await;
        wire.read_until(b"ping").await;
        assert_eq!(proxy.backend("blue").await.tunnels, 1);
        drop(wire);
        until("it is over", async || (proxy.backend("blue").await.tunnels == 0).then_some(())).await;
    }
    for protocol in ["websocket", "h2c", "echo/2", "echo/1, tcp"] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(upgrade("GET", "/", protocol)).await;
        assert_eq!(wire.response().await.status, 200, "{protocol}: the app is asked for nothing");
    }
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(upgrade("GET", "/as/tcp", "echo/1")).await;
    assert_eq!(wire.response().await.status, 502, "it is another protocol than the client asked for");
}

#[tokio::test]
async fn a_tunnel_that_is_no_websocket_ends_without_a_close_frame() {
    let (_home, proxy, _app) = upgrader("upgrades = [\"tcp\"]\ntunnels_at_drain = \"close\"").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(upgrade("GET", "/", "tcp")).await;
    assert_eq!(wire.response().await.status, 101);
    // Read as a frame header, it would announce more bytes than ever arrive.
    wire.send([0x82, 0x7f, 0xff]).await;
    wire.read_until(&[0x82, 0x7f, 0xff]).await;
    proxy.switch("green").await;
    let drained = drain_blue(&proxy, 10_000, None).await;
    assert!(drained.drained, "{drained:?}");
    assert_eq!(rest(&mut wire).await, b"");
}

#[tokio::test]
async fn no_upgrade_that_hides_requests_can_be_allowed() {
    for name in ["h2c", "HTTP/2.0", "TLS/1.0", "two words", ""] {
        let home = Home::new("127.0.0.1:9", "127.0.0.1:9").service(&format!("upgrades = [{name:?}]"));
        home.write_config(&home.config());
        let config = home.path("uh-proxy.toml");
        let (code, _, said) =
            crate::harness::cli(&home.socket(), &["check", "--config", config.to_str().unwrap()]).await;
        assert!(code != 0 && said.contains("services.app.upgrades[0]"), "{name}: {code} {said}");
    }
}
