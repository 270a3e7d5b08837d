//! The stage of a fault: a uh-proxy that can be killed and restarted, two backends, and load.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::time::timeout;
use uh_protocol::client::Client;
use uh_protocol::request::{SwitchRequest, Switched};
use uh_protocol::status::{BackendStatus, Status};
use uh_protocol::{BackendName, ServiceName};
use uh_testkit::http::get;
use uh_testkit::judgement::{Switch, Verdict};
use uh_testkit::load::{Group, Load, Plan, Recording, Reuse};
use uh_testkit::process::{Finished, Process, log_to, run};
use uh_testkit::sample_app::SampleApp;
pub use uh_testkit::sample_app::pair as apps;
use uh_testkit::uh_proxy::{SERVICE, Setup, UhProxy};
pub use uh_testkit::wait::SOON;
use uh_testkit::wait::{self, free_address};

use super::{Outcome, Seen};

/// A request without a complete response after this hangs: every timeout on the way is far shorter.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(12);

/// Requests per second: enough that each fault meets some, and little for a machine with other things to do.
pub const RATE: f64 = 240.0;

/// How uh-proxy is started.
#[derive(Debug, Default)]
pub struct StageSetup {
    /// The active backend's endpoint.
    pub blue: String,
    /// The standby's.
    pub green: String,
    /// Lines for `[server]`.
    pub server: String,
    /// Tables after the service's.
    pub tables: String,
    /// A program, with arguments, that starts it.
    pub wrapper: Vec<String>,
    /// Requests per second of the load, a sixth of them on connections of their own; left out: [`RATE`].
    pub rate: Option<f64>,
}

/// uh-proxy under load.
#[derive(Debug)]
pub struct Stage {
    /// Where clients connect, before and after a restart.
    pub address: SocketAddr,
    /// The admin client.
    pub admin: Client,
    /// Where the state file is.
    pub state_dir: PathBuf,
    setup: Setup,
    wrapper: Vec<String>,
    front: Option<UhProxy>,
    /// How many log lines precede the relevant ones.
    heard: usize,
    load: Option<Load>,
    switches: Vec<Switch>,
}

