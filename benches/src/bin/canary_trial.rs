//! Tries real canary deploys under real load: how soon bad versions lose their clients and how many of these they hit, and
//! whether healthy ones are ever stopped.
//!
//! Each cell has a uh-proxy and an old version of its own, and a thousand users whose requests arrive at random. One new
//! version after another is deployed there. Several cells run side by side, and with `--parallel` several deploys of a cell.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use tokio::task::{JoinHandle, JoinSet, spawn_local};
use tokio::time::{sleep, sleep_until, timeout};
use uh_benches::workdir;
use uh_testkit::http::{Connection, Failure, Head};
use uh_testkit::process;
use uh_testkit::uh_deploy::{CONFIG, UhDeploy};
use uh_testkit::uh_proxy::{Setup, UhProxy};
use uh_testkit::wait::free_address;

#[derive(Parser)]
#[command(
    about = "Deploy bad and healthy versions as canaries under load, and report who is stopped, how soon, and who was hit"
)]
struct Options {
    /// How many deploys of each bad version, and of each healthy one in an outage
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Only cells whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// How many cells run at the same time
    #[arg(long, default_value_t = 4)]
    side_by_side: usize,
    /// How many deploys of one cell run at the same time, each with a uh-proxy and users of its own. For cells with little
    /// traffic, whose deploys take minutes and leave the machine idle
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MAX_PARALLEL))]
    parallel: u16,
}

/// Each has some ten processes and open ports, and a machine that is busy makes versions slow.
const MAX_PARALLEL: i64 = 30;

const USERS: u32 = 1000;

/// What is known of the old version before a trial.
const HISTORY: Duration = Duration::from_secs(60);

/// A user gives up after this time, and counts as hit after less.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const TOO_LONG: Duration = Duration::from_millis(500);

const COMMAND_TIMEOUT: Duration = Duration::from_secs(1200);

/// Steps up to 50 % as they are by default, then a short watch.
const CANARY: &str = "[canary]\nwatch = \"30s\"\n[health]\ninterval = \"100ms\"";

/// What users ask for.
#[derive(Clone, Copy)]
struct Traffic {
    per_second: f64,
    /// The share of requests that fail on both versions.
    errors: f64,
    /// The share of requests that take 2 s on both versions.
    reports: f64,
}

/// What is tried.
struct Kind {
    name: &'static str,
    traffic: Traffic,
    /// The environment of the old version, and of the new one.
    old: &'static str,
    new: &'static str,
    /// `split.rescue`.
    rescue: bool,
    /// 30 % of all requests fail on both versions, for 10 s of each trial.
    outage: bool,
    expected: Expected,
}

enum Expected {
    /// It is stopped. Nine of ten within this time, and nine of ten with at most so many users hit.
    Stopped { seconds: f64, hit: usize },
    /// All its deploys succeed.
    Kept,
}

const USUAL: Traffic = Traffic { per_second: 100.0, errors: 0.003, reports: 0.0 };

const fn bad(name: &'static str, new: &'static str, seconds: f64, hit: usize) -> Kind {
    let expected = Expected::Stopped { seconds, hit };
    Kind { name, traffic: USUAL, old: "", new, rescue: false, outage: false, expected }
}

const fn healthy(name: &'static str, traffic: Traffic) -> Kind {
    Kind { name, traffic, old: "", new: "", rescue: false, outage: false, expected: Expected::Kept }
}

