//! The cost of app-shim: CPU time per request, added latency, memory.
//!
//! One sample app answers throughout. In each round the same number of requests goes to it directly and through the
//! shim, one after the other over one kept-alive connection, so that both see the same machine.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use uh_benches::compare::accounts::cpu_time;
use uh_benches::machine::process_figure;
use uh_benches::percentiles::Times;
use uh_testkit::http::Connection;
use uh_testkit::process::Process;
use uh_testkit::sample_app::SampleApp;
use uh_testkit::shim;
use uh_testkit::wait::until;

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
    let (shim, address) = start_shim(app.address, dir.path()).await?;
    let pid = shim.id();
    let at_rest = process_figure(pid, "VmRSS")?;
    let mut to_app = Connection::open(app.address).await?;
    let mut to_shim = Connection::open(address).await?;
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    let mut cpu = Duration::ZERO;
    for round in 0..=args.rounds {
        let direct_round = ask(&mut to_app, args.requests).await?;
        let before = cpu_time(pid)?;
        let through_round = ask(&mut to_shim, args.requests).await?;
        // The first round only warms up.
        if round > 0 {
            cpu += cpu_time(pid)?.since(&before).total;
            direct.extend(direct_round);
            through.extend(through_round);
        }
    }
    let requests = through.len();
    let (direct, through) = (Times::from_iter(direct), Times::from_iter(through));
    let us = |times: &Times, per_mille| times.at(per_mille).unwrap_or_default().as_micros();
    println!("{requests} requests each way, one at a time");
    println!("direct       p50 {:4} us  p99 {:5} us", us(&direct, 500), us(&direct, 990));
    println!("through      p50 {:4} us  p99 {:5} us", us(&through, 500), us(&through, 990));
    println!("added        p50 {:4} us", us(&through, 500).saturating_sub(us(&direct, 500)));
    println!("shim CPU     {:.1} us per request", cpu.as_secs_f64() * 1e6 / requests as f64);
    println!(
        "shim memory  {at_rest} KiB at rest, {} KiB after the load (resident)",
        process_figure(pid, "VmRSS")?
    );
    Ok(())
}

async fn start_shim(app: SocketAddr, dir: &Path) -> Result<(Process, SocketAddr)> {
    let options = ["--listen", "127.0.0.1:0", "--app", &app.to_string()];
    let mut process = Process::spawn("shim", &mut shim::command(&options, &["sleep", "86400"])?, dir)?;
    let address = until("the shim serves", async || {
        let log = process.output().ok().filter(|log| log.contains("App accepts connections"))?;
        log.split("Listening on ").nth(1)?.split_whitespace().next()?.parse().ok()
    });
    let address = address.await.with_context(|| process.output().unwrap_or_default())?;
    process.check_running()?;
    Ok((process, address))
}

/// The time of each request.
async fn ask(connection: &mut Connection, requests: usize) -> Result<Vec<Duration>> {
    let (mut times, mut body) = (Vec::with_capacity(requests), Vec::new());
    for _ in 0..requests {
        let asked_at = Instant::now();
        body.clear();
        let head = connection.exchange(REQUEST, &mut body).await?;
        ensure!(head.status == 200, "status {}", head.status);
        times.push(asked_at.elapsed());
    }
    Ok(times)
}
