//! Limits of a client: sizes, numbers and rates, each with its own answer.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Home, Proxy, SampleApp, Scripted, Then, soon, until};
use crate::wire::{Wire, get};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn before(app: &Scripted, server: &str, service: &str) -> (Home, Proxy) {
    let home = Home::new(app.address, "127.0.0.1:9").server("threads = 1").server(server).service(service);
    let proxy = home.start().await;
    (home, proxy)
}

/// An app that reads whole bodies, sized or chunked, and answers ok.
async fn reader() -> Scripted {
    Scripted::start(|head, mut stream| async move {
        let mut seen = Vec::new();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length: Option<usize> = length.map(|length| length.parse().unwrap());
        let chunked = head.contains("chunked");
        while length.map_or(chunked && !seen.ends_with(b"0\r\n\r\n"), |length| seen.len() < length) {
            match stream.read_u8().await {
                Ok(byte) => seen.push(byte),
                Err(_) => return (stream, Then::Close),
            }
        }
        let _ = stream.write_all(OK).await;
        (stream, Then::KeepAlive)
    })
    .await
}

async fn until_said(home: &Home, termination: &str) -> serde_json::Value {
    until(&format!("an exchange ended with {termination}"), async || {
        home.access_log().into_iter().find(|line| line["termination"] == termination)
    })
    .await
}

#[tokio::test]
async fn too_many_header_fields_are_431() {
    let app = Scripted::start(|_, mut stream| async move {
        let _ = stream.write_all(OK).await;
        (stream, Then::KeepAlive)
    })
    .await;
    let (_home, proxy) = before(&app, "limits = { header_fields = 4, header_bytes = \"2KiB\" }", "").await;
    let request = |fields: usize| {
        let fields = (1..fields).map(|n| format!("X-{n}: 1\r\n")).collect::<String>();
        format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n{fields}\r\n")
    };
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(request(3)).await;
    assert_eq!(wire.response().await.status, 200);
    wire.send(request(4)).await;
    let response = wire.response().await;
    assert_eq!((response.status, response.header("connection")), (431, Some("close")));
    let problem: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(problem["request_id"], response.header("x-request-id").unwrap());
    assert_eq!(app.seen(), 1);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413_and_an_exact_one_passes() {
    let app = reader().await;
    let (home, proxy) = before(&app, "", "[services.app.limits]\nbody_bytes = \"100B\"").await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{}", "x".repeat(100))).await;
    assert_eq!(wire.response().await.status, 200);
    let chunk = "1;extension=1\r\nx\r\n";
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    wire.send(format!("{chunked}{}0\r\n\r\n", chunk.repeat(100))).await;
    assert_eq!(wire.response().await.status, 200, "chunk framing counts as content");
    // Rejected by its announced length, before a byte of it arrives and before a backend is involved.
    let seen = app.seen();
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\nExpect: 100-continue\r\n\r\n").await;
    let response = wire.response().await;
    assert_eq!((response.status, response.header("connection")), (413, Some("close")));
    assert_eq!(app.seen(), seen);
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("{chunked}{}", chunk.repeat(100))).await;
    until("the backend has the request", async || (app.seen() > seen).then_some(())).await;
    wire.send(chunk).await;
    assert_eq!(wire.response().await.status, 413);
    assert_eq!(until_said(&home, "TL").await["status"], 413);
    proxy.until_idle("blue").await;
}

