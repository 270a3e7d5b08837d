//! Several endpoints of one backend, in every form of an endpoint, and what happens to those that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Home, Proxy, SampleApp, Scripted, Then, read_head, until};
use crate::wire::Wire;

/// Answers with its name; holds requests for `/hold` until released.
async fn named(name: &'static str, release: &Arc<AtomicBool>) -> Scripted {
    let release = Arc::clone(release);
    Scripted::start(move |head, mut stream| {
        let release = Arc::clone(&release);
        async move {
            if head.contains(" /hold ") {
                while !release.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            let _ = stream.write_all(reply.as_bytes()).await;
            (stream, Then::KeepAlive)
        }
    })
    .await
}

/// An app whose probes are as good as the switch says; everything else is 200 with its name.
async fn with_health(name: &'static str) -> (std::net::SocketAddr, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let good = Arc::new(AtomicBool::new(true));
    let switch = Arc::clone(&good);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let switch = Arc::clone(&switch);
            tokio::spawn(async move {
                while let Some(head) = read_head(&mut stream).await {
                    let sick = head.starts_with("GET /api/health ") && !switch.load(Ordering::SeqCst);
                    let status = if sick { "503 Service Unavailable" } else { "200 OK" };
                    let reply = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                    let _ = stream.write_all(reply.as_bytes()).await;
                }
            });
        }
    });
    (address, good)
}

fn both(one: impl ToString, other: impl ToString) -> String {
    format!("{}\", \"{}", one.to_string(), other.to_string())
}

const PROBES: &str = "[services.app.health]\ninterval = \"30ms\"\nhealthy_after = 1\nunhealthy_after = 1";

async fn until_endpoint(proxy: &Proxy, index: usize, healthy: bool) {
    until("the probes have found out", async || {
        (proxy.backend("blue").await.endpoints[index].healthy == Some(healthy)).then_some(())
    })
    .await;
}

async fn metric(proxy: &Proxy, line: &str) -> f64 {
    let text = proxy.client.metrics().await.unwrap();
    let found = text.lines().find_map(|found| found.strip_prefix(line));
    found.map_or(0.0, |value| value.trim().parse().unwrap())
}

/// K03.
#[tokio::test]
async fn several_endpoints_take_turns() {
    let release = Arc::new(AtomicBool::new(true));
    let (one, two) = (named("one", &release).await, named("two", &release).await);
    let proxy_home = Home::new(both(one.address, two.address), "127.0.0.1:9").server("threads = 1");
    let proxy = proxy_home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..10 {
        assert_eq!(wire.get("/").await.status, 200);
    }
    assert_eq!((one.seen(), two.seen()), (5, 5));
}

#[tokio::test]
async fn the_endpoint_with_the_fewest_requests_in_flight_is_next_whichever_worker_asks() {
    let release = Arc::new(AtomicBool::new(false));
    let (one, two) = (named("one", &release).await, named("two", &release).await);
    let home = Home::new(both(one.address, two.address), "127.0.0.1:9").server("threads = 2");
    let proxy = home.start().await;
    let mut held = Vec::new();
    for count in 1..=4 {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(crate::wire::get("/hold")).await;
        until("it is in flight", async || (one.seen() + two.seen() == count).then_some(())).await;
        held.push(wire);
    }
    assert_eq!((one.seen(), two.seen()), (2, 2), "the load is not spread over both");
    // Quick requests in between go to the endpoint with less in flight.
    let mut wire = Wire::connect(proxy.address).await;
    let mut odd = Wire::connect(proxy.address).await;
    odd.send(crate::wire::get("/hold")).await;
    until("it is in flight", async || (one.seen() + two.seen() == 5).then_some(())).await;
    let (before, busier) = ((one.seen(), two.seen()), one.seen() > two.seen());
    for _ in 0..4 {
        assert_eq!(wire.get("/").await.status, 200);
    }
    let after = (one.seen() - before.0, two.seen() - before.1);
    assert_eq!(after, if busier { (0, 4) } else { (4, 0) });
    release.store(true, Ordering::SeqCst);
    proxy.until_idle("blue").await;
}