const KINDS: [Kind; 14] = [
    bad("bad: fails 5 %", "FAIL_PERCENT = \"5\"", 10.0, 15),
    bad("bad: fails all", "FAIL_PERCENT = \"100\"", 1.0, 10),
    bad("bad: all take 400 ms more", "FAIL_PERCENT = \"100\", FAIL_HOW = \"late\"", 15.0, 1000),
    // Slowness counts from the tenth second on, and these are few.
    bad("bad: 10 % take 400 ms more", "FAIL_PERCENT = \"10\", FAIL_HOW = \"late\"", 20.0, 1000),
    bad("bad: hangs", "FAIL_PERCENT = \"100\", FAIL_HOW = \"hang\"", 5.0, 1000),
    Kind { rescue: true, ..bad("bad: fails 5 %, rescued", "FAIL_PERCENT = \"5\"", 10.0, 2) },
    Kind { rescue: true, ..bad("bad: fails all, rescued", "FAIL_PERCENT = \"100\"", 1.0, 2) },
    Kind {
        traffic: Traffic { per_second: 5.0, ..USUAL },
        ..bad("bad: fails 5 %, at 5/s", "FAIL_PERCENT = \"5\"", 300.0, 1000)
    },
    Kind {
        old: "FAIL_PERCENT = \"3\"",
        new: "FAIL_PERCENT = \"1\"",
        ..healthy("healthy: 3 %, then 1 %", USUAL)
    },
    Kind { old: "FAIL_PERCENT = \"5\"", new: "FAIL_PERCENT = \"5\"", ..healthy("healthy: both 5 %", USUAL) },
    Kind { outage: true, ..healthy("healthy: outage of both", USUAL) },
    healthy("healthy: reports of 2 s", Traffic { reports: 0.08, ..USUAL }),
    Kind {
        new: "FAIL_PERCENT = \"100\", FAIL_HOW = \"late\", FAIL_FOR_MS = \"10000\"",
        ..healthy("healthy: warms up for 10 s", USUAL)
    },
    healthy("healthy: 0.8 % at 5/s", Traffic { per_second: 5.0, errors: 0.008, reports: 0.0 }),
];

fn main() -> ExitCode {
    let options = Options::parse();
    workdir::run(async |dir| run(&options, dir).await)
}

async fn run(options: &Options, dir: &Path) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{} deploys each, {USERS} users, {} s of history\n", options.runs, HISTORY.as_secs())?;
    writeln!(
        out,
        "| version | stopped | seconds on the new version, median and p90 | users hit, median and p90 | not as expected |"
    )?;
    writeln!(out, "|---|---|---|---|---|")?;
    let chosen = KINDS.iter().enumerate().filter(|(_, kind)| kind.name.contains(&options.only));
    let mut waiting: Vec<_> = chosen.rev().collect();
    let (mut cells, mut faults) = (JoinSet::new(), Vec::new());
    loop {
        while cells.len() < options.side_by_side
            && let Some((index, kind)) = waiting.pop()
        {
            let (dir, runs) = (dir.join(index.to_string()), options.runs);
            let parallel = usize::from(options.parallel);
            cells.spawn_local(async move { (kind, in_parallel(kind, &dir, runs, parallel).await) });
        }
        let Some(done) = cells.join_next().await else { break };
        let (kind, trials) = done?;
        let trials = trials.with_context(|| kind.name)?;
        let fault = kind.judge(&trials);
        writeln!(out, "| {} | {} | {} |", kind.name, describe(&trials), fault.as_deref().unwrap_or(""))?;
        faults.extend(fault.map(|fault| format!("{}: {fault}", kind.name)));
    }
    ensure!(faults.is_empty(), "not as expected: {}", faults.join("; "));
    Ok(())
}

/// How one deploy went.
struct Trial {
    stopped: bool,
    /// From the first request on the new version to the last one before it was stopped.
    exposed: Duration,
    /// Users who failed or waited too long on the new version.
    hit: usize,
}

impl Kind {
    fn judge(&self, trials: &[Trial]) -> Option<String> {
        let stopped = trials.iter().filter(|trial| trial.stopped).count();
        match self.expected {
            Expected::Kept => (stopped > 0).then(|| format!("{stopped} were stopped")),
            Expected::Stopped { .. } if stopped < trials.len() => {
                Some(format!("{} weren't stopped", trials.len() - stopped))
            }
            Expected::Stopped { seconds, hit } => {
                let late = p90(trials, |trial| trial.exposed.as_secs_f64()) > seconds;
                let many = p90(trials, |trial| trial.hit as f64) > hit as f64;
                (late || many).then(|| format!("more than {seconds} s or {hit} users"))
            }
        }
    }
}

fn sorted(trials: &[Trial], figure: impl Fn(&Trial) -> f64) -> Vec<f64> {
    let mut figures: Vec<f64> = trials.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures
}

