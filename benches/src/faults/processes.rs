//! Processes that are killed, stopped or started twice.

use std::fs::{self, DirEntry};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::stage::{SOON, Stage, StageSetup, apps, ask};
use super::{BROKEN, Fault, FaultConditions, Outcome};
use uh_testkit::process::{program, run};
use uh_testkit::sample_app::SampleApp;

/// The faults of this file.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "uh-proxy killed",
        injected: "kill -9 just after a switch was acknowledged, then started again",
        may_fail: BROKEN,
        in_short: true,
        run: |around| Box::pin(front_killed(around)),
    },
    Fault {
        name: "uh-proxy stopped",
        injected: "SIGSTOP for 2 s, with responses in flight and timeouts of 1 s, then SIGCONT",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(front_stopped(around)),
    },
    Fault {
        name: "uh-proxy started twice",
        injected: "a second instance with the same socket and state file",
        may_fail: &[],
        in_short: true,
        run: |around| Box::pin(front_twice(around)),
    },
    Fault {
        name: "app killed",
        injected: "kill -9 of the active app within two downloads, then started again",
        may_fail: &["status 502", "closed within the body"],
        in_short: true,
        run: |around| Box::pin(app_killed(around)),
    },
    Fault {
        name: "app stopped",
        injected: "SIGSTOP of the active app for 2.5 s with a read timeout of 1 s, then SIGCONT",
        may_fail: &["status 504"],
        in_short: true,
        run: |around| Box::pin(app_stopped(around)),
    },
];

async fn front_killed(around: FaultConditions) -> Result<Outcome> {
    let apps = apps(&around.dir).await?;
    let mut stage = Stage::start(&around.dir, StageSetup::before(&apps)).await?;
    let rounds = if around.thorough { 10 } else { 2 };
    let mut slowest = Duration::ZERO;
    let mut operator = String::new();
    for round in 0..rounds {
        let to = if round % 2 == 0 { "green" } else { "blue" };
        let switched = stage.switch(to).await?;
        ensure!(switched.persisted, "the switch is not on disk");
        stage.take_front()?.process.kill()?;
        // Without uh-proxy, the command line reports that.
        let refused = stage.command(&["switch", "blue"]).await?;
        ensure!(refused.status.code() == Some(4), "exit {:?} without uh-proxy", refused.status.code());
        let begun = Instant::now();
        stage.start_front().await?;
        stage.until_answered().await?;
        slowest = slowest.max(begun.elapsed());
        operator = stage.until_said(&format!("serving service=app active={to}")).await?;
        stage.carry(20).await?;
    }
    stage.finish(operator, slowest, vec![format!("{rounds} kills, no acknowledged switch lost")]).await
}

async fn front_stopped(around: FaultConditions) -> Result<Outcome> {
    let apps = apps(&around.dir).await?;
    let timeouts = "[services.app.timeouts]\nread = \"1s\"\nclient = \"1s\"\nwrite = \"1s\"\n".to_owned();
    let mut stage =
        Stage::start(&around.dir, StageSetup { tables: timeouts, ..StageSetup::before(&apps) }).await?;
    let address = stage.address;
    // Answers that come while nobody can take them, before and after their deadline.
    let answers: Vec<_> = [300, 600, 900]
        .into_iter()
        .cycle()
        .take(30)
        .map(|ms| tokio::spawn(async move { ask(address, &format!("/slow?ms={ms}")).await }))
        .collect();
    sleep(Duration::from_millis(200)).await;
    stage.front()?.signal(Signal::STOP)?;
    until_stopped(&mut stage).await?;
    // The operator's tool must not hang indefinitely either; uh-proxy doesn't answer while it is stopped.
    let status = timeout(Duration::from_secs(1), stage.admin.status()).await;
    ensure!(status.is_err(), "a stopped uh-proxy responds");
    sleep(Duration::from_secs(1)).await;
    stage.front()?.signal(Signal::CONT)?;
    let recovery = stage.until_answered().await?;
    let mut good = 0;
    for answer in answers {
        let status = timeout(SOON, answer).await.context("a response that never arrives")??;
        ensure!(matches!(status, Ok(200)), "an answer that was there in time became {status:?}");
        good += 1;
    }
    let switched = stage.switch("green").await?;
    let operator = format!("switch: {} to {}, as usual", switched.from, switched.to);
    stage.finish(operator, recovery, vec![format!("{good} responses that arrived meanwhile: all 200")]).await
}

/// A signal reaches each thread of a process when that is next looked at; this waits for the last one.
async fn until_stopped(stage: &mut Stage) -> Result<()> {
    let tasks = format!("/proc/{}/task", stage.front()?.id());
    let is_stopped = |thread: DirEntry| {
        fs::read_to_string(thread.path().join("status")).is_ok_and(|status| status.contains("State:\tT"))
    };
    stage
        .until("each of its threads is stopped", async |_| {
            fs::read_dir(&tasks).ok()?.flatten().all(is_stopped).then_some(())
        })
        .await
}

