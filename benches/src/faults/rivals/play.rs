//! One deploy after the other, each held at a point while somebody else acts.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Rival;
use super::words::{Said, Serves, of_deploy, of_recovery, of_rollback};
use crate::controller::{Controller, two_free_addresses};
use crate::faults::Outcome;
use crate::faults::stage::{SOON, Setup, Stage};
use crate::front_door::Behind;
use crate::http::Connection;
use crate::process::{Process, run};

/// Requests per second while deploys come one after the other: enough that each of them meets some.
const RATE: f64 = 60.0;

/// What makes a deploy quick.
const QUICK: &str = "settle = \"20ms\"\ndrain_timeout = \"2s\"\nstop_timeout = \"5s\"\n";

/// A front door under load, and deploys behind it.
pub(super) struct Play {
    stage: Stage,
    controller: Controller,
    addresses: [SocketAddr; 2],
    rival: Rival,
    versions: usize,
    differences: Vec<String>,
    slowest: Duration,
}

impl Play {
    /// Two versions deployed, and load.
    pub(super) async fn begin(dir: &Path, rival: Rival) -> Result<Self> {
        let addresses = two_free_addresses()?;
        let [blue, green] = addresses;
        let setup = Setup { blue: blue.to_string(), green: green.to_string(), ..Setup::default() };
        let stage = Stage::open(dir, setup).await?;
        let behind = [Behind { name: "blue", address: blue }, Behind { name: "green", address: green }];
        let mut controller = Controller::at(dir, stage.admin.socket(), behind)?;
        controller.add_to_deploy(QUICK);
        controller.configure("", "successes = 1")?;
        let (differences, slowest) = (Vec::new(), Duration::ZERO);
        let mut play = Self { stage, controller, addresses, rival, versions: 0, differences, slowest };
        for _ in 0..2 {
            play.deploy(&[]).await?;
        }
        play.stage.put_load_on(RATE).await?;
        Ok(play)
    }

    /// What was said and was not so.
    pub(super) fn differences(&self) -> &[String] {
        &self.differences
    }

    /// Ends it, with what the operator gets to see.
    pub(super) async fn finish(self, points: usize) -> Result<Outcome> {
        let text = format!("{points} points, 0 differences between what is said last and who answers");
        self.stage.finish(text, self.slowest, Vec::new()).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.stage.dir().join(name)
    }

    fn next_version(&mut self) -> String {
        self.versions += 1;
        format!("1.0.{}", self.versions)
    }

    /// A deploy that nobody disturbs.
    async fn deploy(&mut self, variables: &[(&str, &Path)]) -> Result<()> {
        let (version, began) = (self.next_version(), Instant::now());
        let mut command = self.controller.command(&["blue-green", "--version", &version]);
        command.envs(variables.iter().copied());
        let said = said(command).await?;
        ensure!(said.code == Some(0), "{}", said.text);
        self.note(began).await?;
        Ok(())
    }

    /// Every point that a deploy passes when nobody disturbs it, in order; none if it was built without them.
    pub(super) async fn points(&mut self) -> Result<Vec<String>> {
        let trace = self.path("trace");
        self.deploy(&[("UH_DEPLOY_TRACE_FILE", &trace)]).await?;
        let text = fs::read_to_string(trace).unwrap_or_default();
        let mut seen = BTreeSet::new();
        Ok(text.lines().filter(|name| seen.insert(*name)).map(str::to_owned).collect())
    }

    /// Lets the judgement know who serves from now on; since `began`, either may have.
    async fn note(&mut self, began: Instant) -> Result<Serves> {
        let serves = self.serves().await?;
        let other = if serves.backend == "blue" { "green" } else { "blue" };
        self.stage.moved(began, &[other.parse()?, serves.backend.parse()?]);
        Ok(serves)
    }

    /// Who answers through the front door, which must be who is active.
    async fn serves(&self) -> Result<Serves> {
        let mut connection = Connection::open(self.stage.address).await?;
        let request = b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
        let mut body = Vec::new();
        let head = connection.exchange(request, &mut body).await?;
        ensure!(head.status == 200, "a client gets {}", head.status);
        let text = String::from_utf8_lossy(&body).into_owned();
        let (backend, version) = text.trim().split_once(' ').context("the app's answer")?;
        let active = self.active().await?;
        ensure!(active == backend, "{active} is active, but {backend} answers");
        Ok(Serves { backend: backend.to_owned(), version: version.to_owned() })
    }

    async fn active(&self) -> Result<String> {
        let status = self.stage.admin.status().await?;
        Ok(status.services.first().context("no service")?.active.to_string())
    }

    /// Both backends run: what was replaced last is kept for a rollback.
    async fn both_run(&self) -> bool {
        for address in self.addresses {
            if Connection::open(address).await.is_err() {
                return false;
            }
        }
        true
    }

    /// One point: hold the deploy there, let somebody else act, let it go on, and compare; recover, and compare again.
    pub(super) async fn at(&mut self, point: &str) -> Result<()> {
        self.play(point).await.with_context(|| format!("{:?} at {point}", self.rival))
    }

