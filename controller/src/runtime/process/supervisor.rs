//! The supervisor: the parent of one app and of all its descendants. It outlives uh-deploy, and does what the files
//! in its directory say.
//!
//! It records before it acts: if the disk can't be written, no app is started. However the app ends, no process of it
//! is left behind: the supervisor is a subreaper, so no descendant can escape it.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use std::os::unix::process::CommandExt as _;

use rustix::process::{Pid, Signal, WaitOptions, getpid, set_child_subreaper, wait};

use super::instance_dir::{InstanceDir, RAN_WELL, SupervisorState};
use super::proc::{self, ProcessIdentity};
use super::spec::ProcessSpec;
use super::{INSTANCE_VARIABLE, log, tree};
use crate::files;
use crate::runtime::Ending;

/// How often to check the log's size and the memory.
const LOOK: Duration = Duration::from_millis(250);

/// The delay before the first restart; it doubles with each one. The values are Docker's.
const BACK_OFF_MIN: Duration = Duration::from_millis(100);

/// The longest delay.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// How often to check during a delay whether the instance is to be stopped.
const PAUSE_POLL: Duration = Duration::from_millis(50);

/// How long the kernel may take to end killed processes.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// How often to check whether they have ended.
const KILL_POLL: Duration = Duration::from_millis(5);

/// Starts the app of an instance's directory, restarts it if allowed, and returns once it has ended for good.
///
/// # Errors
/// It can't be started or recorded, or its directory is gone; then none of its processes is running.
pub(crate) fn supervise(directory: PathBuf) -> io::Result<()> {
    // Leave uh-deploy's session, so that a closing terminal doesn't affect the app. Only fails if this process leads
    // a session already.
    let _ = rustix::process::setsid();
    set_child_subreaper(Some(getpid()))?;
    let dir = InstanceDir::new(directory);
    let Some(_lock) = dir.lock()? else { return Ok(()) };
    if dir.is_forbidden() || dir.saved()?.is_some() {
        return Ok(());
    }
    let spec: ProcessSpec = serde_json::from_slice(&dir.read_spec()?)?;
    let log = files::append(&dir.log())?;
    let me = ProcessIdentity::now(getpid().as_raw_nonzero().get());
    let supervisor = Supervisor { dir, spec, log, me };
    let done = supervisor.until_it_ends_for_good();
    supervisor.kill_all();
    done
}

struct Supervisor {
    dir: InstanceDir,
    spec: ProcessSpec,
    log: File,
    me: Option<ProcessIdentity>,
}

/// How one run of the app went.
struct AppRun {
    ending: Ending,
    lasted: Duration,
}

impl Supervisor {
    fn until_it_ends_for_good(&self) -> io::Result<()> {
        let Some(mut run) = self.run(0, 0)? else { return Ok(()) };
        let (mut pause, mut in_a_row) = (BACK_OFF_MIN, 0);
        for restarts in 1.. {
            if run.lasted >= RAN_WELL {
                (pause, in_a_row) = (BACK_OFF_MIN, 0);
            }
            in_a_row += 1;
            if !self.spec.restart || !self.dir.may_restart() {
                break;
            }
            self.note(&format!("the app exited ({}); restart {restarts} in {pause:?}", run.ending));
            if !self.waited(pause) {
                break;
            }
            pause = (pause * 2).min(BACK_OFF_MAX);
            run = match self.run(restarts, in_a_row) {
                Ok(Some(next)) => next,
                // The app serves users, so keep trying even if the disk is full or the program is missing for a
                // moment.
                failed => {
                    self.kill_all();
                    if let Err(error) = failed {
                        self.note(&format!("the app can't be restarted: {error}"));
                    }
                    AppRun {
                        ending: Ending { code: Some(127), out_of_memory: false },
                        lasted: Duration::ZERO,
                    }
                }
            };
        }
        Ok(())
    }

