//! Stale upstream connections: a backend that closes its kept connections around the time when uh-proxy uses them, in
//! every detectable way, and a real Node server. Prints what the clients saw.
//!
//! No `GET` may fail. No `POST` may be carried out twice; those that fail are those that had been sent when their
//! connection died, so that nobody but the backend can know whether they were carried out.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use tokio::sync::Barrier;
use tokio::time::sleep;
use uh_benches::fickle::{self, Book, Death, When};
use uh_benches::workdir;
use uh_testkit::http::{Connection, Idle};
use uh_testkit::process::Process;
use uh_testkit::uh_proxy::{Setup, UhProxy};
use uh_testkit::wait::SOON;

/// How long uh-proxy keeps an idle connection here. Short, so that many rounds take little time.
const POOL_IDLE_MS: u64 = 100;

/// When the backend closes idle connections: well before uh-proxy closes them, around that time, and after.
const CLOSES_MS: [u64; 9] = [60, 80, 90, 95, 100, 105, 110, 120, 150];

#[derive(Debug, Parser)]
#[command(about = "Close kept upstream connections at the worst moment, and count what clients see of it")]
struct Options {
    /// Requests for each method and line of the table.
    #[arg(long, default_value_t = 10_000)]
    requests: u64,
    /// Clients that ask at about the same time.
    #[arg(long, default_value_t = 250)]
    clients: u64,
    /// Rounds against a real Node server, with 4 to 6 seconds between them; 0: none.
    #[arg(long, default_value_t = 8)]
    node_rounds: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    workdir::run(async |dir| run(&options, dir).await)
}

async fn run(options: &Options, dir: &Path) -> Result<()> {
    let mut out = io::stdout();
    writeln!(
        out,
        "{} requests of each method per line, in bursts of {}; uh-proxy keeps idle connections for {POOL_IDLE_MS} ms\n\
         {:<18} {:>9} | {:>7} {:>5} {:>8} | {:>7} {:>5} {:>8} {:>9} {:>6}",
        options.requests,
        options.clients,
        "connections are",
        "after",
        "GET 200",
        "502",
        "retried",
        "POST 200",
        "502",
        "retried",
        "of 502 ran",
        "twice"
    )?;
    let mut verdict = Verdict::default();
    for death in [Death::End, Death::Reset] {
        for close in CLOSES_MS {
            let when = When::Idle(Duration::from_millis(close));
            verdict.add(line(options, dir, death, when, &mut out).await?);
        }
        verdict.add(line(options, dir, death, When::OnArrival, &mut out).await?);
    }
    verdict.add(line(options, dir, Death::Reset, When::OnBurst, &mut out).await?);
    if options.node_rounds > 0 {
        for idle in ["4s", "60s"] {
            verdict.node_failures += node(options, dir, idle, &mut out).await?;
        }
    }
    ensure!(verdict.failed_gets == 0, "{} GETs failed", verdict.failed_gets);
    ensure!(verdict.twice == 0, "{} POSTs were executed more than once", verdict.twice);
    ensure!(verdict.node_failures == 0, "{} requests to Node failed", verdict.node_failures);
    Ok(())
}

#[derive(Debug, Default)]
struct Verdict {
    failed_gets: u64,
    twice: u64,
    node_failures: u64,
}

impl Verdict {
    fn add(&mut self, (gets, posts): (Seen, Seen)) {
        self.failed_gets += gets.bad + gets.other;
        self.twice += posts.twice;
    }
}

/// What the clients of one phase saw.
#[derive(Debug, Default)]
struct Seen {
    good: u64,
    bad: u64,
    other: u64,
    retried: u64,
    ran_and_failed: u64,
    twice: u64,
}

async fn line(
    options: &Options,
    dir: &Path,
    death: Death,
    when: When,
    out: &mut impl io::Write,
) -> Result<(Seen, Seen)> {
    let book = Book::default();
    let backend = fickle::start(death, when, book.clone()).await?;
    let front = front_door(dir, backend, &format!("{POOL_IDLE_MS}ms")).await?;
    let gets = phase(options, &front, "GET", when, &book).await?;
    let posts = phase(options, &front, "POST", when, &book).await?;
    let what = match death {
        Death::End => "ended",
        Death::Reset => "reset",
    };
    let after = match when {
        When::Idle(after) => format!("{} ms", after.as_millis()),
        When::OnArrival => "arrival".to_owned(),
        When::OnBurst => "burst".to_owned(),
    };
    writeln!(
        out,
        "{what:<18} {after:>9} | {:>7} {:>5} {:>8} | {:>7} {:>5} {:>8} {:>9} {:>6}{}",
        gets.good,
        gets.bad,
        gets.retried,
        posts.good,
        posts.bad,
        posts.retried,
        posts.ran_and_failed,
        posts.twice,
        if gets.other + posts.other > 0 {
            format!("  ({} others)", gets.other + posts.other)
        } else {
            String::new()
        }
    )?;
    Ok((gets, posts))
}

