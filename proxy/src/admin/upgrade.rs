//! `uh-proxy upgrade`: starts another program, which takes over, and waits until it leads. If it doesn't, this process goes
//! on as before, and says why.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::sync::{Notify, watch};
use uh_protocol::request::{MAX_UPGRADE_TIMEOUT_MS, UPGRADE_TIMEOUT_MS, UpgradeRequest, Upgraded};
use uh_protocol::{Code, Problem};
use uh_system::plain;

use super::control::Control;
use super::reload::Asked;
use crate::front::broadcast::StopStage;
use crate::handover::parent::{ChildLink, OwnSocket, STDIN, VARIABLE};
use crate::handover::wire::FromSuccessor;

/// How often to look whether the new process is still there.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long a new process that is too late may take to end by itself: until then, it may have the locks.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// How long the process that this one has replaced may take to lead again.
const BACK_WITHIN: Duration = Duration::from_secs(15);

/// What systemd has said to this process, and not to the new one.
const NOT_FOR_THE_CHILD: [&str; 4] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// What an upgrade needs.
#[derive(Debug)]
pub(crate) struct Upgrades {
    /// The program that runs, as it was called.
    program: PathBuf,
    /// The listening sockets, until this process stops.
    sockets: Mutex<Vec<OwnSocket>>,
    /// Notified at SIGUSR2.
    pub(crate) wanted: Notify,
    /// Held by the one that is under way.
    turn: tokio::sync::Mutex<()>,
    /// The process that was started.
    child: Mutex<Option<u32>>,
    /// The process that has taken over.
    leader: watch::Sender<Option<Leader>>,
}

/// A process that has taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leader {
    /// Its process ID, if the kernel knows it.
    pub(super) pid: Option<i32>,
    /// Its version.
    pub(super) version: String,
}

impl Upgrades {
    /// For the program at this path, with these sockets to pass on.
    pub(crate) fn new(program: PathBuf, sockets: Vec<OwnSocket>) -> Self {
        Self {
            program,
            sockets: Mutex::new(sockets),
            wanted: Notify::new(),
            turn: tokio::sync::Mutex::default(),
            child: Mutex::default(),
            leader: watch::Sender::default(),
        }
    }

    /// This process stops: the one that was started and doesn't lead yet is no longer wanted.
    pub(crate) fn stop(&self) {
        // So that the ports close when the workers close theirs.
        self.sockets.lock().clear();
        if let Some(pid) = *self.child.lock() {
            signal(pid, Signal::TERM);
        }
    }

    /// Another process has taken over. Returns whether it is the one that was started here.
    pub(super) fn lost_to(&self, leader: Leader) -> bool {
        let child = self.child.lock().take();
        let is_child = child.is_some_and(|child| leader.pid.map(i32::cast_unsigned) == Some(child));
        self.leader.send_replace(Some(leader));
        is_child
    }

    /// Looks whether it has ended. Then its number is another process's.
    fn try_wait(&self, child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
        let mut known = self.child.lock();
        let ended = child.try_wait()?;
        if ended.is_some() {
            *known = None;
        }
        Ok(ended)
    }

    /// Starts a program. It finds the sockets at its standard input.
    fn start(&self, program: &Path, config: &Path) -> Result<(Child, ChildLink), String> {
        let (link, stdin) = ChildLink::passing(&self.sockets.lock())
            .map_err(|error| format!("cannot pass the listening sockets on: {}", plain(&error)))?;
        let mut command = Command::new(program);
        command.args(["run", "--take-over", "--config"]).arg(config);
        command.stdin(Stdio::from(stdin)).env(VARIABLE, STDIN);
        for name in NOT_FOR_THE_CHILD {
            command.env_remove(name);
        }
        let child = command
            .spawn()
            .map_err(|error| format!("cannot start {}: {}", program.display(), plain(&error)))?;
        *self.child.lock() = Some(child.id());
        Ok((child, link))
    }
}

/// Why an upgrade has failed. The process that led goes on.
fn failed(reason: impl Into<String>) -> Problem {
    Problem::new(Code::Conflict, reason)
}

impl Control {
    /// Upgrades at every SIGUSR2, indefinitely.
    pub(crate) async fn upgrade_when_wanted(self: Arc<Self>) {
        loop {
            self.upgrades.wanted.notified().await;
            // The result has been logged.
            let _ = Arc::clone(&self).upgrade(UpgradeRequest::default(), Asked::BySignal).await;
        }
    }

