//! The demo: the real programs under real load, with deploys, a rollback, a canary deploy and bad versions.

use std::collections::HashSet;
use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use uh_benches::percentiles::{Times, grouped, milliseconds};
use uh_benches::picture::{Picture, Span};
use uh_benches::workdir;
use uh_testkit::http::Failure;
use uh_testkit::judgement::{Switch, Verdict};
use uh_testkit::load::{Group, Load, Plan, Recording, Reuse, Sample};
use uh_testkit::process;
use uh_testkit::uh_deploy::{CONFIG, UhDeploy};
use uh_testkit::uh_proxy::{Setup, UhProxy};
use uh_testkit::wait::free_address;
use uh_testkit::websocket::WebSocket;

/// A request without a complete response after this has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// No command of the demo should take a third of this.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How long uh-proxy may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Load before the first command and after the last.
const BREATH: Duration = Duration::from_secs(1);

/// How long the WebSocket holds up the drain of the deploy that it is open across.
const HOLD: Duration = Duration::from_secs(3);

/// The load is that of a proxy with this many users behind it: a trial compares users.
const USERS: NonZeroU32 = NonZeroU32::new(2_000).unwrap();
const TRUSTED: &str = "trusted_proxies = [\"127.0.0.1\"]";

/// One text and its echo.
const ECHO_INTERVAL: Duration = Duration::from_millis(50);
const ECHO_TIMEOUT: Duration = Duration::from_secs(5);

/// How uh-proxy probes the apps.
const HEALTH: &str = "[services.app.health]\ninterval = \"100ms\"\nhealthy_after = 1";

/// What `uh-deploy` checks, before and after a deploy.
const CHECKS: &str = "[monitor]\ninterval = \"1s\"\nbreach_after = 1\n[health]\ninterval = \"100ms\"";

/// A version that never becomes healthy, and one that looks healthy.
const UNHEALTHY: &str = "[health]\nwithin = \"1s\"\n[runtime.process]\nenv = { UNHEALTHY = \"1\" }";
const FAILING: &str = "[runtime.process]\nenv = { FAIL_PERCENT = \"25\" }";

/// Some of the users get a version first.
const CANARY: &str = "[canary]";

/// Exit codes of `uh-deploy`.
const DONE: i32 = 0;
const FAILED: i32 = 1;
const ROLLED_BACK: i32 = 3;

#[derive(Parser)]
#[command(about = "Deploys good and bad versions of a live app under load, and rolls back")]
struct Options {
    /// Draw what happens until the version that fails requests comes, as an SVG file.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    workdir::run(async |dir: &Path| run(dir, &options).await)
}

async fn run(dir: &Path, options: &Options) -> Result<()> {
    let mut demo = Demo::start(dir).await?;
    demo.step("Check the machine before the first deploy")?;
    demo.command(DONE, &["validate"]).await?;

    demo.step("Deploy 1.0.0, the first version")?;
    demo.command(DONE, &["blue-green", "--version", "1.0.0"]).await?;
    demo.forget_switches("blue")?;

    demo.step("Start the load, and deploy 1.0.1")?;
    let load = Load::start_for_users(plan(demo.front_door.address), USERS)?;
    demo.page
        .line("   64 keep-alive clients (16 of them wait 200 ms for each answer), 50 new connections/s,")?;
    demo.page.line(format!("   all for {} users who are known by X-Forwarded-For,", grouped(users())))?;
    demo.page.line("   and one WebSocket, which stays on the version that accepted it")?;
    sleep(BREATH).await;
    let socket = Echo::open(demo.front_door.address, "blue").await?;
    let echoes = tokio::spawn(async {
        sleep(HOLD).await;
        socket.close().await
    });
    demo.switching(DONE, &["blue-green", "--version", "1.0.1"], &["green"]).await?;
    let echoes = echoes.await??;
    demo.page.line(format!("   the WebSocket received all {} echoes", grouped(echoes)))?;
    demo.so_far(&load)?;

    demo.step("Roll back with one command")?;
    demo.switching(DONE, &["rollback"], &["blue"]).await?;
    let rolled_back = demo.switches.len() - 1;
    sleep(BREATH).await;
    demo.so_far(&load)?;

    demo.step("Deploy 1.0.2, which never becomes healthy")?;
    demo.controller.configure(CONFIG, UNHEALTHY)?;
    demo.command(FAILED, &["blue-green", "--version", "1.0.2"]).await?;
    demo.so_far(&load)?;

    demo.step("Deploy 1.0.3, which looks healthy but fails every fourth request, and watch it")?;
    demo.controller.configure(CONFIG, FAILING)?;
    let watched = ["blue-green", "--version", "1.0.3", "--watch", "20s", "--auto-rollback"];
    let watched = demo.bad_version("1.0.3", &watched, "Rolling back automatically").await?;
    sleep(BREATH).await;

    demo.step("Deploy 1.0.4, which is as bad, as a canary: one user in ten gets it first")?;
    demo.controller.configure(CONFIG, &format!("{FAILING}\n{CANARY}"))?;
    let tried = ["blue-green", "--version", "1.0.4"];
    let canary = demo.bad_version("1.0.4", &tried, "Trial: fail").await?;
    sleep(BREATH).await;

    demo.step("History")?;
    demo.command(DONE, &["history"]).await?;
    let recording = load.stop().await?;
    let Demo { page, front_door, controller, switches, spans, started } = demo;
    front_door.stop(STOP_WITHIN).await?;
    drop(controller);
    let hit = summary(&page, &recording, &switches, rolled_back, [&watched, &canary])?;
    if let Some(file) = &options.picture {
        let backends = [("blue", "blue, 1.0.0"), ("green", "green, 1.0.1")];
        let from = recording.samples.first().context("no requests")?.sent_at;
        let picture =
            Picture { samples: &recording.samples, backends, spans: &spans, from, to: watched.from };
        fs::write(file, picture.svg()).with_context(|| format!("can't write {}", file.display()))?;
    }
    page.line(format!(
        "\nNo client noticed anything except the bad versions' own errors. Without a trial, 1.0.3 hit {} of {} users.\nWith one, 1.0.4 hit {}, and its trial stopped it. {:.1} s in total.\nNext: the same by hand, and with your app: docs/quickstart.md",
        grouped(hit[0]),
        grouped(users()),
        grouped(hit[1]),
        started.elapsed().as_secs_f64()
    ))
}

