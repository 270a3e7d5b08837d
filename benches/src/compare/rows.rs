//! What is measured: the rows of the tables, and how one of them is measured for one proxy.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::accounts::{cores, cpu_time, pin_this_thread, resident_bytes};
use super::answer::Expected;
use super::backend::{Backends, CLIENT_FRAME_BYTES, SERVER_FRAME_BYTES};
use super::clients::{Clients, Job};
use super::proxies::{Listener, Proxy, Running, Terms, host};
use crate::percentiles::Times;

/// The core of the proxy.
pub const PROXY_CORE: usize = 0;

/// Load before the measuring begins: pools and caches fill up.
pub(super) const WARM_UP: Duration = Duration::from_millis(300);

/// After the last request, before memory is looked at: what is freed or handed over late has happened.
pub(super) const SETTLE: Duration = Duration::from_millis(700);

/// A small body, as of an API's answer.
pub(super) const SMALL: u64 = 1 << 10;

/// Many connections: what 20,000 file descriptors allow, two for each and some to spare.
pub const MANY: usize = 9_000;

/// How many tunnels memory is measured with.
pub const TUNNELS: usize = 2_000;

/// What the load does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// `in_flight` requests at any time, in turn over so many connections.
    Closed {
        /// Open connections.
        connections: usize,
        /// Requests in flight.
        in_flight: usize,
    },
    /// So many requests a second, over so many connections.
    Open {
        /// Open connections.
        connections: usize,
        /// Requests a second.
        rate: u32,
    },
}

/// The path to request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// A body of so many bytes.
    Get(u64),
    /// The same, on a new connection for each request.
    GetAnew(u64),
    /// A body of so many bytes goes up, and a small one comes back.
    Post(usize),
    /// A WebSocket message, and one as long comes back.
    Message,
}

/// On what terms the proxies run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// One worker on one core, one service, with an access log.
    Standard,
    /// Without an access log.
    NoLog,
    /// Two workers on two cores, one of which the load needs too.
    TwoCores,
    /// So many services, each with backends of its own, asked in turn.
    Services(usize),
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// As the tables call it.
    pub name: &'static str,
    /// On what terms.
    pub setting: Setting,
    /// The path to request.
    pub ask: Ask,
    /// How.
    pub load: Load,
}

const fn closed(connections: usize) -> Load {
    Load::Closed { connections, in_flight: connections }
}

const fn row(name: &'static str, setting: Setting, ask: Ask, load: Load) -> Row {
    Row { name, setting, ask, load }
}

/// The row that others are compared with.
pub const USUAL: &str = "64 keep-alive clients, 1 KiB";

/// All of them.
pub const ROWS: [Row; 18] = [
    row(USUAL, Setting::Standard, Ask::Get(SMALL), closed(64)),
    row("1 client", Setting::Standard, Ask::Get(SMALL), closed(1)),
    row("10 clients", Setting::Standard, Ask::Get(SMALL), closed(10)),
    row("1,000 clients", Setting::Standard, Ask::Get(SMALL), closed(1000)),
    row(
        "64 in flight on 9,000 connections",
        Setting::Standard,
        Ask::Get(SMALL),
        Load::Closed { connections: MANY, in_flight: 64 },
    ),
    row("a new connection for each request", Setting::Standard, Ask::GetAnew(SMALL), closed(64)),
    row("100 KiB bodies, 16 clients", Setting::Standard, Ask::Get(100 << 10), closed(16)),
    row("10 MiB bodies, 8 clients", Setting::Standard, Ask::Get(10 << 20), closed(8)),
    row("1 MiB uploads, 16 clients", Setting::Standard, Ask::Post(1 << 20), closed(16)),
    row("WebSocket messages, 64 tunnels", Setting::Standard, Ask::Message, closed(64)),
    row("access log off", Setting::NoLog, Ask::Get(SMALL), closed(64)),
    row("10 services", Setting::Services(10), Ask::Get(SMALL), closed(64)),
    row("100 services", Setting::Services(100), Ask::Get(SMALL), closed(64)),
    row("two workers, two cores", Setting::TwoCores, Ask::Get(SMALL), closed(64)),
    row("1 client, 1,000/s", Setting::Standard, Ask::Get(SMALL), Load::Open { connections: 1, rate: 1000 }),
    row(
        "64 clients, 5,000/s",
        Setting::Standard,
        Ask::Get(SMALL),
        Load::Open { connections: 64, rate: 5000 },
    ),
    row(
        "64 clients, 15,000/s",
        Setting::Standard,
        Ask::Get(SMALL),
        Load::Open { connections: 64, rate: 15_000 },
    ),
    row(
        "1,000 clients, 5,000/s",
        Setting::Standard,
        Ask::Get(SMALL),
        Load::Open { connections: 1000, rate: 5000 },
    ),
];

