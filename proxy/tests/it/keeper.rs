//! uh-proxy with the listening sockets of uh-keeper: crashes, restarts, and what happens if the keeper itself dies.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use uh_keeper::wire::{Answer, Link};
use uh_testkit::process::{Process, log_to, program};
use uh_testkit::wait::free_address;

use crate::harness::{Home, Proxy, SampleApp, cli, soon, until};
use crate::systemd::clients;
use crate::wire::Wire;

/// A keeper in the directory of a [`Home`].
pub(crate) struct Keeper {
    process: Process,
    socket: PathBuf,
    /// Where it was started, for the next one.
    directory: PathBuf,
}

impl Keeper {
    pub(crate) async fn start(directory: &Path, addresses: &[SocketAddr]) -> Self {
        Self::start_as(Command::new(program("uh-keeper").unwrap()), directory, addresses).await
    }

    /// In a network of its own, like that of a container.
    async fn start_apart(directory: &Path, addresses: &[SocketAddr]) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
        command.arg(program("uh-keeper").unwrap());
        Self::start_as(command, directory, addresses).await
    }

    async fn start_as(mut command: Command, directory: &Path, addresses: &[SocketAddr]) -> Self {
        let socket = directory.join("keeper/sock");
        command.arg("listen").arg("--socket").arg(&socket);
        command.args(addresses.iter().map(ToString::to_string));
        let log = directory.join("uh-keeper.log");
        let process = Process::spawn_as("uh-keeper", log_to(&mut command, &log).unwrap(), &log).unwrap();
        let keeper = Self { process, socket, directory: directory.to_owned() };
        until("uh-keeper answers", async || keeper.ask().ok()).await;
        keeper
    }

    /// Ends it as `kill -9` does, and starts another one in its place.
    async fn replace(mut self, addresses: &[SocketAddr]) -> Self {
        self.process.kill().unwrap();
        Self::start(&self.directory, addresses).await
    }

    fn ask(&self) -> Result<Answer, uh_keeper::wire::LinkError> {
        Link::connect(&self.socket)?.ask(&[])
    }

    fn held(&self) -> Vec<SocketAddr> {
        self.ask().unwrap().held.into_iter().map(|(address, _)| address).collect()
    }
}

/// The lines that make uh-proxy use the keeper, whether or not it is there yet.
fn with_keeper(home: Home, address: SocketAddr) -> Home {
    let socket = home.path("keeper/sock");
    home.server(&format!("listen = [\"{address}\"]\nkeeper = {socket:?}"))
}

async fn kept() -> (Home, Keeper, Proxy, [SampleApp; 2]) {
    let apps = [SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await];
    let address = free_address();
    let home = with_keeper(Home::new(apps[0].address, apps[1].address), address);
    let keeper = Keeper::start(&home.path("."), &[address]).await;
    let proxy = home.start().await;
    proxy.until_healthy().await;
    (home, keeper, proxy, apps)
}

/// Runs uh-proxy until it ends, and returns its message.
async fn refused(home: &Home) -> String {
    let mut child = home.command().spawn().unwrap();
    let status = until("it has ended", async || child.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(1));
    home.messages()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_restarts_with_a_keeper_refuse_no_connection_and_fail_no_request() {
    let (home, _keeper, mut proxy, _apps) = kept().await;
    let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients = clients(proxy.address, &stop, &answers);
    for _ in 0..20 {
        let before = answers.load(Ordering::Relaxed);
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.ended().await.code(), Some(0));
        proxy = home.start().await;
        until("it answers", async || (answers.load(Ordering::Relaxed) > before).then_some(())).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        soon("a client's end", client).await.unwrap();
    }
    println!("{} requests over 20 restarts, none failed", answers.load(Ordering::Relaxed));
}

/// What a load saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    answered: AtomicUsize,
    /// No connection was made.
    pub(crate) refused: AtomicUsize,
    /// The exchange was inside the process when it died.
    pub(crate) cut: AtomicUsize,
    longest_ms: AtomicUsize,
}

/// Clients with a new connection for each request, until stopped.
pub(crate) fn new_clients(
    address: SocketAddr,
    stop: &Arc<AtomicBool>,
    seen: &Arc<Seen>,
) -> Vec<std::thread::JoinHandle<()>> {
    let client = |_| {
        let (stop, seen) = (Arc::clone(stop), Arc::clone(seen));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(10)) else {
                    seen.refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                let counter = if is_answered(stream) { &seen.answered } else { &seen.cut };
                counter.fetch_add(1, Ordering::Relaxed);
                let ms = usize::try_from(begun.elapsed().as_millis()).unwrap();
                seen.longest_ms.fetch_max(ms, Ordering::Relaxed);
            }
        })
    };
    (0..8).map(client).collect()
}

