//! A stand-in for systemd: receives notifications, and holds the listening socket.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Home, Proxy, SampleApp, pair, soon};
use crate::wire::Wire;

/// The notification socket of a service manager.
pub(crate) struct Manager(UnixDatagram);

impl Manager {
    pub(crate) fn new(home: &Home) -> Self {
        let socket = UnixDatagram::bind(home.path("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(socket)
    }

    /// The next message except watchdog pings.
    pub(crate) fn next(&self) -> String {
        loop {
            let message = self.any();
            if message != "WATCHDOG=1\n" {
                return message;
            }
        }
    }

    fn any(&self) -> String {
        let mut buffer = [0; 4096];
        let read = self.0.recv(&mut buffer).expect("a message");
        String::from_utf8(buffer[..read].to_vec()).unwrap()
    }
}

/// The command as systemd would run it, with up to two sockets as descriptors 3 and 4, and the variables that announce
/// them.
pub(crate) fn activated(home: &Home, listeners: &[&TcpListener]) -> Command {
    let inner = home.command();
    let mut command = Command::new("/bin/sh");
    let count = listeners.len();
    let script = format!(
        "exec 3<&0 4<&1 0</dev/null 1</dev/null; LISTEN_FDS={count} LISTEN_PID=$$ exec \"$0\" \"$@\""
    );
    command.arg("-c").arg(script).arg(inner.get_program()).args(inner.get_args());
    let mut sockets =
        listeners.iter().map(|listener| Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
    command.stdin(sockets.next().unwrap()).stdout(sockets.next().unwrap_or_else(Stdio::null));
    let log = std::fs::OpenOptions::new().create(true).append(true).open(home.log()).unwrap();
    command.stderr(log);
    command
}

#[tokio::test]
async fn systemd_is_notified_of_start_reload_watchdog_and_stop() {
    let (home, mut first, _blue, _green) = pair().await;
    first.kill();
    let manager = Manager::new(&home);
    let mut command = home.command();
    command.env("NOTIFY_SOCKET", home.path("notify")).env("WATCHDOG_USEC", "400000");
    let mut proxy = home.start_as(command).await;
    assert_eq!(manager.next(), "READY=1\nSTATUS=serving, generation 0\n");
    for _ in 0..3 {
        assert_eq!(manager.any(), "WATCHDOG=1\n");
    }
    proxy.signal(Signal::HUP);
    let message = manager.next();
    let clock = message.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!(message.starts_with("RELOADING=1\n") && clock.parse::<u64>().unwrap() > 0, "{message}");
    assert_eq!(manager.next(), "READY=1\nSTATUS=serving, generation 0\n");
    home.write_config("nonsense");
    assert!(proxy.client.reload().await.is_err());
    assert!(manager.next().starts_with("RELOADING=1\n"));
    assert!(manager.next().contains("rejected"));
    proxy.signal(Signal::TERM);
    let message = manager.next();
    assert!(message.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=36000000\n"), "{message}");
    assert_eq!(proxy.ended().await.code(), Some(0));
}

/// A unit file as systemd reads it: sections of settings, in order.
fn unit(name: &str) -> Vec<(String, String, String)> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (mut section, mut settings) = (String::new(), Vec::new());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            assert!(["Unit", "Service", "Socket", "Timer", "Install"].contains(&name), "{name} in {line}");
            name.clone_into(&mut section);
        } else {
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{}: {line}", path.display()));
            assert!(!section.is_empty(), "{}: {line} is in no section", path.display());
            settings.push((section.clone(), key.to_owned(), value.to_owned()));
        }
    }
    settings
}

fn value<'a>(unit: &'a [(String, String, String)], section: &str, key: &str) -> Option<&'a str> {
    let mut found =
        unit.iter().filter(|(s, k, _)| s == section && k == key).map(|(_, _, value)| value.as_str());
    let first = found.next();
    assert_eq!(found.next(), None, "{key} is there twice");
    first
}

#[test]
fn the_shipped_units_never_give_up_and_fit_the_program() {
    let (service, socket) = (unit("uh-proxy.service"), unit("uh-proxy.socket"));
    // systemd's start limit would fail the socket too.
    assert_eq!(value(&service, "Unit", "StartLimitIntervalSec"), Some("0"));
    assert_eq!(value(&socket, "Unit", "StartLimitIntervalSec"), Some("0"));
    assert_eq!(value(&socket, "Socket", "TriggerLimitIntervalSec"), Some("0"));
    assert_eq!(value(&service, "Service", "Restart"), Some("always"));
    assert_eq!(value(&service, "Service", "NonBlocking"), Some("true"));
    assert_eq!(value(&service, "Service", "Type"), Some("notify"));
    // The main process changes in an upgrade, and may change back.
    assert_eq!(value(&service, "Service", "NotifyAccess"), Some("all"));
    assert!(value(&service, "Service", "WatchdogSec").is_some());
    assert_eq!(value(&service, "Unit", "Requires"), Some("uh-proxy.socket"));
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u64>().unwrap();
    let config = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/uh-proxy.toml");
    let server = uh_proxy::config::parse(&std::fs::read_to_string(config).unwrap()).unwrap().server;
    let stop = seconds(value(&service, "Service", "TimeoutStopSec").unwrap());
    assert!(stop >= server.shutdown_timeout.as_secs() + 6, "systemd would kill what still works");
    // Each socket must be one that the program serves, or it doesn't start.
    let listens = server.listen.iter().chain(&server.metrics).map(ToString::to_string).collect::<Vec<_>>();
    let streams: Vec<_> = socket.iter().filter(|(_, key, _)| key == "ListenStream").collect();
    assert!(
        !streams.is_empty() && streams.iter().all(|(_, _, address)| listens.contains(address)),
        "{streams:?}"
    );
}

