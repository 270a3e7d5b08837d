//! uh-proxy as a child process in its own directory, and apps to put behind it.

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use uh_protocol::request::{SwitchRequest, Switched};
use uh_protocol::status::{BackendStatus, ServiceStatus, Status};
use uh_protocol::{BackendName, ServiceName};
use uh_testkit::log::json_lines;
use uh_testkit::uh_proxy::{Setup, UhProxy, cli as command_of};
use uh_testkit::wait;

/// Waits until `done` returns something, or fails and names what it waited for.
pub(crate) async fn until<T>(what: &str, done: impl AsyncFnMut() -> Option<T>) -> T {
    wait::until(what, done).await.unwrap()
}

/// Awaits something that should happen soon.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    wait::soon(what, future).await.unwrap()
}

pub(crate) fn backend(name: &str) -> BackendName {
    name.parse().unwrap()
}

pub(crate) fn app() -> ServiceName {
    "app".parse().unwrap()
}

/// A directory with a configuration, in which uh-proxy can be started more than once.
pub(crate) struct Home {
    setup: Setup,
    _dir: TempDir,
}

impl Deref for Home {
    type Target = Setup;

    fn deref(&self) -> &Setup {
        &self.setup
    }
}

impl Home {
    /// For two backends at these addresses.
    pub(crate) fn new(blue: impl ToString, green: impl ToString) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { setup: Setup::new(dir.path(), blue, green), _dir: dir }
    }

    /// Adds lines to `[server]`.
    pub(crate) fn server(self, lines: &str) -> Self {
        Self { setup: self.setup.server(lines), ..self }
    }

    /// Adds lines after `[services.app]`, which may begin new tables.
    pub(crate) fn service(self, lines: &str) -> Self {
        Self { setup: self.setup.service(lines), ..self }
    }

    /// Writes the configuration file.
    pub(crate) fn write_config(&self, text: &str) {
        fs::write(self.config_file(), text).unwrap();
    }

    /// The command that starts uh-proxy, with its log in a file.
    pub(crate) fn command(&self) -> Command {
        self.setup.command().unwrap()
    }

    /// Starts uh-proxy and waits until its admin API answers.
    pub(crate) async fn start(&self) -> Proxy {
        self.start_as(self.command()).await
    }

    pub(crate) async fn start_as(&self, mut command: Command) -> Proxy {
        let started = self.setup.start_as(&mut command).await;
        Proxy(started.unwrap_or_else(|error| panic!("{error:#}\n{}", self.messages())))
    }

    /// The log of uh-proxy.
    pub(crate) fn messages(&self) -> String {
        let said = fs::read_to_string(self.log()).unwrap_or_default();
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
        json_lines(&self.setup.access_log()).unwrap()
    }
}

/// A running uh-proxy. Killed when dropped.
pub(crate) struct Proxy(UhProxy);

impl Deref for Proxy {
    type Target = UhProxy;

    fn deref(&self) -> &UhProxy {
        &self.0
    }
}

impl Proxy {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
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
        self.0.until_healthy().await.unwrap();
    }

    /// Waits until the metrics contain this. An exchange is counted just after its client has its end.
    pub(crate) async fn until_counted(&self, text: &str) {
        let counted = async || self.client.metrics().await.unwrap().contains(text).then_some(());
        until(&format!("{text:?} is in the metrics"), counted).await;
    }

    /// Waits until a backend has nothing in flight.
    pub(crate) async fn until_idle(&self, name: &str) {
        until(&format!("{name} holds nothing"), async || {
            let backend = self.backend(name).await;
            (backend.requests_in_flight + backend.tunnels == 0).then_some(())
        })
        .await;
    }

    pub(crate) async fn switch(&self, to: &str) -> Switched {
        self.client.switch(&app(), &SwitchRequest::to(backend(to))).await.unwrap()
    }

    /// Ignores its health.
    pub(crate) async fn switch_by_force(&self, to: &str) -> Switched {
        let request = SwitchRequest { force: true, ..SwitchRequest::to(backend(to)) };
        self.client.switch(&app(), &request).await.unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid().cast_signed()).unwrap(), signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.0.process.kill();
    }

    /// Waits for uh-proxy to exit by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        self.0.process.ended(wait::SOON).await.unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.0.process.status().unwrap().is_none()
    }
}

/// Runs the command line to completion.
pub(crate) async fn cli(socket: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = tokio::process::Command::from(command_of(socket, args).unwrap());
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
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
        let variables = [("DEPLOYMENT_ENV", name), ("APP_VERSION", version)];
        let server = uh_sample_app::server::Server::bind_free(&variables).await.unwrap();
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
