//! A uh-proxy, sample apps started by `uh-deploy`, and load that counts failures, in a directory of their own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::timeout;
use uh_controller::runtime::process::proc::ProcessIdentity;
use uh_protocol::client::Client;
use uh_protocol::status::{ServiceStatus, Status};
use uh_testkit::http::{self, Failure};
use uh_testkit::load::{Group, Plan, Reuse};
use uh_testkit::log::json_lines;
use uh_testkit::process::{self, Finished};
use uh_testkit::uh_deploy::{UhDeploy, instances};
use uh_testkit::uh_proxy::{Setup, UhProxy};
use uh_testkit::wait;

pub(crate) use uh_testkit::wait::{SOON, free_port};

/// A program of the workspace. `make test` builds all of them before the first test runs.
pub(crate) fn program(name: &str) -> PathBuf {
    process::program(name).unwrap()
}

/// Waits until `done` returns something. Fails with the name of what it waited for.
pub(crate) fn until<T>(what: &str, done: impl FnMut() -> Option<T>) -> T {
    wait::until_blocking(what, done).unwrap()
}

/// Runs the async admin client from a synchronous test.
pub(crate) fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// One uh-proxy, and what is deployed behind it.
pub(crate) struct Stage {
    setup: Setup,
    proxy: UhProxy,
    deploy: UhDeploy,
    pub(crate) address: SocketAddr,
    pub(crate) ports: [u16; 2],
    dir: TempDir,
}

/// A request without a complete response after this has failed.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes everything quick.
pub(crate) const QUICK: &str = "[deploy]\nsettle = \"50ms\"\ndrain_timeout = \"2s\"\nstop_timeout = \"5s\"\nready_timeout = \"10s\"\n\
                     [health]\ninterval = \"20ms\"\nwithin = \"10s\"\nsuccesses = 2";

impl Stage {
    /// A uh-proxy whose active backend, green, isn't running yet.
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// The same, with more lines in uh-proxy's `[server]`.
    pub(crate) fn with(server: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports = [free_port(), free_port()];
        let [blue, green] = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let setup = Setup::new(dir.path(), blue, green).active("green").server("threads = 1").server(server);
        let proxy = block(setup.start()).unwrap();
        let mut deploy = UhDeploy::new(dir.path(), &setup.socket(), [blue, green]).unwrap();
        deploy.add(QUICK);
        deploy.configure("uh-deploy.toml", "").unwrap();
        Self { setup, address: proxy.address, proxy, deploy, ports, dir }
    }

    /// Kills uh-proxy.
    pub(crate) fn kill_front_door(&mut self) {
        self.proxy.process.kill().unwrap();
    }

    /// Starts it again, with the configuration that is there, on another port.
    pub(crate) fn start_front_door(&mut self) {
        let mut command = self.setup.command_as_written().unwrap();
        self.proxy = block(self.setup.start_as(&mut command)).unwrap();
        self.address = self.proxy.address;
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a configuration. Extra lines replace those of the same key, and may add tables.
    pub(crate) fn configure(&self, file: &str, extra: &str) {
        self.deploy.configure(file, extra).unwrap();
    }

    pub(crate) fn configure_with(&self, file: &str, extra: &str, state_dir: &str, [blue, green]: [u16; 2]) {
        let other = format!(
            "[deploy]\nstate_dir = {:?}\n[backends.blue]\nendpoints = [\"127.0.0.1:{blue}\"]\n\
             [backends.green]\nendpoints = [\"127.0.0.1:{green}\"]\n{extra}",
            self.path(state_dir)
        );
        self.configure(file, &other);
    }

    /// `uh-deploy` with this configuration, in a clean environment.
    pub(crate) fn command_with(&self, file: &str, args: &[&str]) -> Command {
        let mut command = self.deploy.command(file, args).unwrap();
        command.stdin(Stdio::null());
        command
    }

    /// A command of `uh-proxy`.
    pub(crate) fn proxy_cli(&self, args: &[&str]) -> Command {
        self.setup.cli(args).unwrap()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_with("uh-deploy.toml", args)
    }

    /// Runs `uh-deploy` until it exits.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// Runs it, and requires an exit code.
    pub(crate) fn expect(&self, code: i32, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(code), "uh-deploy {args:?}:\n{}", ran.text);
        ran
    }

