//! Watches real deploys under real load: how many healthy ones are rolled back, and how soon bad ones are.
//!
//! The long form deploys ten healthy versions in each of six cells, side by side, each watched for a minute; then versions
//! that fail all, a fifth and a twentieth of their requests, five times each. The short form does a few of each.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;
use uh_benches::workdir;
use uh_testkit::http::Failure;
use uh_testkit::load::{Group, Load, Plan, Reuse, Sample};
use uh_testkit::log::json_lines;
use uh_testkit::process::{self, Finished};
use uh_testkit::uh_deploy::{CONFIG, UhDeploy};
use uh_testkit::uh_proxy::{Setup, UhProxy};
use uh_testkit::wait::free_address;

#[derive(Parser)]
#[command(about = "Watch healthy and bad deploys under load, and report which are rolled back and how soon")]
struct Options {
    /// Run a few deploys of each kind, watched for seconds: three minutes in total
    #[arg(long)]
    quick: bool,
}

/// How many deploys, and how long.
struct Scale {
    healthy: &'static [(f64, f64)],
    deploys: usize,
    watch: Duration,
    history: Duration,
    bad_runs: usize,
}

/// Base errors and requests per second.
const CELLS: [(f64, f64); 6] =
    [(0.003, 5.0), (0.003, 20.0), (0.003, 100.0), (0.008, 5.0), (0.008, 20.0), (0.008, 100.0)];

const LONG: Scale = Scale {
    healthy: &CELLS,
    deploys: 10,
    watch: Duration::from_secs(60),
    history: Duration::from_secs(30),
    bad_runs: 5,
};

const QUICK: Scale = Scale {
    healthy: &[(0.003, 20.0), (0.008, 100.0)],
    deploys: 2,
    watch: Duration::from_secs(8),
    // With less, the old version's own errors are so poorly known that 5 % might be as many.
    history: Duration::from_secs(25),
    bad_runs: 1,
};

/// The percentages that bad versions fail.
const BAD: [u32; 3] = [100, 20, 5];

/// A bad version has to be gone this long after the switch.
const ROLLED_BACK_WITHIN: Duration = Duration::from_secs(10);

/// How long a command may take beyond its watch.
const COMMAND_MARGIN: Duration = Duration::from_secs(60);

/// How versions are judged.
const SETTINGS: &str = "[monitor]\ninterval = \"1s\"\n[health]\ninterval = \"100ms\"";

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let options = Options::parse();
    let scale = if options.quick { &QUICK } else { &LONG };
    workdir::run(async |dir| run(scale, dir).await)
}

async fn run(scale: &'static Scale, dir: &Path) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "Healthy deploys, each watched for {} s, interval 1 s\n", scale.watch.as_secs())?;
    writeln!(out, "| base errors | requests/s | deploys | rolled back | requests watched, errors |")?;
    writeln!(out, "|---|---|---|---|---|")?;
    let mut cells = JoinSet::new();
    for (index, (errors, rate)) in scale.healthy.iter().copied().enumerate() {
        let dir = dir.join(format!("healthy-{index}"));
        cells.spawn_local(async move { (index, healthy(scale, dir, errors, rate).await) });
    }
    let mut rows = cells.join_all().await;
    rows.sort_by_key(|(index, _)| *index);
    let mut wrong = 0;
    for (index, row) in rows {
        let (errors, rate) = scale.healthy[index];
        let (rolled_back, seen) = row.with_context(|| format!("{:.1} % at {rate}/s", errors * 100.0))?;
        wrong += rolled_back;
        let (deploys, percent) = (scale.deploys, errors * 100.0);
        writeln!(out, "| {percent:.1} % | {rate} | {deploys} | {rolled_back} | {seen} |")?;
    }
    writeln!(out, "\nBad versions at 100/s (base errors 0.3 %), interval 1 s\n")?;
    writeln!(out, "| errors | seconds from the switch to the end of the rollback |")?;
    writeln!(out, "|---|---|")?;
    let mut late: Vec<f64> = Vec::new();
    for percent in BAD {
        let dir = dir.join(format!("bad-{percent}"));
        let mut seconds = bad(scale, &dir, percent).await.with_context(|| format!("{percent} % errors"))?;
        seconds.sort_by(f64::total_cmp);
        late.extend(seconds.iter().filter(|s| **s > ROLLED_BACK_WITHIN.as_secs_f64()));
        let texts: Vec<String> = seconds.iter().map(|s| format!("{s:.1}")).collect();
        writeln!(out, "| {percent} % | {} |", texts.join(", "))?;
    }
    ensure!(wrong == 0, "{wrong} healthy deploys were rolled back");
    ensure!(
        late.is_empty(),
        "bad versions stayed active longer than {} s: {late:?}",
        ROLLED_BACK_WITHIN.as_secs()
    );
    Ok(())
}