#[tokio::test]
async fn a_body_slower_than_its_minimum_rate_is_408_and_a_pause_is_not() {
    let app = reader().await;
    let limits = "[services.app.limits]\nmin_body_rate = \"100B\"\nrate_window = \"1s\"";
    let (home, proxy) = before(&app, "", limits).await;
    // Sends continuously, but little: no idle timeout would end it.
    let mut slow = Wire::connect(proxy.address).await;
    slow.send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n").await;
    let begun = Instant::now();
    let (mut read, mut write) = slow.stream.into_split();
    let sender = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    // Pauses for most of a window, and then catches up.
    let mut paused = Wire::connect(proxy.address).await;
    paused.send("POST /paused HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    paused.send("x".repeat(1000)).await;
    assert_eq!(paused.response().await.status, 200);
    let mut answer = Vec::new();
    soon("the answer", async {
        while !answer.ends_with(b"</html>\n") && read.read_buf(&mut answer).await.is_ok_and(|n| n > 0) {}
    })
    .await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    assert!(begun.elapsed() >= Duration::from_secs(1), "cut within its first window");
    sender.abort();
    assert_eq!(until_said(&home, "DT").await["path"], "/slow");
    proxy.until_idle("blue").await;
}

#[tokio::test]
async fn a_reader_slower_than_its_minimum_rate_is_cut_and_a_quiet_stream_is_not() {
    let app = Scripted::start(|head, mut stream| async move {
        if head.starts_with("GET /events") {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
                .await;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let _ = stream.write_all(b"data: 2\n\n").await;
        } else {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
            let piece = vec![b'x'; 1 << 16];
            while stream.write_all(&piece).await.is_ok() {}
        }
        (stream, Then::Close)
    })
    .await;
    let limits = "[services.app.limits]\nmin_response_rate = \"10KiB\"\nrate_window = \"500ms\"";
    let (home, proxy) = before(&app, "", limits).await;
    let mut events = Wire::connect(proxy.address).await;
    events.send(get("/events")).await;
    // Never reads.
    let mut stuck = Wire::connect(proxy.address).await;
    stuck.send(get("/stuck")).await;
    assert_eq!(until_said(&home, "DT").await["path"], "/stuck");
    events.read_until(b"data: 2\n\n").await;
    proxy.until_idle("blue").await;
}

#[tokio::test]
async fn a_reader_that_keeps_its_minimum_rate_gets_all_of_it() {
    const BYTES: usize = 12 << 20;
    let app = Scripted::start(|_, mut stream| async move {
        let _ =
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n").as_bytes()).await;
        let _ = stream.write_all(&vec![b'x'; BYTES]).await;
        (stream, Then::Close)
    })
    .await;
    // Reading the socket's buffer takes longer than the client's timeout.
    let limits = "[services.app.limits]\nmin_response_rate = \"100KiB\"\nrate_window = \"1s\"\n\
                  [services.app.timeouts]\nclient = \"700ms\"\nhalf_closed = \"700ms\"";
    let (home, proxy) = before(&app, "", limits).await;
    // The second closes its sending side; both of its timeouts expire at the same time.
    for ends in [false, true] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        if ends {
            wire.stream.shutdown().await.unwrap();
        }
        let (mut received, mut buffer) = (0, vec![0; 256 << 10]);
        loop {
            let read = soon("more of it", wire.stream.read(&mut buffer)).await.unwrap();
            if read == 0 {
                break;
            }
            received += read;
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        assert!(received > BYTES, "{received} of {BYTES}, ended: {ends}: {:?}", home.access_log());
    }
}

/// Bytes written from port `near` to the client at port `far` that the kernel still holds.
fn queued_for(near: u16, far: u16) -> u64 {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let (local, remote) = (format!(":{near:04X}"), format!(":{far:04X}"));
    // An unrelated connection may have the same port at one end.
    let ours = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|from| from.ends_with(&local))
            && fields.next().is_some_and(|to| to.ends_with(&remote))
    };
    let queues = table.lines().find(ours).and_then(|line| line.split_whitespace().nth(4)).unwrap();
    u64::from_str_radix(queues.split(':').next().unwrap(), 16).unwrap()
}