async fn front_twice(around: FaultConditions) -> Result<Outcome> {
    let apps = apps(&around.dir).await?;
    let mut stage = Stage::start(&around.dir, StageSetup::before(&apps)).await?;
    let text = fs::read_to_string(stage.dir().join("uh-proxy.toml"))?;
    // On another port, so that it is not the port that stops it; then with another socket too.
    let text = text.replace(&stage.address.to_string(), "127.0.0.1:0");
    let mut operator = Vec::new();
    for (nth, text) in
        [text.clone(), text.replace("run/admin.sock", "run2/admin.sock")].into_iter().enumerate()
    {
        let config = stage.dir().join(format!("second-{nth}.toml"));
        fs::write(&config, text)?;
        let mut command = Command::new(program("uh-proxy")?);
        command.args(["run", "--config"]).arg(config);
        let ended = run(command, SOON).await?;
        ensure!(ended.status.code() == Some(1), "the second one: {}", ended.status);
        operator.push(ended.output.trim().to_owned());
    }
    for (said, wanted) in operator.iter().zip(["is using the admin socket", "is using the state file"]) {
        ensure!(said.contains(wanted), "the second instance reports: {said}");
    }
    stage.switch("green").await?;
    let recovery = stage.until_answered().await?;
    stage.finish(operator.remove(1), recovery, Vec::new()).await
}

async fn app_killed(around: FaultConditions) -> Result<Outcome> {
    let (mut blue, green) = apps(&around.dir).await?;
    let port = blue.address.port().to_string();
    let setup = StageSetup::at(blue.address, green.address);
    let mut stage = Stage::start(&around.dir, setup).await?;
    let mut sized = Download::begin(&stage, "/bytes/50000000?rate=20000000").await?;
    let mut chunked = Download::begin(&stage, "/bytes/50000000?rate=20000000&chunked=1").await?;
    blue.process.kill()?;
    ensure!(sized.is_cut().await? && chunked.is_cut().await?, "a truncated download looks complete");
    let operator = stage.until_unhealthy("blue").await?;
    let log = fs::read_to_string(stage.dir().join("access.log"))?;
    ensure!(log.contains("\"termination\":\"UC\""), "the access log doesn't show the truncated download");
    let begun = Instant::now();
    let _blue = SampleApp::start_with(&[("PORT", &port)], "blue", "1.0.0", &around.dir).await?;
    stage.until_answered().await?;
    let recovery = begun.elapsed();
    stage
        .until("blue is healthy again", async |stage| {
            (stage.backend("blue").await.ok()?.healthy == Some(true)).then_some(())
        })
        .await?;
    stage.finish(operator, recovery, vec!["2 downloads truncated, detectably".to_owned()]).await
}

/// A download, read by hand.
struct Download {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Download {
    async fn begin(stage: &Stage, path: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(stage.address).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await?;
        let mut bytes = Vec::new();
        while bytes.len() < 500_000 {
            ensure!(stream.read_buf(&mut bytes).await? > 0, "the download ended early");
        }
        Ok(Self { stream, bytes })
    }

    /// Reads the rest, and says whether a client can tell that it is not all.
    async fn is_cut(&mut self) -> Result<bool> {
        // A reset is an end too.
        let _ = timeout(SOON, self.stream.read_to_end(&mut self.bytes)).await.context("it never ends")?;
        let head = self.bytes.windows(4).position(|four| four == b"\r\n\r\n").context("no head")?;
        let text = String::from_utf8_lossy(&self.bytes[..head]).to_ascii_lowercase();
        let whole = match text.lines().find_map(|line| line.strip_prefix("content-length: ")) {
            Some(length) => self.bytes.len() - head - 4 >= length.parse::<usize>()?,
            None => self.bytes.ends_with(b"0\r\n\r\n"),
        };
        Ok(!whole)
    }
}

async fn app_stopped(around: FaultConditions) -> Result<Outcome> {
    let mut apps = apps(&around.dir).await?;
    let timeouts = "[services.app.timeouts]\nread = \"1s\"\n".to_owned();
    let mut stage =
        Stage::start(&around.dir, StageSetup { tables: timeouts, ..StageSetup::before(&apps) }).await?;
    apps.0.process.signal(Signal::STOP)?;
    let begun = Instant::now();
    let status = timeout(SOON, ask(stage.address, "/")).await??;
    let waited = begun.elapsed();
    ensure!(status == 504, "a client of an app that is stopped gets {status}");
    let operator = stage.until_unhealthy("blue").await?;
    sleep(Duration::from_millis(2500).saturating_sub(begun.elapsed())).await;
    apps.0.process.signal(Signal::CONT)?;
    let recovery = stage.until_answered().await?;
    stage.finish(operator, recovery, vec![format!("504 after {} ms", waited.as_millis())]).await
}
