//! A shim as a process, and a deadline for every wait.
//!
//! If a test needs an app that answers, that is a sample app in this process, while the shim's child is a shell that
//! prints the signals it gets. If the child itself must answer, it listens on a Unix socket, so that no port has to
//! be guessed.

use std::future::Future;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use uh_sample_app::server::Server;
use uh_testkit::wait;

/// A child that prints the signals it gets and continues. It exits with 0 on SIGTERM, and when its parent dies, so
/// that a killed test leaves no process behind.
pub(crate) const TALKER: &str = "
    for s in HUP QUIT USR1 USR2 ALRM WINCH; do trap \"echo got $s\" $s; done
    trap 'echo got TERM; exit 0' TERM
    echo ready
    while kill -0 $PPID 2>&-; do sleep 0.01; done";

/// Waits for something that must happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    wait::soon(what, future).await.unwrap()
}

/// A sample app in this process, as `green 1.2.3`.
pub(crate) async fn sample_app() -> SocketAddr {
    sample_app_with(&[]).await
}

/// The same, with its own variables.
pub(crate) async fn sample_app_with(variables: &[(&str, &str)]) -> SocketAddr {
    let fixed = [("DEPLOYMENT_ENV", "green"), ("APP_VERSION", "1.2.3")];
    let server = Server::bind_free(&[variables, &fixed].concat()).await.unwrap();
    let address = server.local_addr();
    tokio::spawn(async move {
        let (_never, stop) = oneshot::channel::<()>();
        server.serve_until(stop).await;
    });
    address
}

/// A running shim.
pub(crate) struct Shim {
    child: Child,
    /// Its log, line by line.
    pub(crate) log: Lines,
    /// The output of its child.
    pub(crate) output: Lines,
}

/// Output lines of a process.
#[derive(Clone)]
pub(crate) struct Lines(watch::Receiver<Vec<String>>, Arc<Mutex<usize>>);

impl Lines {
    fn of(stream: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let (sender, receiver) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                sender.send_modify(|lines| lines.push(line));
            }
        });
        Self(receiver, Arc::default())
    }

    /// All lines so far.
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.borrow().clone()
    }

    /// Waits for a line with this text after the one found last, and returns it.
    pub(crate) async fn wait_for(&self, words: &str) -> String {
        let find = |lines: &Vec<String>| {
            let mut read = self.1.lock().unwrap();
            let found = lines.iter().skip(*read).position(|line| line.contains(words))?;
            *read += found + 1;
            Some(lines[*read - 1].clone())
        };
        let mut receiver = self.0.clone();
        let mut found = None;
        let waiting = receiver.wait_for(|lines| {
            found = find(lines);
            found.is_some()
        });
        let ended =
            tokio::time::timeout(wait::SOON, waiting).await.map(|waited| waited.is_err()).unwrap_or(true);
        assert!(!ended, "the output lacks {words:?}: {:#?}", self.all());
        found.unwrap()
    }

    /// Waits until the process and all its children have closed the stream, and returns all lines.
    pub(crate) async fn to_end(&self) -> Vec<String> {
        let mut receiver = self.0.clone();
        within("the end of the output", async { while receiver.changed().await.is_ok() {} }).await;
        self.all()
    }
}

/// A dropped shim is killed, and can't stop its child any more.
impl Drop for Shim {
    fn drop(&mut self) {
        let Some(pid) = self.child.id() else { return };
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        for child in children.collect::<String>().split_ascii_whitespace() {
            if let Some(group) = child.parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
    }
}

/// A command line for the shim, with its own standard streams.
pub(crate) fn command(options: &[&str], command: &[&str]) -> Command {
    with_streams(uh_testkit::shim::command(options, command).unwrap().into())
}

/// The same for any command.
pub(crate) fn with_streams(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

impl Shim {
    /// Starts one in front of the app at this address, with a shell script as its child.
    pub(crate) fn start(app: &str, options: &[&str], script: &str) -> Self {
        let path = ["--listen", "127.0.0.1:0", "--app", app];
        Self::spawn(command(&[&path, options].concat(), &["sh", "-c", script]))
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let log = Lines::of(child.stderr.take().unwrap());
        let output = Lines::of(child.stdout.take().unwrap());
        Self { child, log, output }
    }

    /// Starts one in front of a sample app, and waits until it serves.
    pub(crate) async fn serving(options: &[&str]) -> (Self, SocketAddr) {
        let app = sample_app().await;
        let shim = Self::start(&app.to_string(), options, TALKER);
        let address = shim.address().await;
        shim.log.wait_for("App accepts connections").await;
        shim.output.wait_for("ready").await;
        (shim, address)
    }

    /// Starts one in front of a listener of the test, which acts as the app, and waits until it serves.
    pub(crate) async fn before_listener(options: &[&str], script: &str) -> (Self, SocketAddr, TcpListener) {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shim = Self::start(&app.local_addr().unwrap().to_string(), options, script);
        let address = shim.address().await;
        // The connection with which the shim checked that the app accepts.
        drop(within("a connection", app.accept()).await);
        shim.log.wait_for("App accepts connections").await;
        shim.output.wait_for("ready").await;
        (shim, address, app)
    }

    /// The address it listens on.
    pub(crate) async fn address(&self) -> SocketAddr {
        let line = self.log.wait_for("Listening on ").await;
        line.split("Listening on ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().unwrap() as i32).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its exit.
    pub(crate) async fn status(&mut self) -> ExitStatus {
        within("the shim to end", self.child.wait()).await.unwrap()
    }

    /// Waits for its exit and returns the exit code.
    pub(crate) async fn code(&mut self) -> Option<i32> {
        self.status().await.code()
    }
}