pub(crate) fn is_answered(mut stream: TcpStream) -> bool {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    stream.write_all(request).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200 ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_front_door_refuses_nobody_and_its_successor_serves_those_who_waited() {
    const KILLS: usize = 10;
    let (home, _keeper, mut proxy, _apps) = kept().await;
    let address = proxy.address;
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
    let clients = new_clients(address, &stop, &seen);
    for _ in 0..KILLS {
        let before = seen.answered.load(Ordering::Relaxed);
        until("requests are answered", async || {
            (seen.answered.load(Ordering::Relaxed) > before + 50).then_some(())
        })
        .await;
        proxy.kill();
        // Nobody accepts now: each of them waits in the keeper's queue.
        let waiting: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
        proxy = home.start().await;
        let answered =
            tokio::task::spawn_blocking(|| waiting.into_iter().map(is_answered).collect::<Vec<_>>());
        let answered = soon("the answers", answered).await.unwrap();
        assert!(answered.iter().all(|answered| *answered), "{answered:?}");
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap();
    }
    let [answered, refused, cut, longest] = [&seen.answered, &seen.refused, &seen.cut, &seen.longest_ms]
        .map(|counter| counter.load(Ordering::Relaxed));
    println!("{KILLS} kills: {answered} answered, {refused} refused, {cut} cut, longest {longest} ms");
    assert_eq!(refused, 0);
    // Each client has one request at a time.
    assert!(cut <= KILLS * 8, "{cut} were cut");
}

/// The last acknowledged switch holds, as without a keeper.
#[tokio::test]
async fn the_successor_of_a_killed_front_door_serves_the_last_acknowledged_backend() {
    let (home, _keeper, mut proxy, _apps) = kept().await;
    proxy.switch("green").await;
    proxy.kill();
    let mut waiting = Wire::connect(proxy.address).await;
    waiting.send(crate::wire::get("/")).await;
    let _proxy = home.start().await;
    assert_eq!(waiting.response().await.header("x-backend"), Some("green"));
}

#[tokio::test]
async fn a_keeper_without_the_address_is_an_error_that_names_it() {
    let (held, wanted) = (free_address(), free_address());
    let home = with_keeper(Home::new("127.0.0.1:9", "127.0.0.1:9"), wanted);
    let _keeper = Keeper::start(&home.path("."), &[held]).await;
    let message = refused(&home).await;
    let expected = format!("server.listen has {wanted}, which the uh-keeper at ");
    assert!(message.contains(&expected), "{message}");
    assert!(message.contains(&format!("(it holds {held}): start uh-keeper with {wanted} too")), "{message}");
}

#[tokio::test]
async fn a_front_door_without_a_keeper_gives_up_and_says_why() {
    let home = with_keeper(Home::new("127.0.0.1:9", "127.0.0.1:9"), free_address());
    let message = refused(&home).await;
    assert!(message.contains("waiting for uh-keeper"), "{message}");
    assert!(message.contains("no uh-keeper answers at"), "{message}");
}

#[tokio::test]
async fn a_front_door_that_is_started_before_its_keeper_serves_as_soon_as_it_is_there() {
    let blue = SampleApp::start("blue", "1").await;
    let address = free_address();
    let home = with_keeper(Home::new(blue.address, "127.0.0.1:9"), address);
    let starting = home.start();
    let directory = home.path(".");
    let keeping = async {
        home.until_said("waiting for uh-keeper").await;
        Keeper::start(&directory, &[address]).await
    };
    let (proxy, _keeper) = tokio::join!(starting, keeping);
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.status, 200);
}

/// The front door holds the sockets too, and the next keeper can't bind them: it gets them back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_keeper_refuses_nobody_and_the_next_one_gets_the_sockets_back() {
    let (home, keeper, mut proxy, _apps) = kept().await;
    let address = proxy.address;
    let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients = clients(address, &stop, &answers);
    let keeper = keeper.replace(&[address]).await;
    home.until_said("lost uh-keeper").await;
    until("the keeper has it back", async || (keeper.held() == [address]).then_some(())).await;
    home.until_said("uh-keeper is there again").await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        soon("a client's end", client).await.unwrap();
    }
    proxy.kill();
    let mut waiting = Wire::connect(address).await;
    waiting.send(crate::wire::get("/")).await;
    let _proxy = home.start().await;
    assert_eq!(waiting.response().await.status, 200);
}

