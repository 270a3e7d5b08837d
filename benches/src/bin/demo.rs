//! The demo: the real programs, real load, a switch, a drain and a roll back, in a few seconds.

use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use uh_benches::front_door::{FrontDoor, Setup};
use uh_benches::http::Connection;
use uh_benches::judgement::{Switch, Verdict, open_at};
use uh_benches::load::{Group, Load, Plan, Recording, Reuse};
use uh_benches::percentiles::{Times, grouped, milliseconds};
use uh_benches::process::{self, interrupted};
use uh_benches::sample_app::SampleApp;
use uh_benches::websocket::WebSocket;
use uh_benches::workdir;

/// A request without a whole answer after this has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// No command of the demo asks for more than ten seconds.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the front door may take to end.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Load before the first switch, after it, and after the roll back.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(2);
const AFTER_ROLL_BACK: Duration = Duration::from_millis(1500);

/// How long the drain is watched waiting before the WebSocket is closed.
const WATCH_DRAIN: Duration = Duration::from_secs(1);

/// The event stream is open when the switch comes, and lasts into the drain: 50 × 100 ms.
const EVENTS: usize = 50;
const EVENT_STREAM: &str = "/stream?events=50&interval_ms=100";
const EVENT_STREAM_TIMEOUT: Duration = Duration::from_secs(15);

/// One text and its echo.
const ECHO_INTERVAL: Duration = Duration::from_millis(50);
const ECHO_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut dir = None;
    let result = prepare_and_run(&mut dir);
    workdir::finish(dir, &result, io::stderr())
}

fn prepare_and_run(dir: &mut Option<TempDir>) -> Result<()> {
    let dir = dir.insert(workdir::create()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            result = run(dir.path()) => result,
            ended = interrupted() => ended,
        }
    })
}

async fn run(dir: &Path) -> Result<()> {
    let started = Instant::now();
    let mut page = Page { step: 0 };
    page.line("A live app is switched to a new version and back, while clients keep using it.")?;

    page.step("Start two versions of an app, and the front door")?;
    let blue = SampleApp::start("blue", "1.0.0", dir).await?;
    let green = SampleApp::start("green", "1.0.1", dir).await?;
    let backends = [&blue, &green];
    let front_door =
        FrontDoor::start(&Setup { dir, state_dir: dir, access_log: "json", backends, extra: "" }).await?;
    page.fact("blue, version 1.0.0", blue.address)?;
    page.fact("green, version 1.0.1", green.address)?;
    page.fact("front door", front_door.address)?;
    page.line(format!("   $ export UH_PROXY_ADMIN_SOCKET={}", front_door.admin.socket().display()))?;
    page.run(&front_door, &["status"]).await?;

    page.step("Put load on")?;
    let load = Load::start(plan(front_door.address))?;
    let socket = Echo::open(front_door.address, "blue").await?;
    let events = tokio::spawn(read_events(front_door.address));
    page.line("   64 keep-alive clients (16 of them wait 200 ms for each answer), 50 new connections/s,")?;
    page.line("   one WebSocket that echoes every 50 ms, one event stream")?;
    sleep(BEFORE).await;

    page.step("Switch to green")?;
    let to_green = page.switch(&front_door, "green").await?;
    sleep(AFTER).await;
    page.so_far(&load)?;

    page.step("Drain blue: wait until nobody uses it any more")?;
    let drained = drain(&mut page, &front_door, socket).await?;
    let events =
        timeout(EVENT_STREAM_TIMEOUT, events).await.context("the event stream does not end")???;
    page.line(format!("   the WebSocket opened on blue had {} echoes, all there", grouped(drained)))?;
    page.line(format!("   the event stream opened on blue had {events} of {EVENTS} events, all there"))?;

    page.step("Roll back to blue")?;
    let socket = Echo::open(front_door.address, "green").await?;
    let to_blue = page.switch(&front_door, "blue").await?;
    sleep(AFTER_ROLL_BACK).await;
    page.so_far(&load)?;

    page.step("Stop the load, then the front door")?;
    socket.close().await?;
    let recording = load.stop().await?;
    front_door.stop(STOP_WITHIN).await?;
    page.line("   SIGTERM: the front door ended with exit code 0")?;

    let switches = [to_green, to_blue];
    let verdict = Verdict::of(&recording, &"blue".parse()?, &switches);
    page.summary(&recording, &verdict, &switches)?;
    let faults = verdict.faults();
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    page.line(format!("\nNobody noticed. {:.1} s in all.", started.elapsed().as_secs_f64()))
}

fn plan(target: SocketAddr) -> Plan {
    let quick = Group { path: "/".to_owned(), clients: 48, rate: 960.0, reuse: Reuse::KeepAlive };
    // One request at a time for most of the time: some are always open when a switch comes.
    let slow = Group { path: "/slow?ms=200".to_owned(), clients: 16, rate: 64.0, reuse: Reuse::KeepAlive };
    let new = Group { path: "/".to_owned(), clients: 8, rate: 50.0, reuse: Reuse::Never };
    Plan { target, groups: vec![quick, slow, new], request_timeout: REQUEST_TIMEOUT }
}