    /// `POST /v1/upgrade`
    ///
    /// # Errors
    /// This process goes on leading.
    pub(crate) async fn upgrade(
        self: Arc<Self>,
        request: UpgradeRequest,
        asked: Asked,
    ) -> Result<Upgraded, Problem> {
        let upgraded = self.try_upgrade(request, asked).await;
        match &upgraded {
            Ok(Upgraded { pid, version, took_ms }) => {
                tracing::info!(target: "audit", by = %named(asked), action = "upgrade", pid, version, took_ms, result = "done");
            }
            Err(problem) => {
                tracing::error!(target: "audit", by = %named(asked), action = "upgrade", result = "failed", reason = problem.detail, "not upgraded; this uh-proxy goes on");
            }
        }
        upgraded
    }

    async fn try_upgrade(
        self: &Arc<Self>,
        request: UpgradeRequest,
        asked: Asked,
    ) -> Result<Upgraded, Problem> {
        let begun = Instant::now();
        let UpgradeRequest { binary, timeout_ms } = request;
        let timeout_ms = timeout_ms.unwrap_or(UPGRADE_TIMEOUT_MS);
        if timeout_ms > MAX_UPGRADE_TIMEOUT_MS {
            let detail = format!("timeout_ms is {timeout_ms}; the maximum is {MAX_UPGRADE_TIMEOUT_MS}");
            return Err(Problem::with_status(Code::InvalidRequest, 422, detail));
        }
        let deadline = begun + Duration::from_millis(timeout_ms);
        if binary.is_some() && !may_choose(asked) {
            let detail =
                "only root and uh-proxy's own user may choose the program to start: leave --binary out";
            return Err(Problem::new(Code::Forbidden, detail));
        }
        let program = binary.unwrap_or_else(|| self.upgrades.program.clone());
        if !program.is_absolute() {
            let detail = format!("{} isn't an absolute path", program.display());
            return Err(Problem::with_status(Code::InvalidRequest, 422, detail));
        }
        if std::process::id() == 1 {
            return Err(failed(
                "this uh-proxy is process 1 of its container, which ends with it: start the new one in a container of its own",
            ));
        }
        let Ok(_turn) = self.upgrades.turn.try_lock() else {
            return Err(failed("an upgrade is already in progress: wait for its end"));
        };
        if self.broadcasts.iter().any(|broadcast| broadcast.stage() != StopStage::Running) {
            return Err(failed("this uh-proxy is stopping"));
        }
        if self.board.is_frozen() {
            return Err(failed("another uh-proxy is taking over already, or leads: ask that one"));
        }
        self.dismiss_predecessor(deadline).await?;
        let mut leader = self.upgrades.leader.subscribe();
        let (control, config) = (Arc::clone(self), self.reloading.path.clone());
        let started = tokio::task::spawn_blocking(move || control.upgrades.start(&program, &config)).await;
        let (mut child, link) = started.unwrap_or_else(|error| Err(plain(&error))).map_err(failed)?;
        tracing::info!(pid = child.id(), "started the program that is to take over");
        let try_wait = |child: &mut Child| self.upgrades.try_wait(child);
        let led = until_led(&mut child, &link, &mut leader, deadline, try_wait).await;
        let pid = child.id();
        tokio::spawn(reap(child));
        if led.is_err() {
            self.until_not_frozen().await;
        }
        let version = led.map_err(failed)?;
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Upgraded { pid, version, took_ms })
    }

    /// A new process that has ended may have had the lead almost: waits until this one takes changes again.
    async fn until_not_frozen(&self) {
        let deadline = Instant::now() + ENDS_WITHIN;
        while self.board.is_frozen() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// `POST /v1/upgrade/back`: the process that this one has replaced leads again.
    ///
    /// # Errors
    /// This process goes on leading.
    pub(crate) async fn back(self: Arc<Self>, asked: Asked) -> Result<Upgraded, Problem> {
        let begun = Instant::now();
        let back = self.try_back(begun + BACK_WITHIN).await;
        self.end.expect_back(false);
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &back {
            Ok(Leader { pid, version }) => {
                tracing::info!(target: "audit", by = %named(asked), action = "upgrade_back", pid, version, took_ms, result = "done");
            }
            Err(problem) => {
                tracing::error!(target: "audit", by = %named(asked), action = "upgrade_back", result = "failed", reason = problem.detail, "this uh-proxy goes on");
            }
        }
        let Leader { pid, version } = back?;
        Ok(Upgraded { pid: pid.unwrap_or_default().cast_unsigned(), version, took_ms })
    }

    async fn try_back(&self, deadline: Instant) -> Result<Leader, Problem> {
        let Ok(_turn) = self.upgrades.turn.try_lock() else {
            return Err(failed("an upgrade is in progress: wait for its end"));
        };
        if self.board.is_frozen() {
            return Err(failed("another uh-proxy is taking over already, or leads: ask that one"));
        }
        if !self.predecessor.is_there() || self.predecessor.leaves() {
            return Err(failed(
                "the uh-proxy that this one has replaced is gone: start its program again with uh-proxy upgrade --binary",
            ));
        }
        let mut leader = self.upgrades.leader.subscribe();
        self.end.expect_back(true);
        self.predecessor.order(FromSuccessor::Back);
        let led = tokio::time::timeout_at(deadline.into(), leader.changed()).await;
        match leader.borrow_and_update().clone() {
            Some(leader) if led.is_ok() => Ok(leader),
            _ => Err(failed(format!(
                "the uh-proxy that this one has replaced didn't take the lead back within {} s; the log may say why",
                BACK_WITHIN.as_secs()
            ))),
        }
    }

    /// Waits until the process that this one has replaced is gone: it follows this one, and can't follow the next.
    pub(super) async fn dismiss_predecessor(&self, deadline: Instant) -> Result<(), Problem> {
        self.predecessor.order(FromSuccessor::Leave);
        let mut changes = self.predecessor.changes();
        while self.predecessor.is_there() {
            if tokio::time::timeout_at(deadline.into(), changes.next()).await.is_err() {
                return Err(failed(
                    "the uh-proxy that this one has replaced still has requests in flight: try again when it has ended",
                ));
            }
        }
        Ok(())
    }
}

