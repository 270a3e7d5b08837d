//! One deploy after the other, each held at a point while something interferes.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Interference;
use super::claims::{Said, Serves, of_deploy, of_recovery, of_rollback};
use crate::faults::Outcome;
use crate::faults::stage::{SOON, Stage, StageSetup};
use uh_testkit::http::{Connection, get};
use uh_testkit::process::{Process, run};
use uh_testkit::uh_deploy::{CONFIG, UhDeploy};
use uh_testkit::wait::free_address;

/// Requests per second while deploys come one after the other: enough that each of them meets some.
const RATE: f64 = 60.0;

/// Makes a deploy quick.
const QUICK: &str = "[deploy]\nsettle = \"20ms\"\ndrain_timeout = \"2s\"\nstop_timeout = \"5s\"\n\
                     [health]\ninterval = \"100ms\"\nsuccesses = 1";

/// uh-proxy under load, and the deploys behind it.
pub(super) struct Sweep {
    stage: Stage,
    controller: UhDeploy,
    addresses: [SocketAddr; 2],
    interference: Interference,
    versions: usize,
    differences: Vec<String>,
    slowest: Duration,
}

impl Sweep {
    /// Two versions deployed, and load.
    pub(super) async fn begin(dir: &Path, interference: Interference) -> Result<Self> {
        let addresses = [free_address(), free_address()];
        let [blue, green] = addresses;
        let stage = Stage::open(dir, StageSetup::at(blue, green)).await?;
        let mut controller = UhDeploy::new(dir, stage.admin.socket(), addresses)?;
        controller.add(QUICK);
        controller.configure(CONFIG, "")?;
        let (differences, slowest) = (Vec::new(), Duration::ZERO);
        let mut sweep =
            Self { stage, controller, addresses, interference, versions: 0, differences, slowest };
        for _ in 0..2 {
            sweep.deploy(&[]).await?;
        }
        sweep.stage.put_load_on(RATE).await?;
        Ok(sweep)
    }

    /// The differences found so far.
    pub(super) fn differences(&self) -> &[String] {
        &self.differences
    }

    /// Ends the load and uh-proxy, and checks both.
    pub(super) async fn finish(self, points: usize) -> Result<Outcome> {
        let text = format!("{points} points, 0 differences between what is reported and who answers");
        self.stage.finish(text, self.slowest, Vec::new()).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.stage.dir().join(name)
    }

    fn next_version(&mut self) -> String {
        self.versions += 1;
        format!("1.0.{}", self.versions)
    }

    /// A deploy without interference.
    async fn deploy(&mut self, variables: &[(&str, &Path)]) -> Result<()> {
        let (version, began) = (self.next_version(), Instant::now());
        let mut command = self.controller.command(CONFIG, &["blue-green", "--version", &version])?;
        command.envs(variables.iter().copied());
        let said = said(command).await?;
        ensure!(said.code == Some(0), "{}", said.text);
        self.note(began).await?;
        Ok(())
    }

    /// Every point that a deploy without interference passes, in order; none if uh-deploy was built without them.
    pub(super) async fn points(&mut self) -> Result<Vec<String>> {
        let trace = self.path("trace");
        self.deploy(&[("UH_DEPLOY_TRACE_FILE", &trace)]).await?;
        let text = fs::read_to_string(trace).unwrap_or_default();
        let mut seen = BTreeSet::new();
        Ok(text.lines().filter(|name| seen.insert(*name)).map(str::to_owned).collect())
    }

    /// Records for the judgement which backend is active from now on; since `began`, either may have answered.
    async fn note(&mut self, began: Instant) -> Result<Serves> {
        let serves = self.serves().await?;
        let other = if serves.backend == "blue" { "green" } else { "blue" };
        self.stage.moved(began, &[other.parse()?, serves.backend.parse()?]);
        Ok(serves)
    }

    /// The backend that answers through uh-proxy, which must be the active one.
    async fn serves(&self) -> Result<Serves> {
        let (head, text) = get(self.stage.address, "/").await?;
        ensure!(head.status == 200, "a client gets {}", head.status);
        let (backend, version) = text.trim().split_once(' ').context("the app's answer")?;
        let active = self.active().await?;
        ensure!(active == backend, "{active} is active, but {backend} answers");
        Ok(Serves { backend: backend.to_owned(), version: version.to_owned() })
    }

    async fn active(&self) -> Result<String> {
        let status = self.stage.admin.status().await?;
        Ok(status.services.first().context("no service")?.active.to_string())
    }

    /// Whether both backends run: the old one is kept for a rollback.
    async fn both_run(&self) -> bool {
        for address in self.addresses {
            if Connection::open(address).await.is_err() {
                return false;
            }
        }
        true
    }

    /// One point: hold the deploy there, interfere, let it continue, and compare; recover, and compare again.
    pub(super) async fn at(&mut self, point: &str) -> Result<()> {
        self.hold_and_compare(point).await.with_context(|| format!("{:?} at {point}", self.interference))
    }

