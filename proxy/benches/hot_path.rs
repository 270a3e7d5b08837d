//! Costs of the steps of a request: pick and release, head parsing and rewriting, a log line, a metric update; and a
//! pick while other threads pick too.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use criterion::{Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use uh_http1::forwarded::{Caller, Scheme};
use uh_http1::policy::{HeaderPolicy, ServerField};
use uh_http1::request;
use uh_http1::response::{self, Recipient};
use uh_proxy::RateLimiter;
use uh_proxy::config::{self, AccessLogFormat};
use uh_proxy::observe::line::{AccessLine, Clock};
use uh_proxy::observe::meters::Meters;
use uh_proxy::observe::termination::Termination;
use uh_switching::board::SwitchOrder;
use uh_switching::{Bare, ClientKey};

/// The client. Traffic isn't split, so it doesn't matter.
const ANYBODY: ClientKey = ClientKey::V4(0);

const HOST: &[u8] = b"app.example.com";

/// As a browser sends it.
const REQUEST: &[u8] = b"GET /dashboard?tab=1 HTTP/1.1\r\nHost: app.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br\r\nReferer: https://app.example.com/\r\nCookie: session=0123456789abcdef\r\n\
    Connection: keep-alive\r\n\r\n";

/// As a Node server sends it.
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nCache-Control: private\r\n\
    ETag: \"abc\"\r\nVary: Accept-Encoding\r\nContent-Length: 1024\r\nDate: Mon, 23 Nov 2026 17:18:17 GMT\r\n\
    Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n";

type Switchboard = uh_switching::Switchboard<Bare<config::Service>>;

fn board(workers: usize) -> Switchboard {
    let config = config::parse(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n[services.app.backends]\n\
         blue = { endpoints = [\"127.0.0.1:1\"] }\ngreen = { endpoints = [\"127.0.0.1:2\"] }\n",
    );
    let services: Vec<_> = config.unwrap().services.into_iter().map(Arc::new).collect();
    let bare = Bare { clock: Instant::now, services: PhantomData };
    Switchboard::new(bare, &services, &BTreeMap::new(), 0, workers)
}

/// Runs `measure` while `others` more threads do `work`, each as the worker of its number from 1 on.
fn while_others(others: usize, work: impl Fn(usize) + Sync, measure: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for worker in 1..=others {
            let (stop, work) = (&stop, &work);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    work(worker);
                }
            });
        }
        measure();
        stop.store(true, Ordering::Relaxed);
    });
}

fn switching(c: &mut Criterion) {
    for others in [0, 1, 3] {
        let board = board(others + 1);
        let pick = |worker| drop(black_box(board.pick(HOST, b"/", worker, |_| ANYBODY)));
        let name = format!("pick and release, {others} other threads");
        while_others(others, pick, || {
            c.bench_function(&name, |b| b.iter(|| pick(0)));
        });
    }
    let board = board(1);
    c.bench_function("pick", |b| b.iter_with_large_drop(|| board.pick(HOST, b"/", 0, |_| ANYBODY)));
    c.bench_function("release", |b| {
        b.iter_batched(|| board.pick(HOST, b"/", 0, |_| ANYBODY), drop, criterion::BatchSize::SmallInput);
    });
    let order = |to: &str| SwitchOrder { force: true, ..SwitchOrder::one("app", to.parse().unwrap()) };
    let orders = [order("green"), order("blue")];
    let mut step = 0;
    c.bench_function("switch", |b| {
        b.iter(|| {
            step += 1;
            board.switch(&orders[step % 2], Timestamp::UNIX_EPOCH).unwrap()
        });
    });
}

fn heads(c: &mut Criterion) {
    let mut out = Vec::new();
    let headers = HeaderPolicy::default();
    let address = Ipv4Addr::new(192, 0, 2, 7);
    let text = &address.to_string();
    let caller = Caller {
        address: address.into(),
        text,
        request_start: None,
        scheme: Scheme::Http,
        http2: false,
        hides_cookies: false,
        headers: &headers,
    };
    c.bench_function("request head: check and rewrite", |b| {
        b.iter(|| {
            out.clear();
            request::translate(black_box(REQUEST), &caller, &mut out).unwrap()
        });
    });
    let request = request::translate(REQUEST, &caller, &mut Vec::new()).unwrap();
    let server = ServerField::Pass;
    let to = Recipient {
        request: &request,
        request_head: REQUEST,
        keep_alive: true,
        upgrade: None,
        server,
        fields: 1000,
        clock: SystemTime::now,
        hsts: None,
        compress: None,
        seeks_page: false,
    };
    c.bench_function("response head: check and rewrite", |b| {
        b.iter(|| {
            out.clear();
            response::translate(black_box(RESPONSE), to, &mut out).unwrap()
        });
    });
}