#[tokio::test]
async fn check_compares_the_configuration_with_what_the_keeper_holds() {
    let (address, other) = (free_address(), free_address());
    let home = with_keeper(Home::new("127.0.0.1:9", "127.0.0.1:9"), address);
    drop(home.command());
    let file = home.config_file().display().to_string();
    let check = async || cli(&home.socket(), &["check", "--config", &file]).await;
    let (code, _, message) = check().await;
    assert_eq!(code, 1);
    assert!(
        message.contains("server.keeper: no uh-keeper answers at") && message.contains("start it"),
        "{message}"
    );
    assert!(!message.contains("server.listen: "), "the keeper may hold it: {message}");
    let keeper = Keeper::start(&home.path("."), &[address, other]).await;
    let (code, _, message) = check().await;
    assert_eq!(code, 1);
    let expected = format!("server.keeper: uh-keeper holds {other}, which is in none of server.listen");
    assert!(message.contains(&expected), "{message}");
    let keeper = keeper.replace(&[other]).await;
    let (code, _, message) = check().await;
    assert_eq!(code, 1);
    assert!(
        message.contains(&format!("server.listen: uh-keeper doesn't hold {address} (it holds {other})")),
        "{message}"
    );
    let _keeper = keeper.replace(&[address]).await;
    let (code, said, message) = check().await;
    assert_eq!(code, 0, "{said}{message}");
}

/// A client in the network of a keeper.
async fn status_inside(keeper: &Keeper, address: SocketAddr) -> String {
    let mut command = tokio::process::Command::new("nsenter");
    command.args([
        "--net",
        "--target",
        &keeper.process.id().to_string(),
        "curl",
        "--silent",
        "--max-time",
        "10",
    ]);
    command.args(["--output", "/dev/null", "--write-out", "%{http_code}", &format!("http://{address}/")]);
    let output = soon("curl", command.output()).await.unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn the_sockets_of_a_keeper_in_another_network_are_served_and_so_are_those_of_the_next_one() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a network");
        return;
    }
    let blue = SampleApp::start("blue", "1").await;
    // Both networks have this address, and so has that of the front door.
    let address = free_address();
    let home = with_keeper(Home::new(blue.address, "127.0.0.1:9"), address);
    let directory = home.path(".");
    let mut keeper = Keeper::start_apart(&directory, &[address]).await;
    let _proxy = home.start().await;
    assert_eq!(status_inside(&keeper, address).await, "200");
    TcpStream::connect(address).unwrap_err();
    keeper.process.kill().unwrap();
    let next = Keeper::start_apart(&directory, &[address]).await;
    home.until_said("uh-keeper has a new socket for this address").await;
    assert_eq!(status_inside(&next, address).await, "200");
}

/// O_NONBLOCK belongs to the socket, not to one of its holders. A worker that accepts from an empty queue would block with
/// all its connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_makes_the_socket_blocking_does_not_stop_the_front_door() {
    let (home, keeper, proxy, _apps) = kept().await;
    let other: TcpListener = keeper.ask().unwrap().held.remove(0).1;
    for _ in 0..20 {
        other.set_nonblocking(false).unwrap();
        // On a connection that is there, so that it is the workers that answer, not the queue.
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(Wire::connect(proxy.address).await);
        }
        for client in &mut clients {
            // A worker that is blocked would not answer at all.
            assert_eq!(client.get("/").await.status, 200);
        }
    }
    home.until_said("made it non-blocking again").await;
}

/// The admin thread accepts from it: everything that an operator asks would wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_makes_the_socket_for_metrics_blocking_does_not_stop_the_admin_api() {
    let (address, metrics) = (free_address(), free_address());
    let home = with_keeper(Home::new("127.0.0.1:9", "127.0.0.1:9"), address)
        .server(&format!("metrics = \"{metrics}\""));
    let keeper = Keeper::start(&home.path("."), &[address, metrics]).await;
    let proxy = home.start().await;
    let other: TcpListener = keeper.ask().unwrap().held.remove(1).1;
    assert_eq!(other.local_addr().unwrap(), metrics);
    for _ in 0..20 {
        other.set_nonblocking(false).unwrap();
        assert_eq!(Wire::connect(metrics).await.get("/metrics").await.status, 200);
        proxy.status().await;
    }
    home.until_said("made it non-blocking again").await;
}
