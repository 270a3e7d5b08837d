//! File descriptors and memory run out.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use uh_testkit::wait::until;

use super::stage::{SOON, Stage, StageSetup, apps};
use super::{BROKEN, Fault, FaultConditions, Outcome};
use crate::machine::process_figure;

/// The faults of this file.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "descriptors exhausted",
        injected: "RLIMIT_NOFILE is lowered to 8 more than in use, and 300 clients connect",
        may_fail: &["no answer in time", "could not connect", "closed before the response", "status 502"],
        in_short: true,
        run: |around| Box::pin(descriptors(around)),
    },
    Fault {
        name: "memory scarce",
        injected: "a memory limit of 48 MiB, and 1,000 clients that send large bodies slowly",
        may_fail: &[],
        in_short: false,
        run: |around| Box::pin(memory_scarce(around)),
    },
    Fault {
        name: "out of memory",
        injected: "the memory limit is set too low, so the kernel kills uh-proxy; then it is started again",
        may_fail: BROKEN,
        in_short: false,
        run: |around| Box::pin(memory_out(around)),
    },
];

async fn descriptors(around: FaultConditions) -> Result<Outcome> {
    let apps = apps(&around.dir).await?;
    let mut stage = Stage::start(&around.dir, StageSetup::before(&apps)).await?;
    let id = stage.front()?.id();
    let pid = Pid::from_raw(i32::try_from(id)?);
    let open = || fs::read_dir(format!("/proc/{id}/fd")).map(Iterator::count);
    let before = getrlimit(Resource::Nofile);
    let few = open()? as u64 + 8;
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(few), maximum: before.maximum })?;
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(stage.address).await?);
    }
    until("the descriptors are used up", async || (open().ok()? as u64 + 1 >= few).then_some(())).await?;
    let operator = stage.until_said("cannot accept connections").await?;
    ensure!(operator.contains("Too many open files"), "the log says: {operator}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(crowd);
    prlimit(pid, Resource::Nofile, before)?;
    let begun = Instant::now();
    stage.until_answered().await?;
    stage.switch("green").await?;
    let recovery = begun.elapsed();
    stage.finish(operator, recovery, Vec::new()).await
}

/// A control group with a memory limit. It is removed when this is dropped, if nothing is left in it.
struct Cage {
    path: PathBuf,
    limit: &'static str,
}

impl Cage {
    /// `None`: the machine does not let us.
    fn make() -> Option<Self> {
        let name = format!("uh-faults-{}", std::process::id());
        for (root, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let path = Path::new(root).join(&name);
            if fs::create_dir(&path).is_err() {
                continue;
            }
            let cage = Self { path, limit };
            if cage.path.join(limit).exists() && cage.path.join("cgroup.procs").exists() {
                return Some(cage);
            }
        }
        None
    }

    fn limit(&self, bytes: u64) -> std::io::Result<()> {
        fs::write(self.path.join(self.limit), bytes.to_string())
    }

    /// Starts a program in it.
    fn wrapper(&self) -> Vec<String> {
        let script = format!("echo $$ > '{}/cgroup.procs' && exec \"$@\"", self.path.display());
        ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // If something is left in it, it stays.
        let _ = fs::remove_dir(&self.path);
    }
}

fn skipped() -> Result<Outcome> {
    Ok(Outcome::Skipped("no right to make a control group with a memory limit".to_owned()))
}

async fn memory_scarce(around: FaultConditions) -> Result<Outcome> {
    let Some(cage) = Cage::make() else { return skipped() };
    cage.limit(48 << 20)?;
    let apps = apps(&around.dir).await?;
    let server = "[server.limits]\nconnections_per_address = 0\n".to_owned();
    let setup = StageSetup { wrapper: cage.wrapper(), server, ..StageSetup::before(&apps) };
    let mut stage = Stage::start(&around.dir, setup).await?;
    let mut slow = Vec::new();
    for _ in 0..1000 {
        let mut stream = TcpStream::connect(stage.address).await?;
        stream.write_all(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").await?;
        stream.write_all(&[b'x'; 16 << 10]).await?;
        slow.push(stream);
    }
    stage
        .until("all uploads are under way", async |stage| {
            (stage.backend("blue").await.ok()?.requests_in_flight >= 1000).then_some(())
        })
        .await?;
    stage.carry(200).await?;
    let peak = process_figure(stage.front()?.id(), "VmHWM")?;
    drop(slow);
    let recovery = stage.until_answered().await?;
    let clients = vec![format!("1,000 slow uploads; peak resident memory: {peak} kB")];
    let outcome = stage.finish("nothing to report: buffers are bounded".to_owned(), recovery, clients).await;
    drop(cage);
    outcome
}

async fn memory_out(around: FaultConditions) -> Result<Outcome> {
    let Some(cage) = Cage::make() else { return skipped() };
    cage.limit(64 << 20)?;
    let apps = apps(&around.dir).await?;
    let setup = StageSetup { wrapper: cage.wrapper(), ..StageSetup::before(&apps) };
    let mut stage = Stage::start(&around.dir, setup).await?;
    stage.switch("green").await?;
    let mut front = stage.take_front()?;
    let front = &mut front.process;
    // The kernel takes back what it can, and refuses a limit that is still too low: then growth does it.
    let mut limit: u64 = 16 << 20;
    let mut crowd = Vec::new();
    let deadline = Instant::now() + SOON;
    while front.check_running().is_ok() {
        ensure!(Instant::now() < deadline, "it isn't killed when memory runs out");
        let _ = cage.limit(limit);
        limit = (limit / 2).max(1 << 20);
        for _ in 0..20 {
            if let Ok(mut stream) = TcpStream::connect(stage.address).await {
                let _ = stream.write_all(b"GET /slow?ms=60000 HTTP/1.1\r\nHost: a\r\n\r\n").await;
                crowd.push(stream);
            }
        }
    }
    let status = front.ended(SOON).await?;
    ensure!(status.signal() == Some(Signal::KILL.as_raw()), "it was not killed: {status}");
    drop(crowd);
    cage.limit(64 << 20)?;
    let begun = Instant::now();
    stage.start_front().await?;
    stage.until_answered().await?;
    let recovery = begun.elapsed();
    let outcome = stage.finish(format!("uh-proxy ended: {status}"), recovery, Vec::new()).await;
    drop(cage);
    outcome
}