#[tokio::test]
async fn a_client_that_does_not_read_has_little_waiting_in_the_kernel() {
    let app = Scripted::start(|_, mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
        let piece = vec![b'x'; 1 << 16];
        while stream.write_all(&piece).await.is_ok() {}
        (stream, Then::Close)
    })
    .await;
    let (_home, proxy) = before(&app, "", "").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stuck = socket.connect(proxy.address).await.unwrap();
    let port = stuck.local_addr().unwrap().port();
    stuck.write_all(get("/").as_bytes()).await.unwrap();
    let queued = || queued_for(proxy.address.port(), port);
    until("the limit is reached", async || (queued() > 100 << 10).then_some(())).await;
    for _ in 0..20 {
        let queued = queued();
        assert!(queued < 256 << 10, "{queued} bytes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn too_many_connections_are_turned_away_and_those_that_are_there_go_on() {
    let app = SampleApp::start("blue", "1").await;
    let start = async |limits: &str| {
        let home = Home::new(app.address, "127.0.0.1:9").server(&format!("limits = {{ {limits} }}"));
        let proxy = home.start().await;
        (home, proxy)
    };
    for (limits, status, reason) in
        [("connections_per_address = 2", 429, "address"), ("connections = 2", 503, "full")]
    {
        let (_home, proxy) = start(limits).await;
        let (mut first, mut second) =
            (Wire::connect(proxy.address).await, Wire::connect(proxy.address).await);
        // Idle connections are evicted for a new one, but not for one from an address that has too many.
        let path = if reason == "full" { "/slow?ms=3000" } else { "/" };
        for wire in [&mut first, &mut second] {
            wire.send(get(path)).await;
        }
        if reason == "full" {
            until("both are busy", async || {
                (proxy.backend("blue").await.requests_in_flight == 2).then_some(())
            })
            .await;
        } else {
            assert_eq!((first.response().await.status, second.response().await.status), (200, 200));
        }
        let mut third = Wire::connect(proxy.address).await;
        // It gets the answer before it has sent a request.
        let response = third.response().await;
        assert_eq!(response.status, status);
        assert_eq!(
            (response.header("connection"), response.header("retry-after")),
            (Some("close"), Some("1"))
        );
        if reason == "full" {
            assert_eq!((first.response().await.status, second.response().await.status), (200, 200));
        }
        assert_eq!(first.get("/").await.status, 200);
        drop(second);
        until("there is room again", async || {
            let mut again = Wire::connect(proxy.address).await;
            again.send(get("/")).await;
            again.read(false).await.filter(|response| response.status == 200)
        })
        .await;
        let metrics = proxy.client.metrics().await.unwrap();
        let line = format!("uh_proxy_client_connections_refused_total{{reason=\"{reason}\"}} ");
        let count = metrics.lines().find_map(|text| text.strip_prefix(&line)).unwrap();
        assert!(count.parse::<u64>().unwrap() >= 1, "{metrics}");
    }
}

#[tokio::test]
async fn a_trusted_proxy_is_not_taken_for_one_client() {
    let app = SampleApp::start("blue", "1").await;
    let limit = "limits = { connections_per_address = 2 }";
    let trusting = format!("trusted_proxies = [\"127.0.0.0/8\"]\n{limit}");
    let home = Home::new(app.address, "127.0.0.1:9").server(&trusting);
    let proxy = home.start().await;
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut wire = Wire::connect(proxy.address).await;
        assert_eq!(wire.get("/").await.status, 200);
        open.push(wire);
    }
    // A client that isn't a trusted proxy is limited, and the log says what to do once, not for each connection.
    let home = Home::new(app.address, "127.0.0.1:9").server(limit);
    let proxy = home.start().await;
    let (mut first, mut second) = (Wire::connect(proxy.address).await, Wire::connect(proxy.address).await);
    assert_eq!((first.get("/").await.status, second.get("/").await.status), (200, 200));
    for _ in 0..20 {
        assert_eq!(Wire::connect(proxy.address).await.response().await.status, 429);
    }
    home.until_said("server.trusted_proxies").await;
    let lines = home.messages().matches("connection rejected").count();
    assert!((1..=3).contains(&lines), "{lines} lines for 20 connections: {}", home.messages());
}

#[tokio::test]
async fn a_connection_carries_as_many_requests_as_it_may() {
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(app.address, "127.0.0.1:9").server("limits = { requests_per_connection = 3 }");
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    for last in [false, false, true] {
        let response = wire.get("/").await;
        assert_eq!((response.status, response.header("connection").is_some()), (200, last));
    }
    assert!(wire.is_closed().await);
}

/// The file descriptors that a process has open.
fn descriptors(pid: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64
}

#[tokio::test]
async fn without_file_descriptors_it_serves_those_it_has_and_recovers() {
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(app.address, "127.0.0.1:9").server("threads = 1");
    let proxy = home.start().await;
    let mut kept = Wire::connect(proxy.address).await;
    assert_eq!(kept.get("/").await.status, 200);
    let pid = Pid::from_raw(i32::try_from(proxy.pid()).unwrap());
    let before = getrlimit(Resource::Nofile);
    // Lowered while it runs, so its own limit of connections, computed at start, doesn't help.
    let few = descriptors(proxy.pid()) + 4;
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(few), maximum: before.maximum }).unwrap();
    let mut crowd = Vec::new();
    for _ in 0..50 {
        crowd.push(Wire::connect(proxy.address).await);
    }
    until("no descriptor is left", async || (descriptors(proxy.pid()) + 1 >= few).then_some(())).await;
    for _ in 0..20 {
        let response = kept.get("/").await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
    drop(crowd);
    let mut again = Wire::connect(proxy.address).await;
    assert_eq!(again.get("/").await.status, 200, "it did not recover");
}

