//! A uh-proxy, sample apps started by `uh-deploy`, and load that counts failures, in a directory of their own.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use uh_protocol::client::Client;
use uh_protocol::status::{ServiceStatus, Status};

/// The deadline for anything that should happen soon.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A program of the workspace. `make test` builds all of them before the first test runs.
pub(crate) fn program(name: &str) -> PathBuf {
    let deploy = Path::new(env!("CARGO_BIN_EXE_uh-deploy"));
    let path = deploy.with_file_name(name);
    assert!(path.is_file(), "{} is missing: cargo build --workspace --bins", path.display());
    path
}

/// Waits until `done` returns something. Fails with the name of what it waited for.
pub(crate) fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A free port below the range of ports that the system assigns, so that no other test listens on it while uh-proxy
/// probes it.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 200).unwrap() * 100;
    loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::SeqCst)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Runs the async admin client from a synchronous test.
pub(crate) fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// One uh-proxy, and what is deployed behind it.
pub(crate) struct Stage {
    dir: TempDir,
    proxy: Child,
    pub(crate) address: SocketAddr,
    pub(crate) ports: [u16; 2],
}

fn start_front_door(dir: &Path) -> (Child, SocketAddr) {
    let log = fs::File::options().create(true).append(true).open(dir.join("proxy.log")).unwrap();
    let mut command = Command::new(program("uh-proxy"));
    command.args(["run", "--config"]).arg(dir.join("uh-proxy.toml"));
    let mut proxy = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let client = Client::new(dir.join("run/admin.sock"));
    let status = until("uh-proxy answers", || {
        let log = fs::read_to_string(dir.join("proxy.log")).unwrap();
        assert!(proxy.try_wait().unwrap().is_none(), "{log}");
        block(client.status()).ok()
    });
    (proxy, status.proxy.listen[0].parse().unwrap())
}

impl Stage {
    /// A uh-proxy whose active backend, green, isn't running yet.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("uh-deploy-test-").tempdir().unwrap();
        let ports = [free_port(), free_port()];
        let path = |name: &str| dir.path().join(name);
        let config = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nmetrics = \"127.0.0.1:0\"\nadmin_socket = {:?}\nstate_file = {:?}\n\
             threads = 1\naccess_log = {{ path = {:?} }}\n[services.app]\nactive = \"green\"\n\
             [services.app.backends.blue]\nendpoints = [\"127.0.0.1:{}\"]\n\
             [services.app.backends.green]\nendpoints = [\"127.0.0.1:{}\"]\n\
             [services.app.health]\ninterval = \"50ms\"\nhealthy_after = 1\n",
            path("run/admin.sock"),
            path("state/.deployment-state.json"),
            path("access.log"),
            ports[0],
            ports[1],
        );
        fs::write(path("uh-proxy.toml"), config).unwrap();
        let (proxy, address) = start_front_door(dir.path());
        let stage = Self { dir, proxy, address, ports };
        stage.configure("uh-deploy.toml", "");
        stage
    }

    /// Kills uh-proxy.
    pub(crate) fn kill_front_door(&mut self) {
        self.proxy.kill().unwrap();
        self.proxy.wait().unwrap();
    }

    /// Starts it again, on another port.
    pub(crate) fn start_front_door(&mut self) {
        (self.proxy, self.address) = start_front_door(self.dir.path());
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a configuration. Extra lines replace those of the same key, and may add tables.
    pub(crate) fn configure(&self, file: &str, extra: &str) {
        self.configure_with(file, extra, "deploy-state", self.ports);
    }

    pub(crate) fn configure_with(&self, file: &str, extra: &str, state_dir: &str, ports: [u16; 2]) {
        let mut tables: Vec<(String, Vec<String>)> = Vec::new();
        let base = format!(
            "[deploy]\nadmin_socket = {:?}\nstate_dir = {:?}\nsettle = \"50ms\"\ndrain_timeout = \"2s\"\nstop_timeout = \"5s\"\nready_timeout = \"10s\"\n\
             [backends.blue]\nendpoints = [\"127.0.0.1:{}\"]\n[backends.green]\nendpoints = [\"127.0.0.1:{}\"]\n\
             [runtime.process]\ncommand = [{:?}]\n[health]\ninterval = \"20ms\"\nwithin = \"10s\"\nsuccesses = 2\n",
            self.path("run/admin.sock"),
            self.path(state_dir),
            ports[0],
            ports[1],
            program("uh-sample-app"),
        );
        for line in base.lines().chain(extra.lines()) {
            if line.starts_with('[') {
                if !tables.iter().any(|(name, _)| name == line) {
                    tables.push((line.to_owned(), Vec::new()));
                }
                let at = tables.iter().position(|(name, _)| name == line).unwrap();
                let table = tables.remove(at);
                tables.push(table);
            } else if let (Some((_, lines)), Some((key, _))) = (tables.last_mut(), line.split_once(" = ")) {
                lines.retain(|other| !other.starts_with(&format!("{key} = ")));
                lines.push(line.to_owned());
            }
        }
        let text: String =
            tables.iter().map(|(name, lines)| format!("{name}\n{}\n", lines.join("\n"))).collect();
        fs::write(self.path(file), text).unwrap();
    }

    /// `uh-deploy` with this configuration, in a clean environment.
    pub(crate) fn command_with(&self, file: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uh-deploy"));
        command.arg("--config").arg(self.path(file)).args(args).stdin(Stdio::null());
        command.env_remove("npm_package_version");
        command
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
        pids_in(&self.path("deploy-state"))
    }

    /// The only instance of a backend, and its supervisor's record.
    pub(crate) fn saved(&self, backend: &str) -> (String, Value) {
        let part = format!(".{backend}.");
        let mut entries: Vec<fs::DirEntry> =
            fs::read_dir(self.path("deploy-state/instances")).unwrap().map(Result::unwrap).collect();
        entries.retain(|entry| entry.file_name().to_string_lossy().contains(&part));
        assert_eq!(entries.len(), 1, "instances of {backend}");
        let text = fs::read(entries[0].path().join("state.json")).unwrap();
        (entries[0].file_name().to_string_lossy().into_owned(), serde_json::from_slice(&text).unwrap())
    }

    /// Simulates a power failure: kills every process of every instance.
    pub(crate) fn kill_all_instances(&self) {
        kill_instances(&self.path("deploy-state"));
        until("every app is dead", || (self.apps() == 0).then_some(()));
    }

    pub(crate) fn history(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("deploy-state/history.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Starts load from several keep-alive clients.
    pub(crate) fn load(&self) -> Load {
        Load::start(self.address, 3)
    }

    /// uh-proxy's state file.
    pub(crate) fn state_file(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("state/.deployment-state.json")).unwrap()).unwrap()
    }
}

