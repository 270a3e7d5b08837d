//! Switches back and forth under load, and checks that no client noticed.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use tokio::time::{MissedTickBehavior, interval};
use uh_benches::percentiles::{Times, grouped};
use uh_benches::watcher::Watcher;
use uh_benches::workdir;
use uh_protocol::BackendName;
use uh_protocol::request::SwitchRequest;
use uh_testkit::judgement::{Switch, Verdict};
use uh_testkit::load::{Group, Load, Plan, Reuse, Sample};
use uh_testkit::sample_app;
use uh_testkit::uh_proxy::{SERVICE, Setup, UhProxy};

/// A request without a complete response after this has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Load before the first switch and after the last one.
const SETTLE: Duration = Duration::from_millis(500);

/// How long uh-proxy may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// The most requests that one run may plan: all are kept in memory, at about 100 bytes each.
const MAX_REQUESTS: u64 = 20_000_000;

/// How many clients share the work of making new connections.
const NEW_CONNECTION_CLIENTS: usize = 8;

/// Switch uh-proxy back and forth under load, and report what its clients saw.
#[derive(Parser)]
struct Options {
    /// Number of switches.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    switches: u32,
    /// Clients that keep their connections.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Total requests per second of those clients.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    rate: u32,
    /// Additional requests per second on new connections.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=5_000))]
    new_connections: u32,
    /// Milliseconds between two switches.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    interval_ms: u32,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match check(&options) {
        Ok(()) => workdir::run(async |dir| run(&options, dir).await),
        Err(error) => workdir::finish(None, &Err(error), io::stderr()),
    }
}

fn check(options: &Options) -> Result<()> {
    let requests = u64::from(options.rate + options.new_connections)
        * (u64::from(options.switches) * u64::from(options.interval_ms)).div_ceil(1000);
    ensure!(
        requests <= MAX_REQUESTS,
        "the run would make {requests} requests, more than {MAX_REQUESTS}: use fewer switches or shorter intervals"
    );
    Ok(())
}

async fn run(options: &Options, dir: &Path) -> Result<()> {
    let (blue, green) = sample_app::pair(dir).await?;
    // All load comes from one address.
    let server = "access_log = { format = \"off\" }\n[server.limits]\nconnections_per_address = 0";
    let setup = Setup::new(dir, blue.address, green.address).server(server);
    let front_door = setup.start().await?;
    front_door.until_healthy().await?;

    let started = Instant::now();
    let load = Load::start(plan(options, &front_door))?;
    tokio::time::sleep(SETTLE).await;
    let watcher = Watcher::start(front_door.address)?;
    let calls = Calls::make(options, &front_door, &watcher).await?;
    let watched = watcher.stop()?;
    tokio::time::sleep(SETTLE).await;
    let recording = load.stop().await?;
    let took = started.elapsed();
    front_door.stop(STOP_WITHIN).await?;

    let verdict = Verdict::of(&recording, &"blue".parse()?, &calls.switches);
    let missing = verdict.first_answers.iter().filter(|answer| answer.is_none()).count();
    let mut out = io::stdout();
    writeln!(
        out,
        "{} switches, one every {} ms; {} keep-alive clients; {:.0} of {} requests/s reached\n",
        grouped(options.switches as usize),
        options.interval_ms,
        options.clients,
        recording.samples.len() as f64 / took.as_secs_f64(),
        options.rate + options.new_connections
    )?;
    for (label, count) in [
        ("requests", verdict.requests),
        ("failures", verdict.failed()),
        ("client connections closed by the server", verdict.closed_by_server),
        ("responses of the old backend after a switch reply", verdict.old_answers.len()),
        ("switches acknowledged but not on disk", calls.not_persisted),
        ("switches without a response from the new backend", missing),
    ] {
        writeln!(out, "{label:<52}{:>10}", grouped(count))?;
    }
    writeln!(out, "\n{:<52}{:>10}{:>10}{:>10}{:>10}", "milliseconds", "p50", "p99", "p99.9", "max")?;
    let of_samples = |time: fn(&Sample) -> Duration| recording.samples.iter().map(time).collect::<Times>();
    for (label, times) in [
        ("switch call to first new response, asked continuously", watched.into_iter().collect()),
        (
            "switch call to first new response of the paced load",
            verdict.first_answers.iter().flatten().copied().collect(),
        ),
        ("admin: switch, on disk", calls.switch_times()),
        ("admin: status", calls.status_times.into_iter().collect()),
        ("request latency from the scheduled time", of_samples(|sample| sample.latency)),
        ("requests sent late by", of_samples(|sample| sample.late)),
    ] {
        let ms = |per_mille| times.at(per_mille).map(|time| format!("{:.2}", time.as_secs_f64() * 1000.0));
        let [p50, p99, p999, max] = [500, 990, 999, 1000].map(|at| ms(at).unwrap_or_else(|| "-".to_owned()));
        writeln!(out, "{label:<52}{p50:>10}{p99:>10}{p999:>10}{max:>10}")?;
    }
    let mut faults = verdict.faults();
    if calls.not_persisted > 0 {
        faults.push(format!("{} switches weren't on disk when they were acknowledged", calls.not_persisted));
    }
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(())
}

fn plan(options: &Options, front_door: &UhProxy) -> Plan {
    let kept = Group {
        path: "/".to_owned(),
        clients: options.clients as usize,
        rate: options.rate.into(),
        reuse: Reuse::KeepAlive,
    };
    let new = Group {
        clients: NEW_CONNECTION_CLIENTS,
        rate: options.new_connections.into(),
        reuse: Reuse::Never,
        ..kept.clone()
    };
    let groups = if options.new_connections > 0 { vec![kept, new] } else { vec![kept] };
    Plan { target: front_door.address, groups, request_timeout: REQUEST_TIMEOUT }
}

/// What the admin side did.
struct Calls {
    switches: Vec<Switch>,
    status_times: Vec<Duration>,
    not_persisted: usize,
}

impl Calls {
    /// Switches at every other tick, and asks for the status at the ones between.
    async fn make(options: &Options, front_door: &UhProxy, watcher: &Watcher) -> Result<Self> {
        let backends: [BackendName; 2] = ["green".parse()?, "blue".parse()?];
        let service = SERVICE.parse()?;
        let mut calls = Self { switches: Vec::new(), status_times: Vec::new(), not_persisted: 0 };
        let mut tick = interval(Duration::from_millis(options.interval_ms.into()) / 2);
        // A late switch moves the ones after it: they must not come closer together than was asked for.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for to in backends.iter().cycle().take(options.switches as usize) {
            tick.tick().await;
            let called_at = Instant::now();
            watcher.expect(to.clone(), called_at)?;
            let reply = front_door.client.switch(&service, &SwitchRequest::to(to.clone())).await;
            let replied_at = Instant::now();
            let number = calls.switches.len() + 1;
            let reply = reply.with_context(|| format!("switch {number} to {to} failed"))?;
            ensure!(reply.changed && reply.to == *to, "switch {number} to {to} changed nothing");
            calls.not_persisted += usize::from(!reply.persisted);
            calls.switches.push(Switch { to: to.clone(), called_at, replied_at });
            tick.tick().await;
            let asked_at = Instant::now();
            front_door.client.status().await?;
            calls.status_times.push(asked_at.elapsed());
        }
        Ok(calls)
    }

    fn switch_times(&self) -> Times {
        self.switches.iter().map(|switch| switch.replied_at - switch.called_at).collect()
    }
}
