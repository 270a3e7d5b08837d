//! The invariants, each a test of its name.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use uh_protocol::Code;
use uh_protocol::client::ClientError;
use uh_protocol::request::{BackendRequest, DrainRequest, SwitchRequest, WithdrawRequest};

use crate::harness::{Home, SampleApp, Scripted, Then, app, backend, cli, pair, until};
use crate::wire::{Wire, get};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An app that records every request that arrives while it is closed.
async fn guarded(closed: &Arc<AtomicBool>, late: &Arc<AtomicUsize>) -> Scripted {
    let (closed, late) = (Arc::clone(closed), Arc::clone(late));
    Scripted::start(move |_, mut stream| {
        let (closed, late) = (Arc::clone(&closed), Arc::clone(&late));
        async move {
            if closed.load(Ordering::SeqCst) {
                late.fetch_add(1, Ordering::SeqCst);
            }
            let _ = stream.write_all(OK).await;
            (stream, Then::KeepAlive)
        }
    })
    .await
}

/// Clients that send requests until stopped; each returns how many responses it got on its one connection.
pub(crate) fn busy_clients(
    count: usize,
    address: std::net::SocketAddr,
    stop: &Arc<AtomicBool>,
) -> Vec<tokio::task::JoinHandle<usize>> {
    let client = |_| {
        let stop = Arc::clone(stop);
        tokio::spawn(async move {
            let mut wire = Wire::connect(address).await;
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                let response = wire.get("/").await;
                assert_eq!(response.status, 200, "{response:?}");
                assert!(response.complete && response.header("connection").is_none(), "{response:?}");
                answers += 1;
            }
            answers
        })
    };
    (0..count).map(client).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_exchange_starts_on_a_backend_after_its_drain_is_reported() {
    const SWITCHES: usize = 100;
    let closed = [Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true))];
    let late = Arc::new(AtomicUsize::new(0));
    let (blue, green) = (guarded(&closed[0], &late).await, guarded(&closed[1], &late).await);
    let home = Home::new(blue.address, green.address);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients = busy_clients(8, proxy.address, &stop);
    let names = ["blue", "green"];
    for step in 1..=SWITCHES {
        let (new, old) = (step % 2, (step + 1) % 2);
        closed[new].store(false, Ordering::SeqCst);
        proxy.switch(names[new]).await;
        let order = DrainRequest { timeout_ms: Some(10_000), cut: Some(false) };
        let drained = proxy.client.drain(&app(), &backend(names[old]), &order).await.unwrap();
        assert!(drained.drained, "{drained:?}");
        closed[old].store(true, Ordering::SeqCst);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > SWITCHES / 2, "the clients hardly ran");
    }
    assert_eq!(late.load(Ordering::SeqCst), 0, "requests reached a backend after its drain was reported");
}