/// Nine rules, as in a larger nginx configuration, two of which edit headers.
const RULES: &str = "\
[[services.app.paths]]\nmatch = \"/api/upload\"\nlimits = { body_bytes = \"1MiB\" }\n\
[[services.app.paths]]\nmatch = [\"/api\", \"/ws\", \"/auth\"]\ntimeouts = { read = \"5m\" }\n\
[[services.app.paths]]\nmatch = \"/health\"\nexact = true\naccess_log = false\n\
[[services.app.paths]]\nsuffixes = [\".js\", \".css\", \".png\"]\n\
response_headers = { set = { Cache-Control = \"max-age=31536000\" } }\n\
[[services.app.paths]]\nmatch = \"/dashboard\"\n\
response_headers = { set = { X-Frame-Options = \"DENY\", X-Content-Type-Options = \"nosniff\", Cache-Control = \"no-cache\" }, \
default = { Referrer-Policy = \"same-origin\" }, remove = [\"X-Powered-By\"] }\n\
request_headers = { set = { X-Api-Key = \"0123456789\" }, remove = [\"X-Debug\"] }\n";

/// Restricts another path, so that every path is checked for other readings.
const GUARD: &str = "[[services.app.paths]]\nmatch = \"/metrics\"\nallow = [\"10.0.0.0/8\"]\n";

fn service(rules: &str) -> config::Service {
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n\
         backends.blue.endpoints = [\"127.0.0.1:1\"]\n{rules}"
    );
    config::parse(&text).unwrap().services.remove(0)
}

fn path_rules(c: &mut Criterion) {
    let guarded = format!("{RULES}{GUARD}");
    let (none, rules, guards) = (service(""), service(RULES), service(&guarded));
    for (name, service, path) in [
        ("path rule: no rules", &none, "/dashboard?tab=1"),
        ("path rule: found", &rules, "/dashboard?tab=1"),
        ("path rule: none matches", &rules, "/users/17/orders?page=2"),
    ] {
        c.bench_function(name, |b| {
            b.iter(|| service.rules.at(black_box(service.rules.find(black_box(path.as_bytes())))).access_log);
        });
    }
    for (name, path) in [("plain", "/dashboard?tab=1"), ("with capitals", "/users/Ab17/orders?page=2")] {
        c.bench_function(&format!("path rule: other readings, {name}"), |b| {
            b.iter(|| guards.rules.other_readings(black_box(path.as_bytes())));
        });
    }
    let settings = rules.rules.at(rules.rules.find(b"/dashboard"));
    for (name, edits, head) in [
        ("request headers: edit 2", settings.request_headers.edits(), REQUEST),
        ("response headers: edit 5", settings.response_headers.edits(), RESPONSE),
    ] {
        let mut out = Vec::with_capacity(4096);
        c.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                out.extend_from_slice(black_box(head));
                edits.apply(&mut out, 0);
            });
        });
    }
}

fn observing(c: &mut Criterion) {
    let line = AccessLine {
        time: SystemTime::now(),
        client: "192.0.2.7",
        method: b"GET",
        target: b"/dashboard?tab=1",
        protocol: "HTTP/1.1",
        host: HOST,
        status: 200,
        bytes: 1024,
        request_time: Duration::from_micros(1234),
        upstream_time: Some(Duration::from_micros(1200)),
        service: Some("app"),
        backend: Some("blue"),
        version: Some("1.0.0"),
        endpoint: Some("127.0.0.1:3008"),
        request_id: b"8c1532aef4fc339ef72ad5e7efc77c52",
        referer: b"https://app.example.com/",
        user_agent: b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0",
        termination: Termination::Done,
        preview: false,
        rescued_from: None,
        reason: None,
        tls: None,
    };
    let (mut clock, mut out) = (Clock::default(), Vec::new());
    for (name, format) in [("json", AccessLogFormat::Json), ("combined", AccessLogFormat::Combined)] {
        c.bench_function(&format!("log line, {name}"), |b| {
            b.iter(|| {
                out.clear();
                black_box(&line).write(format, &mut clock, &mut out);
            });
        });
    }
    for others in [0, 1, 3] {
        let meters = Meters::new(others + 1).backend(&"app".parse().unwrap(), &"blue".parse().unwrap());
        let count = |worker| meters.lane(worker).exchange(0, black_box(200), Duration::from_micros(700));
        let name = format!("metric update, {others} other threads");
        while_others(others, count, || {
            c.bench_function(&name, |b| b.iter(|| count(0)));
        });
    }
}

fn limiting(c: &mut Criterion) {
    let config = config::parse(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n\
         rate = { per_second = 10, burst = 20 }\n[services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n",
    )
    .unwrap();
    let rate = config.services[0].rules.own().rate.unwrap();
    for (name, clients) in [("one client", 1), ("a million clients", 1_000_000)] {
        let limiter = RateLimiter::default();
        let mut next = 0;
        let mut admit = || {
            next = (next + 1) % clients;
            limiter.admit(&rate, Ipv4Addr::from_bits(next).into(), Instant::now())
        };
        (0..clients).for_each(|_| {
            let _ = admit();
        });
        c.bench_function(&format!("rate limit, {name}"), |b| b.iter(|| black_box(admit())));
    }
}

criterion_group! {
    name = all;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = switching, heads, path_rules, observing, limiting
}
criterion_main!(all);
