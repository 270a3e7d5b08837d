//! A thousand slow clients of each kind, and what healthy clients notice of them.
//!
//! Three kinds attack at once: heads, bodies and reading that trickle. All must be gone at their deadlines. Before and
//! meanwhile, a healthy load asks at a steady rate, for an app of its own: what slow clients cost the app that they ask
//! is between them and that app. First, what an idle client connection costs.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uh_benches::machine::process_figure;
use uh_benches::percentiles::{Times, milliseconds};
use uh_benches::workdir;
use uh_testkit::load::{Group, Load, Plan, Recording, Reuse};
use uh_testkit::sample_app::{self, SampleApp};
use uh_testkit::uh_proxy::{Setup, UhProxy};

/// A request without a complete response after this has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long uh-proxy may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How much later than its deadline a slow client may be gone: it is given 2 s to read why, and the machine is busy.
const SLACK: Duration = Duration::from_secs(5);

/// How long it may take until all slow clients have connected.
const ALL_COME_WITHIN: Duration = Duration::from_secs(60);

/// Connections of the healthy load.
const HEALTHY_CLIENTS: usize = 8;

/// Attack uh-proxy with slow clients, and report how long they lasted and what healthy clients noticed.
#[derive(Parser)]
struct Options {
    /// Slow clients of each of the three kinds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    clients: u32,
    /// Milliseconds until a slow client must be gone; a slow reader has twice as long.
    #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(200..=600_000))]
    deadline_ms: u32,
    /// Slow clients per second, of all kinds together.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(3..=30_000))]
    arrivals: u32,
    /// Bytes that a slow reader requests. To be slow, that must be more than its own kernel and uh-proxy's buffer;
    /// anything beyond that is buffered by the app's kernel, which costs other clients on a machine with few cores.
    #[arg(long, default_value_t = 400_000, value_parser = clap::value_parser!(u32).range(300_000..=10_000_000))]
    download_bytes: u32,
    /// Requests per second of the healthy load.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Milliseconds of healthy load alone.
    #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(100..=600_000))]
    quiet_ms: u32,
    /// The p99 under attack may be at most this many times the p99 before it. 0: only report it.
    #[arg(long, default_value_t = 2.0)]
    p99_factor: f64,
    /// Idle connections used to measure memory.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(0..=9_000))]
    idle: u32,
}

#[derive(Clone, Copy)]
enum Kind {
    Head,
    Body,
    /// Asks for so many bytes.
    Reader(u32),
}

fn main() -> ExitCode {
    let options = Options::parse();
    workdir::run(async |dir| run(&options, dir).await)
}

async fn run(options: &Options, dir: &Path) -> Result<()> {
    let (blue, green) = sample_app::pair(dir).await?;
    let slow = SampleApp::start("slow", "1.0.0", dir).await?;
    let server = format!(
        "access_log = {{ format = \"off\" }}\n\
         [server.limits]\nheader_timeout = \"{0}ms\"\nconnections_per_address = 0\n\
         [services.slow]\nhosts = [\"slow\"]\nactive = \"slow\"\nlimits.rate_window = \"{0}ms\"\n\
         backends.slow.endpoints = [\"{1}\"]\n",
        options.deadline_ms, slow.address
    );
    let front_door = Setup::new(dir, blue.address, green.address).server(&server).start().await?;
    front_door.until_healthy().await?;
    let pid = front_door.process.id();

    // First: memory that was used and given back would hide what is needed.
    let idle_kib = weigh_idle(options.idle as usize, front_door.address, pid).await?;
    let load = Load::start(plan(options, &front_door))?;
    sleep(Duration::from_millis(options.quiet_ms.into())).await;
    let quiet = load.stop().await?;

    let load = Load::start(plan(options, &front_door))?;
    let attack = Attack::start(options, front_door.address)?;
    let all_gone = until_gone(options, &front_door, &attack).await?;
    let attacked = attack.stop().await?;
    let meanwhile = load.stop().await?;
    front_door.stop(STOP_WITHIN).await?;
    report(options, &attacked, all_gone, &quiet, &meanwhile, idle_kib)
}