#[tokio::test]
async fn an_endpoint_that_fails_its_probes_leaves_the_rotation_and_comes_back() {
    let ((one, _), (two, two_good)) = (with_health("one").await, with_health("two").await);
    let home = Home::new(both(one, two), "127.0.0.1:9").server("threads = 1").service(PROBES);
    let proxy = home.start().await;
    proxy_is_healthy(&proxy).await;
    two_good.store(false, Ordering::SeqCst);
    until_endpoint(&proxy, 1, false).await;
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..10 {
        assert_eq!(wire.get("/").await.text(), "one");
    }
    assert_eq!(proxy.backend("blue").await.healthy, Some(true), "one healthy endpoint is enough");
    two_good.store(true, Ordering::SeqCst);
    until_endpoint(&proxy, 1, true).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(wire.get("/").await.text());
    }
    assert!(seen.contains(&"two".to_owned()), "{seen:?}");
}

async fn proxy_is_healthy(proxy: &Proxy) {
    until_endpoint(proxy, 0, true).await;
    until_endpoint(proxy, 1, true).await;
}

#[tokio::test]
async fn a_backend_whose_endpoints_all_fail_their_probes_is_tried_all_the_same() {
    let ((one, one_good), (two, two_good)) = (with_health("one").await, with_health("two").await);
    let home = Home::new(both(one, two), "127.0.0.1:9").server("threads = 1").service(PROBES);
    let proxy = home.start().await;
    proxy_is_healthy(&proxy).await;
    let failing_open = "uh_proxy_backend_fail_open_total{service=\"app\",backend=\"blue\"}";
    assert!(metric(&proxy, failing_open).await == 0.0);
    for good in [&one_good, &two_good] {
        good.store(false, Ordering::SeqCst);
    }
    until("blue is unhealthy", async || (proxy.backend("blue").await.healthy == Some(false)).then_some(()))
        .await;
    let mut wire = Wire::connect(proxy.address).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let response = wire.get("/").await;
        assert_eq!(response.status, 200);
        seen.push(response.text());
    }
    assert!(seen.contains(&"one".to_owned()) && seen.contains(&"two".to_owned()), "{seen:?}");
    assert!(metric(&proxy, failing_open).await == 4.0);
    assert!(metric(&proxy, "uh_proxy_backend_healthy{service=\"app\",backend=\"blue\"}").await == 0.0);
}