/// Nine of ten are at most this.
fn p90(trials: &[Trial], figure: impl Fn(&Trial) -> f64) -> f64 {
    let figures = sorted(trials, figure);
    figures[(figures.len() * 9).div_ceil(10) - 1]
}

fn describe(trials: &[Trial]) -> String {
    let stopped = trials.iter().filter(|trial| trial.stopped).count();
    let median = |figure: fn(&Trial) -> f64| sorted(trials, figure)[trials.len() / 2];
    let (seconds, hit) = (|trial: &Trial| trial.exposed.as_secs_f64(), |trial: &Trial| trial.hit as f64);
    format!(
        "{stopped} of {} | {:.1}, {:.1} | {}, {}",
        trials.len(),
        median(seconds),
        p90(trials, seconds),
        median(hit),
        p90(trials, hit)
    )
}

/// Divides the deploys of a cell among several that are alike.
async fn in_parallel(kind: &'static Kind, dir: &Path, runs: usize, parallel: usize) -> Result<Vec<Trial>> {
    fs::create_dir(dir)?;
    let mut parts = JoinSet::new();
    for part in 0..parallel.min(runs) {
        let dir = dir.join(part.to_string());
        let share = (runs - part).div_ceil(parallel);
        parts.spawn_local(async move { cell(kind, &dir, share).await });
    }
    let mut trials = Vec::new();
    while let Some(part) = parts.join_next().await {
        trials.extend(part??);
    }
    Ok(trials)
}

async fn cell(kind: &Kind, dir: &Path, runs: usize) -> Result<Vec<Trial>> {
    fs::create_dir(dir)?;
    let addresses = [free_address(), free_address()];
    let split = if kind.rescue { "[services.app.split]\nrescue = true" } else { "" };
    let setup = Setup::new(dir, addresses[0], addresses[1])
        .active("green")
        .server("trusted_proxies = [\"127.0.0.1\"]")
        .service(split);
    let front_door = setup.start().await?;
    let mut controller = UhDeploy::new(dir, &setup.socket(), addresses)?;
    controller.add(CANARY);
    let mut trials = Vec::new();
    let mut users = None;
    for run in 0..runs {
        if users.is_none() {
            // The first one, and the next one after a healthy one: what it is compared with has to be the old version.
            let code = deploy(&controller, &format!("1.{run}.0"), kind.old, true).await?;
            ensure!(code == 0, "the old version can't be deployed: exit code {code}");
            users = Some(Users::start(front_door.address, kind.traffic));
            sleep(HISTORY).await;
        }
        let users_now = users.as_ref().context("there are users")?;
        let old = active(&front_door).await?;
        users_now.forget();
        let outage = kind.outage.then(|| users_now.outage());
        let code = deploy(&controller, &format!("1.{run}.1"), kind.new, false).await?;
        if let Some(outage) = outage {
            outage.abort();
        }
        users_now.fails.set(false);
        if code != 0 {
            // Who hangs on the new version notices it later.
            sleep(if kind.new.contains("hang") { REQUEST_TIMEOUT } else { Duration::from_secs(1) }).await;
        }
        match code {
            0 | 3 => trials.push(users_now.trial(&old, code == 3)),
            code => bail!("{}: a deploy ended with {code}", kind.name),
        }
        if code == 0 {
            users.take().context("there are users")?.stop();
        }
    }
    if let Some(users) = users {
        users.stop();
    }
    Ok(trials)
}

async fn active(front_door: &UhProxy) -> Result<String> {
    let status = front_door.client.status().await?;
    Ok(status.services.first().context("there is a service")?.active.to_string())
}

/// Deploys a version with this environment, and returns the exit code.
async fn deploy(controller: &UhDeploy, version: &str, env: &str, at_once: bool) -> Result<i32> {
    controller.configure(CONFIG, &format!("[runtime.process]\nenv = {{ {env} }}"))?;
    let mut args = vec!["blue-green", "--version", version];
    args.extend(at_once.then_some("--no-canary"));
    let finished = process::run(controller.command(CONFIG, &args)?, COMMAND_TIMEOUT).await?;
    let code = finished.status.code().context("it was killed")?;
    ensure!([0, 3].contains(&code), "uh-deploy ended with {code}:\n{}", finished.output);
    Ok(code)
}