/// How many were rolled back, and what the watches saw.
async fn healthy(scale: &Scale, dir: PathBuf, errors: f64, rate: f64) -> Result<(usize, String)> {
    let stage = Trial::start(&dir).await?;
    stage.deploy("1.0.0", "").await?;
    let load = load(stage.front_door.address, rate, errors)?;
    sleep(scale.history).await;
    let mut rolled_back = 0;
    for deploy in 1..=scale.deploys {
        let finished = stage.watched(&format!("1.0.{deploy}"), "", scale.watch).await?;
        match finished.status.code() {
            Some(0) => {}
            Some(3) => rolled_back += 1,
            code => anyhow::bail!("a healthy deploy ended with {code:?}:\n{}", finished.output),
        }
    }
    let watches = stage.history()?.into_iter().filter(|line| line["command"] == "watch");
    let figures: Vec<String> = watches
        .filter_map(|line| Some(line["remarks"][0].as_str()?.split(" (").next()?.to_owned()))
        .collect();
    stop(load).await?;
    Ok((rolled_back, figures.join("; ")))
}

/// Seconds from each switch to the end of its rollback.
async fn bad(scale: &Scale, dir: &Path, percent: u32) -> Result<Vec<f64>> {
    let stage = Trial::start(dir).await?;
    stage.deploy("1.0.0", "").await?;
    let load = load(stage.front_door.address, 100.0, 0.003)?;
    sleep(scale.history).await;
    let mut seconds = Vec::new();
    for run in 1..=scale.bad_runs {
        let env = format!("FAIL_PERCENT = \"{percent}\"");
        let finished = stage.watched(&format!("1.1.{run}"), &env, Duration::from_secs(60)).await?;
        let code = finished.status.code();
        ensure!(code == Some(3), "ended with {code:?} and not 3:\n{}", finished.output);
        seconds.push(stage.switch_to_rollback()?);
        // The old version's activation, with which the next one is compared, begins again.
        sleep(scale.history).await;
    }
    stop(load).await?;
    Ok(seconds)
}

struct Trial {
    front_door: UhProxy,
    controller: UhDeploy,
}

impl Trial {
    async fn start(dir: &Path) -> Result<Self> {
        fs::create_dir(dir)?;
        let addresses = [free_address(), free_address()];
        let setup = Setup::new(dir, addresses[0], addresses[1]).active("green");
        let front_door = setup.start().await?;
        let mut controller = UhDeploy::new(dir, &setup.socket(), addresses)?;
        controller.add(SETTINGS);
        Ok(Self { front_door, controller })
    }

    async fn deploy(&self, version: &str, env: &str) -> Result<()> {
        let finished = self.run(&["blue-green", "--version", version], env, COMMAND_MARGIN).await?;
        ensure!(finished.status.success(), "the first deploy failed:\n{}", finished.output);
        Ok(())
    }

    async fn watched(&self, version: &str, env: &str, watch: Duration) -> Result<Finished> {
        let length = format!("{}s", watch.as_secs());
        let args = ["blue-green", "--version", version, "--watch", &length, "--auto-rollback"];
        self.run(&args, env, watch + COMMAND_MARGIN).await
    }

    async fn run(&self, args: &[&str], env: &str, within: Duration) -> Result<Finished> {
        self.controller.configure(CONFIG, &format!("[runtime.process]\nenv = {{ {env} }}"))?;
        process::run(self.controller.command(CONFIG, args)?, within).await
    }

    fn history(&self) -> Result<Vec<Value>> {
        json_lines(&self.controller.state_dir().join("history.jsonl"))
    }

    /// From what the controller has written down: when uh-proxy switched, and when the rollback was over.
    fn switch_to_rollback(&self) -> Result<f64> {
        let at =
            |value: &Value| -> Result<jiff::Timestamp> { Ok(value.as_str().context("no time")?.parse()?) };
        let watch: Value =
            serde_json::from_slice(&fs::read(self.controller.state_dir().join("watch.json"))?)?;
        let history = self.history()?;
        let rollback = history.iter().rfind(|line| line["command"] == "rollback").context("no rollback")?;
        Ok(at(&rollback["at"])?.duration_since(at(&watch["began_at"])?).as_secs_f64())
    }
}

/// Requests that arrive at random, each on a connection of its own; some ask for an error, whichever version serves.
fn load(target: SocketAddr, rate: f64, errors: f64) -> Result<Load> {
    let group = |path: &str, clients, share| Group {
        path: path.to_owned(),
        clients,
        rate: rate * share,
        reuse: Reuse::Never,
    };
    let groups = vec![group("/", 20, 1.0 - errors), group("/status/500", 2, errors)];
    Load::start_at_random(Plan { target, groups, request_timeout: REQUEST_TIMEOUT })
}

async fn stop(load: Load) -> Result<()> {
    let samples = load.stop().await?.samples;
    let answered = |sample: &&Sample| matches!(sample.outcome, Ok(_) | Err(Failure::BadStatus(_)));
    let unanswered = samples.len() - samples.iter().filter(answered).count();
    if unanswered > 0 {
        // Those are no part of the trial, but whoever reads its table has to know.
        let _ = writeln!(io::stderr(), "{unanswered} requests got no response");
    }
    Ok(())
}