fn plan(options: &Options, front_door: &UhProxy) -> Plan {
    let group = Group {
        path: "/".to_owned(),
        clients: HEALTHY_CLIENTS,
        rate: options.rate.into(),
        reuse: Reuse::KeepAlive,
    };
    Plan { target: front_door.address, groups: vec![group], request_timeout: REQUEST_TIMEOUT }
}

/// Slow clients on a thread of their own.
struct Attack {
    /// How many have connected.
    come: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<Result<Attacked>>,
}

/// How long the slow clients of a kind lasted, as they saw it. Readers see nothing of it: they don't read.
#[derive(Default)]
struct Attacked {
    heads: Vec<Duration>,
    bodies: Vec<Duration>,
}

impl Attack {
    fn start(options: &Options, target: SocketAddr) -> Result<Self> {
        let (clients, download) = (options.clients, options.download_bytes);
        let pause = Duration::from_secs(3) / options.arrivals;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (report, ended) = oneshot::channel();
        let come = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&come);
        thread::Builder::new().name("attack".to_owned()).spawn(move || {
            // If the receiver is gone, there is nothing to notify.
            let _ = report.send(runtime.block_on(attack(clients, pause, download, target, &count, stopped)));
        })?;
        Ok(Self { come, stop, ended })
    }

    async fn stop(self) -> Result<Attacked> {
        drop(self.stop);
        self.ended.await.context("the attack's thread died")?
    }
}

/// `pause`: between three clients, one of each kind, and the next three.
async fn attack(
    clients: u32,
    pause: Duration,
    download: u32,
    target: SocketAddr,
    come: &Arc<AtomicUsize>,
    stopped: oneshot::Receiver<()>,
) -> Result<Attacked> {
    let (mut heads, mut bodies, mut readers) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    let mut next = tokio::time::interval(pause);
    for _ in 0..clients {
        next.tick().await;
        heads.spawn(slow(Kind::Head, target, Arc::clone(come)));
        bodies.spawn(slow(Kind::Body, target, Arc::clone(come)));
        readers.spawn(slow(Kind::Reader(download), target, Arc::clone(come)));
    }
    let _ = stopped.await;
    let mut attacked = Attacked::default();
    for (set, times) in [(&mut heads, &mut attacked.heads), (&mut bodies, &mut attacked.bodies)] {
        while let Some(ended) = set.join_next().await {
            times.push(ended??);
        }
    }
    Ok(attacked)
}

/// One slow client, until it is closed.
async fn slow(kind: Kind, target: SocketAddr, come: Arc<AtomicUsize>) -> Result<Duration> {
    let socket = TcpSocket::new_v4()?;
    if let Kind::Reader(_) = kind {
        socket.set_recv_buffer_size(4096)?;
    }
    let mut stream = socket.connect(target).await?;
    let begun = Instant::now();
    let start = match kind {
        Kind::Head => "GET / HTTP/1.1\r\nHost: slow\r\nX-Slow: ".to_owned(),
        Kind::Body => "POST /upload HTTP/1.1\r\nHost: slow\r\nContent-Length: 1000000\r\n\r\n".to_owned(),
        Kind::Reader(bytes) => format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: slow\r\n\r\n"),
    };
    stream.write_all(start.as_bytes()).await?;
    come.fetch_add(1, Ordering::Relaxed);
    let mut some = [0; 16];
    loop {
        match kind {
            Kind::Reader(_) => {
                if !matches!(stream.read(&mut some).await, Ok(n) if n > 0) {
                    return Ok(begun.elapsed());
                }
                sleep(Duration::from_secs(1)).await;
            }
            Kind::Head | Kind::Body => {
                if stream.write_all(b"x").await.is_err() {
                    return Ok(begun.elapsed());
                }
                // An answer comes only when it is over.
                if timeout(Duration::from_secs(1), stream.read(&mut some)).await.is_ok() {
                    return Ok(begun.elapsed());
                }
            }
        }
    }
}

