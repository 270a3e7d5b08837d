//! Floods on the HTTPS port: memory stays bounded, and other clients are still served in time. `UH_FLOOD_SECONDS=10`
//! floods for longer.

use std::collections::VecDeque;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use super::certificates::Site;
use super::clients::{Rustls, secure};
use crate::wire::get;

/// Calm and flood take turns, so that a busy machine slows both down.
const PHASE: Duration = Duration::from_millis(500);

/// How much memory a flood may cost.
const MEMORY_KIB: u64 = 16 << 10;

/// Below this, the machine decides on latencies rather than the proxy.
const NOISE: Duration = Duration::from_millis(25);

/// What is going on.
const CALM: u8 = 0;
const FLOOD: u8 = 1;
const OVER: u8 = 2;

/// Held by tests that need much of the processor, one at a time.
pub(super) static ALONE: Mutex<()> = Mutex::const_new(());

/// Flooding tasks, and how many connections each keeps open.
const FLOODERS: usize = 16;
const KEPT: usize = 64;

fn seconds() -> u64 {
    std::env::var("UH_FLOOD_SECONDS").map_or(2, |text| text.parse().expect("UH_FLOOD_SECONDS is a number"))
}

/// A figure of the process's memory, in KiB.
fn memory_kib(site: &Site, figure: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", site.proxy.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(figure)).unwrap();
    line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse().unwrap()
}

/// What a client sends first: it costs the client nothing to repeat, and the server a key exchange and a signature.
fn hello(site: &Site) -> Vec<u8> {
    let name = ServerName::try_from("app.test").unwrap();
    let mut client = ClientConnection::new(Arc::clone(&Rustls::new(&site.authority).0), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Clients that are there all the time, and how long each request took, in calm and in flood.
async fn visitors(site: &Site, flood: &Arc<Flood>) -> Vec<JoinHandle<[Vec<Duration>; 2]>> {
    let mut visitors = Vec::new();
    for _ in 0..4 {
        let (mut connection, flood) = (secure(site).await, Arc::clone(flood));
        let until = Instant::now() + Duration::from_secs(2 * seconds());
        visitors.push(tokio::spawn(async move {
            let mut took = [Vec::new(), Vec::new()];
            while Instant::now() < until {
                let (flooded, begun) = (flood.stage.load(Ordering::Relaxed) == FLOOD, Instant::now());
                assert_eq!(connection.get("/").await.status, 200);
                took[usize::from(flooded)].push(begun.elapsed());
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            took
        }));
    }
    visitors
}

/// What the flood shares with the test.
#[derive(Default)]
struct Flood {
    /// [`CALM`] at first.
    stage: AtomicU8,
    answered: AtomicU64,
}

impl Flood {
    /// Makes connections until it is over, as fast as the processor allows while nobody else needs it: real attackers
    /// have machines of their own.
    fn run(self: &Arc<Self>, address: SocketAddr, first: &Arc<[u8]>) {
        rustix::process::setpriority_process(None, 19).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut flooders = JoinSet::new();
            for _ in 0..FLOODERS {
                flooders.spawn(Arc::clone(self).connect(address, Arc::clone(first)));
            }
            flooders.join_all().await;
        });
    }

    async fn connect(self: Arc<Self>, address: SocketAddr, first: Arc<[u8]>) {
        let mut kept = VecDeque::new();
        loop {
            match self.stage.load(Ordering::Relaxed) {
                OVER => return,
                CALM => tokio::time::sleep(Duration::from_millis(10)).await,
                _ => {
                    let Ok(mut stream) = TcpStream::connect(address).await else { continue };
                    if stream.write_all(&first).await.is_err() {
                        continue;
                    }
                    // Some of the answer, so that the work for it is done.
                    let read = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut [0; 512])).await;
                    if matches!(read, Ok(Ok(1..))) {
                        self.answered.fetch_add(1, Ordering::Relaxed);
                    }
                    kept.push_back(stream);
                    if kept.len() > KEPT {
                        kept.pop_front();
                    }
                }
            }
        }
    }
}

/// Floods the site with connections that each begin with these bytes, and checks what that does to it.
async fn flood(site: Site, first: Vec<u8>) {
    let _alone = ALONE.lock().await;
    // What the first handshakes and requests allocate once isn't the flood's.
    for _ in 0..50 {
        assert_eq!(secure(&site).await.get("/").await.status, 200);
    }
    let before = memory_kib(&site, "VmRSS");
    let flood = Arc::new(Flood::default());
    let visitors = visitors(&site, &flood).await;
    let flooders = {
        let (flood, address, first) = (Arc::clone(&flood), site.address, Arc::from(first));
        thread::spawn(move || flood.run(address, &first))
    };
    while !visitors.iter().all(JoinHandle::is_finished) {
        tokio::time::sleep(PHASE).await;
        let was = flood.stage.load(Ordering::Relaxed);
        flood.stage.store(if was == CALM { FLOOD } else { CALM }, Ordering::Relaxed);
    }
    flood.stage.store(OVER, Ordering::Relaxed);
    flooders.join().unwrap();
    let mut took = [Vec::new(), Vec::new()];
    for visitor in visitors {
        let own = visitor.await.expect("no request of the others fails");
        took.iter_mut().zip(own).for_each(|(all, own)| all.extend(own));
    }
    let [calm, flooded] = took.map(|mut took| {
        took.sort();
        took[took.len() * 99 / 100]
    });
    let grown = memory_kib(&site, "VmHWM").saturating_sub(before);
    let answered = flood.answered.load(Ordering::Relaxed);
    println!(
        "{answered} connections in {} s: p99 {calm:?}, then {flooded:?}; memory +{grown} KiB",
        seconds()
    );
    assert!(answered > 100, "that was no flood: {answered}");
    assert!(grown < MEMORY_KIB, "memory has grown by {grown} KiB");
    assert!(flooded < 2 * calm.max(NOISE), "p99 is {calm:?} without and {flooded:?} with the flood");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_is_bounded() {
    let site = Site::start_with("limits = { connections_per_address = 0 }", "").await;
    let hello = hello(&site);
    flood(site, hello).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_plain_http_is_bounded() {
    let site = Site::start_with("limits = { connections_per_address = 0 }", "").await;
    flood(site, get("/").into_bytes()).await;
}
