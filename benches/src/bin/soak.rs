//! The soak: a modest load for an hour, with switches, drains, reloads, tunnels, slow clients and probes going on. Memory,
//! descriptors and threads are sampled; at the end the books must be balanced.

use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;
use uh_benches::faults::stage::{Stage, StageSetup, apps};
use uh_benches::machine::process_figure;
use uh_benches::percentiles::grouped;
use uh_benches::series::Series;
use uh_benches::workdir;
use uh_testkit::wait::until;
use uh_testkit::websocket::WebSocket;

/// The most samples of one run.
const SAMPLES: f64 = 1000.0;

/// What comes before this part of a run is warming up.
const WARM_UP: f64 = 0.2;

/// From here on a slope says something.
const LONG_RUN_S: f64 = 600.0;

/// The most that memory may grow in an hour of a long run, in KiB. An allocator needs a while until it has settled.
const GROWTH_KIB: f64 = 2048.0;

#[derive(Parser)]
#[command(about = "Keep uh-proxy busy for a long time, and report what grows and whether its counters match")]
struct Options {
    /// How long.
    #[arg(long, env = "UH_SOAK_MINUTES", default_value_t = 60.0)]
    minutes: f64,
    /// Requests per second.
    #[arg(long, default_value_t = 60.0)]
    rate: f64,
    /// Milliseconds between two things that happen: a switch with its drain, a reload, a tunnel, a slow client.
    #[arg(long, default_value_t = 2000)]
    pause_ms: u64,
    /// Where soak.csv and soak.svg are written.
    #[arg(long, default_value = "target/soak")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let options = Options::parse();
    workdir::run(async |dir| run(&options, dir).await)
}

/// What was sampled.
#[derive(Default)]
struct SoakSamples {
    resident_kib: Series,
    descriptors: Series,
    threads: Series,
}

/// Requests routed in addition to those of the load, by outcome.
#[derive(Default)]
struct Extras {
    downloads: Cell<u64>,
    tunnels: Cell<u64>,
    broken: Cell<u64>,
    running: Cell<u64>,
}

async fn run(options: &Options, dir: &Path) -> Result<()> {
    let apps = apps(dir).await?;
    let setup = StageSetup { rate: Some(options.rate), tables: tables("60s"), ..StageSetup::before(&apps) };
    let mut stage = Stage::start(dir, setup).await?;
    let pid = stage.front()?.id();
    let (begun, length_s) = (Instant::now(), options.minutes * 60.0);
    let extras = Rc::new(Extras::default());
    let (mut samples, mut happened, mut next_at) = (SoakSamples::default(), 0u64, 0.0);
    while begun.elapsed().as_secs_f64() < length_s {
        if begun.elapsed().as_secs_f64() >= next_at {
            sample(&mut samples, pid, begun.elapsed().as_secs_f64())?;
            next_at += (length_s / SAMPLES).max(0.2);
        }
        let step_ends = Instant::now() + Duration::from_millis(options.pause_ms);
        happen(happened, &mut stage, &extras, dir).await?;
        happened += 1;
        sleep(step_ends.saturating_duration_since(Instant::now())).await;
    }
    until("the soak's own clients are done", async || (extras.running.get() == 0).then_some(())).await?;
    sample(&mut samples, pid, begun.elapsed().as_secs_f64())?;
    write(options, &samples)?;
    finish(stage, &extras, &samples, happened, length_s).await
}

fn tables(idle: &str) -> String {
    format!("[services.app.timeouts]\nclient = \"{idle}\"\n[services.app.resolve]\ninterval = \"1s\"\n")
}

/// One thing after the other.
async fn happen(nth: u64, stage: &mut Stage, extras: &Rc<Extras>, dir: &Path) -> Result<()> {
    match nth % 5 {
        0 => {
            let to = if (nth / 5).is_multiple_of(2) { "green" } else { "blue" };
            let from = if to == "green" { "blue" } else { "green" };
            stage.switch(to).await?;
            let drained = stage.command(&["drain", from, "--timeout", "1s", "--json"]).await?;
            ensure!(matches!(drained.status.code(), Some(0 | 1)), "drain: {}", drained.output);
        }
        1 => {
            let path = dir.join("uh-proxy.toml");
            let text = fs::read_to_string(&path)?;
            let (old, new) = if text.contains("\"60s\"") { ("60s", "50s") } else { ("50s", "60s") };
            fs::write(&path, text.replace(old, new))?;
            if (nth / 5).is_multiple_of(2) {
                stage.front()?.signal(Signal::HUP)?;
            } else {
                let reloaded = stage.command(&["reload"]).await?;
                ensure!(reloaded.status.success(), "reload: {}", reloaded.output);
            }
        }
        2 => spawn(extras, tunnel(stage.address, Rc::clone(extras))),
        3 => spawn(extras, download(stage.address, Rc::clone(extras))),
        _ => spawn(extras, half_a_head(stage.address)),
    }
    Ok(())
}

fn spawn(extras: &Rc<Extras>, client: impl Future<Output = Result<()>> + 'static) {
    let extras = Rc::clone(extras);
    extras.running.set(extras.running.get() + 1);
    tokio::task::spawn_local(async move {
        if client.await.is_err() {
            extras.broken.set(extras.broken.get() + 1);
        }
        extras.running.set(extras.running.get() - 1);
    });
}

