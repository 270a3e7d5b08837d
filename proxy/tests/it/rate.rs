//! Rate limits of clients, with real sockets. A trusted proxy names the client of each request.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::Request;
use tokio::io::AsyncWriteExt as _;

use crate::harness::{Home, Proxy, Scripted, Then, cli, until};
use crate::http2::clients::{Client, H2C, h2c, url};
use crate::wire::{Response, Wire};

const TRUSTING: &str = "trusted_proxies = [\"127.0.0.0/8\"]\nthreads = 2";

/// An app that answers every request.
async fn app() -> Scripted {
    Scripted::start(|_, mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        (stream, Then::KeepAlive)
    })
    .await
}

async fn before(app: &Scripted, service: &str) -> (Home, Proxy) {
    let home = Home::new(app.address, "127.0.0.1:9").server(TRUSTING).server(H2C).service(service);
    let proxy = home.start().await;
    (home, proxy)
}

/// A request of this client.
async fn ask(wire: &mut Wire, client: &str, path: &str) -> Response {
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n\r\n")).await;
    wire.response().await
}

/// How many of so many requests pass.
async fn passes(address: SocketAddr, client: &str, path: &str, requests: usize) -> usize {
    let mut wire = Wire::connect(address).await;
    let mut passed = 0;
    for _ in 0..requests {
        let status = ask(&mut wire, client, path).await.status;
        assert!(matches!(status, 200 | 429), "{status}");
        passed += usize::from(status == 200);
    }
    passed
}