/// A version that fails requests, and when it was there.
struct BadVersion {
    version: &'static str,
    from: Instant,
    until: Instant,
}

impl BadVersion {
    /// Whether this is an error of its own.
    fn answered(&self, sample: &Sample) -> bool {
        sample.outcome == Err(Failure::BadStatus(500))
            && sample.sent_at >= self.from
            && sample.done_at <= self.until
    }
}

fn users() -> usize {
    usize::try_from(USERS.get()).unwrap_or(usize::MAX)
}

/// Prints what the clients saw, and fails if anything went wrong except the bad versions' own errors. Returns how many
/// users each of these hit.
fn summary(
    page: &Page,
    recording: &Recording,
    switches: &[Switch],
    rolled_back: usize,
    bad: [&BadVersion; 2],
) -> Result<[usize; 2]> {
    let own = bad.map(|bad| recording.samples.iter().filter(|s| bad.answered(s)).collect::<Vec<_>>());
    let hit = own.each_ref().map(|own| own.iter().filter_map(|s| s.user).collect::<HashSet<_>>().len());
    let rest = Recording {
        samples: recording
            .samples
            .iter()
            .filter(|sample| !bad.iter().any(|bad| bad.answered(sample)))
            .cloned()
            .collect(),
        closed_by_server: recording.closed_by_server,
    };
    let verdict = Verdict::of(&rest, &"blue".parse()?, switches);
    let quick: Times = rest.samples.iter().filter(|s| s.group != 1).map(|s| s.latency).collect();
    let row = |label: &str, value: String| page.line(format!("   {label:<58}{value:>10}"));
    page.line("\nResults, as seen by the clients")?;
    row("requests", grouped(recording.samples.len()))?;
    for ((bad, own), hit) in bad.iter().zip(&own).zip(hit) {
        row(&format!("500 responses of version {}", bad.version), grouped(own.len()))?;
        row(&format!("users who got one, of {}", grouped(users())), grouped(hit))?;
    }
    row("other failures", grouped(verdict.failed()))?;
    row("client connections closed by uh-proxy", grouped(verdict.closed_by_server))?;
    row("responses from an inactive version", grouped(verdict.old_answers.len()))?;
    row("rollback: from command to first response", milliseconds(verdict.first_answers[rolled_back]))?;
    row("latency of quick requests, p50", milliseconds(quick.at(500)))?;
    row("latency of quick requests, p99", milliseconds(quick.at(990)))?;
    let faults = verdict.faults();
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    for (bad, own) in bad.iter().zip(&own) {
        ensure!(!own.is_empty(), "version {} failed no request, so the demo shows nothing", bad.version);
    }
    ensure!(hit[1] < hit[0], "the canary hit {} users, and the whole deploy {}", hit[1], hit[0]);
    Ok(hit)
}

fn plan(target: SocketAddr) -> Plan {
    let quick = Group { path: "/".to_owned(), clients: 48, rate: 960.0, reuse: Reuse::KeepAlive };
    // One request at a time for most of the time: some are always open when a switch comes.
    let slow = Group { path: "/slow?ms=200".to_owned(), clients: 16, rate: 64.0, reuse: Reuse::KeepAlive };
    let new = Group { path: "/".to_owned(), clients: 8, rate: 50.0, reuse: Reuse::Never };
    Plan { target, groups: vec![quick, slow, new], request_timeout: REQUEST_TIMEOUT }
}

/// uh-proxy, the controller, and what was done with them.
struct Demo {
    page: Page,
    controller: UhDeploy,
    front_door: UhProxy,
    switches: Vec<Switch>,
    spans: Vec<Span>,
    started: Instant,
}

