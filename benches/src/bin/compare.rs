//! Measures every installed proxy in one run, and writes the costs of each to `benches/README.md`.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use tempfile::TempDir;
use uh_benches::compare::backend::Backends;
use uh_benches::compare::proxies::{ALL, DESCRIPTORS, Proxy};
use uh_benches::compare::report::Report;
use uh_benches::compare::rows::{self, Effort, LOAD_CORE, Measurements, Setting};
use uh_benches::compare::{secure, switches};
use uh_benches::machine::raise_descriptors;
use uh_benches::workdir;

/// Services of the largest setting; each has two backends.
const MAX_SERVICES: usize = 100;

/// A finer clock for the load, or it would send up to 50 µs late.
const TIMER_SLACK_NS: u64 = 1000;

/// Compare the CPU time, latency, memory and switches of proxies.
#[derive(Parser)]
struct Options {
    /// Run one short round, and print it instead of writing it to the README.
    #[arg(long)]
    quick: bool,
    /// How many times to measure each row.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=50))]
    rounds: Option<u8>,
    /// The length of each measurement, in milliseconds.
    #[arg(long, value_parser = clap::value_parser!(u32).range(50..=60_000))]
    time_ms: Option<u32>,
    /// Measure only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Measure only rows whose name contains this, for example to profile a proxy under one kind of load.
    #[arg(long, value_name = "TEXT")]
    rows: Option<String>,
    /// Measure only these proxies, by their names in the tables in lowercase.
    #[arg(long, value_delimiter = ',')]
    proxies: Vec<String>,
    /// Where to write the tables; by default, after a complete run, to `benches/README.md`.
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The rows with one worker, one service and an access log.
    Standard,
    /// Without the access log.
    NoLog,
    /// 10 and 100 services.
    Services,
    /// Two workers.
    TwoCores,
    /// Memory.
    Memory,
    /// TLS and HTTP/2.
    Secure,
    /// Switches.
    Switches,
}

impl Options {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn effort(&self) -> Effort {
        let (rounds, time_ms) = if self.quick { (1, 400) } else { (3, 1500) };
        Effort {
            rounds: self.rounds.map_or(rounds, usize::from),
            time: Duration::from_millis(self.time_ms.unwrap_or(time_ms).into()),
        }
    }

    fn is_whole(&self) -> bool {
        !self.quick && self.only.is_empty() && self.proxies.is_empty() && self.rows.is_none()
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut dir = None;
    let result = prepare_and_run(&options, &mut dir);
    workdir::finish(dir, &result, io::stderr())
}

fn prepare_and_run(options: &Options, dir: &mut Option<TempDir>) -> Result<()> {
    let most = raise_descriptors()?;
    ensure!(
        most >= DESCRIPTORS,
        "the limit of open files is {most}; the largest rows need {DESCRIPTORS} (ulimit -n)"
    );
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(TIMER_SLACK_NS))?;
    // The core of the load is chosen before this thread is kept on it.
    let core = *LOAD_CORE;
    rows::pin_the_load()?;
    let names: Vec<String> = (0..MAX_SERVICES).flat_map(|_| ["blue", "green"]).map(str::to_owned).collect();
    let backends = Backends::start(&names, core)?;
    let dir = dir.insert(workdir::create()?);
    run(options, &backends, dir.path())
}

fn run(options: &Options, backends: &Backends, dir: &Path) -> Result<()> {
    let start = Instant::now();
    let chosen = |proxy: &Proxy| {
        let name = proxy.name().to_ascii_lowercase();
        options.proxies.is_empty() || options.proxies.contains(&name)
    };
    let proxies: Vec<Proxy> =
        ALL.into_iter().filter(chosen).filter(|proxy| proxy.program().is_some()).collect();
    ensure!(!proxies.is_empty(), "none of these proxies is installed");
    let load_average = fs::read_to_string("/proc/loadavg").context("no load average")?;
    let mut report = Report {
        arguments: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        load_average: load_average.split(' ').take(2).collect::<Vec<_>>().join(", "),
        proxies: proxies.clone(),
        ..Report::default()
    };
    let peers: Vec<Proxy> = proxies.iter().copied().filter(|proxy| *proxy != Proxy::NginxByLine).collect();
    if options.has(Part::Memory) {
        for &proxy in &peers {
            say(start, &format!("memory: {}", proxy.name()))?;
            report.memory.push((proxy, rows::measure_memory(proxy, backends, dir)?));
        }
    }
    for (part, setting) in [
        (Part::Standard, Setting::Standard),
        (Part::NoLog, Setting::NoLog),
        (Part::Services, Setting::Services(10)),
        (Part::Services, Setting::Services(MAX_SERVICES)),
        (Part::TwoCores, Setting::TwoCores),
    ] {
        if options.has(part) {
            say(start, &format!("{setting:?}"))?;
            let mut samples = Measurements::new();
            let named = options.rows.as_deref().unwrap_or_default();
            rows::measure_setting(setting, named, &proxies, backends, dir, options.effort(), &mut samples)?;
            report.samples.extend(samples);
        }
    }
    if options.has(Part::Secure) {
        measure_secure(options, &peers, backends, dir, start, &mut report)?;
    }
    if options.has(Part::Switches) {
        for &proxy in &peers {
            say(start, &format!("switches: {}", proxy.name()))?;
            let count = switches::count(proxy, options.quick);
            report.switches.push((proxy, switches::measure(proxy, backends, dir, count)?));
        }
    }
    say(start, "done")?;
    write!(io::stdout(), "{}", report.markdown())?;
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    match &options.readme {
        Some(path) => report.write(path),
        None if options.is_whole() => report.write(&readme),
        None => Ok(()),
    }
}

/// TLS and HTTP/2, if there is a program to ask with.
fn measure_secure(
    options: &Options,
    peers: &[Proxy],
    backends: &Backends,
    dir: &Path,
    start: Instant,
    report: &mut Report,
) -> Result<()> {
    if !secure::is_installed() {
        let how = "apt-get install nghttp2-client";
        return Ok(say(start, &format!("TLS and HTTP/2 are left out: h2load isn't installed ({how})"))?);
    }
    say(start, "TLS and HTTP/2")?;
    let identity = secure::Identity::make(dir)?;
    let named = options.rows.as_deref().unwrap_or_default();
    report.secure = secure::measure_rows(named, peers, backends, &identity, dir, options.effort())?;
    if named.is_empty() {
        for &proxy in peers {
            report.idle_tls.push((proxy, secure::idle_connection(proxy, backends, &identity, dir)?));
        }
    }
    Ok(())
}

/// Progress, for whoever waits.
fn say(start: Instant, what: &str) -> io::Result<()> {
    writeln!(io::stderr(), "{:>4} s  {what}", start.elapsed().as_secs())
}
