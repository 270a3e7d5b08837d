//! Switches back and forth under load, and checks that no client noticed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use uh_benches::machine::file_system_of;
use uh_benches::percentiles::{Spread, Times, grouped};
use uh_benches::watcher::Watcher;
use uh_benches::workdir;
use uh_protocol::BackendName;
use uh_protocol::request::SwitchRequest;
use uh_testkit::judgement::{Switch, Verdict};
use uh_testkit::load::{Group, Load, Plan, Reuse};
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
    /// Also write the report as JSON to a file; with `-`, write JSON instead of text to standard output.
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// uh-proxy's access log format.
    #[arg(long, value_enum, default_value_t = AccessLog::Off)]
    access_log: AccessLog,
    /// Directory for the state file, to choose its disk.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum AccessLog {
    Off,
    Json,
}

impl AccessLog {
    fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Json => "json",
        }
    }
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
    // Below the directory that was given, so that whatever is left there can be removed as a whole.
    let state_dir =
        tempfile::tempdir_in(options.state_dir.as_deref().unwrap_or(dir)).context("no state directory")?;
    let (blue, green) = sample_app::pair(dir).await?;
    let (log, format) = (dir.join("access.log"), options.access_log.as_str());
    // All load comes from one address.
    let server = format!(
        "access_log = {{ path = {log:?}, format = \"{format}\" }}\n[server.limits]\nconnections_per_address = 0"
    );
    let setup = Setup::new(dir, blue.address, green.address).server(&server).state_dir(state_dir.path());
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
    let mut faults = verdict.faults();
    if calls.not_persisted > 0 {
        faults.push(format!("{} switches weren't on disk when they were acknowledged", calls.not_persisted));
    }
    let report = Report {
        switches: options.switches,
        interval_ms: options.interval_ms,
        clients: options.clients,
        rate_asked: options.rate + options.new_connections,
        rate_reached: recording.samples.len() as f64 / took.as_secs_f64(),
        access_log: options.access_log.as_str(),
        state_file_system: describe_disk(state_dir.path())?,
        requests: verdict.requests,
        failures: verdict.failures,
        closed_by_server: verdict.closed_by_server,
        old_answers: verdict.old_answers.len(),
        not_persisted: calls.not_persisted,
        switches_without_answer: verdict.first_answers.iter().filter(|answer| answer.is_none()).count(),
        latency: recording.samples.iter().map(|sample| sample.latency).collect::<Times>().spread(),
        sent_late_by: recording.samples.iter().map(|sample| sample.late).collect::<Times>().spread(),
        first_answer: watched.into_iter().collect::<Times>().spread(),
        first_answer_of_load: verdict.first_answers.iter().flatten().copied().collect::<Times>().spread(),
        admin_switch: calls.switch_times().spread(),
        admin_status: calls.status_times.into_iter().collect::<Times>().spread(),
        faults,
    };
    report.publish(options.json.as_deref())?;
    if !report.faults.is_empty() {
        bail!("{}", report.faults.join("; "));
    }
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

fn describe_disk(dir: &Path) -> Result<String> {
    let mounts = fs::read_to_string("/proc/mounts").context("can't read /proc/mounts")?;
    Ok(file_system_of(&dir.canonicalize()?, &mounts).unwrap_or_else(|| "unknown".to_owned()))
}

#[derive(Serialize)]
struct Report {
    switches: u32,
    interval_ms: u32,
    clients: u32,
    rate_asked: u32,
    rate_reached: f64,
    access_log: &'static str,
    state_file_system: String,
    requests: usize,
    failures: BTreeMap<String, usize>,
    closed_by_server: usize,
    old_answers: usize,
    not_persisted: usize,
    switches_without_answer: usize,
    latency: Spread,
    sent_late_by: Spread,
    first_answer: Spread,
    first_answer_of_load: Spread,
    admin_switch: Spread,
    admin_status: Spread,
    faults: Vec<String>,
}

impl Report {
    fn publish(&self, json: Option<&Path>) -> Result<()> {
        let mut stdout = io::stdout();
        if let Some(path) = json {
            let json = serde_json::to_string_pretty(self)? + "\n";
            if path == Path::new("-") {
                return Ok(stdout.write_all(json.as_bytes())?);
            }
            fs::write(path, json).with_context(|| format!("can't write {}", path.display()))?;
        }
        Ok(self.write_text(&mut stdout)?)
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "{} switches, one every {} ms; {} keep-alive clients; {:.0} of {} requests/s reached",
            grouped(self.switches as usize),
            self.interval_ms,
            self.clients,
            self.rate_reached,
            self.rate_asked
        )?;
        writeln!(out, "access log {}; state file on {}\n", self.access_log, self.state_file_system)?;
        for (label, count) in [
            ("requests", self.requests),
            ("failures", self.failures.values().sum()),
            ("client connections closed by the server", self.closed_by_server),
            ("responses of the old backend after a switch reply", self.old_answers),
            ("switches acknowledged but not on disk", self.not_persisted),
            ("switches without a response from the new backend", self.switches_without_answer),
        ] {
            writeln!(out, "{label:<52}{:>10}", grouped(count))?;
        }
        writeln!(out, "\n{:<52}{:>10}{:>10}{:>10}{:>10}", "milliseconds", "p50", "p99", "p99.9", "max")?;
        for (label, spread) in [
            ("switch call to first new response, asked continuously", &self.first_answer),
            ("switch call to first new response of the paced load", &self.first_answer_of_load),
            ("admin: switch, on disk", &self.admin_switch),
            ("admin: status", &self.admin_status),
            ("request latency from the scheduled time", &self.latency),
            ("requests sent late by", &self.sent_late_by),
        ] {
            let ms = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), |us| format!("{:.2}", us / 1000.0));
            let [p50, p99, p999, max] = [spread.p50_us, spread.p99_us, spread.p999_us, spread.max_us].map(ms);
            writeln!(out, "{label:<52}{p50:>10}{p99:>10}{p999:>10}{max:>10}")?;
        }
        for (kind, count) in &self.failures {
            writeln!(out, "FAILED {count} × {kind}")?;
        }
        Ok(())
    }
}