#[tokio::test]
async fn endpoints_are_reached_by_ipv4_ipv6_name_and_unix_socket() {
    let app = SampleApp::start("blue", "1").await;
    let dir = tempfile::tempdir().unwrap();
    let unix = dir.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&unix).unwrap();
    let inner = app.address;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(inner).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
        }
    });
    let six = TcpListener::bind("[::1]:0").await.ok();
    let mut endpoints =
        vec![inner.to_string(), format!("localhost:{}", inner.port()), format!("unix:{}", unix.display())];
    match &six {
        Some(listener) => endpoints.push(listener.local_addr().unwrap().to_string()),
        None => println!("skipped: IPv6, this machine has no ::1"),
    }
    if let Some(listener) = six {
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut server = TcpStream::connect(inner).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
            }
        });
    }
    for endpoint in endpoints {
        let home = Home::new(&endpoint, "127.0.0.1:9");
        let proxy = home.start().await;
        assert_eq!(Wire::connect(proxy.address).await.get("/").await.status, 200, "{endpoint}");
        until("its probes are good", async || {
            (proxy.backend("blue").await.healthy == Some(true)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_stops_neither_the_start_nor_the_others() {
    let app = SampleApp::start("blue", "1").await;
    let home = Home::new(app.address, "no-such-host.invalid:80").server("threads = 1");
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(wire.get("/").await.status, 200);
    let error = until("green is known to be unhealthy", async || {
        proxy.backend("green").await.last_probe.and_then(|probe| probe.error)
    })
    .await;
    assert!(error.contains("no-such-host.invalid:80"), "{error}");
    let problem =
        proxy.client.switch(&crate::harness::app(), &to_green(false)).await.unwrap_err().to_string();
    assert!(problem.contains("green"), "{problem}");
    // Even an active backend that can't be resolved doesn't keep a client waiting.
    proxy.client.switch(&crate::harness::app(), &to_green(true)).await.unwrap();
    assert_eq!(wire.get("/").await.status, 502);
}

fn to_green(force: bool) -> uh_protocol::request::SwitchRequest {
    let mut request = uh_protocol::request::SwitchRequest::to(crate::harness::backend("green"));
    request.force = force;
    request
}

/// A failing backend: both endpoints refuse. Ten retries are saved up, and no more are earned.
#[tokio::test]
async fn a_sick_backend_is_not_hammered() {
    let dead = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let service =
        "[services.app.retries]\npercent = 1\nper_second = 0\n[services.app.health]\nenabled = false";
    let home = Home::new(both(dead(), dead()), "127.0.0.1:9").server("threads = 1").service(service);
    let proxy = home.start().await;
    for _ in 0..30 {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await;
        assert_eq!(wire.response().await.status, 502);
    }
    let labels = "{service=\"app\",backend=\"blue\"";
    let retried =
        metric(&proxy, &format!("uh_proxy_retries_total{labels},reason=\"connect_failed\"}}")).await;
    let refused = metric(&proxy, &format!("uh_proxy_retry_budget_exhausted_total{labels}}}")).await;
    assert!((retried, refused) == (10.0, 20.0), "{retried} {refused}");
}

/// One of two endpoints is gone, and probing is off: every request is still served, whatever its method, and only a few
/// have to find out themselves.
#[tokio::test]
async fn a_dead_endpoint_costs_no_request_and_few_attempts() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let app = SampleApp::start("blue", "1").await;
    let service =
        "[services.app.health]\nenabled = false\n[services.app.retries]\npercent = 1\nper_second = 0";
    let home = Home::new(both(dead, app.address), "127.0.0.1:9").server("threads = 1").service(service);
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    let start = std::time::Instant::now();
    for _ in 0..200 {
        wire.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await;
        assert_eq!(wire.response().await.status, 200);
    }
    let line = "uh_proxy_retries_total{service=\"app\",backend=\"blue\",reason=\"connect_failed\"}";
    let most = 1.0 + start.elapsed().as_secs_f64().ceil();
    let retried = metric(&proxy, line).await;
    assert!(retried <= most, "{retried} attempts at a dead endpoint in {most} seconds");
}

/// K30-K34: what a probe sends, and how its answers affect a backend.
#[tokio::test]
async fn probes_count_as_configured() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let Some(head) = read_head(&mut stream).await else { continue };
            assert!(head.starts_with("GET /ready?deep=1 "), "{head}");
            let right_host = head.to_ascii_lowercase().contains("host: app.example.com\r\n");
            let reply: &[u8] = match counted.fetch_add(1, Ordering::SeqCst) {
                // Two bad answers, one timeout, then good ones.
                0 | 1 => b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
                2 => {
                    tokio::time::sleep(Duration::from_millis(400)).await;
                    continue;
                }
                _ if !right_host => b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
                _ => b"HTTP/1.1 204 No Content\r\n\r\n",
            };
            let _ = stream.write_all(reply).await;
            let _ = stream.read_u8().await;
        }
    });
    let service = "[services.app.health]\npath = \"/ready?deep=1\"\nhost = \"app.example.com\"\ninterval = \"20ms\"\n\
                   timeout = \"200ms\"\nhealthy_after = 1\nunhealthy_after = 1";
    let home = Home::new(address, "127.0.0.1:9").service(service);
    let proxy = home.start().await;
    let mut errors = Vec::new();
    until("it is healthy", async || {
        let blue = proxy.backend("blue").await;
        errors.extend(blue.last_probe.and_then(|probe| probe.error));
        (blue.healthy == Some(true)).then_some(())
    })
    .await;
    assert!(asked.load(Ordering::SeqCst) >= 4, "healthy before its first good probe");
    assert!(errors.iter().any(|error| error.contains("no answer within 200 ms")), "{errors:?}");
}
