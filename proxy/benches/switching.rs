//! What the switching core costs: a pick with its release, and a switch while other threads pick.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use uh_proxy::config;
use uh_switching::board::SwitchOrder;
use uh_switching::{Bare, ClientKey};

/// The client. Traffic isn't split, so it doesn't matter.
const ANYBODY: ClientKey = ClientKey::V4(0);

const CONFIG: &str = r#"
    [server]
    listen = ["127.0.0.1:0"]
    [services.app]
    active = "blue"
    [services.app.backends]
    blue = { endpoints = ["127.0.0.1:1"] }
    green = { endpoints = ["127.0.0.1:2"] }
"#;

const PICKS: u32 = 10_000_000;
const SWITCHES: usize = 100_000;

/// Threads that pick while the switches are measured: as many as a small machine has cores.
const PICKERS: usize = 2;

/// The number of services of a large configuration, to measure routing.
const SERVICES: usize = 100;

type Switchboard = uh_switching::Switchboard<Bare<config::Service>>;

fn board(text: &str) -> Switchboard {
    let config = config::parse(text).unwrap();
    let services: Vec<_> = config.services.into_iter().map(Arc::new).collect();
    let bare = Bare { clock: Instant::now, services: PhantomData };
    Switchboard::new(bare, &services, &BTreeMap::new(), 0, PICKERS)
}

fn order(to: &str) -> SwitchOrder {
    SwitchOrder { force: true, ..SwitchOrder::one("app", to.parse().unwrap()) }
}

/// A hundred services: one for every host, and the others by exact hosts, wildcards and path prefixes.
fn many() -> String {
    let mut text = CONFIG.to_owned();
    for index in 1..SERVICES {
        let (host, prefix) = match index % 3 {
            0 => (format!("*.wild-{index}.example.com"), "/"),
            1 => (format!("app-{index}.example.com"), "/"),
            _ => ("shared.example.com".to_owned(), "/service"),
        };
        let path = if prefix == "/" { "/".to_owned() } else { format!("{prefix}-{index}") };
        text.push_str(&format!(
            "[services.s{index}]\nactive=\"x\"\nhosts=[{host:?}]\npath_prefix={path:?}\n\
             [services.s{index}.backends.x]\nendpoints=[\"127.0.0.1:1\"]\n"
        ));
    }
    text
}

fn time_picks(
    out: &mut impl io::Write,
    what: &str,
    board: &Switchboard,
    host: &str,
    path: &str,
) -> io::Result<()> {
    let (host, path) = (host.as_bytes(), path.as_bytes());
    let start = Instant::now();
    for _ in 0..PICKS {
        std::hint::black_box(
            board.pick(std::hint::black_box(host), std::hint::black_box(path), 0, |_| ANYBODY),
        );
    }
    let each = start.elapsed() / PICKS;
    writeln!(out, "pick and release, one thread, {what}: {} ns ({PICKS} times)", each.as_nanos())
}

fn main() -> io::Result<()> {
    let mut out = io::stdout();
    let large = board(&many());
    let board = board(CONFIG);
    time_picks(&mut out, "one service", &board, "app.example.com", "/")?;
    for (what, host, path) in [
        ("exact host", "app-97.example.com:8080", "/assets/app.js"),
        ("wildcard", "a.wild-99.example.com", "/assets/app.js"),
        ("33 path prefixes", "shared.example.com", "/service-2/assets/app.js"),
        ("no such host", "nobody.example.com", "/assets/app.js"),
    ] {
        time_picks(&mut out, &format!("{SERVICES} services, {what}"), &large, host, path)?;
    }

    let (stop, picked) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut swaps, mut calls): (Vec<Duration>, Vec<Duration>) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        for worker in 0..PICKERS {
            let (board, stop, picked) = (&board, &stop, &picked);
            scope.spawn(move || {
                let mut picks = 0;
                while !stop.load(Ordering::Relaxed) {
                    std::hint::black_box(board.pick(b"app.example.com", b"/", worker, |_| ANYBODY));
                    picks += 1;
                }
                picked.fetch_add(picks, Ordering::Relaxed);
            });
        }
        let orders = [order("green"), order("blue")];
        for step in 0..SWITCHES {
            let start = Instant::now();
            let outcome = board.switch(&orders[step % 2], Timestamp::UNIX_EPOCH).unwrap();
            calls.push(start.elapsed());
            swaps.push(outcome.swap_took);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let picks = picked.load(Ordering::Relaxed);
    writeln!(out, "{SWITCHES} switches while {PICKERS} threads picked {picks} times, in microseconds:")?;
    writeln!(out, "{:<28} {:>9} {:>9} {:>9} {:>9}", "", "p50", "p99", "p99.9", "max")?;
    for (name, times) in [("the swap itself", &mut swaps), ("the whole switch, in-process", &mut calls)] {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1000.0;
        writeln!(out, "{name:<28} {:>9.2} {:>9.2} {:>9.2} {:>9.2}", at(0.5), at(0.99), at(0.999), at(1.0))?;
    }
    Ok(())
}
