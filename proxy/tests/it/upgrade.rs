//! `uh-proxy upgrade` and SIGUSR2: the running uh-proxy starts the next one, which takes over its sockets and the lead,
//! wherever the sockets come from. If it doesn't, the old one goes on and the reason is said.

mod back;
mod load;
mod refused;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use uh_testkit::wait::free_address;

use crate::harness::{Home, Proxy, SampleApp, cli, soon, until};
use crate::keeper::{Keeper, Seen, is_answered, new_clients};
use crate::systemd::{Manager, activated, clients};
use crate::wire::Wire;

/// A uh-proxy that another one has started. Killed when dropped.
pub(crate) struct Started(pub(crate) u32);

impl Started {
    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended already.
        let _ = kill_process(Pid::from_raw(self.0.cast_signed()).unwrap(), signal);
    }

    /// Waits for its end. Nobody may be there to ask for its exit code.
    pub(crate) async fn ended(&self) {
        let what = format!("process {} has ended", self.0);
        until(&what, async || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).ok();
            let state = stat.as_ref().and_then(|stat| stat.rsplit(") ").next()?.chars().next());
            // Its first thread may be gone while another one has its files still.
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.0)).map_or(0, Iterator::count);
            state.is_none_or(|state| "ZX".contains(state) && threads <= 1).then_some(())
        })
        .await;
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// A uh-proxy that stops or dies at the point that is written to the file.
#[cfg(feature = "fault-points")]
async fn with_fault_points(home: &Home) -> (Proxy, std::path::PathBuf) {
    let fault = home.path("fault");
    let mut command = home.command();
    command.env("UH_PROXY_FAULT_FILE", &fault);
    let proxy = home.start_as(command).await;
    proxy.until_healthy().await;
    (proxy, fault)
}

/// Who leads.
pub(crate) async fn leader(home: &Home) -> u32 {
    uh_protocol::client::Client::new(home.socket()).status().await.unwrap().proxy.pid
}

/// Upgrades by the command, which must succeed. Returns the new process.
pub(crate) async fn upgrade(home: &Home) -> Started {
    let before = leader(home).await;
    let (code, said, message) = cli(&home.socket(), &["upgrade"]).await;
    let started = Started(leader(home).await);
    assert_eq!(code, 0, "{said}{message}{}", home.messages());
    assert!(said.contains(&format!("(process {}) leads after", started.0)), "{said}");
    assert_ne!(started.0, before);
    started
}

/// Goes back by the command, which must succeed, to this process.
pub(crate) async fn back(home: &Home, old: u32) {
    let (code, said, message) = cli(&home.socket(), &["upgrade", "--back"]).await;
    assert_eq!(code, 0, "{said}{message}{}", home.messages());
    assert!(said.contains(&format!("(process {old}) leads after")), "{said}");
    assert_eq!(leader(home).await, old);
}

/// Clients that must all be answered, on kept and on new connections.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    pub(crate) answers: Arc<AtomicUsize>,
    pub(crate) seen: Arc<Seen>,
    kept: Vec<tokio::task::JoinHandle<()>>,
    new: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let (stop, answers, seen) = (Arc::default(), Arc::default(), Arc::default());
        let kept = clients(address, &stop, &answers);
        let new = new_clients(address, &stop, &seen);
        Self { stop, answers, seen, kept, new }
    }

    pub(crate) async fn until_more(&self) {
        let before = self.answers.load(Ordering::Relaxed);
        until("requests are answered", async || {
            (self.answers.load(Ordering::Relaxed) > before + 20).then_some(())
        })
        .await;
    }

    /// Stops it. Nobody was refused, and no request has failed.
    pub(crate) async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.kept {
            soon("a client's end", client).await.unwrap();
        }
        for client in self.new {
            tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap();
        }
        println!(
            "{} answers on kept and new connections, {:?}",
            self.answers.load(Ordering::Relaxed),
            self.seen
        );
        let lost = [&self.seen.refused, &self.seen.cut].map(|counter| counter.load(Ordering::Relaxed));
        assert_eq!(lost, [0, 0], "refused and cut");
    }
}

/// On an address that no other test gets once it is closed.
pub(crate) async fn on_a_port_of_its_own() -> (Home, Proxy, [SampleApp; 2]) {
    let apps = [SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await];
    let listen = format!("listen = [\"{}\"]", free_address());
    let home = Home::new(apps[0].address, apps[1].address).server(&listen);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    (home, proxy, apps)
}