/// A WebSocket that outlives some switches, but may be closed by a drain.
async fn tunnel(address: SocketAddr, extras: Rc<Extras>) -> Result<()> {
    let mut socket = WebSocket::open(address, "/ws").await?;
    extras.tunnels.set(extras.tunnels.get() + 1);
    for nth in 0..20 {
        if socket.echo(&format!("message {nth}")).await.is_err() {
            // A drain has closed it.
            return Ok(());
        }
        sleep(Duration::from_millis(100)).await;
    }
    // The same.
    let _ = socket.close().await;
    Ok(())
}

/// A client that takes two seconds over its answer, across a switch.
async fn download(address: SocketAddr, extras: Rc<Extras>) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let request = "GET /bytes/200000?rate=100000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    extras.downloads.set(extras.downloads.get() + 1);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    ensure!(bytes.len() > 200_000, "a download was cut");
    Ok(())
}

/// Half a request, slowly, and away.
async fn half_a_head(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    for piece in ["GET / HT", "TP/1.1\r\n", "Host: "] {
        stream.write_all(piece.as_bytes()).await?;
        sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

fn sample(samples: &mut SoakSamples, pid: u32, at: f64) -> Result<()> {
    samples.resident_kib.points.push((at, process_figure(pid, "VmRSS")? as f64));
    samples.threads.points.push((at, process_figure(pid, "Threads")? as f64));
    samples.descriptors.points.push((at, fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64));
    Ok(())
}

fn write(options: &Options, samples: &SoakSamples) -> Result<()> {
    fs::create_dir_all(&options.out)?;
    let mut csv = String::from("seconds,resident_kib,descriptors,threads\n");
    for (index, (at, resident)) in samples.resident_kib.points.iter().enumerate() {
        let other = |series: &Series| series.points.get(index).map_or(0.0, |point| point.1);
        // Writing to a string does not fail.
        let _ =
            writeln!(csv, "{at:.1},{resident},{},{}", other(&samples.descriptors), other(&samples.threads));
    }
    fs::write(options.out.join("soak.csv"), csv)?;
    let mib = samples.resident_kib.points.iter().map(|(at, kib)| (*at, kib / 1024.0)).collect();
    let title = "uh-proxy: resident memory (MiB)";
    fs::write(options.out.join("soak.svg"), Series { points: mib }.svg(title))?;
    Ok(())
}

async fn finish(
    mut stage: Stage,
    extras: &Extras,
    samples: &SoakSamples,
    happened: u64,
    length_s: f64,
) -> Result<()> {
    let mut out = io::stdout();
    let load = stage.end_load().await?;
    let answered = load.samples.iter().filter(|sample| sample.outcome.is_ok()).count() as u64;
    ensure!(
        answered == load.samples.len() as u64,
        "{} requests failed",
        load.samples.len() as u64 - answered
    );
    ensure!(extras.broken.get() == 0, "{} of the soak's own clients failed", extras.broken.get());
    let made = answered + extras.downloads.get() + extras.tunnels.get();
    stage
        .until("all connections are over", async |stage| {
            (stage.sum("uh_proxy_client_connections{").await.ok()? == 0.0).then_some(())
        })
        .await?;
    let books = [
        ("requests routed", stage.sum("uh_proxy_requests_total{").await?, made as f64),
        ("in flight", stage.sum("uh_proxy_backend_requests_in_flight{").await?, 0.0),
        ("tunnels", stage.sum("uh_proxy_backend_tunnels{").await?, 0.0),
        ("waiting drains", stage.sum("uh_proxy_drains_waiting").await?, 0.0),
        ("log lines lost", stage.sum("uh_proxy_access_log_lines_lost_total").await?, 0.0),
    ];
    let cut = stage.sum("uh_proxy_drain_cut_total{").await?;
    writeln!(
        out,
        "{:.1} min, {happened} events: {} requests, {} slow downloads, {} tunnels ({cut} closed by drains)",
        length_s / 60.0,
        grouped(load.samples.len()),
        extras.downloads.get(),
        extras.tunnels.get()
    )?;
    let mut faults = Vec::new();
    for (what, found, wanted) in books {
        writeln!(out, "  {what:<18} {found:>10}, expected {wanted}")?;
        if found != wanted {
            faults.push(format!("{what}: {found}, expected {wanted}"));
        }
    }
    let from = length_s * WARM_UP;
    for (what, series, most) in [
        ("resident KiB", &samples.resident_kib, GROWTH_KIB),
        ("descriptors", &samples.descriptors, 10.0),
        ("threads", &samples.threads, 1.0),
    ] {
        let slope = series.slope_per_hour(from);
        writeln!(
            out,
            "  {what:<18} {:>10} at the end, {} at most, {slope:+.1} per hour",
            series.last(),
            series.most()
        )?;
        if length_s >= LONG_RUN_S && slope > most {
            faults.push(format!("{what} grow by {slope:.1} per hour"));
        }
    }
    faults.extend(stage.end(load).await?.old_answers);
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(())
}
