//! Child processes: started with their output in a log file, waited for with a deadline, and never left behind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

/// How often a child is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(5);

/// How long a child that is dropped may take to end by itself before it is killed.
const DROP_GRACE: Duration = Duration::from_secs(2);

/// A child of ours. It is ended when this is dropped: SIGTERM, and SIGKILL if that is not enough.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command with its output in `<name>.log` in a directory.
    ///
    /// # Errors
    /// When the log can't be written or the program can't be started.
    pub fn spawn(name: &str, command: &mut Command, dir: &Path) -> Result<Self> {
        let path = dir.join(format!("{name}.log"));
        let log = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("can't start {name} ({})", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log: path })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails if the child is no longer there.
    ///
    /// # Errors
    /// With its exit status.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} has ended: {status}", self.name),
            None => Ok(()),
        }
    }

    /// What it has written so far, to standard output and standard error.
    ///
    /// # Errors
    /// The log can't be read.
    pub fn output(&self) -> Result<String> {
        let text = fs::read(&self.log).with_context(|| format!("can't read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the child has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.check_running()?;
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("can't signal {}", self.name))
    }

    /// Kills it (SIGKILL).
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it has ended, by itself or by somebody else.
    ///
    /// # Errors
    /// When it is still there at the deadline.
    pub async fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} is still running after {} s", self.name, within.as_secs());
            sleep(POLL).await;
        }
    }

    /// Waits for a line of output that starts with `prefix`, and returns what follows it.
    ///
    /// # Errors
    /// When the child ends, or the line is not there in time.
    pub async fn line_after(&mut self, prefix: &str, within: Duration) -> Result<String> {
        let deadline = Instant::now() + within;
        loop {
            let output = fs::read_to_string(&self.log)?;
            let whole_lines = output.rsplit_once('\n').map_or("", |(lines, _)| lines);
            if let Some(rest) = whole_lines.lines().find_map(|line| line.strip_prefix(prefix)) {
                return Ok(rest.trim().to_owned());
            }
            self.check_running()?;
            ensure!(Instant::now() < deadline, "{} is not ready after {} s", self.name, within.as_secs());
            sleep(POLL).await;
        }
    }

    /// Asks the child to end (SIGTERM), and demands that it does so in time and with exit code 0.
    ///
    /// # Errors
    /// When it does not.
    pub async fn stop(mut self, within: Duration) -> Result<()> {
        self.check_running()?;
        self.terminate()?;
        let deadline = Instant::now() + within;
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(
                Instant::now() < deadline,
                "{} is still running {} s after SIGTERM",
                self.name,
                within.as_secs()
            );
            sleep(POLL).await;
        };
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.name);
        Ok(())
    }

    /// The child has not been waited for, so the id can't belong to anyone else.
    fn terminate(&self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)
            .with_context(|| format!("can't signal {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_GRACE;
        let mut asked = false;
        while let Ok(None) = self.child.try_wait() {
            asked = asked || self.terminate().is_ok();
            if Instant::now() >= deadline || !asked {
                // Nothing more can be done if even this fails.
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(POLL);
        }
    }
}

/// What a command that has ended left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, then its standard error.
    pub output: String,
}

/// Runs a command to completion; it is killed at the deadline.
///
/// # Errors
/// When it can't be started or does not end in time.
pub async fn run(command: Command, within: Duration) -> Result<Finished> {
    let program = Path::new(command.get_program()).display().to_string();
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = timeout(within, command.output()).await;
    let output = ended
        .with_context(|| format!("{program} is still running after {} s", within.as_secs()))?
        .with_context(|| format!("can't start {program}"))?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(Finished { status: output.status, output: text.concat() })
}

/// Raises the limit of file descriptors, of this process and of what it starts, to the most that it may have: returned.
///
/// # Errors
/// A system call failed.
pub fn raise_descriptors() -> Result<u64> {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    Ok(hard.unwrap_or(u64::MAX))
}

/// The path of another program of this workspace: next to the running one, or in the directory above if that is a test.
///
/// # Errors
/// When it has not been built.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("can't find this program's path")?;
    let mut path = here.with_file_name(name);
    if here.parent().is_some_and(|folder| folder.ends_with("deps")) {
        path = here.with_file_name("..").join(name);
    }
    ensure!(path.is_file(), "{} is missing: build it with `cargo build --workspace`", path.display());
    Ok(path)
}

/// Somebody asked this program to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Ends when somebody asks this program to end, so that what it started can be stopped first.
///
/// # Errors
/// Always: [`Interrupted`], or that signals can't be caught.
pub async fn interrupted<T>() -> Result<T> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Err(Interrupted.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn spawn(script: &str) -> (tempfile::TempDir, Process) {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::spawn("child", &mut shell(script), dir.path()).unwrap();
        (dir, process)
    }

    #[tokio::test]
    async fn a_ready_line_is_found_and_an_early_end_is_an_error() {
        let (_dir, mut ready) = spawn("echo hello; echo listening on 127.0.0.1:1; exec sleep 60");
        assert_eq!(ready.line_after("listening on ", SOON).await.unwrap(), "127.0.0.1:1");
        let (_dir, mut ended) = spawn("exit 3");
        let error = ended.line_after("listening on ", SOON).await.unwrap_err().to_string();
        assert!(error.contains("child has ended: exit status: 3"), "{error}");
    }

    #[tokio::test]
    async fn a_child_must_end_well_when_asked_to() {
        let (_dir, mut good) = spawn("trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done");
        good.line_after("ready", SOON).await.unwrap();
        good.stop(SOON).await.unwrap();
        let (_dir, bad) = spawn("exec sleep 60");
        let error = bad.stop(SOON).await.unwrap_err().to_string();
        assert!(error.contains("after SIGTERM"), "{error}");
    }

    #[tokio::test]
    async fn a_dropped_child_is_gone_even_if_it_ignores_sigterm() {
        let (_dir, mut stubborn) = spawn("trap '' TERM; echo ready; while :; do sleep 0.01; done");
        stubborn.line_after("ready", SOON).await.unwrap();
        let pid = Pid::from_child(&stubborn.child);
        drop(stubborn);
        rustix::process::test_kill_process(pid).unwrap_err();
    }

    #[tokio::test]
    async fn a_command_is_run_to_its_end_or_its_deadline() {
        let finished = run(shell("echo out; echo err >&2; exit 3"), SOON).await.unwrap();
        assert_eq!((finished.status.code(), finished.output.as_str()), (Some(3), "out\nerr\n"));
        run(shell("exec sleep 60"), Duration::from_millis(20)).await.unwrap_err();
    }
}