impl Stage {
    /// Starts uh-proxy, waits until it has found both backends healthy, and starts the load.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start(dir: &Path, setup: StageSetup) -> Result<Self> {
        let probed = !setup.tables.contains("enabled = false");
        let rate = setup.rate.unwrap_or(RATE);
        let mut stage = Self::open(dir, setup).await?;
        stage
            .until("both backends are healthy", async |stage| {
                let status = stage.admin.status().await.ok()?;
                let mut backends = status.services.iter().flat_map(|service| &service.backends);
                backends.all(|backend| backend.healthy == Some(true) || !probed).then_some(())
            })
            .await?;
        stage.put_load_on(rate).await?;
        Ok(stage)
    }

    /// Starts a front door that may have nothing behind it yet, without load.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn open(dir: &Path, setup: StageSetup) -> Result<Self> {
        let address = free_address();
        let StageSetup { blue, green, server, tables, wrapper, .. } = setup;
        let health = if tables.contains(".health]") { "" } else { HEALTH };
        let setup = Setup::new(dir, blue, green)
            .server(&format!("listen = [\"{address}\"]\n{server}"))
            .service(&format!("{health}{tables}"));
        let state_dir = dir.join("state");
        fs::create_dir_all(&state_dir)?;
        fs::write(setup.config_file(), setup.config())?;
        let mut stage = Self {
            address,
            admin: Client::new(setup.socket()),
            state_dir,
            setup,
            wrapper,
            front: None,
            heard: 0,
            load: None,
            switches: Vec::new(),
        };
        stage.start_front().await?;
        Ok(stage)
    }

    /// Puts load on: so many requests per second, a sixth of them on connections of their own.
    ///
    /// # Errors
    /// It is not carried.
    pub async fn put_load_on(&mut self, rate: f64) -> Result<()> {
        let group = |clients, rate, reuse| Group { path: "/".to_owned(), clients, rate, reuse };
        let groups = vec![group(8, rate / 6.0 * 5.0, Reuse::KeepAlive), group(4, rate / 6.0, Reuse::Never)];
        let target = self.address;
        self.load = Some(Load::start(Plan { target, groups, request_timeout: REQUEST_TIMEOUT })?);
        self.carry(40).await
    }

    /// Starts uh-proxy, and waits until it answers on its admin socket.
    ///
    /// # Errors
    /// When it does not.
    pub async fn start_front(&mut self) -> Result<()> {
        self.listen_anew();
        let plain = self.setup.command_as_written()?;
        let words = self.wrapper.iter().map(OsStr::new).chain([plain.get_program()]).chain(plain.get_args());
        let words: Vec<&OsStr> = words.collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        self.front = Some(self.setup.start_as(log_to(&mut command, &self.setup.log())?).await?);
        Ok(())
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.setup.path("")
    }

    /// The uh-proxy process.
    ///
    /// # Errors
    /// It does not run.
    pub fn front(&mut self) -> Result<&mut Process> {
        self.front.as_mut().map(|front| &mut front.process).context("uh-proxy isn't running")
    }

    /// Takes the uh-proxy process, to be killed.
    ///
    /// # Errors
    /// It does not run.
    pub fn take_front(&mut self) -> Result<UhProxy> {
        self.front.take().context("uh-proxy isn't running")
    }

    /// Waits until the load has finished this many more requests.
    ///
    /// # Errors
    /// It does not.
    pub async fn carry(&mut self, more: usize) -> Result<()> {
        let target = self.so_far().0 + more;
        self.until("the load is carried", async |stage| (stage.so_far().0 >= target).then_some(())).await
    }

    /// Finished requests of the load, and how many of them failed.
    #[must_use]
    pub fn so_far(&self) -> (usize, usize) {
        self.load.as_ref().map_or((0, 0), Load::so_far)
    }

    /// Switches, and records it for the judgement.
    ///
    /// # Errors
    /// It is refused, or not acknowledged.
    pub async fn switch(&mut self, to: &str) -> Result<Switched> {
        let request = SwitchRequest { force: true, ..SwitchRequest::to(to.parse()?) };
        let called_at = Instant::now();
        let switched = self.admin.switch(&SERVICE.parse::<ServiceName>()?, &request).await?;
        self.switches.push(Switch { to: to.parse()?, called_at, replied_at: Instant::now() });
        Ok(switched)
    }

    /// Traffic may have moved to these backends, one after the other, since `began`; from now on the last one serves.
    pub fn moved(&mut self, began: Instant, to: &[BackendName]) {
        let replied_at = Instant::now();
        let switch = |to: &BackendName| Switch { to: to.clone(), called_at: began, replied_at };
        self.switches.extend(to.iter().map(switch));
    }

    /// Switches with the real command line.
    ///
    /// # Errors
    /// It does not end; how it ends is the caller's to judge.
    pub async fn switch_by_command(&mut self, to: &str) -> Result<Finished> {
        let called_at = Instant::now();
        let done = self.command(&["switch", to]).await?;
        if done.status.success() {
            self.switches.push(Switch { to: to.parse()?, called_at, replied_at: Instant::now() });
        }
        Ok(done)
    }

    /// The status of a backend.
    ///
    /// # Errors
    /// If uh-proxy doesn't answer.
    pub async fn backend(&self, name: &str) -> Result<BackendStatus> {
        let found =
            backends(&self.admin.status().await?).find(|backend| backend.name.as_str() == name).cloned();
        found.with_context(|| format!("no backend {name}"))
    }

    /// Runs the real command line to completion.
    ///
    /// # Errors
    /// It does not end.
    pub async fn command(&self, args: &[&str]) -> Result<Finished> {
        run(self.setup.cli(args)?, SOON).await
    }

    /// Waits until `done` returns something.
    ///
    /// # Errors
    /// In vain.
    pub async fn until<T>(
        &mut self,
        what: &str,
        mut done: impl AsyncFnMut(&mut Self) -> Option<T>,
    ) -> Result<T> {
        wait::until(what, async || done(self).await).await
    }

    /// Waits until a new client gets a good response, and returns how long that took.
    ///
    /// # Errors
    /// It never does.
    pub async fn until_answered(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.until("a client is answered", async |stage| {
            let answer = timeout(Duration::from_secs(3), ask(stage.address, "/")).await;
            matches!(answer, Ok(Ok(200))).then_some(())
        })
        .await?;
        Ok(begun.elapsed())
    }

    /// Waits until `status` shows the active app as unhealthy, and returns the log line with the reason.
    ///
    /// # Errors
    /// It never is, or nothing is said.
    pub async fn until_unhealthy(&mut self, backend: &str) -> Result<String> {
        let what = format!("{backend} is known to be unhealthy");
        self.until(&what, async |stage| {
            (stage.backend(backend).await.ok()?.healthy == Some(false)).then_some(())
        })
        .await?;
        let status = self.command(&["status"]).await?.output;
        ensure!(status.lines().any(|line| line.contains("unhealthy")), "status: {status}");
        let line = self.until_said("endpoint is unhealthy").await?;
        ensure!(line.contains(&format!("backend={backend}")) && line.contains("error="), "logged: {line}");
        Ok(line)
    }

    /// Ignores all log lines so far, so that only later ones count. Each start does the same.
    pub fn listen_anew(&mut self) {
        self.heard = self.messages().lines().count();
    }

    /// Waits until uh-proxy logs something, and returns the line without its time.
    ///
    /// # Errors
    /// It never does.
    pub async fn until_said(&mut self, text: &str) -> Result<String> {
        let what = format!("the log contains {text:?}");
        self.until(&what, async |stage| stage.said(text)).await
    }

    /// The last matching log line, without its time.
    fn said(&self, text: &str) -> Option<String> {
        let messages = self.messages();
        let line = messages.lines().skip(self.heard).filter(|line| line.contains(text)).last()?;
        Some(line.split_once("Z ").map_or(line, |(_, rest)| rest).trim().to_owned())
    }

    /// The whole log, of every start.
    fn messages(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.setup.log()).unwrap_or_default()).into_owned()
    }

    /// A metric, by the beginning of its line.
    ///
    /// # Errors
    /// There is none.
    pub async fn metric(&self, line: &str) -> Result<f64> {
        let text = self.admin.metrics().await?;
        let found =
            text.lines().find_map(|found| found.strip_prefix(line)?.split(' ').next_back()?.parse().ok());
        found.with_context(|| format!("no metric {line}"))
    }

    /// The sum of all metrics whose lines begin so.
    ///
    /// # Errors
    /// If uh-proxy doesn't answer.
    pub async fn sum(&self, beginning: &str) -> Result<f64> {
        let text = self.admin.metrics().await?;
        let found = text.lines().filter(|line| line.starts_with(beginning));
        Ok(found.filter_map(|line| line.split(' ').next_back()?.parse::<f64>().ok()).sum())
    }

    /// Ends the load.
    ///
    /// # Errors
    /// It does not end.
    pub async fn end_load(&mut self) -> Result<Recording> {
        self.load.take().context("no load")?.stop().await
    }

    /// Ends the load, checks what must hold after every fault, and stops uh-proxy.
    ///
    /// # Errors
    /// Something that must hold does not.
    pub async fn finish(
        mut self,
        operator: String,
        recovery: Duration,
        clients: Vec<String>,
    ) -> Result<Outcome> {
        // Some time in which nothing may fail any more.
        self.carry(40).await?;
        let recording = self.end_load().await?;
        let verdict = self.end(recording).await?;
        Ok(Outcome::Seen(Seen { verdict, clients, operator, recovery }))
    }

    /// Checks what must hold when the load is over, and stops uh-proxy.
    ///
    /// # Errors
    /// Something that must hold does not.
    pub async fn end(mut self, recording: Recording) -> Result<Verdict> {
        let verdict = Verdict::of(&recording, &"blue".parse()?, &self.switches);
        let last: BackendName = self.switches.last().map_or("blue".parse()?, |switch| switch.to.clone());
        let status = self.admin.status().await?;
        let active = &status.services.first().context("no service")?.active;
        ensure!(*active == last, "{active} is active, but the last acknowledged switch was to {last}");
        self.until("nothing is in flight any more", async |stage| {
            let status = stage.admin.status().await.ok()?;
            backends(&status).all(|backend| backend.requests_in_flight + backend.tunnels == 0).then_some(())
        })
        .await?;
        if let Some(line) = self.messages().lines().find(|line| line.contains("panicked")) {
            bail!("uh-proxy panicked: {line}");
        }
        self.take_front()?.stop(SOON).await?;
        Ok(verdict)
    }
}

fn backends(status: &Status) -> impl Iterator<Item = &BackendStatus> {
    status.services.iter().flat_map(|service| &service.backends)
}

/// Sends a request on a new connection, and returns the status.
///
/// # Errors
/// There is no whole answer.
pub async fn ask(address: SocketAddr, path: &str) -> Result<u16> {
    Ok(get(address, path).await?.0.status)
}

/// Fast health checks.
const HEALTH: &str = "[services.app.health]\ninterval = \"100ms\"\ntimeout = \"500ms\"\nhealthy_after = 1\n";

impl StageSetup {
    /// For these two.
    #[must_use]
    pub fn before((blue, green): &(SampleApp, SampleApp)) -> Self {
        Self::at(blue.address, green.address)
    }

    /// For backends at these addresses.
    #[must_use]
    pub fn at(blue: SocketAddr, green: SocketAddr) -> Self {
        Self { blue: blue.to_string(), green: green.to_string(), ..Self::default() }
    }
}