impl Row {
    /// Whether this proxy takes part.
    #[must_use]
    pub fn has(&self, proxy: Proxy) -> bool {
        let fast = matches!(proxy, Proxy::UhProxy | Proxy::Before | Proxy::Nginx | Proxy::Haproxy);
        match (proxy, self.load) {
            (Proxy::NginxByLine, _) => self.name == USUAL,
            // More than the others can do on one core.
            (_, Load::Open { rate: 10_000.., .. }) => fast,
            _ => true,
        }
    }

    /// Body bytes of one exchange.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        match self.ask {
            Ask::Get(bytes) | Ask::GetAnew(bytes) => bytes,
            Ask::Post(bytes) => bytes as u64,
            Ask::Message => 0,
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// CPU time for each request, in microseconds.
    pub cpu_us: f64,
    /// The kernel's part of it.
    pub kernel_share: f64,
    /// Answers a second.
    pub rate: f64,
    /// How much of one core the proxy used, from 0 to 1.
    pub busy: f64,
    /// Latency in microseconds: p50, p99, p99.9.
    pub latency_us: [f64; 3],
}

/// What a proxy holds in memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// After it has started.
    pub at_rest: f64,
    /// For each idle connection that has had one answer.
    pub per_connection: f64,
    /// For each tunnel that has carried one message.
    pub per_tunnel: f64,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// How many times to measure each row.
    pub rounds: usize,
    /// The length of each measurement.
    pub time: Duration,
}

/// The core of the load and the backends: another than the proxy's, if there is one. Found out before any thread is
/// pinned for the first time.
pub static LOAD_CORE: LazyLock<usize> = LazyLock::new(|| usize::from(cores() > 1));

/// Keeps this thread on the load's core.
///
/// # Errors
/// The machine has not got it.
pub fn pin_the_load() -> Result<()> {
    pin_this_thread(&[*LOAD_CORE])
}

/// The terms of a setting. Each service has two backends; those of all services are on one thread.
#[must_use]
pub fn terms(setting: Setting, backends: &Backends) -> Terms {
    let services = if let Setting::Services(services) = setting { services } else { 1 };
    Terms {
        listener: Listener::Plain,
        pair: None,
        access_log: setting != Setting::NoLog,
        cores: if setting == Setting::TwoCores { vec![0, 1] } else { vec![PROXY_CORE] },
        services: backends.addresses.chunks_exact(2).take(services).map(|pair| [pair[0], pair[1]]).collect(),
    }
}

