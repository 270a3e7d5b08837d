//! The cost of app-shim: CPU time per request, added latency, memory.
//!
//! One sample app answers throughout. In each round the same number of requests goes to it directly and through the
//! shim, one after the other over one kept-alive connection, so that both see the same machine.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use uh_benches::http::Connection;
use uh_benches::process::{Process, sibling};
use uh_benches::sample_app::SampleApp;

/// How long the shim may take until it serves.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// What is asked for: an answer of a few bytes, so that nothing but the way is measured.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n";

/// Measure the cost of app-shim.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds, each with direct requests and with requests through the shim
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Requests of each kind per round
    #[arg(long, default_value_t = 1_000)]
    requests: usize,
}

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::print_stdout, reason = "the figures are the product")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let app = SampleApp::start("blue", "1.0.0", dir.path()).await?;
    let (_shim, address, pid) = start_shim(app.address, dir.path()).await?;
    let at_rest = resident_kib(pid)?;
    let (mut direct, mut through) = (Connection::open(app.address).await?, Connection::open(address).await?);
    let (mut direct_us, mut through_us) = (Vec::new(), Vec::new());
    let mut cpu = Duration::ZERO;
    for round in 0..=args.rounds {
        let direct_round = ask(&mut direct, args.requests).await?;
        let before = cpu_time(pid)?;
        let through_round = ask(&mut through, args.requests).await?;
        // The first round only warms up.
        if round > 0 {
            cpu += cpu_time(pid)? - before;
            direct_us.extend(direct_round);
            through_us.extend(through_round);
        }
    }
    let requests = through_us.len();
    let (direct_us, through_us) = (percentiles(direct_us), percentiles(through_us));
    println!("{requests} requests each way, one at a time");
    println!("direct       p50 {:4} us  p99 {:5} us", direct_us.0, direct_us.1);
    println!("through      p50 {:4} us  p99 {:5} us", through_us.0, through_us.1);
    println!("added        p50 {:4} us", through_us.0.saturating_sub(direct_us.0));
    println!("shim CPU     {:.1} us per request", cpu.as_secs_f64() * 1e6 / requests as f64);
    println!("shim memory  {at_rest} KiB at rest, {} KiB after the load (resident)", resident_kib(pid)?);
    Ok(())
}

async fn start_shim(app: SocketAddr, dir: &Path) -> Result<(Process, SocketAddr, u32)> {
    let mut command = Command::new(sibling("app-shim")?);
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--allow-listening",
        "--app",
        &app.to_string(),
        "--",
        "sleep",
        "86400",
    ]);
    let process = Process::spawn("shim", &mut command, dir)?;
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let log = fs::read_to_string(dir.join("shim.log"))?;
        if log.contains("App accepts connections") {
            let address = log.split("Listening on ").nth(1).and_then(|rest| rest.split_whitespace().next());
            let address = address.context("the shim doesn't report its address")?.parse()?;
            return Ok((process, address, shim_pid(&log)?));
        }
        ensure!(Instant::now() < deadline, "the shim is not ready: {log}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The parent of the process that the shim says it has started.
fn shim_pid(log: &str) -> Result<u32> {
    let child =
        log.split("(pid ").nth(1).and_then(|rest| rest.split(')').next()).context("no pid in the log")?;
    let stat = fs::read_to_string(format!("/proc/{child}/stat"))?;
    let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
    Ok(parent.context("no parent in /proc")?.parse()?)
}

/// Microseconds for each request.
async fn ask(connection: &mut Connection, requests: usize) -> Result<Vec<u128>> {
    let (mut times, mut body) = (Vec::with_capacity(requests), Vec::new());
    for _ in 0..requests {
        let asked_at = Instant::now();
        body.clear();
        let head = connection.exchange(REQUEST, &mut body).await?;
        ensure!(head.status == 200, "status {}", head.status);
        times.push(asked_at.elapsed().as_micros());
    }
    Ok(times)
}

/// The median and the 99th percentile.
fn percentiles(mut times: Vec<u128>) -> (u128, u128) {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    (at(50), at(99))
}

/// Of all its threads (`/proc/PID/task/*/schedstat`, nanoseconds on a processor).
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += stat.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