/// The socket has its own mode; the users in `server.admin_users` must be able to traverse its directory.
#[test]
fn the_shipped_unit_lets_admin_users_reach_the_socket_and_see_nothing_else() {
    let service = unit("uh-proxy.service");
    assert_eq!(value(&service, "Service", "RuntimeDirectoryMode"), Some("0711"));
    assert_eq!(value(&service, "Service", "StateDirectoryMode"), Some("0700"));
}

#[test]
fn there_is_one_unit_of_each_name() {
    let config = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    let mut names: Vec<_> = [config.clone(), config.join("systemd")]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| [".service", ".socket", ".timer"].iter().any(|end| name.ends_with(end)))
        .collect();
    names.sort();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "two units of one name: whoever installs both folders gets one of them");
}

/// systemd passes blocking sockets, and non-blocking ones with `NonBlocking=`.
#[tokio::test]
async fn an_inherited_socket_is_served_whether_it_blocks_or_not() {
    let app = SampleApp::start("blue", "1").await;
    for nonblocking in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(nonblocking).unwrap();
        let listen = format!("listen = [\"{}\"]", listener.local_addr().unwrap());
        let home = Home::new(app.address, app.address).server(&listen);
        let mut proxy = start_activated(&home, &listener).await;
        for _ in 0..20 {
            assert_eq!(Wire::connect(proxy.address).await.get("/").await.status, 200);
        }
        // Its workers must not block in accept.
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.ended().await.code(), Some(0), "nonblocking: {nonblocking}");
    }
}

/// Clients that send requests until stopped, each on a connection that it keeps as long as possible, or on a new one
/// each time. Any failure fails the test.
pub(crate) fn clients(
    address: SocketAddr,
    stop: &Arc<AtomicBool>,
    answers: &Arc<AtomicUsize>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let client = |index: usize| {
        let (stop, answers) = (Arc::clone(stop), Arc::clone(answers));
        tokio::spawn(async move {
            let mut kept: Option<Wire> = None;
            while !stop.load(Ordering::Relaxed) {
                let mut wire = match kept.take() {
                    Some(wire) => wire,
                    None => Wire::connect(address).await,
                };
                let response = wire.get("/").await;
                assert!(response.status == 200 && response.complete, "{response:?}");
                answers.fetch_add(1, Ordering::Relaxed);
                if index.is_multiple_of(2) && response.header("connection").is_none() {
                    kept = Some(wire);
                }
            }
        })
    };
    (0..8).map(client).collect()
}

async fn start_activated(home: &Home, listener: &TcpListener) -> Proxy {
    let proxy = home.start_as(activated(home, &[listener])).await;
    assert_eq!(proxy.address, listener.local_addr().unwrap());
    proxy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_restarts_under_socket_activation_refuse_no_connection_and_fail_no_request() {
    const RESTARTS: usize = 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let listen = format!("listen = [\"{address}\"]");
    let home = Home::new(blue.address, green.address).server(&listen);
    let mut proxy = start_activated(&home, &listener).await;
    let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients = clients(address, &stop, &answers);
    for _ in 0..RESTARTS {
        let before = answers.load(Ordering::Relaxed);
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.ended().await.code(), Some(0));
        proxy = start_activated(&home, &listener).await;
        crate::harness::until("it answers", async || {
            (answers.load(Ordering::Relaxed) > before).then_some(())
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        soon("a client's end", client).await.unwrap();
    }
    println!("{} requests over {RESTARTS} restarts, none failed", answers.load(Ordering::Relaxed));
    assert!(!home.messages().contains("second signal received"), "{}", home.messages());
}

#[tokio::test]
async fn an_unconfigured_socket_is_an_error_and_not_left_unserved() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let home = Home::new("127.0.0.1:9", "127.0.0.1:9");
    let mut child = activated(&home, &[&listener]).spawn().unwrap();
    let status = crate::harness::until("it has ended", async || child.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(1));
    let message = home.messages();
    let address = listener.local_addr().unwrap().to_string();
    assert!(message.contains(&address) && message.contains("server.listen"), "{message}");
}