/// Waits until a port is closed: the last thread of a process may have it for a moment longer than the process seems to
/// live.
pub(crate) async fn until_closed(address: SocketAddr) {
    until("the port is closed", async || TcpStream::connect(address).is_err().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_plain_host_five_upgrades_refuse_nobody_and_fail_no_request() {
    let (home, mut first, _apps) = on_a_port_of_its_own().await;
    let (address, metrics) = (first.address, first.metrics);
    let load = Load::start(address);
    let mut started: Vec<Started> = Vec::new();
    for turn in 0..5 {
        started.push(upgrade(&home).await);
        load.until_more().await;
        assert_eq!(Wire::connect(metrics).await.get("/metrics").await.status, 200);
        let to = if turn % 2 == 0 { "green" } else { "blue" };
        let (code, _, message) = cli(&home.socket(), &["switch", to]).await;
        assert_eq!(code, 0, "{message}");
    }
    assert_eq!(first.ended().await.code(), Some(0), "{}", home.messages());
    load.end().await;
    // The last one alone has the sockets, and closes the ports when it stops.
    started[4].signal(Signal::TERM);
    for process in &started {
        process.ended().await;
    }
    until_closed(address).await;
    assert!(!home.socket().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_of_systemd_are_passed_on_and_it_is_notified_of_the_new_main_process() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let home = Home::new(blue.address, green.address).server(&format!("listen = [\"{address}\"]"));
    let manager = Manager::new(&home);
    let mut command = activated(&home, &[&listener]);
    command.env("NOTIFY_SOCKET", home.path("notify"));
    let mut first = home.start_as(command).await;
    assert!(manager.next().starts_with("READY=1\n"));
    let load = Load::start(address);
    let next = upgrade(&home).await;
    // From the old process, which says no more from then on; what the new one says counts then.
    let mut messages = vec![manager.next(), manager.next()];
    messages.sort();
    assert!(messages[0].starts_with(&format!("MAINPID={}\n", next.0)), "{messages:?}");
    assert!(messages[1].starts_with("READY=1\n"), "{messages:?}");
    load.until_more().await;
    load.end().await;
    // systemd ends all processes of the service.
    first.signal(Signal::TERM);
    next.signal(Signal::TERM);
    assert!(manager.next().starts_with("STOPPING=1\n"));
    assert_eq!(first.ended().await.code(), Some(0));
    next.ended().await;
    // It is systemd's still.
    let waiting = TcpStream::connect(address).unwrap();
    let _proxy = home.start_as(activated(&home, &[&listener])).await;
    assert!(tokio::task::spawn_blocking(move || is_answered(waiting)).await.unwrap());
}

async fn with_keeper() -> (Home, Keeper, Proxy, [SampleApp; 2]) {
    let apps = [SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await];
    let address = free_address();
    let home = Home::new(apps[0].address, apps[1].address);
    let socket = home.path("keeper/sock");
    // The address for metrics isn't the keeper's.
    let home = home.server(&format!("listen = [\"{address}\"]\nkeeper = {socket:?}"));
    let keeper = Keeper::start(&home.path("."), &[address]).await;
    let proxy = home.start().await;
    proxy.until_healthy().await;
    (home, keeper, proxy, apps)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_keeper_sigusr2_upgrades_without_a_loss() {
    let (home, _keeper, mut first, _apps) = with_keeper().await;
    let load = Load::start(first.address);
    first.signal(Signal::USR2);
    let client = uh_protocol::client::Client::new(home.socket());
    let next = uh_testkit::wait::until("another one leads", async || {
        let pid = client.status().await.ok()?.proxy.pid;
        (pid != first.pid()).then(|| Started(pid))
    });
    let next = next.await.unwrap_or_else(|error| panic!("{error:#}\n{}", home.messages()));
    load.until_more().await;
    let last = upgrade(&home).await;
    load.until_more().await;
    load.end().await;
    assert_eq!(first.ended().await.code(), Some(0));
    assert_eq!(Wire::connect(first.address).await.get("/").await.status, 200);
    last.signal(Signal::TERM);
    last.ended().await;
    next.ended().await;
}