/// All clients ask at about the same time, wait for each other, and pause until shortly before or after the moment at
/// which the connections die.
async fn phase(
    options: &Options,
    front: &UhProxy,
    method: &'static str,
    when: When,
    book: &Book,
) -> Result<Seen> {
    let barrier = Arc::new(Barrier::new(usize::try_from(options.clients)?));
    let next = Arc::new(AtomicU64::new(if method == "GET" { 0 } else { 1 << 32 }));
    let before = retries(front).await?;
    let rounds = options.requests.div_ceil(options.clients);
    let die_ms = match when {
        When::Idle(after) => u64::try_from(after.as_millis())?.min(POOL_IDLE_MS),
        When::OnArrival | When::OnBurst => 30,
    };
    let clients: Vec<_> = (0..options.clients)
        .map(|client| {
            let (barrier, next, target) = (Arc::clone(&barrier), Arc::clone(&next), front.address);
            tokio::spawn(async move {
                let mut found = Vec::new();
                let mut connection = None;
                for round in 0..rounds {
                    barrier.wait().await;
                    // Bursts begin 8 ms before the moment to 1 ms after it, and their requests are spread over 3 ms.
                    let pause = (die_ms + round % 10).saturating_sub(8) * 1000 + client * 3000 / 250 % 3000;
                    sleep(Duration::from_micros(pause)).await;
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    found.push((number, ask(target, &mut connection, method, number).await));
                }
                found
            })
        })
        .collect();
    let mut seen = Seen::default();
    for client in clients {
        for (number, status) in client.await? {
            let runs = book.count(number);
            match status {
                Some(200) => seen.good += 1,
                Some(502) => seen.bad += 1,
                _ => seen.other += 1,
            }
            seen.ran_and_failed += u64::from(status != Some(200) && runs > 0);
            seen.twice += u64::from(runs > 1);
        }
    }
    seen.retried = retries(front).await? - before;
    Ok(seen)
}

/// Sends a request on a kept connection to uh-proxy, or a new one. `None`: no response.
async fn ask(target: SocketAddr, kept: &mut Option<Connection>, method: &str, number: u64) -> Option<u16> {
    let mut connection = match kept.take().filter(|connection| connection.idle() == Idle::Quiet) {
        Some(connection) => connection,
        None => Connection::open(target).await.ok()?,
    };
    let body = if method == "POST" { "Content-Length: 4\r\n\r\nonce" } else { "\r\n" };
    let request = format!("{method} /{number} HTTP/1.1\r\nHost: app.test\r\n{body}");
    let mut answer = Vec::new();
    let head = connection.exchange(request.as_bytes(), &mut answer);
    let head = tokio::time::timeout(SOON, head).await.ok()?.ok()?;
    if !head.close {
        *kept = Some(connection);
    }
    Some(head.status)
}

/// Node with its default keep-alive of 5 s.
const NODE: &str = "
const server = require('node:http').createServer((request, response) => {
  request.resume().on('end', () => response.end('ok'));
});
server.listen(0, '127.0.0.1', () => console.log('listening on 127.0.0.1:' + server.address().port));
";

/// Clients ask in bursts of three, GET and POST in turn, and pause 4 to 6 s. Returns how many requests failed.
async fn node(options: &Options, dir: &Path, idle: &str, out: &mut impl io::Write) -> Result<u64> {
    let mut command = Command::new("node");
    command.arg("-e").arg(NODE);
    let mut process = Process::spawn("node", &mut command, dir)?;
    let backend = process.line_after("listening on ", SOON).await?.parse()?;
    let front = front_door(dir, backend, idle).await?;
    let (rounds, target) = (options.node_rounds, front.address);
    let clients: Vec<_> = (0..options.clients)
        .map(|client| {
            tokio::spawn(async move {
                let (mut good, mut failed, mut connection) = (0u64, 0u64, None);
                for round in 0..rounds {
                    for request in 0..3 {
                        let method = if (client + round + request) % 2 == 0 { "GET" } else { "POST" };
                        match ask(target, &mut connection, method, client).await {
                            Some(200) => good += 1,
                            _ => failed += 1,
                        }
                    }
                    // From 4 to 6 s, in steps of 8 ms, another one for each client and round.
                    sleep(Duration::from_millis(4000 + (client + round * 37) % 250 * 8)).await;
                }
                (good, failed)
            })
        })
        .collect();
    let (mut good, mut failed) = (0, 0);
    for client in clients {
        let counts = client.await?;
        good += counts.0;
        failed += counts.1;
    }
    let retried = retries(&front).await?;
    writeln!(
        out,
        "Node, keep-alive 5 s, uh-proxy keeps {idle}: {good} good, {failed} failed, {retried} retried"
    )?;
    Ok(failed)
}

/// uh-proxy in front of one backend, in a directory of its own.
async fn front_door(dir: &Path, backend: SocketAddr, idle: &str) -> Result<UhProxy> {
    let dir = tempfile::tempdir_in(dir)?.keep();
    let setup = Setup::new(&dir, backend, "127.0.0.1:9").server("access_log = { format = \"off\" }");
    let service = "[services.app.health]\nenabled = false\n[services.app.timeouts]\nidle = ";
    setup.service(&format!("{service}\"{idle}\"")).start().await
}

/// Exchanges that were retried so far.
async fn retries(front: &UhProxy) -> Result<u64> {
    let text = front.client.metrics().await?;
    let line = "uh_proxy_retries_total{service=\"app\",backend=\"blue\",reason=\"stale_connection\"} ";
    Ok(text.lines().find_map(|found| found.strip_prefix(line)).map_or(Ok(0), str::parse)?)
}