/// Waits until all slow clients have connected, and then until uh-proxy has no connections except those of the healthy
/// load. Returns how long that took.
async fn until_gone(options: &Options, front_door: &UhProxy, attack: &Attack) -> Result<Duration> {
    let expected = 3 * options.clients as usize;
    let all_come_by = Instant::now() + ALL_COME_WITHIN;
    while attack.come.load(Ordering::Relaxed) < expected {
        ensure!(Instant::now() < all_come_by, "not all slow clients have connected");
        sleep(Duration::from_millis(10)).await;
    }
    let begun = Instant::now();
    // What a reader's own kernel takes before it is full counts as reading: that is its first window.
    let deadline = begun + 2 * Duration::from_millis(options.deadline_ms.into()) + SLACK;
    loop {
        let open = open_connections(&front_door.client.metrics().await?)?;
        if open <= HEALTHY_CLIENTS {
            return Ok(begun.elapsed());
        }
        ensure!(
            Instant::now() < deadline,
            "{open} connections are still open {} ms after the last client connected",
            begun.elapsed().as_millis()
        );
        sleep(Duration::from_millis(50)).await;
    }
}

fn open_connections(metrics: &str) -> Result<usize> {
    let counts = metrics.lines().filter(|line| line.starts_with("uh_proxy_client_connections{"));
    let counts = counts.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<usize>());
    counts.sum::<Result<usize, _>>().context("unexpected metrics")
}

/// The memory of an idle client connection in uh-proxy, in KiB. Each has made a request before.
async fn weigh_idle(count: usize, target: SocketAddr, pid: u32) -> Result<Option<f64>> {
    if count == 0 {
        return Ok(None);
    }
    let before = process_figure(pid, "VmRSS")?;
    let mut kept = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
        let mut answer = [0; 1024];
        ensure!(stream.read(&mut answer).await? > 0, "an idle client got no response");
        ensure!(answer.starts_with(b"HTTP/1.1 200 "), "an idle client got something else");
        kept.push(stream);
    }
    let after = process_figure(pid, "VmRSS")?;
    drop(kept);
    Ok(Some(after.saturating_sub(before) as f64 / count as f64))
}

fn report(
    options: &Options,
    attacked: &Attacked,
    all_gone: Duration,
    quiet: &Recording,
    meanwhile: &Recording,
    idle_kib: Option<f64>,
) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{} slow clients of each kind, which must be gone after {} ms (readers: twice that)",
        options.clients, options.deadline_ms
    )?;
    for (kind, times) in [("heads", &attacked.heads), ("bodies", &attacked.bodies)] {
        let (first, last) = (times.iter().min(), times.iter().max());
        writeln!(out, "  {kind:<8} {} gone after {:?} to {:?}", times.len(), first, last)?;
    }
    writeln!(out, "  all, as uh-proxy counts: gone {all_gone:?} after the last one connected")?;
    let mut p99 = Vec::new();
    for (when, recording) in [("quiet", quiet), ("meanwhile", meanwhile)] {
        let failed = recording.samples.iter().filter(|sample| sample.outcome.is_err()).count();
        let times: Times = recording.samples.iter().map(|sample| sample.latency).collect();
        writeln!(
            out,
            "  healthy client, {when:<9}: {} requests, {failed} failed, p50 {}, p99 {}, max {}",
            recording.samples.len(),
            milliseconds(times.at(500)),
            milliseconds(times.at(990)),
            milliseconds(times.at(1000))
        )?;
        ensure!(failed == 0 && recording.closed_by_server == 0, "{when}: a healthy client's request failed");
        p99.push(times.at(990).context("no healthy request")?);
    }
    let factor = p99[1].as_secs_f64() / p99[0].as_secs_f64();
    writeln!(out, "  p99 under attack: {factor:.2} times the p99 before it")?;
    if let Some(kib) = idle_kib {
        writeln!(out, "  memory per idle connection ({} of them): {kib:.2} KiB", options.idle)?;
    }
    if options.p99_factor > 0.0 && factor > options.p99_factor {
        bail!("the p99 of healthy clients grew {factor:.2} times");
    }
    Ok(())
}