    /// Runs the app until it exits. `None`: it couldn't be started, which is recorded.
    ///
    /// # Errors
    /// The state can't be recorded.
    fn run(&self, restarts: u32, in_a_row: u32) -> io::Result<Option<AppRun>> {
        let started_at = crate::time::iso_millis(jiff::Timestamp::now());
        let mut saved = SupervisorState {
            supervisor: self.me.clone(),
            restarts,
            in_a_row,
            started_at,
            ..SupervisorState::default()
        };
        self.dir.save(&saved)?;
        let oom_kills = proc::out_of_memory_kills();
        let began = Instant::now();
        let app = match self.spawn() {
            Ok(app) => app,
            Err(error) => {
                let reason = self
                    .spec
                    .fault()
                    .unwrap_or_else(|| format!("can't start {}: {error}", self.spec.program.display()));
                self.dir.save(&SupervisorState { failed: Some(reason), ..saved })?;
                return Ok(None);
            }
        };
        saved.app = ProcessIdentity::now(app.as_raw_nonzero().get());
        self.dir.save(&saved)?;
        let watch = ResourceMonitor::start(&self.dir, &self.spec, self.me.clone());
        let (code, killed) = until_ended(app)?;
        let over_limit = watch.stop();
        self.kill_all();
        let by_kernel =
            killed && oom_kills.zip(proc::out_of_memory_kills()).is_some_and(|(was, is)| is > was);
        let ending = Ending { code, out_of_memory: over_limit || by_kernel };
        self.dir.save(&SupervisorState { ended: Some(ending), ..saved })?;
        Ok(Some(AppRun { ending, lasted: began.elapsed() }))
    }

    fn spawn(&self) -> io::Result<Pid> {
        let mut command = self.spec.command();
        command.env(INSTANCE_VARIABLE, self.dir.instance()).process_group(0);
        command.stdin(Stdio::null()).stdout(self.log.try_clone()?).stderr(self.log.try_clone()?);
        // Not waited for as a `Child`, but together with adopted processes.
        Ok(Pid::from_child(&command.spawn()?))
    }

    /// Waits before a restart. Returns false if the instance is to be stopped.
    fn waited(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        while self.dir.may_restart() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(PAUSE_POLL));
        }
        false
    }

    /// Kills what is left of the instance, and waits until it has exited.
    fn kill_all(&self) {
        let Some(me) = &self.me else { return };
        let deadline = Instant::now() + KILL_WITHIN;
        loop {
            while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
            let left = tree::members_below(&self.dir.instance(), me);
            // `stop` checks again, and reports what can't be killed.
            if left.is_empty() || Instant::now() > deadline {
                return;
            }
            let _ = tree::kill(&left);
            std::thread::sleep(KILL_POLL);
        }
    }

    /// Writes a line to the app's log, where an operator looks for the reason of an exit.
    fn note(&self, text: &str) {
        let _ = writeln!(&self.log, "uh-deploy: {text}");
    }
}

/// Waits until the app's first process has exited, and reaps others. Returns the exit code, and whether it was killed
/// by SIGKILL.
fn until_ended(app: Pid) -> io::Result<(Option<i32>, bool)> {
    loop {
        let Some((pid, status)) = rustix::io::retry_on_intr(|| wait(WaitOptions::empty()))? else { continue };
        if pid != app || !(status.exited() || status.signaled()) {
            continue;
        }
        let signal = status.terminating_signal();
        let code = status.exit_status().or_else(|| signal.map(|signal| 128 + signal));
        return Ok((code, signal == Some(Signal::KILL.as_raw())));
    }
}

/// Rotates the log and enforces the memory limit, on a separate thread.
struct ResourceMonitor {
    over_limit: Arc<AtomicBool>,
    stop: mpsc::Sender<()>,
}

impl ResourceMonitor {
    fn start(dir: &InstanceDir, spec: &ProcessSpec, me: Option<ProcessIdentity>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let over_limit = Arc::new(AtomicBool::new(false));
        let (path, size, kept) = (dir.log(), spec.log_size, spec.log_files);
        let (limit, instance) = (spec.memory_limit, dir.instance());
        let flag = Arc::clone(&over_limit);
        let look = move || {
            while stopped.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
                // A log that can't be rotated grows, which shouldn't disturb the app.
                let _ = log::rotate(&path, size, kept);
                let Some((limit, me)) = limit.zip(me.as_ref()) else { continue };
                if tree::used_beyond(limit, me.pid).is_some() {
                    flag.store(true, Ordering::SeqCst);
                    let _ = tree::kill(&tree::members_below(&instance, me));
                }
            }
        };
        // If the thread can't be started, the app runs without these limits.
        let _ = std::thread::Builder::new().name("watch".to_owned()).spawn(look);
        Self { over_limit, stop }
    }

    fn stop(self) -> bool {
        let _ = self.stop.send(());
        self.over_limit.load(Ordering::SeqCst)
    }
}