impl Demo {
    async fn start(dir: &Path) -> Result<Self> {
        let started = Instant::now();
        let mut page = Page { step: 0 };
        page.line("Deploys good and bad versions of a live app while clients keep using it.")?;
        page.step("Start uh-proxy without a backend")?;
        let [blue, green] = [free_address(), free_address()];
        // Green is active at first, so that the first deploy goes to blue.
        let setup = Setup::new(dir, blue, green).active("green").server(TRUSTED).service(HEALTH);
        let front_door = setup.start().await?;
        page.fact("uh-proxy", front_door.address)?;
        page.fact("blue (once started)", blue)?;
        page.fact("green (once started)", green)?;
        let mut controller = UhDeploy::new(dir, &setup.socket(), [blue, green])?;
        let (program, config) = (process::program("uh-proxy")?, setup.config_file());
        controller.add(&format!("[deploy.proxy]\nprogram = {program:?}\nconfig = {config:?}\n{CHECKS}"));
        controller.configure(CONFIG, "")?;
        Ok(Self { page, controller, front_door, switches: Vec::new(), spans: Vec::new(), started })
    }

    fn step(&mut self, title: &str) -> Result<()> {
        self.page.step(title)
    }

    /// Runs a command, shows its output, and checks its exit code. Returns the output.
    async fn command(&mut self, code: i32, args: &[&str]) -> Result<String> {
        self.page.line(format!("   $ uh-deploy {}", args.join(" ")))?;
        let from = Instant::now();
        let finished = process::run(self.controller.command(CONFIG, args)?, COMMAND_TIMEOUT).await?;
        let label = format!("uh-deploy {}", args.join(" "));
        self.spans.push(Span { label, from, to: Instant::now() });
        for line in finished.output.lines() {
            self.page.line(format!("   {line}").trim_end())?;
        }
        let ended = finished.status.code();
        ensure!(ended == Some(code), "uh-deploy {} ended with {ended:?}, not {code}", args.join(" "));
        self.page.line(format!("   (exit code {code})"))?;
        Ok(finished.output)
    }

    /// A command in which traffic moves to these backends, one after the other.
    async fn switching(&mut self, code: i32, args: &[&str], to: &[&str]) -> Result<String> {
        let called_at = Instant::now();
        let output = self.command(code, args).await?;
        let replied_at = Instant::now();
        for to in to {
            self.switches.push(Switch { to: to.parse()?, called_at, replied_at });
        }
        Ok(output)
    }

    /// Deploys a version that gets clients and then loses them to blue, because it fails requests, and checks that the
    /// command says this.
    async fn bad_version(&mut self, version: &'static str, args: &[&str], says: &str) -> Result<BadVersion> {
        let from = Instant::now();
        let output = self.switching(ROLLED_BACK, args, &["green", "blue"]).await?;
        ensure!(output.contains(says), "uh-deploy {} doesn't say {says:?}", args.join(" "));
        Ok(BadVersion { version, from, until: Instant::now() })
    }

    /// The load begins now: earlier switches don't count.
    fn forget_switches(&mut self, active: &str) -> Result<()> {
        self.switches.clear();
        self.page.fact("active", active)
    }

    fn so_far(&self, load: &Load) -> Result<()> {
        let (requests, failures) = load.so_far();
        self.page.line(format!("   so far: {} requests, {} failed", grouped(requests), grouped(failures)))
    }
}

/// A WebSocket in the background: a text every 50 ms, each of which must come back.
struct Echo {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<usize>>,
}

impl Echo {
    async fn open(target: SocketAddr, expected: &str) -> Result<Self> {
        let opened = timeout(ECHO_TIMEOUT, WebSocket::open(target, "/ws")).await;
        let socket = opened.context("the WebSocket didn't open in time")?.context("no WebSocket")?;
        ensure!(socket.backend().as_str() == expected, "the WebSocket reached {}", socket.backend());
        let (stop, stopped) = oneshot::channel();
        Ok(Self { stop, task: tokio::spawn(echo_until(socket, stopped)) })
    }

    /// Closes it, and returns how many texts came back.
    async fn close(self) -> Result<usize> {
        // If the task has ended already, it says why.
        let _ = self.stop.send(());
        timeout(2 * ECHO_TIMEOUT, self.task)
            .await
            .context("the WebSocket doesn't close")??
            .context("WebSocket")
    }
}

async fn echo_until(mut socket: WebSocket, mut stopped: oneshot::Receiver<()>) -> Result<usize> {
    let mut echoes = 0;
    while timeout(ECHO_INTERVAL, &mut stopped).await.is_err() {
        let text = format!("message {echoes}");
        timeout(ECHO_TIMEOUT, socket.echo(&text)).await.context("no echo in time")??;
        echoes += 1;
    }
    timeout(ECHO_TIMEOUT, socket.close()).await.context("the close was not answered in time")??;
    Ok(echoes)
}

/// What the reader sees.
struct Page {
    step: usize,
}

impl Page {
    fn line(&self, text: impl Display) -> Result<()> {
        Ok(writeln!(io::stdout(), "{text}")?)
    }

    fn step(&mut self, title: &str) -> Result<()> {
        self.step += 1;
        self.line(format!("\n{}. {title}", self.step))
    }

    fn fact(&self, label: &str, value: impl Display) -> Result<()> {
        self.line(format!("   {label:<28}{value}"))
    }
}