    async fn hold_and_compare(&mut self, point: &str) -> Result<()> {
        if !self.both_run().await {
            self.deploy(&[]).await?;
        }
        let (version, began) = (self.next_version(), Instant::now());
        let (text, wrong, serves) = if self.interference == Interference::KillAndRollback {
            self.kill(point, &version).await?;
            let rollback = said(self.controller.command(CONFIG, &["rollback"])?).await?;
            let serves = self.serves().await?;
            let wrong = of_rollback(&rollback, &version, &serves);
            (rollback.text, wrong, serves)
        } else {
            self.hold(point, &version).await?
        };
        self.slowest = self.slowest.max(began.elapsed());
        let recovery = said(self.controller.command(CONFIG, &["recover"])?).await?;
        let after = self.note(began).await?;
        let mut wrong = [wrong, of_recovery(&recovery, &after)].concat();
        if after != serves {
            wrong.push(format!("{serves} answered, and {after} after `recover`"));
        }
        let describe =
            |wrong| format!("{:?} at {point}: {wrong}\n{text}\n{}", self.interference, recovery.text);
        self.differences.extend(wrong.into_iter().map(describe));
        Ok(())
    }

    /// Kills a deploy at a point.
    async fn kill(&self, point: &str, version: &str) -> Result<()> {
        let fault = self.path("fault");
        fs::write(&fault, point)?;
        let mut command = self.controller.command(CONFIG, &["blue-green", "--version", version])?;
        command.env("UH_DEPLOY_FAULT_FILE", &fault);
        let said = said(command).await?;
        ensure!(said.code.is_none(), "it wasn't killed, but ended with {:?}: {}", said.code, said.text);
        Ok(())
    }

    /// Holds a deploy at a point and interferes. Returns the output, what is wrong in it, and the backend that answers.
    async fn hold(&mut self, point: &str, version: &str) -> Result<(String, Vec<String>, Serves)> {
        let (hold, held) = (self.path("hold"), self.path("hold.held"));
        // It doesn't exist before the first point.
        let _ = fs::remove_file(&held);
        fs::write(&hold, point)?;
        let before = self.active().await?;
        let mut command = self.controller.command(CONFIG, &["blue-green", "--version", version])?;
        let mut deploy =
            Process::spawn("deploy", command.env("UH_DEPLOY_HOLD_FILE", &hold), &self.stage.dir())?;
        self.stage.until("the deploy is held", async |_| held.exists().then_some(())).await?;
        let active_at_request = self.active().await?;
        let rollback = self.interfere().await?;
        fs::remove_file(&hold)?;
        let deploy = Said { code: deploy.ended(SOON).await?.code(), text: deploy.output()? };
        let Some(mut rollback) = rollback else {
            let serves = self.serves().await?;
            let mut wrong = of_deploy(&deploy, version, &serves);
            if matches!(self.interference, Interference::Retire | Interference::SecondDeploy)
                && deploy.code != Some(0)
            {
                wrong.push(format!("a locked-out command made it end with {:?}", deploy.code));
            }
            return Ok((deploy.text, wrong, serves));
        };
        let rollback = Said { code: rollback.ended(SOON).await?.code(), text: rollback.output()? };
        let serves = self.serves().await?;
        // The deploy ended first, with its own version active.
        let candidate = if before == "blue" { "green" } else { "blue" };
        let then = Serves { backend: candidate.to_owned(), version: version.to_owned() };
        let mut wrong = of_deploy(&deploy, version, &then);
        wrong.extend(of_rollback(&rollback, version, &serves));
        // It undoes what served when it was requested: of a deploy that hasn't moved traffic yet, nothing.
        let expected =
            if active_at_request == before { (Some(5), candidate) } else { (Some(0), before.as_str()) };
        if (rollback.code, serves.backend.as_str()) != expected {
            wrong.push(format!(
                "requested while {active_at_request} was active, the rollback ended with {:?}, and {serves} answers",
                rollback.code
            ));
        }
        Ok((format!("{}\n{}", deploy.text, rollback.text), wrong, serves))
    }

    /// Interferes. A rollback is returned, because it waits for the deploy.
    async fn interfere(&mut self) -> Result<Option<Process>> {
        match self.interference {
            Interference::Switch => self.switch().await?,
            Interference::Rollback | Interference::KillAndRollback => {
                return self.begin_rollback().await.map(Some);
            }
            Interference::Retire => self.is_locked_out(&["retire", "--now"]).await?,
            Interference::SecondDeploy => self.is_locked_out(&["blue-green", "--version", "9.9.9"]).await?,
            Interference::KillFront => {
                self.stage.take_front()?.process.kill()?;
                self.stage.start_front().await?;
            }
            Interference::StopFront => {
                self.stage.take_front()?.stop(SOON).await?;
                self.stage.start_front().await?;
            }
        }
        Ok(None)
    }

    /// Switches to the standby. It may be refused: it is withdrawn, or doesn't answer.
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
        let mut command = self.controller.command(CONFIG, &["rollback"])?;
        let mut rollback = Process::spawn("rollback", &mut command, &self.stage.dir())?;
        rollback.line_after("Waiting up to", SOON).await?;
        Ok(rollback)
    }

    async fn is_locked_out(&self, args: &[&str]) -> Result<()> {
        let said = said(self.controller.command(CONFIG, args)?).await?;
        ensure!(said.code == Some(4), "{args:?}: exit {:?}: {}", said.code, said.text);
        Ok(())
    }
}

async fn said(command: Command) -> Result<Said> {
    let ended = run(command, SOON).await?;
    Ok(Said { code: ended.status.code(), text: ended.output })
}