/// An app like [`guarded`] that also closes every third connection after its response without announcing it, so that
/// the next request on it is retried.
async fn guarded_and_forgetful(closed: &Arc<AtomicBool>, late: &Arc<AtomicUsize>) -> Scripted {
    let (closed, late, count) = (Arc::clone(closed), Arc::clone(late), Arc::new(AtomicUsize::new(0)));
    Scripted::start(move |_, mut stream| {
        let (closed, late, count) = (Arc::clone(&closed), Arc::clone(&late), Arc::clone(&count));
        async move {
            if closed.load(Ordering::SeqCst) {
                late.fetch_add(1, Ordering::SeqCst);
            }
            let _ = stream.write_all(OK).await;
            let forgets = count.fetch_add(1, Ordering::SeqCst) % 3 == 0;
            (stream, if forgets { Then::Close } else { Then::KeepAlive })
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_exchange_of_any_kind_starts_on_a_backend_after_it_is_withdrawn() {
    const ROUNDS: usize = 40;
    let closed = [Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false))];
    let late = Arc::new(AtomicUsize::new(0));
    let apps =
        [guarded_and_forgetful(&closed[0], &late).await, guarded_and_forgetful(&closed[1], &late).await];
    let home = Home::new(apps[0].address, apps[1].address).service(
        "[services.app.retries]\npercent = 100\nper_second = 10000\n\
         [services.app.health]\ninterval = \"10ms\"\nhealthy_after = 1",
    );
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients = busy_clients(8, proxy.address, &stop);
    let names = [backend("blue"), backend("green")];
    let force = |to: usize| SwitchRequest { force: true, ..SwitchRequest::to(names[to].clone()) };
    let is_withdrawn = |error: &ClientError| matches!(error, ClientError::Problem(problem) if problem.code == Code::BackendWithdrawn);
    let (mut won, mut lost) = (0, 0);
    for round in 0..ROUNDS {
        let new = usize::from(proxy.service().await.active == names[0]);
        let old = 1 - new;
        proxy.client.switch(&app(), &force(new)).await.unwrap();
        // Another caller switches back at the same moment.
        let (app, order, back) = (app(), WithdrawRequest::default(), force(old));
        let withdraw = proxy.client.withdraw(&app, &names[old], &order);
        let switch = proxy.client.switch(&app, &back);
        let (withdrawn, switched) = if round % 2 == 0 {
            tokio::join!(withdraw, switch)
        } else {
            let (switched, withdrawn) = tokio::join!(switch, withdraw);
            (withdrawn, switched)
        };
        let Ok(withdrawn) = withdrawn else {
            assert!(switched.unwrap().changed, "neither was done");
            lost += 1;
            continue;
        };
        won += 1;
        assert!(withdrawn.changed && withdrawn.persisted, "{withdrawn:?}");
        assert!(is_withdrawn(&switched.unwrap_err()));
        let order = DrainRequest { timeout_ms: Some(20_000), cut: Some(false) };
        assert!(proxy.client.drain(&app, &names[old], &order).await.unwrap().drained);
        closed[old].store(true, Ordering::SeqCst);
        for request in [force(old), SwitchRequest::to(names[old].clone())] {
            assert!(is_withdrawn(&proxy.client.switch(&app, &request).await.unwrap_err()));
        }
        let served = apps[new].seen();
        until("requests are served", async || (apps[new].seen() > served + 20).then_some(())).await;
        closed[old].store(false, Ordering::SeqCst);
        let again = BackendRequest {
            endpoints: vec![apps[old].address.to_string()],
            version: None,
            expect_generation: Some(withdrawn.generation),
            force: false,
        };
        assert!(proxy.client.set_backend(&app, &names[old], &again).await.unwrap().changed);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > ROUNDS, "the clients hardly ran");
    }
    let metrics = proxy.client.metrics().await.unwrap();
    assert!(metrics.contains("uh_proxy_retries_total"), "nothing was tried again");
    assert!(won > 0 && lost > 0, "withdrawals: {won} won and {lost} lost their race");
    assert_eq!(late.load(Ordering::SeqCst), 0, "requests reached a backend after it was withdrawn");
}

#[tokio::test]
async fn a_request_sent_after_the_switch_reply_reaches_the_new_backend() {
    let (_home, proxy, _blue, _green) = pair().await;
    let mut kept = Vec::new();
    for _ in 0..8 {
        kept.push(Wire::connect(proxy.address).await);
    }
    for step in 1..=100 {
        let name = if step % 2 == 1 { "green" } else { "blue" };
        let switched = proxy.switch(name).await;
        assert!(switched.changed && switched.persisted);
        assert_eq!(switched.generation, step);
        for wire in &mut kept {
            assert_eq!(wire.get("/").await.header("x-backend"), Some(name));
        }
        assert_eq!(Wire::connect(proxy.address).await.get("/").await.header("x-backend"), Some(name));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_closes_no_client_connection_and_fails_no_request() {
    const SWITCHES: usize = 200;
    let (_home, proxy, _blue, _green) = pair().await;
    let stop = Arc::new(AtomicBool::new(false));
    // A client fails its test if its connection is closed or a response isn't good.
    let clients = busy_clients(16, proxy.address, &stop);
    for step in 1..=SWITCHES {
        proxy.switch(if step % 2 == 1 { "green" } else { "blue" }).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn the_count_returns_to_zero_after_every_way_an_exchange_can_end() {
    let app = Scripted::start(|head, mut stream| async move {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let reply: &[u8] = match path.as_str() {
            "/ok" => OK,
            "/closes-at-once" => b"",
            "/half-a-head" => b"HTTP/1.1 200 OK\r\nContent-Le",
            "/nonsense" => b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "/half-a-body" => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
            "/bad-chunk" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "/websocket" => {
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello"
            }
            "/unasked" => {
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            }
            "/early" => b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "/silent" | "/upload" => {
                tokio::time::sleep(Duration::from_secs(30)).await;
                b""
            }
            other => panic!("unexpected {other}"),
        };
        let _ = stream.write_all(reply).await;
        let then = match path.as_str() {
            "/ok" => Then::KeepAlive,
            "/websocket" => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                Then::Close
            }
            _ => Then::Close,
        };
        (stream, then)
    })
    .await;
    let home = Home::new(app.address, "127.0.0.1:9")
        .service("[services.app.timeouts]\nread = \"400ms\"\nclient = \"500ms\"");
    let proxy = home.start().await;
    let post = |path: &str, framing: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
    let upgrade = "GET /websocket HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    // What is sent, the expected status, and whether the client leaves without waiting for it.
    for (request, status, leaves) in [
        (get("/ok"), Some(200), false),
        (get("/ok").replace("GET", "HEAD"), Some(200), true),
        (get("/closes-at-once"), Some(502), false),
        (get("/half-a-head"), Some(502), false),
        (get("/nonsense"), Some(502), false),
        (get("/half-a-body"), Some(200), false),
        (get("/bad-chunk"), Some(502), false),
        (get("/unasked"), Some(502), false),
        (upgrade.to_owned(), Some(101), false),
        (upgrade.to_owned(), None, true),
        (post("/early", "Content-Length: 1000000"), Some(413), false),
        (get("/silent"), Some(504), false),
        (get("/silent"), None, true),
        (post("/upload", "Content-Length: 10") + "half", Some(408), false),
        (post("/upload", "Content-Length: 10") + "half", None, true),
        (post("/upload", "Transfer-Encoding: chunked") + "zz\r\n", Some(400), false),
    ] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(&request).await;
        if leaves {
            // Until the backend has it: only then is there something to leave.
            until("the request is in flight or over", async || {
                let backend = proxy.backend("blue").await;
                let held = backend.requests_in_flight + backend.tunnels > 0;
                (held || status.is_some()).then_some(())
            })
            .await;
        } else {
            let response = wire.read(false).await;
            assert_eq!(response.as_ref().map(|r| r.status), status, "{request:?} gave {response:?}");
        }
        drop(wire);
        proxy.until_idle("blue").await;
    }
    // Nothing is listening.
    proxy
        .client
        .switch(&crate::harness::app(), &SwitchRequest { force: true, ..SwitchRequest::to(backend("green")) })
        .await
        .unwrap();
    assert_eq!(Wire::connect(proxy.address).await.get("/ok").await.status, 502);
    proxy.until_idle("green").await;
    let blue = proxy.backend("blue").await;
    assert_eq!(
        blue.connections.active + blue.connections.idle,
        0,
        "connections to a backend that nobody uses: {blue:?}"
    );
}

#[tokio::test]
async fn restart_serves_the_last_acknowledged_backend() {
    let (home, mut proxy, blue, _green) = pair().await;
    assert!(proxy.switch("green").await.persisted);
    let moved = BackendRequest {
        endpoints: vec![blue.address.to_string()],
        version: Some("9.9".to_owned()),
        expect_generation: None,
        force: true,
    };
    proxy.client.set_backend(&app(), &backend("green"), &moved).await.unwrap();
    let before = proxy.service().await;
    proxy.kill();
    let proxy = home.start().await;
    let after = proxy.service().await;
    assert_eq!(after.active, backend("green"));
    assert_eq!(after.previous, Some(backend("blue")));
    assert_eq!(after.last_switch.map(|t| t[..19].to_owned()), before.last_switch.map(|t| t[..19].to_owned()));
    assert_eq!(
        after.backends[1].endpoints[0].address,
        blue.address.to_string(),
        "a registration was forgotten"
    );
    assert_eq!(after.backends[1].version.as_deref(), Some("9.9"));
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.header("x-backend"), Some("blue"));
}

#[tokio::test]
async fn a_damaged_state_file_never_stops_the_front_door() {
    let (home, mut proxy, _blue, _green) = pair().await;
    proxy.switch("green").await;
    let good = fs::read(home.state_file()).unwrap();
    let copy = home.path("state/.deployment-state.json.last-good");
    until("the copy is written", async || fs::read(&copy).ok().filter(|text| *text == good)).await;
    let half = good[..good.len() / 2].to_vec();
    // The file, its copy, and who must be active then.
    let cases: [(Option<&[u8]>, Option<&[u8]>, &str); 7] = [
        (Some(b""), Some(&good), "green"),
        (Some(b"\0\0\0\0"), Some(&good), "green"),
        (Some(&half), Some(&good), "green"),
        (None, Some(&good), "green"),
        (Some(&half), Some(&half), "blue"),
        (Some(b"{\"schema\":1}"), None, "blue"),
        (Some(b"{\"schema\":99}"), None, "blue"),
    ];
    for (file, copied, active) in cases {
        proxy.kill();
        for (path, text) in [(home.state_file(), file), (copy.clone(), copied)] {
            match text {
                Some(text) => fs::write(path, text).unwrap(),
                None => drop(fs::remove_file(path)),
            }
        }
        proxy = home.start().await;
        assert_eq!(
            Wire::connect(proxy.address).await.get("/").await.header("x-backend"),
            Some(active),
            "{file:?}"
        );
        let status = proxy.status().await;
        assert!(!status.warnings.is_empty(), "damage passed in silence");
        home.until_said(&status.warnings[0]).await;
    }
}

#[tokio::test]
async fn a_refused_command_changes_nothing() {
    let blue = SampleApp::start("blue", "1.0.0").await;
    let home = Home::new(blue.address, "127.0.0.1:9");
    let proxy = home.start().await;
    until("both are known, and what is known is on disk", async || {
        let (blue, green) = (proxy.backend("blue").await, proxy.backend("green").await);
        let known = blue.healthy == Some(true) && green.healthy == Some(false);
        let text = fs::read_to_string(home.state_file()).unwrap_or_default();
        (known && text.contains("\"healthy\": true") && text.contains("\"version\": \"1.0.0\"")).then_some(())
    })
    .await;
    let settled = async || {
        let mut status = proxy.status().await;
        status.proxy.uptime_s = 0;
        for backend in &mut status.services[0].backends {
            backend.last_probe = None;
            backend.endpoints.iter_mut().for_each(|endpoint| endpoint.last_probe = None);
        }
        (status, fs::read(home.state_file()).unwrap())
    };
    let before = settled().await;
    let green = || SwitchRequest::to(backend("green"));
    let switches = [
        (green(), Code::BackendUnhealthy),
        (SwitchRequest::to(backend("red")), Code::UnknownBackend),
        (SwitchRequest { expect_active: Some(backend("green")), force: true, ..green() }, Code::Conflict),
        (SwitchRequest { expect_generation: Some(77), force: true, ..green() }, Code::Conflict),
    ];
    for (request, code) in switches {
        let error = proxy.client.switch(&app(), &request).await.unwrap_err();
        assert!(matches!(&error, ClientError::Problem(problem) if problem.code == code), "{error:?}");
        assert_eq!(settled().await, before);
    }
    let unknown = proxy.client.switch(&"other".parse().unwrap(), &green()).await.unwrap_err();
    assert!(
        matches!(&unknown, ClientError::Problem(problem) if problem.code == Code::UnknownService),
        "{unknown:?}"
    );
    let order = DrainRequest { timeout_ms: Some(1), cut: Some(true) };
    let active = proxy.client.drain(&app(), &backend("blue"), &order).await.unwrap_err();
    assert!(
        matches!(&active, ClientError::Problem(problem) if problem.code == Code::BackendActive),
        "{active:?}"
    );
    for endpoints in [vec![], vec!["nowhere".to_owned()], vec!["127.0.0.1:1".to_owned(); 65]] {
        let request = BackendRequest { endpoints, version: None, expect_generation: None, force: false };
        let error = proxy.client.set_backend(&app(), &backend("green"), &request).await.unwrap_err();
        assert!(matches!(&error, ClientError::Problem(problem) if problem.status == 422), "{error:?}");
    }
    assert_eq!(settled().await, before);
    let (exit, _, message) = cli(&home.socket(), &["switch", "green"]).await;
    assert_eq!(exit, 3);
    // Which backend serves, why the switch failed, and what to do.
    for part in ["blue stays active", "127.0.0.1:9", "refused", "force"] {
        assert!(message.contains(part), "{part:?} is missing in {message:?}");
    }
    assert_eq!(settled().await, before);
}

#[tokio::test]
async fn a_request_body_is_delivered_at_most_once_for_unsafe_methods() {
    // Answers one request per connection; reads the second one completely, and closes without a response.
    let app = Scripted::start(|head, mut stream| async move {
        if head.starts_with("GET /first") {
            let _ = stream.write_all(OK).await;
            return (stream, Then::KeepAlive);
        }
        let wanted = if head.starts_with("POST") { 4 } else { 0 };
        for _ in 0..wanted {
            let _ = tokio::io::AsyncReadExt::read_u8(&mut stream).await;
        }
        (stream, Then::Close)
    })
    .await;
    let home = Home::new(app.address, "127.0.0.1:9").server("threads = 1").server("");
    let proxy = home.start().await;
    for (method, body, deliveries) in [("POST", "once", 1), ("GET", "", 2)] {
        let mut wire = Wire::connect(proxy.address).await;
        assert_eq!(wire.get("/first").await.status, 200);
        let before = app.seen();
        let length = body.len();
        wire.send(format!("{method} /second HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"))
            .await;
        assert_eq!(wire.response().await.status, 502);
        assert_eq!(app.seen() - before, deliveries, "{method}");
    }
}

#[tokio::test]
async fn no_byte_from_a_client_or_the_admin_socket_panics_the_process() {
    let (home, mut proxy, _blue, _green) = pair().await;
    let seeds: [&[u8]; 4] = [
        b"GET /bytes/100 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST /v1/services/app/switch HTTP/1.1\r\nHost: uh\r\nContent-Length: 14\r\n\r\n{\"to\":\"green\"}",
        b"PUT /v1/services/app/backends/blue HTTP/1.1\r\nHost: uh\r\nContent-Length: 23\r\n\r\n{\"endpoints\":[\"a:80\"]}\n",
    ];
    // A fixed sequence, so that a failure can be repeated.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 33).unwrap_or(0)
    };
    for round in 0..600 {
        let mut bytes = seeds[round % seeds.len()].to_vec();
        for _ in 0..=next() % 4 {
            let at = next() % bytes.len();
            match next() % 4 {
                0 => bytes[at] = (next() % 256) as u8,
                1 => bytes.truncate(at + 1),
                2 => bytes.insert(at, (next() % 256) as u8),
                _ => bytes.extend_from_within(..at),
            }
        }
        let mut wire = Wire::connect(proxy.address).await;
        let _ = wire.stream.write_all(&bytes).await;
        drop(wire);
        let mut admin = tokio::net::UnixStream::connect(home.socket()).await.unwrap();
        let _ = admin.write_all(&bytes).await;
    }
    assert!(proxy.is_running(), "uh-proxy has ended:\n{}", home.messages());
    // It may be busy for a moment closing them all.
    until("it answers as before", async || proxy.client.status().await.ok()).await;
    assert!(!home.messages().contains("panicked"), "{}", home.messages());
}

#[tokio::test]
async fn a_state_file_of_the_old_scripts_is_imported_or_its_loss_reported() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    for (active, serves, warned) in [("green", "green", false), ("purple", "blue", true)] {
        let home = Home::new(blue.address, green.address);
        fs::create_dir(home.path("state")).unwrap();
        let text = format!(
            "{{\"active\":\"{active}\",\"previous\":\"blue\",\"lastSwitch\":\"2025-12-03T10:30:00Z\",\"version\":\"1\",\"healthy\":true}}"
        );
        fs::write(home.state_file(), text).unwrap();
        let proxy = home.start().await;
        assert_eq!(proxy.service().await.active, backend(serves));
        let warnings = proxy.status().await.warnings;
        assert_eq!(warnings.iter().any(|warning| warning.contains("purple")), warned, "{warnings:?}");
    }
}