fn named(asked: Asked) -> String {
    match asked {
        Asked::By(peer) => peer.to_string(),
        Asked::BySignal => "SIGUSR2".to_owned(),
    }
}

fn may_choose(asked: Asked) -> bool {
    match asked {
        Asked::By(peer) => peer.uid == 0 || peer.uid == geteuid().as_raw(),
        Asked::BySignal => true,
    }
}

/// Waits until the new process leads, and returns its version; or until it has ended, and returns why.
async fn until_led(
    child: &mut Child,
    link: &ChildLink,
    leader: &mut watch::Receiver<Option<Leader>>,
    deadline: Instant,
    try_wait: impl Fn(&mut Child) -> std::io::Result<Option<ExitStatus>>,
) -> Result<String, String> {
    let (mut is_late, mut is_killed) = (false, false);
    let mut reason = None;
    loop {
        if tokio::time::timeout(LOOK_EVERY, leader.changed()).await.is_ok_and(|changed| changed.is_ok())
            && let Some(Leader { pid, version }) = leader.borrow_and_update().clone()
        {
            if pid.map(i32::cast_unsigned) == Some(child.id()) {
                return Ok(version);
            }
            reason = Some("another uh-proxy has taken over".to_owned());
            is_late = true;
            signal(child.id(), Signal::TERM);
        }
        reason = link.reason().or(reason);
        if let Some(status) = try_wait(child).map_err(|error| plain(&error))? {
            let reason = link.reason().or(reason).unwrap_or_else(|| how(status));
            return Err(if is_late {
                format!("the new process didn't lead in time and was ended: {reason}")
            } else {
                format!("the new process didn't take over: {reason}")
            });
        }
        let now = Instant::now();
        if now >= deadline && !std::mem::replace(&mut is_late, true) {
            signal(child.id(), Signal::TERM);
        }
        if is_late && now >= deadline + ENDS_WITHIN && !std::mem::replace(&mut is_killed, true) {
            signal(child.id(), Signal::KILL);
        }
    }
}

/// In words.
fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}; the log may say why"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}

/// Sends a signal to a child that hasn't been waited for yet: so its number can't be another process's.
fn signal(child: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(child).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Waits for the end of the process that has taken over, as long as this one is there.
async fn reap(mut child: Child) {
    loop {
        match child.try_wait() {
            Ok(None) => tokio::time::sleep(LOOK_EVERY * 10).await,
            Ok(Some(status)) if !status.success() => {
                tracing::warn!(
                    pid = child.id(),
                    reason = how(status),
                    "the process that was started to take over has ended"
                );
                return;
            }
            Ok(Some(_)) | Err(_) => return,
        }
    }
}

/// The path of the program that runs. As it was called, since links may lead to another program after an installation.
pub(crate) fn own_path(called: Option<&OsStr>) -> std::io::Result<PathBuf> {
    match called.map(Path::new).filter(|called| called.components().count() > 1) {
        Some(called) => std::path::absolute(called),
        None => std::env::current_exe(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_again_by_the_path_it_was_called_by() {
        assert_eq!(
            own_path(Some(OsStr::new("/opt/uh/current/uh-proxy"))).unwrap(),
            Path::new("/opt/uh/current/uh-proxy")
        );
        let relative = own_path(Some(OsStr::new("./uh-proxy"))).unwrap();
        assert_eq!(relative, std::env::current_dir().unwrap().join("uh-proxy"));
        assert_eq!(own_path(Some(OsStr::new("uh-proxy"))).unwrap(), std::env::current_exe().unwrap());
        assert_eq!(own_path(None).unwrap(), std::env::current_exe().unwrap());
    }
}