#[tokio::test]
async fn its_own_limit_comes_before_that_of_file_descriptors() {
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(app.address, "127.0.0.1:9").server("threads = 1");
    let mut limited = std::process::Command::new("/bin/sh");
    let command = home.command();
    limited
        .args(["-c", "ulimit -n 512; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    let log = std::fs::OpenOptions::new().append(true).open(home.log()).unwrap();
    limited.stderr(log);
    let proxy = home.start_as(limited).await;
    home.until_said("descriptors=512 most_connections=128").await;
    let mut kept = Wire::connect(proxy.address).await;
    assert_eq!(kept.get("/").await.status, 200);
    // An idle connection would be evicted for the crowd.
    kept.send(get("/slow?ms=3000")).await;
    until("it is busy", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(())).await;
    let mut crowd: Vec<Wire> = Vec::new();
    for _ in 0..300 {
        crowd.push(Wire::connect(proxy.address).await);
    }
    // All of its connections may carry a request at the same time, each with a connection to a backend.
    let mut busy = Vec::new();
    for mut wire in crowd.drain(..127) {
        wire.send(get("/slow?ms=300")).await;
        busy.push(wire);
    }
    for wire in &mut busy {
        assert_eq!(wire.response().await.status, 200);
    }
    assert_eq!(kept.response().await.status, 200);
    assert_eq!(kept.get("/").await.status, 200);
    drop((crowd, busy));
    until("it takes connections again", async || {
        let stream = TcpStream::connect(proxy.address).await.ok()?;
        drop(stream);
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(get("/")).await;
        wire.read(false).await.filter(|response| response.status == 200)
    })
    .await;
}

async fn evicted(proxy: &Proxy) -> u64 {
    let metrics = proxy.client.metrics().await.unwrap();
    let name = "uh_proxy_client_connections_evicted_total ";
    metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

#[tokio::test]
async fn at_the_limit_the_connection_that_has_been_idle_longest_makes_room_for_a_new_one() {
    const PLACES: usize = 8;
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(app.address, "127.0.0.1:9")
        .server(&format!("limits = {{ connections = {PLACES}, connections_per_address = 0 }}"));
    let proxy = home.start().await;
    let mut wires = Vec::new();
    for _ in 0..PLACES {
        let mut wire = Wire::connect(proxy.address).await;
        assert_eq!(wire.get("/").await.status, 200);
        wires.push(wire);
        // Idle times are measured in milliseconds.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The first one is the oldest connection, but not the one that has been idle longest.
    assert_eq!(wires[0].get("/").await.status, 200);
    for newcomer in 1..=3 {
        let mut wire = Wire::connect(proxy.address).await;
        assert_eq!(wire.get("/").await.status, 200, "newcomer {newcomer}");
        assert!(wires[newcomer].is_closed().await && !wires[newcomer].is_reset(), "{newcomer}");
        assert_eq!(evicted(&proxy).await, newcomer as u64);
        wires.push(wire);
    }
    for kept in [0, 4, 5, 6, 7, 8, 9, 10] {
        assert_eq!(wires[kept].get("/").await.status, 200, "{kept} was closed");
    }
    // There are as many places as before: evicted connections have released theirs once.
    drop(wires);
    until("all are gone", async || {
        let metrics = proxy.client.metrics().await.unwrap();
        metrics.contains("uh_proxy_client_connections{state=\"idle\"} 0\n").then_some(())
    })
    .await;
    let mut busy = Vec::new();
    for _ in 0..PLACES {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(get("/slow?ms=60000")).await;
        busy.push(wire);
    }
    until("all are busy", async || {
        (proxy.backend("blue").await.requests_in_flight == PLACES as u64).then_some(())
    })
    .await;
    let mut late = Wire::connect(proxy.address).await;
    assert_eq!(late.response().await.status, 503, "a busy connection is never closed for a new one");
    assert_eq!(evicted(&proxy).await, 3);
}
