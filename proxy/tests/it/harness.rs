//! uh-proxy as a child process in its own directory, and apps to put behind it.

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use uh_protocol::client::Client;
use uh_protocol::request::SwitchRequest;
use uh_protocol::status::{BackendStatus, ServiceStatus, Status};
use uh_protocol::{BackendName, ServiceName};

/// The timeout of everything that should happen immediately.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Waits until `done` returns something, or fails and names what it waited for.
pub(crate) async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = done().await {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Awaits something that should happen soon.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub(crate) fn backend(name: &str) -> BackendName {
    name.parse().unwrap()
}

pub(crate) fn app() -> ServiceName {
    "app".parse().unwrap()
}

/// A directory with a configuration, in which uh-proxy can be started more than once.
pub(crate) struct Home {
    dir: TempDir,
    extra_server: String,
    extra_service: String,
    blue: String,
    green: String,
}

impl Home {
    /// For two backends at these addresses.
    pub(crate) fn new(blue: impl ToString, green: impl ToString) -> Self {
        Self {
            dir: tempfile::Builder::new().prefix("uh-proxy-test-").tempdir().unwrap(),
            extra_server: String::new(),
            extra_service: String::new(),
            blue: blue.to_string(),
            green: green.to_string(),
        }
    }

    /// Adds lines to `[server]`.
    pub(crate) fn server(mut self, lines: &str) -> Self {
        self.extra_server.push_str(lines);
        self.extra_server.push('\n');
        self
    }

    /// Adds lines after `[services.app]`, which may begin new tables.
    pub(crate) fn service(mut self, lines: &str) -> Self {
        self.extra_service.push_str(lines);
        self.extra_service.push('\n');
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/admin.sock")
    }

    pub(crate) fn state_file(&self) -> PathBuf {
        self.path("state/.deployment-state.json")
    }

    pub(crate) fn config(&self) -> String {
        let listen = if self.extra_server.contains("listen =") { "" } else { "listen = [\"127.0.0.1:0\"]" };
        let log = if self.extra_server.contains("access_log =") {
            String::new()
        } else {
            format!("access_log = {{ path = {:?}, format = \"json\" }}", self.path("access.log"))
        };
        let threads = if self.extra_server.contains("threads =") { "" } else { "threads = 2" };
        let health = if self.extra_service.contains("services.app.health") {
            ""
        } else {
            "[services.app.health]\ninterval = \"50ms\"\nhealthy_after = 1"
        };
        let Self { extra_server, extra_service, blue, green, .. } = self;
        format!(
            "[server]\n{listen}\nmetrics = \"127.0.0.1:0\"\nadmin_socket = {:?}\nstate_file = {:?}\n{threads}\n{log}\n\
             {extra_server}\n[services.app]\nactive = \"blue\"\n{extra_service}\n\
             [services.app.backends.blue]\nendpoints = [\"{blue}\"]\n\
             [services.app.backends.green]\nendpoints = [\"{green}\"]\n{health}\n",
            self.socket(),
            self.state_file(),
        )
    }

    /// Writes the configuration file.
    pub(crate) fn write_config(&self, text: &str) {
        fs::write(self.path("uh-proxy.toml"), text).unwrap();
    }

    /// The command that starts uh-proxy, with its log in a file.
    pub(crate) fn command(&self) -> Command {
        self.write_config(&self.config());
        let config = self.path("uh-proxy.toml");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("stderr.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_uh-proxy"));
        command.arg("run").arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }

    /// Starts uh-proxy and waits until its admin API answers.
    pub(crate) async fn start(&self) -> Proxy {
        self.start_as(self.command()).await
    }

    pub(crate) async fn start_as(&self, mut command: Command) -> Proxy {
        let mut child = command.spawn().unwrap();
        let client = Client::new(self.socket());
        let status = until("uh-proxy answers", async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("uh-proxy ended with {status}:\n{}", self.messages());
            }
            client.status().await.ok().filter(|status| status.proxy.pid == child.id())
        })
        .await;
        let address = status.proxy.listen[0].parse().unwrap();
        let metrics = status.proxy.metrics.unwrap().parse().unwrap();
        Proxy { child, client, address, metrics }
    }

    /// The log of uh-proxy.
    pub(crate) fn messages(&self) -> String {
        let said = fs::read_to_string(self.path("stderr.log")).unwrap_or_default();
        assert!(!said.contains("os error"), "an operator reads a number: {said}");
        said
    }

    /// Waits until uh-proxy has logged something.
    pub(crate) async fn until_said(&self, text: &str) {
        until(&format!("{text:?} is in the log"), async || self.messages().contains(text).then_some(()))
            .await;
    }

    /// The access log's lines so far.
    pub(crate) fn access_log(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.path("access.log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A running uh-proxy. Killed when dropped.
pub(crate) struct Proxy {
    child: Child,
    pub(crate) client: Client,
    pub(crate) address: SocketAddr,
    pub(crate) metrics: SocketAddr,
}

impl Proxy {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) async fn status(&self) -> Status {
        self.client.status().await.unwrap()
    }

    pub(crate) async fn service(&self) -> ServiceStatus {
        self.status().await.services.remove(0)
    }

    pub(crate) async fn backend(&self, name: &str) -> BackendStatus {
        self.service().await.backends.into_iter().find(|b| b.name.as_str() == name).unwrap()
    }

    /// Waits until both backends are known to be healthy.
    pub(crate) async fn until_healthy(&self) {
        until("both backends are healthy", async || {
            self.service().await.backends.iter().all(|backend| backend.healthy == Some(true)).then_some(())
        })
        .await;
    }

    /// Waits until a backend has nothing in flight.
    pub(crate) async fn until_idle(&self, name: &str) {
        until(&format!("{name} holds nothing"), async || {
            let backend = self.backend(name).await;
            (backend.requests_in_flight + backend.tunnels == 0).then_some(())
        })
        .await;
    }

    pub(crate) async fn switch(&self, to: &str) -> uh_protocol::request::Switched {
        self.client.switch(&app(), &SwitchRequest::to(backend(to))).await.unwrap()
    }

    /// Ignores its health.
    pub(crate) async fn switch_by_force(&self, to: &str) -> uh_protocol::request::Switched {
        let request = SwitchRequest { force: true, ..SwitchRequest::to(backend(to)) };
        self.client.switch(&app(), &request).await.unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap(), signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for uh-proxy to exit by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("uh-proxy has ended", async || child.try_wait().unwrap()).await
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs the command line to completion.
pub(crate) async fn cli(socket: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_uh-proxy"));
    command.args(args).env("UH_PROXY_ADMIN_SOCKET", socket).stdin(Stdio::null()).kill_on_drop(true);
    let output = soon("a command", command.output()).await.unwrap();
    let numbers = [&output.stdout, &output.stderr]
        .iter()
        .any(|said| String::from_utf8_lossy(said).contains("os error"));
    assert!(!numbers, "an operator reads a number: {output:?}");
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// The sample app, in this process.
pub(crate) struct SampleApp {
    pub(crate) address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl SampleApp {
    pub(crate) async fn start(name: &str, version: &str) -> Self {
        let (name, version) = (name.to_owned(), version.to_owned());
        let settings = uh_sample_app::settings::Settings::from_lookup(|key| match key {
            "PORT" => Some("0".into()),
            "HOSTNAME" => Some("127.0.0.1".into()),
            "DEPLOYMENT_ENV" => Some(name.clone().into()),
            "APP_VERSION" => Some(version.clone().into()),
            _ => None,
        })
        .unwrap();
        let server = uh_sample_app::server::Server::bind(settings).await.unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(server.serve_until(stopped));
        Self { address, _stop: stop }
    }
}

/// Blue and green sample apps behind uh-proxy.
pub(crate) async fn pair() -> (Home, Proxy, SampleApp, SampleApp) {
    let (blue, green) = (SampleApp::start("blue", "1.0.0").await, SampleApp::start("green", "1.0.1").await);
    let home = Home::new(blue.address, green.address);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    (home, proxy, blue, green)
}

/// A scripted app: for each request head, the script gets the connection. Probes are
/// answered without it.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    /// Requests seen, probes not counted.
    pub(crate) requests: Arc<AtomicUsize>,
}

/// The result of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    KeepAlive,
    Close,
}

impl Scripted {
    pub(crate) async fn start<F, R>(script: F) -> Self
    where
        F: Fn(String, TcpStream) -> R + Clone + Send + 'static,
        R: Future<Output = (TcpStream, Then)> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (script, seen) = (script.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    while let Some(head) = read_head(&mut stream).await {
                        if head.starts_with("GET /api/health ") {
                            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
                            continue;
                        }
                        seen.fetch_add(1, Ordering::SeqCst);
                        let (next, then) = script(head, stream).await;
                        if then == Then::Close {
                            return;
                        }
                        stream = next;
                    }
                });
            }
        });
        Self { address, requests }
    }

    pub(crate) fn seen(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Reads exactly up to the end of a head.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}