/// Drains blue, closes the WebSocket that holds it, and returns how many echoes that had.
async fn drain(page: &mut Page, front_door: &FrontDoor, socket: Echo) -> Result<usize> {
    let args = ["drain", "blue", "--timeout", "10s"];
    page.command(&args)?;
    let mut drain = std::pin::pin!(process::run(front_door.command(&args), COMMAND_TIMEOUT));
    if let Ok(early) = timeout(WATCH_DRAIN, &mut drain).await {
        page.finished(&args, &early?)?;
        bail!("the drain ended while a WebSocket was open on blue");
    }
    page.line("   … it waits: the WebSocket opened before the switch stays on blue until it is closed.")?;
    page.line("   The client closes it now; the event stream ends by itself.")?;
    let echoes = socket.close().await?;
    page.finished(&args, &drain.await?)?;
    Ok(echoes)
}

/// A WebSocket in the background: a text every 50 ms, each of which must come back.
struct Echo {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<usize>>,
}

impl Echo {
    async fn open(target: SocketAddr, expected: &str) -> Result<Self> {
        let opened = timeout(ECHO_TIMEOUT, WebSocket::open(target, "/ws")).await;
        let socket = opened.context("no WebSocket in time")?.context("no WebSocket")?;
        ensure!(socket.backend().as_str() == expected, "the WebSocket reached {}", socket.backend());
        let (stop, stopped) = oneshot::channel();
        Ok(Self { stop, task: tokio::spawn(echo_until(socket, stopped)) })
    }

    /// Closes it, and says how many texts came back.
    async fn close(self) -> Result<usize> {
        // If the task has ended already, it says why.
        let _ = self.stop.send(());
        timeout(2 * ECHO_TIMEOUT, self.task)
            .await
            .context("the WebSocket does not close")??
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

/// Reads the event stream to its end, and demands that it came from blue with all events.
async fn read_events(target: SocketAddr) -> Result<usize> {
    let mut body = Vec::new();
    let request =
        format!("GET {EVENT_STREAM} HTTP/1.1\r\nhost: app.test\r\naccept: text/event-stream\r\n\r\n");
    let head = timeout(EVENT_STREAM_TIMEOUT, async {
        Connection::open(target).await?.exchange(request.as_bytes(), &mut body).await
    })
    .await
    .context("the event stream does not end")?
    .context("the event stream broke off")?;
    let backend = head.backend.context("the event stream does not say where it comes from")?;
    ensure!(head.status == 200 && backend.as_str() == "blue", "status {} from {backend}", head.status);
    let events = String::from_utf8_lossy(&body).lines().filter(|line| line.starts_with("data:")).count();
    ensure!(events == EVENTS, "the event stream had {events} of {EVENTS} events");
    Ok(events)
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
        self.line(format!("   {label:<24}{value}"))
    }

    fn so_far(&self, load: &Load) -> Result<()> {
        let (requests, failures) = load.so_far();
        self.line(format!("   so far: {} requests, {} failed", grouped(requests), grouped(failures)))
    }

    fn command(&self, args: &[&str]) -> Result<()> {
        self.line(format!("   $ uh-proxy {}", args.join(" ")))
    }

    /// Shows a command and what it says, and demands that it succeeds.
    async fn run(&self, front_door: &FrontDoor, args: &[&str]) -> Result<()> {
        self.command(args)?;
        self.finished(args, &process::run(front_door.command(args), COMMAND_TIMEOUT).await?)
    }

    fn finished(&self, args: &[&str], finished: &process::Finished) -> Result<()> {
        for line in finished.output.lines() {
            self.line(format!("   {line}").trim_end())?;
        }
        ensure!(finished.status.success(), "uh-proxy {} ended with {}", args.join(" "), finished.status);
        Ok(())
    }

    async fn switch(&self, front_door: &FrontDoor, to: &str) -> Result<Switch> {
        let called_at = Instant::now();
        self.run(front_door, &["switch", to]).await?;
        Ok(Switch { to: to.parse()?, called_at, replied_at: Instant::now() })
    }

    fn summary(&self, recording: &Recording, verdict: &Verdict, switches: &[Switch; 2]) -> Result<()> {
        let row = |label: &str, value: String| self.line(format!("   {label:<58}{value:>10}"));
        self.line("\nWhat the clients saw")?;
        row("requests", grouped(verdict.requests))?;
        row("failed", grouped(verdict.failed()))?;
        row("client connections closed by the front door", grouped(verdict.closed_by_server))?;
        row("old answers to requests sent after a switch was done", grouped(verdict.old_answers.len()))?;
        // Beside requests, the streams that were open: WebSocket and events at the first switch, WebSocket at the second.
        for ((switch, streams), first) in switches.iter().zip([2, 1]).zip(&verdict.first_answers) {
            let open = open_at(&recording.samples, switch.called_at) + streams;
            row(&format!("switch to {}: in flight when the command was given", switch.to), grouped(open))?;
            row(&format!("switch to {}: from command to first answer", switch.to), milliseconds(*first))?;
        }
        let quick: Times = recording.samples.iter().filter(|s| s.group != 1).map(|s| s.latency).collect();
        row("latency of the quick requests, p50", milliseconds(quick.at(500)))?;
        row("latency of the quick requests, p99", milliseconds(quick.at(990)))
    }
}
