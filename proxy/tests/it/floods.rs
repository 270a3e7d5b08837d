//! Floods: what one client can do to exhaust memory or time, as fast as it can. Measures what that does to uh-proxy's memory
//! and to other clients.
//!
//! A flood lasts two seconds, or as many as `UH_FLOOD_SECONDS` says. What is promised is demanded when it is set, on a machine
//! with two cores that does nothing else: other clients' 99th percentile is less than twice what it is in calm. uh-proxy then
//! has one worker, on a core of its own. Everything else shares the other core, where the flood takes what the rest leaves.
//! Attackers have machines of their own, so they must not cost the visitors any time but uh-proxy's: in calm, the same flood
//! hits another uh-proxy, the decoy, on the attackers' core. Otherwise, the tests next to it decide on latencies, and less is
//! demanded.

use std::fs;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use uh_sample_app::server::Server;

use crate::harness::Proxy;
use crate::wire::Wire;

/// Held by tests that need much of the processor, one at a time.
pub(crate) static ALONE: Mutex<()> = Mutex::const_new(());

/// How much memory a flood may cost.
const MEMORY_KIB: u64 = 16 << 10;

/// Calm and flood take turns, so that a busy machine slows both down.
const PHASE: Duration = Duration::from_millis(500);

/// Below this, the scheduler decides on latencies rather than uh-proxy: on a machine of its own, and with other tests.
const NOISE: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];

/// How long a visitor waits between two requests.
const PAUSE: Duration = Duration::from_millis(3);

/// What is going on.
const CALM: u8 = 0;
const FLOOD: u8 = 1;
const OVER: u8 = 2;

/// How long the flood lasts, if somebody has asked for a measurement.
fn asked_seconds() -> Option<u64> {
    std::env::var("UH_FLOOD_SECONDS").ok().map(|text| text.parse().expect("UH_FLOOD_SECONDS is a number"))
}

/// A setting for the measured uh-proxy: one worker, if somebody has asked for a measurement.
pub(crate) fn workers() -> &'static str {
    if asked_seconds().is_some() { "threads = 1\n" } else { "" }
}

/// Starts what is flooded in calm, if somebody has asked for a measurement.
pub(crate) async fn decoy<T>(start: impl Future<Output = T>) -> Option<T> {
    if asked_seconds().is_some() { Some(start.await) } else { None }
}

/// Gives uh-proxy a core, and the rest of the test the other one.
fn place(proxy: &Proxy) {
    let on = |core: &str, pid: u32| {
        let args = ["--all-tasks", "--cpu-list", "--pid", core, &pid.to_string()];
        let ran = Command::new("taskset").args(args).output().expect("taskset runs");
        assert!(ran.status.success(), "taskset {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
    };
    on("1", std::process::id());
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let children = fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        children.split_whitespace().for_each(|child| on("1", child.parse().unwrap()));
    }
    on("0", proxy.pid());
}

/// Gives a thread, or all those of a process, only what no other wants.
fn be_idle(of: &[&str]) {
    let ran = Command::new("chrt").args(["--idle", "--pid"]).args(of).status().expect("chrt runs");
    assert!(ran.success(), "chrt {of:?}: {ran}");
}

/// The same for this thread.
fn be_idle_here() {
    let thread = fs::read_link("/proc/thread-self").unwrap();
    be_idle(&["0", thread.file_name().unwrap().to_str().unwrap()]);
}

/// A figure of the process's memory, in KiB.
pub(crate) fn memory_kib(proxy: &Proxy, figure: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(figure)).unwrap();
    line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse().unwrap()
}

/// What a flood shares with the test.
#[derive(Debug, Default)]
pub(crate) struct Flood {
    /// [`CALM`] at first.
    stage: AtomicU8,
    /// What it has done, by a measure of its own.
    count: AtomicU64,
}