/// Lets the supervisors kill their descendants: nothing else finds an app that has cleared its environment.
fn end_instances(state_dir: &Path) {
    let mut supervisors = Vec::new();
    for entry in fs::read_dir(state_dir.join("instances")).into_iter().flatten().flatten() {
        let saved = fs::read(entry.path().join("state.json")).unwrap_or_default();
        let saved: Value = serde_json::from_slice(&saved).unwrap_or_default();
        let _ = fs::write(entry.path().join("stop"), "");
        if let Some(pid) = alive(&saved["app"]).and_then(|app| rustix::process::Pid::from_raw(app.pid)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        supervisors.extend(alive(&saved["supervisor"]));
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while supervisors.iter().any(|supervisor| supervisor.is_alive()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills everything of every instance, supervisors first: they would restart their apps.
fn kill_instances(state_dir: &Path) {
    let entries = || fs::read_dir(state_dir.join("instances")).into_iter().flatten().flatten();
    let kill = |pid: i32| {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    };
    for entry in entries() {
        let saved = fs::read(entry.path().join("state.json")).unwrap_or_default();
        let saved: Value = serde_json::from_slice(&saved).unwrap_or_default();
        if let Some(known) = alive(&saved["supervisor"]) {
            kill(known.pid);
        }
    }
    for entry in entries() {
        marked(&entry.file_name().to_string_lossy()).into_iter().for_each(kill);
    }
}

/// The process of a record, if it is alive.
pub(crate) fn alive(saved: &Value) -> Option<uh_controller::runtime::process::proc::ProcessIdentity> {
    let known: uh_controller::runtime::process::proc::ProcessIdentity =
        serde_json::from_value(saved.clone()).ok()?;
    known.is_alive().then_some(known)
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

/// Those of one state directory.
fn pids_in(state_dir: &Path) -> Vec<(String, i32)> {
    let Ok(entries) = fs::read_dir(state_dir.join("instances")) else { return Vec::new() };
    let pid = |path: PathBuf| {
        let saved: Value = serde_json::from_slice(&fs::read(path.join("state.json")).ok()?).ok()?;
        let known: uh_controller::runtime::process::proc::ProcessIdentity =
            serde_json::from_value(saved["app"].clone()).ok()?;
        known.is_alive().then(|| (path.file_name().unwrap().to_string_lossy().into_owned(), known.pid))
    };
    entries.flatten().filter_map(|entry| pid(entry.path())).collect()
}

impl Drop for Stage {
    fn drop(&mut self) {
        let directories = fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        for state_dir in directories.map(|entry| entry.path()) {
            end_instances(&state_dir);
            kill_instances(&state_dir);
        }
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
        if std::thread::panicking() {
            println!("--- proxy.log\n{}", fs::read_to_string(self.path("proxy.log")).unwrap_or_default());
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
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Self { code: output.status.code(), text: text.concat() }
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
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    request(&mut stream, path).map(|(_, body)| body)
}

/// One request on a kept connection: status and body.
fn request(stream: &mut std::net::TcpStream, path: &str) -> std::io::Result<(u16, String)> {
    use std::io::{Error, Read as _, Write as _};
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n\r\n").as_bytes())?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Err(Error::other("closed"));
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(Error::other("no status"))?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.and_then(|l| l.trim().parse().ok()).ok_or(Error::other("no length"))?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Clients that send requests in a loop, and count.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(address: SocketAddr, clients: usize) -> Self {
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |_| {
            let (stop, requests) = (Arc::clone(&stop), Arc::clone(&requests));
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                let mut stream = None;
                while !stop.load(Ordering::SeqCst) {
                    let mut open = match stream.take() {
                        Some(open) => open,
                        None => std::net::TcpStream::connect(address).unwrap(),
                    };
                    match request(&mut open, "/") {
                        Ok((200, _)) => stream = Some(open),
                        Ok((status, body)) => failures.push(format!("{status} {}", body.trim())),
                        Err(e) => failures.push(e.to_string()),
                    }
                    requests.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(2));
                }
                failures
            })
        };
        let threads = (0..clients).map(client).collect();
        Self { stop, requests, threads }
    }

    /// Stops it, and returns the failures.
    pub(crate) fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let failures = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (self.requests.load(Ordering::SeqCst), failures)
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