async fn metric(proxy: &Proxy, name: &str) -> Option<f64> {
    let text = proxy.client.metrics().await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn a_client_gets_its_burst_and_then_its_rate_over_all_workers_and_others_are_untouched() {
    const TIME: Duration = Duration::from_secs(10);
    let app = app().await;
    let (_home, proxy) = before(&app, "rate = { per_second = 10, burst = 20 }").await;
    let (start, address) = (Instant::now(), proxy.address);
    let hammer = |_| {
        tokio::spawn(async move {
            let (mut wire, mut passed) = (Wire::connect(address).await, 0);
            while start.elapsed() < TIME {
                passed += usize::from(ask(&mut wire, "192.0.2.1", "/").await.status == 200);
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            passed
        })
    };
    let hammers: Vec<_> = (0..6).map(hammer).collect();
    let mut wire = Wire::connect(address).await;
    let mut others = 0;
    while start.elapsed() < TIME {
        others += 1;
        let other = format!("198.51.{}.{}", others / 250, others % 250);
        assert_eq!(ask(&mut wire, &other, "/").await.status, 200, "{other}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut passed = 0;
    for hammer in hammers {
        passed += hammer.await.unwrap();
    }
    let allowed = 21.0 + 10.0 * start.elapsed().as_secs_f64();
    println!("{passed} passed, {allowed:.1} are allowed; {others} of others");
    assert!((passed as f64 - allowed).abs() <= 1.5, "{passed} passed, {allowed:.1} are allowed");
    assert_eq!(app.seen(), passed + others, "the app gets no other");
}

#[tokio::test]
async fn a_rejected_request_says_when_to_come_back_and_is_counted_and_logged() {
    let app = app().await;
    let (home, proxy) = before(&app, "rate = { per_minute = 2, burst = 1 }").await;
    let mut wire = Wire::connect(proxy.address).await;
    for _ in 0..2 {
        assert_eq!(ask(&mut wire, "192.0.2.1", "/").await.status, 200);
    }
    for _ in 0..3 {
        // On the same connection, which is kept.
        let response = ask(&mut wire, "192.0.2.1", "/").await;
        assert_eq!((response.status, response.header("retry-after")), (429, Some("30")));
        assert_eq!(response.header("cache-control"), Some("no-store"));
        assert!(response.text().contains("429 Too Many Requests: too many requests"), "{}", response.text());
    }
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\nContent-Length: 3\r\n\r\nabc")
        .await;
    assert_eq!(wire.response().await.status, 429);
    assert_eq!(app.seen(), 2);
    home.until_said("request rejected: the client is over the rate limit").await;
    let said = home.messages();
    assert_eq!(said.matches("over the rate limit").count(), 1, "one line in 10 s");
    assert!(said.contains("2 per minute, burst 1") && said.contains("192.0.2.1"), "{said}");
    let lines = until("all is logged", async || {
        let lines = home.access_log();
        (lines.len() == 6).then_some(lines)
    })
    .await;
    assert_eq!((&lines[3]["status"], &lines[3]["termination"]), (&429.into(), &"RL".into()));
    assert_eq!((&lines[3]["service"], &lines[3]["client"]), (&"app".into(), &"192.0.2.1".into()));
    let name = "uh_proxy_rate_limited_total{service=\"app\",backend=\"blue\"}";
    proxy.until_counted(&format!("{name} 4\n")).await;
    assert_eq!(metric(&proxy, "uh_proxy_rate_limit_evictions_total").await, Some(0.0));
    assert_eq!(proxy.backend("blue").await.requests_in_flight, 0);
}

#[tokio::test]
async fn a_client_is_an_ipv4_address_or_an_ipv6_network() {
    let app = app().await;
    let (_home, proxy) = before(&app, "rate = { per_minute = 1, burst = 0 }").await;
    let mut wire = Wire::connect(proxy.address).await;
    for (client, expected) in [
        ("192.0.2.1", 200),
        ("192.0.2.1", 429),
        ("::ffff:192.0.2.1", 429),
        ("192.0.2.2", 200),
        ("2001:db8:0:1::1", 200),
        ("2001:db8:0:1:ffff::2", 429),
        ("2001:db8:0:2::1", 200),
        // Only the address that the trusted proxy saw counts.
        ("203.0.113.9, 192.0.2.1", 429),
        // The proxy itself.
        ("127.0.0.1", 200),
        ("127.0.0.1", 200),
    ] {
        assert_eq!(ask(&mut wire, client, "/").await.status, expected, "{client}");
    }
    for _ in 0..3 {
        let response = wire.get("/").await;
        assert_eq!(response.status, 200, "of the proxy itself, without a field");
    }
}

#[tokio::test]
async fn health_checks_are_not_limited() {
    let app = app().await;
    let service = "rate = { per_minute = 1, burst = 0 }\n[services.app.health]\npath = \"/up\"";
    let (_home, proxy) = before(&app, service).await;
    assert_eq!(passes(proxy.address, "192.0.2.1", "/up?deep", 5).await, 5);
    assert_eq!(passes(proxy.address, "192.0.2.1", "/", 5).await, 1);
}

#[tokio::test]
async fn each_http2_stream_counts() {
    let app = app().await;
    let (_home, proxy) = before(&app, "rate = { per_minute = 1, burst = 4 }").await;
    let client = Client::plain(h2c(&proxy).await).await;
    let request = || Request::get(url("/")).header("x-forwarded-for", "192.0.2.1").body(()).unwrap();
    let mut statuses = Vec::new();
    for _ in 0..7 {
        let answer = client.send(request()).await.unwrap();
        statuses.push(answer.status.as_u16());
        assert_eq!(answer.headers.contains_key("retry-after"), answer.status == 429);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429]);
    assert_eq!(passes(proxy.address, "192.0.2.1", "/", 2).await, 0, "over HTTP/1.1 it is the same client");
}

#[tokio::test]
async fn paths_have_limits_of_their_own_or_none() {
    let app = app().await;
    let service = "rate = { per_minute = 1, burst = 2 }\n[services.app.health]\nenabled = false\n\
        [[services.app.paths]]\nmatch = [\"/login\", \"/reset\"]\nrate = { per_minute = 1, burst = 1 }\n\
        [[services.app.paths]]\nmatch = \"/assets\"\nrate = false\n\
        [[services.app.paths]]\nmatch = \"/api\"\naccess_log = false\n";
    let (_home, proxy) = before(&app, service).await;
    let address = proxy.address;
    assert_eq!(passes(address, "192.0.2.1", "/assets/a.js", 20).await, 20);
    assert_eq!(passes(address, "192.0.2.1", "/login", 3).await, 2);
    assert_eq!(passes(address, "192.0.2.1", "/reset", 3).await, 0, "one limit for all paths of a rule");
    assert_eq!(passes(address, "192.0.2.1", "/api/x", 2).await, 2);
    assert_eq!(passes(address, "192.0.2.1", "/", 3).await, 1, "a rule without a limit shares the service's");
}

#[tokio::test]
async fn what_a_rule_answers_is_limited_like_what_the_app_answers() {
    let app = app().await;
    let service = "rate = { per_minute = 1, burst = 3 }\n[services.app.health]\npath = \"/up\"\n\
        [[services.app.paths]]\nmatch = \"/ping\"\nanswer = { body = \"pong\" }\n\
        [[services.app.paths]]\nmatch = \"/old\"\nredirect = { to = \"/new\" }\n\
        [[services.app.paths]]\nmatch = \"/closed\"\nallow = []\n\
        [[services.app.paths]]\nmatch = \"/free\"\nanswer = { body = \"free\" }\nrate = false\n\
        [[services.app.paths]]\nmatch = \"/login\"\nredirect = { to = \"/new\" }\nrate = { per_minute = 1, burst = 0 }\n\
        [[services.app.paths]]\nmatch = \"/up\"\nanswer = { body = \"up\" }\n";
    let (home, proxy) = before(&app, service).await;
    let mut wire = Wire::connect(proxy.address).await;
    let mut statuses = async |client: &str, paths: &[&str]| {
        let mut statuses = Vec::new();
        for path in paths {
            statuses.push(ask(&mut wire, client, path).await.status);
        }
        statuses
    };
    let paths = ["/ping", "/old", "/closed", "/", "/ping", "/old", "/closed", "/"];
    assert_eq!(statuses("192.0.2.1", &paths).await, [200, 308, 403, 200, 429, 429, 429, 429]);
    assert_eq!(statuses("192.0.2.1", &["/free", "/up", "/login", "/login"]).await, [200, 200, 308, 429]);
    let (exit, _, said) = cli(&home.socket(), &["maintenance", "on"]).await;
    assert_eq!(exit, 0, "{said}");
    let paths = ["/ping", "/ping", "/old", "/", "/old", "/ping", "/ping", "/", "/free"];
    assert_eq!(statuses("192.0.2.2", &paths).await, [200, 200, 308, 503, 308, 429, 429, 503, 200]);
}

#[tokio::test]
async fn a_reload_forgets_nothing_unless_the_limit_changes() {
    let app = app().await;
    let (home, proxy) = before(&app, "rate = { per_minute = 1, burst = 2 }").await;
    assert_eq!(passes(proxy.address, "192.0.2.1", "/", 4).await, 3);
    let text = home.config();
    home.write_config(&text.replace("burst = 2 }", "burst = 2 }\ndrain_timeout = \"7s\""));
    let done = proxy.client.reload().await.unwrap();
    assert_eq!(done.changed, ["services.app.drain_timeout"]);
    assert_eq!(passes(proxy.address, "192.0.2.1", "/", 4).await, 0);
    home.write_config(&text.replace("burst = 2", "burst = 3"));
    proxy.client.reload().await.unwrap();
    assert_eq!(passes(proxy.address, "192.0.2.1", "/", 5).await, 4);
}

#[tokio::test]
async fn the_table_is_there_only_if_a_limit_is() {
    let app = app().await;
    let resident = |proxy: &Proxy| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let (home, proxy) = before(&app, "").await;
    assert_eq!(passes(proxy.address, "192.0.2.1", "/", 5).await, 5);
    let without = resident(&proxy);
    home.write_config(
        &home.config().replace("[services.app]\n", "[services.app]\nrate = { per_second = 1, burst = 1 }\n"),
    );
    proxy.client.reload().await.unwrap();
    assert_eq!(passes(proxy.address, "192.0.2.1", "/", 2).await, 2);
    let with = resident(&proxy);
    assert!((12 << 10..64 << 10).contains(&(with - without)), "{without} KiB, then {with} KiB");
}