    async fn play(&mut self, point: &str) -> Result<()> {
        if !self.both_run().await {
            self.deploy(&[]).await?;
        }
        let (version, began) = (self.next_version(), Instant::now());
        let (text, wrong, serves) = if self.rival == Rival::KillAndRollback {
            self.kill(point, &version).await?;
            let rollback = said(self.controller.command(&["rollback"])).await?;
            let serves = self.serves().await?;
            let wrong = of_rollback(&rollback, &version, &serves);
            (rollback.text, wrong, serves)
        } else {
            self.hold(point, &version).await?
        };
        self.slowest = self.slowest.max(began.elapsed());
        let recovery = said(self.controller.command(&["recover"])).await?;
        let after = self.note(began).await?;
        let mut wrong = [wrong, of_recovery(&recovery, &after)].concat();
        if after != serves {
            wrong.push(format!("{serves} answered, and {after} after `recover`"));
        }
        let told = |wrong| format!("{:?} at {point}: {wrong}\n{text}\n{}", self.rival, recovery.text);
        self.differences.extend(wrong.into_iter().map(told));
        Ok(())
    }

    /// Kills a deploy at a point.
    async fn kill(&self, point: &str, version: &str) -> Result<()> {
        let fault = self.path("fault");
        fs::write(&fault, point)?;
        let mut command = self.controller.command(&["blue-green", "--version", version]);
        command.env("UH_DEPLOY_FAULT_FILE", &fault);
        let said = said(command).await?;
        ensure!(said.code.is_none(), "it wasn't killed, but ended with {:?}: {}", said.code, said.text);
        Ok(())
    }

    /// Holds a deploy at a point while the rival acts: what was said, what of it was wrong, and who serves.
    async fn hold(&mut self, point: &str, version: &str) -> Result<(String, Vec<String>, Serves)> {
        let (hold, held) = (self.path("hold"), self.path("hold.held"));
        // There is none before the first.
        let _ = fs::remove_file(&held);
        fs::write(&hold, point)?;
        let before = self.active().await?;
        let mut command = self.controller.command(&["blue-green", "--version", version]);
        let mut deploy =
            Process::spawn("deploy", command.env("UH_DEPLOY_HOLD_FILE", &hold), self.stage.dir())?;
        self.stage.until("the deploy is held", async |_| held.exists().then_some(())).await?;
        let rollback = self.act().await?;
        fs::remove_file(&hold)?;
        let deploy = Said { code: deploy.ended(SOON).await?.code(), text: deploy.output()? };
        let Some(mut rollback) = rollback else {
            let serves = self.serves().await?;
            let mut wrong = of_deploy(&deploy, version, &serves);
            if matches!(self.rival, Rival::Retire | Rival::SecondDeploy) && deploy.code != Some(0) {
                wrong.push(format!("one that was locked out made it end with {:?}", deploy.code));
            }
            return Ok((deploy.text, wrong, serves));
        };
        let rollback = Said { code: rollback.ended(SOON).await?.code(), text: rollback.output()? };
        let serves = self.serves().await?;
        // The deploy had come to its end before: then its own version served.
        let candidate = if before == "blue" { "green" } else { "blue" };
        let then = Serves { backend: candidate.to_owned(), version: version.to_owned() };
        let mut wrong = of_deploy(&deploy, version, &then);
        wrong.extend(of_rollback(&rollback, version, &serves));
        if rollback.code != Some(0) || serves.backend != before {
            wrong.push(format!("the rollback ended with {:?}, and {serves} answers", rollback.code));
        }
        Ok((format!("{}\n{}", deploy.text, rollback.text), wrong, serves))
    }

    /// What somebody else does. A rollback is returned: it waits for the deploy.
    async fn act(&mut self) -> Result<Option<Process>> {
        match self.rival {
            Rival::Switch => self.switch().await?,
            Rival::Rollback | Rival::KillAndRollback => return self.begin_rollback().await.map(Some),
            Rival::Retire => self.is_locked_out(&["retire", "--now"]).await?,
            Rival::SecondDeploy => self.is_locked_out(&["blue-green", "--version", "9.9.9"]).await?,
            Rival::KillFront => {
                self.stage.take_front()?.kill()?;
                self.stage.start_front().await?;
            }
            Rival::StopFront => {
                self.stage.take_front()?.stop(SOON).await?;
                self.stage.start_front().await?;
            }
        }
        Ok(None)
    }

    /// To the backend that isn't active. It may be refused: it is withdrawn, or nobody answers there.
    async fn switch(&self) -> Result<()> {
        let before = self.active().await?;
        let to = if before == "blue" { "green" } else { "blue" };
        let ended = self.stage.command(&["switch", to]).await?;
        let expected = match ended.status.code() {
            Some(0) => to,
            Some(3) => before.as_str(),
            code => anyhow::bail!("uh-proxy switch: exit {code:?}: {}", ended.output),
        };
        let active = self.active().await?;
        ensure!(active == expected, "{active} is active after: {}", ended.output);
        Ok(())
    }

    async fn begin_rollback(&self) -> Result<Process> {
        let mut command = self.controller.command(&["rollback"]);
        let mut rollback = Process::spawn("rollback", &mut command, self.stage.dir())?;
        rollback.line_after("Waiting up to", SOON).await?;
        Ok(rollback)
    }

    async fn is_locked_out(&self, args: &[&str]) -> Result<()> {
        let said = said(self.controller.command(args)).await?;
        ensure!(said.code == Some(4), "{args:?}: exit {:?}: {}", said.code, said.text);
        Ok(())
    }
}

async fn said(command: Command) -> Result<Said> {
    let ended = run(command, SOON).await?;
    Ok(Said { code: ended.status.code(), text: ended.output })
}