/// What a row asks a proxy for.
#[must_use]
pub fn job(row: &Row, proxy: &Running) -> Job {
    let services = if let Setting::Services(services) = row.setting { services } else { 1 };
    let fields = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Firefox/132.0\r\nAccept: */*\r\nAccept-Encoding: gzip, br\r\n";
    let request = |service: usize| -> Arc<[u8]> {
        let host = host(service);
        match row.ask {
            Ask::Get(bytes) => format!("GET /{bytes} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n").into_bytes(),
            Ask::GetAnew(bytes) => {
                format!("GET /{bytes} HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n")
                    .into_bytes()
            }
            Ask::Post(bytes) => {
                let head = format!(
                    "POST /{SMALL} HTTP/1.1\r\nHost: {host}\r\n{fields}Content-Length: {bytes}\r\n\r\n"
                );
                [head.as_bytes(), &vec![b'x'; bytes]].concat()
            }
            // Final, binary, masked with zeros.
            Ask::Message => {
                let mut frame = vec![0x82, 0x80 | super::backend::MESSAGE_BYTES as u8];
                frame.resize(CLIENT_FRAME_BYTES, 0);
                frame
            }
        }
        .into()
    };
    let upgrade = format!(
        "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        host(0)
    );
    Job {
        target: proxy.address,
        requests: (0..services).map(request).collect(),
        expected: match row.ask {
            Ask::Get(bytes) | Ask::GetAnew(bytes) => Expected::Body(bytes),
            Ask::Post(_) => Expected::Body(SMALL),
            Ask::Message => Expected::Raw(SERVER_FRAME_BYTES as u64),
        },
        upgrade: (row.ask == Ask::Message).then(|| upgrade.into_bytes().into()),
        reuse: !matches!(row.ask, Ask::GetAnew(_)),
        may_break: false,
    }
}

/// Measures one row once.
///
/// # Errors
/// An answer is wrong or missing, or the proxy is gone.
pub fn measure(row: &Row, proxy: &Running, time: Duration) -> Result<Measurement> {
    let connections = match row.load {
        Load::Closed { connections, .. } | Load::Open { connections, .. } => connections,
    };
    let mut clients = Clients::open(job(row, proxy), connections)?;
    let mut run = |time| match row.load {
        Load::Closed { in_flight, .. } => clients.closed(in_flight, time),
        Load::Open { rate, .. } => clients.open_loop(f64::from(rate), time),
    };
    run(WARM_UP)?;
    let before = cpu_time(proxy.pid())?;
    let outcome = run(time)?;
    let cpu = cpu_time(proxy.pid())?.since(&before);
    let requests = outcome.latencies.len() as f64;
    let times: Times = outcome.latencies.into_iter().collect();
    let at = |per_mille| times.at(per_mille).unwrap_or_default().as_nanos() as f64 / 1000.0;
    Ok(Measurement {
        cpu_us: cpu.total.as_nanos() as f64 / 1000.0 / requests,
        kernel_share: cpu.kernel_share(),
        rate: requests / outcome.took.as_secs_f64(),
        busy: cpu.total.as_secs_f64() / outcome.took.as_secs_f64(),
        latency_us: [at(500), at(990), at(999)],
    })
}

/// All samples, by row and proxy.
pub type Measurements = BTreeMap<(usize, Proxy), Vec<Measurement>>;

/// Measures the rows of one setting that have `named` in their name, each proxy in turn, several rounds.
///
/// # Errors
/// See [`measure`].
pub fn measure_setting(
    setting: Setting,
    named: &str,
    proxies: &[Proxy],
    backends: &Backends,
    dir: &Path,
    effort: Effort,
    samples: &mut Measurements,
) -> Result<()> {
    let rows: Vec<(usize, &Row)> = ROWS
        .iter()
        .enumerate()
        .filter(|(_, row)| row.setting == setting && row.name.contains(named))
        .collect();
    let takes_part = |proxy: &&Proxy| rows.iter().any(|(_, row)| row.has(**proxy));
    let terms = terms(setting, backends);
    let running: Result<Vec<Running>> =
        proxies.iter().filter(takes_part).map(|proxy| proxy.start(dir, &terms)).collect();
    let running = running?;
    for round in 0..effort.rounds {
        for (index, row) in &rows {
            // Another one begins in each round, so that nobody always has the same neighbour.
            for turn in 0..running.len() {
                let proxy = &running[(turn + round) % running.len()];
                if row.has(proxy.proxy) {
                    let sample = measure(row, proxy, effort.time)
                        .with_context(|| format!("{}: {}", proxy.proxy.name(), row.name))?;
                    samples.entry((*index, proxy.proxy)).or_default().push(sample);
                }
            }
        }
    }
    Ok(())
}

/// Measures memory: a fresh process for idle connections, and another for tunnels.
///
/// # Errors
/// See [`measure`].
pub fn measure_memory(proxy: Proxy, backends: &Backends, dir: &Path) -> Result<Memory> {
    let terms = terms(Setting::Standard, backends);
    let each = |ask: Ask, count: usize| -> Result<(f64, f64)> {
        let running = proxy.start(dir, &terms)?;
        sleep(SETTLE);
        let at_rest = resident_bytes(running.pid())?;
        let row = Row { name: "memory", setting: Setting::Standard, ask, load: closed(64) };
        // What the first requests cost, whoever sends them, is not the price of a connection.
        Clients::open(job(&row, &running), 64)?.closed(64, WARM_UP)?;
        sleep(SETTLE);
        let before = resident_bytes(running.pid())?;
        let mut clients = Clients::open(job(&row, &running), count)?;
        clients.once_each(64)?;
        sleep(SETTLE);
        let after = resident_bytes(running.pid())?;
        Ok((at_rest as f64, after.saturating_sub(before) as f64 / count as f64))
    };
    let (at_rest, per_connection) = each(Ask::Get(SMALL), MANY)?;
    let (_, per_tunnel) = each(Ask::Message, TUNNELS)?;
    Ok(Memory { at_rest, per_connection, per_tunnel })
}
