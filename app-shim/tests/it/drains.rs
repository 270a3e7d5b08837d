//! What happens to requests in flight after SIGTERM.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::client::{GOING_AWAY, GOING_AWAY_MASKED, Wire, get, masked, response, websocket};
use crate::shim::{Shim, TALKER};

/// Where health and metrics are served until the end.
async fn side(shim: &Shim) -> SocketAddr {
    let line = shim.log.wait_for("(metrics)").await;
    line.split("Listening on ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// A shim in front of a sample app, with a side listener.
async fn serving(options: &[&str]) -> (Shim, SocketAddr, SocketAddr) {
    let app = crate::shim::sample_app().await;
    let options = [&["--metrics", "127.0.0.1:0"], options].concat();
    let shim = Shim::start(&app.to_string(), &options, TALKER);
    let address = shim.address().await;
    let side = side(&shim).await;
    shim.log.wait_for("App accepts connections").await;
    shim.output.wait_for("ready").await;
    (shim, address, side)
}

async fn in_flight_is(side: SocketAddr, count: usize) {
    let wanted = format!(r#""in_flight":{count}"#);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !get(side, "/api/health").await.contains(&wanted) {
        assert!(Instant::now() < deadline, "{}", get(side, "/api/health").await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A response that takes this long.
async fn slow(address: SocketAddr, ms: u64) {
    let mut wire = Wire::open(address).await;
    wire.get(&format!("/slow?ms={ms}")).await;
    let answer = wire.answer().await;
    assert!(answer.ends_with("green 1.2.3\n") && answer.contains("connection: close\r\n"), "{answer}");
    assert_eq!(wire.rest().await.unwrap(), b"");
}

async fn upload(address: SocketAddr, chunks: usize, pause: Duration) {
    let mut wire = Wire::open(address).await;
    wire.send("POST /upload HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for _ in 0..chunks {
        wire.send("3\r\nabc\r\n").await;
        tokio::time::sleep(pause).await;
    }
    wire.send("0\r\n\r\n").await;
    assert!(wire.answer().await.contains(&format!(r#""bytes":{}"#, chunks * 3)));
}

async fn events(address: SocketAddr, count: usize, interval_ms: u64) {
    let mut wire = Wire::open(address).await;
    wire.get(&format!("/stream?events={count}&interval_ms={interval_ms}")).await;
    wire.until(&format!("green 1.2.3 {}\n\n\r\n", count - 1)).await;
    assert_eq!(wire.rest().await.unwrap(), b"0\r\n\r\n");
}

async fn conversation(address: SocketAddr, rounds: usize, pause: Duration) {
    let mut wire = websocket(address).await;
    for round in 0..rounds {
        wire.echoes(&format!("round {round}")).await;
        tokio::time::sleep(pause).await;
    }
    wire.send([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xE8]).await;
    assert_eq!(wire.read_exact(4).await, [0x88, 2, 0x03, 0xE8]);
}

/// The documented example: 45 requests, the last one ends after ten seconds.
#[tokio::test]
async fn forty_five_exchanges_in_flight_are_all_completed() {
    const COUNT: usize = 45;
    let (mut shim, address, side) = serving(&[]).await;
    let mut exchanges = JoinSet::new();
    for index in 0..COUNT - 4 {
        exchanges.spawn(slow(address, 1_000 + 9_000 * index as u64 / (COUNT as u64 - 5)));
    }
    exchanges.spawn(upload(address, 10, Duration::from_millis(500)));
    exchanges.spawn(events(address, 12, 500));
    exchanges.spawn(conversation(address, 14, Duration::from_millis(500)));
    exchanges.spawn(async move {
        let mut wire = Wire::open(address).await;
        wire.get("/bytes/3000?rate=1000").await;
        assert!(wire.rest_lossy().await.contains("content-length: 3000"));
    });
    in_flight_is(side, COUNT).await;
    shim.signal(Signal::TERM);
    shim.log.wait_for("Stopping new connections").await;
    assert!(TcpStream::connect(address).await.is_err(), "new connections are refused");
    let health = get(side, "/api/health").await;
    assert!(health.starts_with("HTTP/1.1 503 ") && health.contains(r#""status":"draining""#), "{health}");
    while let Some(exchange) = exchanges.join_next().await {
        exchange.unwrap();
    }
    assert_eq!(shim.code().await, Some(0));
    let log = shim.log.to_end().await;
    let said: Vec<&str> = log.iter().filter_map(|line| Some(line.split_once("] ")?.1)).collect();
    let from = said.iter().position(|line| line.starts_with("Received")).unwrap();
    assert_eq!(
        said[from..],
        [
            "Received SIGTERM",
            "Stopping new connections",
            "Draining 45 active connections",
            "All connections drained",
            "Server exiting gracefully"
        ]
    );
}

#[tokio::test]
async fn a_keep_alive_connection_gets_one_more_response_and_is_closed() {
    let (mut shim, address, _) = serving(&[]).await;
    let mut busy = Wire::open(address).await;
    busy.get("/").await;
    assert!(!busy.answer().await.contains("connection: close"));
    let mut idle = Wire::open(address).await;
    idle.get("/").await;
    idle.answer().await;
    let never_used = Wire::open(address).await;
    // Two requests in one write, so that the second is in flight when the first is answered.
    let mut slow = Wire::open(address).await;
    slow.send("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /slow?ms=1500 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    slow.answer().await;
    shim.signal(Signal::TERM);
    shim.log.wait_for("Draining 1 active connections").await;
    busy.get("/api/health").await;
    let health = busy.answer().await;
    assert!(
        health.contains("connection: close\r\n") && health.contains(r#""status":"draining""#),
        "{health}"
    );
    assert_eq!(busy.rest().await.unwrap(), b"");
    assert_eq!(idle.rest().await.unwrap(), b"", "an idle connection is closed");
    assert!(slow.answer().await.contains("connection: close\r\n"));
    assert_eq!(shim.code().await, Some(0));
    drop(never_used);
}

#[tokio::test]
async fn connections_in_the_accept_queue_are_served() {
    let (mut shim, address, _) = serving(&[]).await;
    let mut kept = Wire::open(address).await;
    kept.get("/").await;
    kept.answer().await;
    // While the shim is suspended, the kernel accepts connections and requests for it.
    shim.signal(Signal::STOP);
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut wire = Wire::open(address).await;
        wire.get("/").await;
        waiting.push(wire);
    }
    kept.get("/").await;
    shim.signal(Signal::TERM);
    shim.signal(Signal::CONT);
    waiting.push(kept);
    for mut wire in waiting {
        // Read to its end: the shim closes it. Whether the response has `Connection: close` depends on whether the
        // resumed shim sees the request or the signal first.
        let answer = wire.rest_text().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("green 1.2.3\n"), "{answer}");
    }
    assert_eq!(shim.code().await, Some(0));
}

#[tokio::test]
async fn requests_that_outlive_the_deadline_are_cut_and_counted_and_set_the_exit_code() {
    let (mut shim, address, side) = serving(&["--drain-timeout", "1s"]).await;
    let mut endless = Wire::open(address).await;
    endless.get("/stream?events=0&interval_ms=100").await;
    let mut stuck = Wire::open(address).await;
    stuck.get("/slow?ms=600000").await;
    in_flight_is(side, 2).await;
    let signalled_at = Instant::now();
    shim.signal(Signal::TERM);
    assert_eq!(shim.code().await, Some(124));
    assert!(signalled_at.elapsed() >= Duration::from_secs(1));
    shim.log.wait_for("Cutting 2 active connections").await;
    shim.log.wait_for("Server exiting with code 124").await;
    assert!(shim.output.to_end().await.contains(&"got TERM".to_owned()));
}

#[tokio::test]
async fn a_second_sigterm_ends_the_wait() {
    let (mut shim, address, side) = serving(&["--drain-timeout", "1h"]).await;
    let mut stuck = Wire::open(address).await;
    stuck.get("/slow?ms=600000").await;
    in_flight_is(side, 1).await;
    shim.signal(Signal::TERM);
    shim.log.wait_for("Draining 1 active connections").await;
    shim.signal(Signal::TERM);
    assert_eq!(shim.code().await, Some(124));
    shim.log.wait_for("Received SIGTERM again: not waiting any longer").await;
    shim.log.wait_for("Cutting 1 active connections").await;
}

#[tokio::test]
async fn the_app_gets_sigterm_only_after_the_drain() {
    let (mut shim, address, side) = serving(&[]).await;
    let begun = Instant::now();
    let exchange = tokio::spawn(slow(address, 1_000));
    in_flight_is(side, 1).await;
    shim.signal(Signal::TERM);
    loop {
        let received = shim.output.all().contains(&"got TERM".to_owned());
        if begun.elapsed() > Duration::from_millis(900) {
            break;
        }
        assert!(!received);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    exchange.await.unwrap();
    assert_eq!(shim.code().await, Some(0));
    assert!(shim.output.to_end().await.contains(&"got TERM".to_owned()));
}

#[tokio::test]
async fn an_app_that_dies_during_the_drain_ends_it_with_its_code_and_the_count() {
    for (end, code) in [("kill -KILL $$", 137), ("exit 3", 3), ("exit 0", 124)] {
        let script = format!(
            "trap 'echo dying; {end}' USR1; echo ready; while kill -0 $PPID 2>&-; do sleep 0.01; done"
        );
        let (mut shim, address, app) = Shim::before_listener(&["--drain-timeout", "1h"], &script).await;
        let mut client = Wire::open(address).await;
        client.get("/").await;
        let mut asked = Wire::accept(&app).await;
        asked.head().await;
        shim.signal(Signal::TERM);
        shim.log.wait_for("Draining 1 active connections").await;
        shim.signal(Signal::USR1);
        shim.output.wait_for("dying").await;
        // The app's connections close with it.
        drop(asked);
        drop(app);
        assert!(client.rest_text().await.starts_with("HTTP/1.1 502 "));
        assert_eq!(shim.code().await, Some(code), "{end}");
        shim.log.wait_for("1 active connections were cut").await;
    }
}

#[tokio::test]
async fn the_last_response_of_an_app_that_exits_is_delivered() {
    let script = "trap 'exit 5' USR1; echo ready; while kill -0 $PPID 2>&-; do sleep 0.01; done";
    let (mut shim, address, app) = Shim::before_listener(&[], script).await;
    let mut client = Wire::open(address).await;
    client.get("/").await;
    let mut asked = Wire::accept(&app).await;
    asked.head().await;
    // Too much for one read, and sent completely before the exit.
    let body = "x".repeat(1_000_000);
    let sending = tokio::spawn(async move { asked.send(response(&body)).await });
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    shim.signal(Signal::USR1);
    assert_eq!(client.read_exact(1_000_000).await.len(), 1_000_000);
    sending.await.unwrap();
    assert_eq!(shim.code().await, Some(5));
}

#[tokio::test]
async fn a_quiet_tunnel_gets_a_close_frame_and_a_busy_one_continues() {
    let (mut shim, address, side) = serving(&[]).await;
    let mut quiet = websocket(address).await;
    quiet.echoes("before").await;
    let busy = tokio::spawn(conversation(address, 10, Duration::from_millis(500)));
    in_flight_is(side, 2).await;
    let signalled_at = Instant::now();
    shim.signal(Signal::TERM);
    assert_eq!(quiet.read_exact(4).await, GOING_AWAY);
    assert!(signalled_at.elapsed() < Duration::from_secs(15));
    // A peer that got a close frame answers with one, and the tunnel ends.
    quiet.send(GOING_AWAY_MASKED).await;
    assert_eq!(quiet.rest().await.unwrap(), b"");
    busy.await.unwrap();
    assert_eq!(shim.code().await, Some(0));
}

#[tokio::test]
async fn both_sides_of_a_tunnel_get_a_close_between_two_frames_and_have_until_the_deadline() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = ["--drain-timeout", "4s", "--metrics", "127.0.0.1:0"];
    let mut shim = Shim::start(&app.local_addr().unwrap().to_string(), &options, TALKER);
    let address = shim.address().await;
    let side = side(&shim).await;
    drop(Wire::accept(&app).await);
    shim.log.wait_for("App accepts connections").await;
    let mut client = Wire::open(address).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    let mut app = Wire::accept(&app).await;
    app.head().await;
    app.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    client.head().await;
    in_flight_is(side, 1).await;
    // Half a frame from the app, and a whole one from the client.
    app.send([0x81, 4, b'a', b'b']).await;
    client.send(masked("hi")).await;
    assert_eq!(client.read_exact(4).await, [0x81, 4, b'a', b'b']);
    assert_eq!(app.read_exact(8).await, masked("hi"));
    shim.signal(Signal::TERM);
    // The client's direction is between frames: the app gets a close frame.
    assert_eq!(app.read_exact(8).await, GOING_AWAY_MASKED);
    // The app's direction isn't: the frame comes first, then the close frame, then nothing.
    app.send([b'c', b'd', 0x81, 5, b'x']).await;
    assert_eq!(client.read_exact(6).await, [b'c', b'd', 0x88, 2, 0x03, 0xE9]);
    // Neither side answers, so the tunnel is cut at the deadline.
    assert_eq!(shim.code().await, Some(124));
    shim.log.wait_for("Cutting 1 active connections").await;
    assert_eq!(client.rest().await.unwrap_or_default(), b"");
}

#[tokio::test]
async fn supervise_only_waits_for_the_connections_to_the_app() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = app.local_addr().unwrap().to_string();
    let options = ["--supervise-only", "--listen", "127.0.0.1:0", "--app", &at];
    let mut shim = Shim::spawn(crate::shim::command(&options, &["sh", "-c", TALKER]));
    let line = shim.log.wait_for("(health)").await;
    let health: SocketAddr =
        line.split("Listening on ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    drop(Wire::accept(&app).await);
    shim.log.wait_for("App accepts connections").await;
    shim.output.wait_for("ready").await;
    let client = TcpStream::connect(app.local_addr().unwrap()).await.unwrap();
    // The health check connects to the app too, so the count varies.
    let (answer, served) = tokio::join!(get(health, "/api/health"), async {
        let served = Wire::accept(&app).await;
        (served, Wire::accept(&app).await)
    });
    assert!(answer.contains(r#""status":"healthy""#), "{answer}");
    assert!(get(health, "/").await.starts_with("HTTP/1.1 404 "), "it is not in the path");
    let (first, second) = served;
    drop(second);
    shim.signal(Signal::TERM);
    shim.log.wait_for("Draining 1 active connections").await;
    assert!(get(health, "/api/health").await.contains(r#""status":"draining""#));
    assert!(!shim.output.all().contains(&"got TERM".to_owned()));
    drop((client, first));
    assert_eq!(shim.code().await, Some(0));
    shim.log.wait_for("All connections drained").await;
    assert!(shim.output.to_end().await.contains(&"got TERM".to_owned()));
}

#[tokio::test]
async fn supervise_only_gives_up_at_the_deadline() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = app.local_addr().unwrap().to_string();
    let options = ["--supervise-only", "--drain-timeout", "500ms", "--app", &at];
    let mut shim = Shim::spawn(crate::shim::command(&options, &["sh", "-c", TALKER]));
    drop(Wire::accept(&app).await);
    shim.log.wait_for("App accepts connections").await;
    let client = TcpStream::connect(app.local_addr().unwrap()).await.unwrap();
    shim.signal(Signal::TERM);
    assert_eq!(shim.code().await, Some(124));
    shim.log.wait_for("Cutting 1 active connections").await;
    drop(client);
}