/// One request.
struct Seen {
    sent_at: Instant,
    user: u32,
    /// Who answered; `None`: nobody did.
    by: Option<String>,
    fine: bool,
}

/// Users whose requests arrive at random.
struct Users {
    seen: Rc<RefCell<Vec<Seen>>>,
    /// 30 % of all requests fail on any version.
    fails: Rc<Cell<bool>>,
    arrivals: JoinHandle<()>,
}

impl Users {
    fn start(target: SocketAddr, traffic: Traffic) -> Self {
        let (seen, fails) = (Rc::<RefCell<Vec<Seen>>>::default(), Rc::<Cell<bool>>::default());
        let arrivals = spawn_local({
            let (seen, fails) = (Rc::clone(&seen), Rc::clone(&fails));
            async move {
                let mut next = tokio::time::Instant::now();
                loop {
                    next += Duration::from_secs_f64(-fastrand::f64().max(1e-9).ln() / traffic.per_second);
                    sleep_until(next).await;
                    let seen = Rc::clone(&seen);
                    let request = request(traffic, fails.get());
                    spawn_local(async move {
                        let request = ask(target, request).await;
                        seen.borrow_mut().push(request);
                    });
                }
            }
        });
        Self { seen, fails, arrivals }
    }

    fn stop(self) {
        self.arrivals.abort();
    }

    fn forget(&self) {
        self.seen.borrow_mut().clear();
    }

    /// Soon after the new version has got its first clients, everything fails for a while.
    fn outage(&self) -> JoinHandle<()> {
        let fails = Rc::clone(&self.fails);
        spawn_local(async move {
            sleep(Duration::from_secs(5 + fastrand::u64(0..30))).await;
            fails.set(true);
            sleep(Duration::from_secs(10)).await;
            fails.set(false);
        })
    }

    fn trial(&self, old: &str, stopped: bool) -> Trial {
        let seen = self.seen.borrow();
        let on_new: Vec<&Seen> = seen.iter().filter(|seen| seen.by.as_deref() != Some(old)).collect();
        let sent = || on_new.iter().map(|seen| seen.sent_at);
        let exposed = sent().max().zip(sent().min()).map_or(Duration::ZERO, |(last, first)| last - first);
        let hit: HashSet<u32> = on_new.iter().filter(|seen| !seen.fine).map(|seen| seen.user).collect();
        Trial { stopped, exposed, hit: hit.len() }
    }
}

/// A user, and what it asks for. By far the most pages take some 8 ms, the slowest twentieth 20 ms or more.
fn request(traffic: Traffic, outage: bool) -> (u32, String) {
    let errors = if outage { 0.3 } else { traffic.errors };
    let path = match fastrand::f64() {
        at if at < errors => "/status/500".to_owned(),
        at if at > 1.0 - traffic.reports => "/slow?ms=2000".to_owned(),
        _ => {
            // The sum of twelve is as good as normal.
            let normal = (0..12).map(|_| fastrand::f64()).sum::<f64>() - 6.0;
            format!("/slow?ms={}", (8.0 * (0.56 * normal).exp()) as u64)
        }
    };
    (fastrand::u32(0..USERS), path)
}

async fn ask(target: SocketAddr, (user, path): (u32, String)) -> Seen {
    let client = Ipv4Addr::from(0x0a00_0000 + user);
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: app\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n");
    let sent_at = Instant::now();
    let exchange =
        async { Connection::open(target).await?.exchange(request.as_bytes(), &mut Vec::new()).await };
    let answer = timeout(REQUEST_TIMEOUT, exchange).await.unwrap_or(Err(Failure::TimedOut));
    // What any version would do to it is no harm.
    let asked_for_it = path.starts_with("/status") || path.ends_with("=2000");
    let good = |head: &Head| head.status == 200 && sent_at.elapsed() < TOO_LONG;
    let fine = asked_for_it || answer.as_ref().is_ok_and(good);
    let by = answer.ok().and_then(|head| head.backend).map(|backend| backend.to_string());
    Seen { sent_at, user, by, fine }
}