impl Flood {
    /// Waits for the next phase of the flood; `false`: it is over.
    pub(crate) async fn begins(&self) -> bool {
        while self.stage.load(Ordering::Relaxed) == CALM {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.goes_on()
    }

    pub(crate) fn goes_on(&self) -> bool {
        self.stage.load(Ordering::Relaxed) == FLOOD
    }

    pub(crate) fn count(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is flooded.
pub(crate) struct Targets<'a> {
    /// The uh-proxy that is measured, and where the flood goes.
    pub(crate) proxy: (&'a Proxy, SocketAddr),
    /// The same of the decoy.
    pub(crate) decoy: Option<(&'a Proxy, SocketAddr)>,
}

/// One client that floods, until the flood is over.
pub(crate) type Flooder = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Clients that are there all the time, and how long each request took, in calm and in flood.
fn visit<S>(mut connection: Wire<S>, flood: Arc<Flood>, until: Instant) -> JoinHandle<[Vec<Duration>; 2]>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        let mut took = [Vec::new(), Vec::new()];
        while Instant::now() < until {
            let (flooded, begun) = (flood.goes_on(), Instant::now());
            assert_eq!(connection.get("/").await.status, 200);
            took[usize::from(flooded)].push(begun.elapsed());
            tokio::time::sleep(PAUSE).await;
        }
        took
    })
}

/// A runtime for this thread, which takes what nobody else needs of the processor: real attackers, and what they attack,
/// have machines of their own.
fn runtime_apart() -> Runtime {
    if asked_seconds().is_some() {
        be_idle_here();
    } else {
        rustix::process::setpriority_process(None, 19).unwrap();
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A sample app that only a flood reaches. Ends when dropped.
pub(crate) struct FloodedApp {
    pub(crate) address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl FloodedApp {
    pub(crate) fn start() -> Self {
        let (stop, stopped) = oneshot::channel();
        let (tell, address) = mpsc::channel();
        thread::spawn(move || {
            runtime_apart().block_on(async {
                let server = Server::bind_free(&[("DEPLOYMENT_ENV", "flooded")]).await.unwrap();
                tell.send(server.local_addr()).unwrap();
                server.serve_until(stopped).await;
            });
        });
        Self { address: address.recv().expect("it starts"), _stop: stop }
    }
}

/// Runs flooders as fast as the processor allows while nobody else needs it.
fn run(flood: &Arc<Flood>, flooders: usize, make: impl Fn(Arc<Flood>) -> Flooder) {
    runtime_apart().block_on(async {
        let mut all = JoinSet::new();
        for _ in 0..flooders {
            all.spawn(make(Arc::clone(flood)));
        }
        all.join_all().await;
    });
}

/// What a flood has done.
#[derive(Debug)]
pub(crate) struct Harm {
    /// What the flooders have counted.
    pub(crate) count: u64,
    /// What is more than it may do.
    pub(crate) faults: Vec<String>,
}

/// Floods, and measures what that does to memory and to these visitors.
pub(crate) async fn measure<S>(
    what: &str,
    targets: Targets<'_>,
    visitors: Vec<Wire<S>>,
    flooders: usize,
    make: impl Fn(SocketAddr, Arc<Flood>) -> Flooder + Clone + Send + 'static,
) -> Harm
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _alone = ALONE.lock().await;
    let asked = asked_seconds();
    let seconds = asked.unwrap_or(2);
    let Targets { proxy: (proxy, address), decoy } = targets;
    if asked.is_some() {
        place(proxy);
    }
    if let Some((decoy, _)) = decoy {
        be_idle(&["--all-tasks", "0", &decoy.pid().to_string()]);
    }
    let before = memory_kib(proxy, "VmRSS");
    let (flood, elsewhere) = (Arc::new(Flood::default()), Arc::new(Flood::default()));
    elsewhere.stage.store(FLOOD, Ordering::Relaxed);
    let until = Instant::now() + Duration::from_secs(2 * seconds);
    let visitors: Vec<_> =
        visitors.into_iter().map(|connection| visit(connection, Arc::clone(&flood), until)).collect();
    let spawn = |flood: &Arc<Flood>, address| {
        let (flood, make) = (Arc::clone(flood), make.clone());
        thread::spawn(move || run(&flood, flooders, |flood| make(address, flood)))
    };
    let flooding = [Some((&flood, address)), decoy.map(|(_, address)| (&elsewhere, address))];
    let flooding = flooding.map(|flooding| flooding.map(|(flood, address)| spawn(flood, address)));
    while !visitors.iter().all(JoinHandle::is_finished) {
        tokio::time::sleep(PHASE).await;
        let was = flood.stage.load(Ordering::Relaxed);
        flood.stage.store(if was == CALM { FLOOD } else { CALM }, Ordering::Relaxed);
        elsewhere.stage.store(was, Ordering::Relaxed);
    }
    for flood in [&flood, &elsewhere] {
        flood.stage.store(OVER, Ordering::Relaxed);
    }
    flooding.into_iter().flatten().for_each(|flooding| flooding.join().unwrap());
    let mut took = [Vec::new(), Vec::new()];
    for visitor in visitors {
        let own = visitor.await.expect("no request of the others fails");
        took.iter_mut().zip(own).for_each(|(all, own)| all.extend(own));
    }
    let [calm, flooded] = took.map(|mut took| {
        took.sort_unstable();
        took[took.len() * 99 / 100]
    });
    let grown = memory_kib(proxy, "VmHWM").saturating_sub(before);
    let count = flood.count.load(Ordering::Relaxed);
    println!("{what}: {count} in {seconds} s; p99 {calm:?}, then {flooded:?}; memory +{grown} KiB");
    let mut faults = Vec::new();
    if grown >= MEMORY_KIB {
        faults.push(format!("{what}: memory has grown by {grown} KiB"));
    }
    if flooded >= 2 * calm.max(NOISE[usize::from(asked.is_none())]) {
        faults.push(format!("{what}: p99 is {calm:?} without and {flooded:?} with the flood"));
    }
    Harm { count, faults }
}