    pub(crate) fn deploy(&self, version: &str) -> Ran {
        self.expect(0, &["blue-green", "--version", version])
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.path("run/admin.sock"))
    }

    pub(crate) fn status(&self) -> Status {
        block(self.client().status()).unwrap()
    }

    pub(crate) fn service(&self) -> ServiceStatus {
        self.status().services.remove(0)
    }

    pub(crate) fn active(&self) -> String {
        self.service().active.to_string()
    }

    /// What a client gets: `blue 1.0.0`.
    pub(crate) fn served(&self) -> String {
        get(self.address, "/").unwrap().trim().to_owned()
    }

    /// What answers on a backend's own port.
    pub(crate) fn answers(&self, backend: &str) -> Option<String> {
        let port = self.ports[usize::from(backend == "green")];
        get(SocketAddr::from(([127, 0, 0, 1], port)), "/").ok().map(|text| text.trim().to_owned())
    }

    /// How many app processes of this stage are alive.
    pub(crate) fn apps(&self) -> usize {
        self.app_pids().len()
    }

    /// The process ids of the apps, with the names of their instances.
    pub(crate) fn app_pids(&self) -> Vec<(String, i32)> {
        let saved = instances(&self.deploy.state_dir()).into_iter();
        saved.filter_map(|(dir, saved)| Some((name(&dir), alive(&saved["app"])?.pid))).collect()
    }

    /// The only instance of a backend, and its supervisor's record.
    pub(crate) fn saved(&self, backend: &str) -> (String, Value) {
        let mut saved = instances(&self.deploy.state_dir());
        saved.retain(|(dir, _)| name(dir).contains(&format!(".{backend}.")));
        assert_eq!(saved.len(), 1, "instances of {backend}");
        let (dir, saved) = saved.remove(0);
        (name(&dir), saved)
    }

    /// Simulates a power failure: kills every process of every instance.
    pub(crate) fn kill_all_instances(&self) {
        kill_instances(&self.deploy.state_dir());
        until("every app is dead", || (self.apps() == 0).then_some(()));
    }

    pub(crate) fn history(&self) -> Vec<Value> {
        json_lines(&self.deploy.state_dir().join("history.jsonl")).unwrap()
    }

    /// Starts load from several keep-alive clients, and waits for its first request.
    pub(crate) fn load(&self) -> Load {
        let group = Group { path: "/".to_owned(), clients: 3, rate: 600.0, reuse: Reuse::KeepAlive };
        let plan = Plan { target: self.address, groups: vec![group], request_timeout: REQUEST_TIMEOUT };
        let load = uh_testkit::load::Load::start(plan).unwrap();
        // A command that fails at once would be over before the first request.
        until("the load has begun", || (load.so_far().0 > 0).then_some(()));
        Load(load)
    }

    /// uh-proxy's state file.
    pub(crate) fn state_file(&self) -> Value {
        serde_json::from_slice(&fs::read(self.setup.state_file()).unwrap()).unwrap()
    }
}

/// The name of an instance, by its directory.
fn name(dir: &Path) -> String {
    dir.file_name().unwrap().to_string_lossy().into_owned()
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Lets the supervisors kill their descendants: nothing else finds an app that has cleared its environment.
pub(crate) fn end_instances(state_dir: &Path) {
    let mut supervisors = Vec::new();
    for (dir, saved) in instances(state_dir) {
        let _ = fs::write(dir.join("stop"), "");
        if let Some(app) = alive(&saved["app"]) {
            kill(app.pid);
        }
        supervisors.extend(alive(&saved["supervisor"]));
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while supervisors.iter().any(ProcessIdentity::is_alive) && Instant::now() < deadline {
        std::thread::sleep(wait::POLL);
    }
}

/// Kills everything of every instance, supervisors first: they would restart their apps.
pub(crate) fn kill_instances(state_dir: &Path) {
    for (_, saved) in instances(state_dir) {
        if let Some(known) = alive(&saved["supervisor"]) {
            kill(known.pid);
        }
    }
    for (dir, _) in instances(state_dir) {
        marked(&name(&dir)).into_iter().for_each(kill);
    }
}

/// The process of a record, if it is alive.
pub(crate) fn alive(saved: &Value) -> Option<ProcessIdentity> {
    serde_json::from_value(saved.clone()).ok().filter(ProcessIdentity::is_alive)
}

/// The live processes with an instance's name in their environment.
pub(crate) fn marked(instance: &str) -> Vec<i32> {
    let mark = format!("UH_DEPLOY_INSTANCE={instance}");
    let pid = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let environment = fs::read(entry.path().join("environ")).ok()?;
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()).then_some(pid)
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(pid).collect()
}

impl Drop for Stage {
    fn drop(&mut self) {
        let directories = fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        for state_dir in directories.map(|entry| entry.path()) {
            end_instances(&state_dir);
            kill_instances(&state_dir);
        }
        if std::thread::panicking() {
            println!("--- uh-proxy.log\n{}", fs::read_to_string(self.setup.log()).unwrap_or_default());
        }
    }
}

/// The result of a command.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        let Finished { status, output } = output.into();
        Self { code: status.code(), text: output }
    }

    /// Requires this text in its output.
    #[track_caller]
    pub(crate) fn says(&self, text: &str) -> &Self {
        assert!(self.text.contains(text), "{text:?} is not in:\n{}", self.text);
        self
    }
}

/// One request on a new connection.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let asked = block(async { timeout(REQUEST_TIMEOUT, http::get(address, path)).await });
    let (_, body) = asked.unwrap_or(Err(Failure::TimedOut)).map_err(std::io::Error::other)?;
    Ok(body)
}

/// Clients that send requests at a steady rate, and count.
pub(crate) struct Load(pub(crate) uh_testkit::load::Load);

impl Load {
    /// Stops it, and returns the number of requests, and the failures.
    pub(crate) fn end(self) -> (u64, Vec<String>) {
        let recording = block(self.0.stop()).unwrap();
        let failures = recording.samples.iter().filter_map(|sample| sample.outcome.as_ref().err());
        // Not every app here says which backend it is.
        let failures = failures.filter(|failure| **failure != Failure::Unidentified);
        (recording.samples.len() as u64, failures.map(ToString::to_string).collect())
    }

    /// Stops it, and requires that nothing failed.
    #[track_caller]
    pub(crate) fn must_be_unharmed(self) {
        let (requests, failures) = self.end();
        assert!(requests > 0, "no request was made");
        assert!(
            failures.is_empty(),
            "{} of {requests} requests failed: {:?}",
            failures.len(),
            failures.first()
        );
    }
}
