//! Child processes: started with their output in a log file, waited for with a deadline, and never left behind.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

use crate::wait::POLL;

/// How long a child that is dropped may take to end by itself before it is killed.
const DROP_GRACE: Duration = Duration::from_secs(2);

/// A child of ours. It is ended when this is dropped: SIGTERM, and SIGKILL if that is not enough.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where its part of the log begins.
    begins: u64,
}

impl Process {
    /// Starts a command with its output at the end of `<name>.log` in a directory.
    ///
    /// # Errors
    /// When the log can't be written or the program can't be started.
    pub fn spawn(name: &str, command: &mut Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        Self::spawn_as(name, log_to(command, &log)?, &log)
    }

    /// Starts a command that has its standard streams already.
    ///
    /// # Errors
    /// When the program can't be started.
    pub fn spawn_as(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let begins = fs::metadata(log).map_or(0, |log| log.len());
        let child = command
            .spawn()
            .with_context(|| format!("can't start {name} ({})", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), begins })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails if the child is no longer there.
    ///
    /// # Errors
    /// With its exit status, and what it has written.
    pub fn check_running(&mut self) -> Result<()> {
        match self.status()? {
            Some(status) => bail!("{} has ended: {status}\n{}", self.name, self.output().unwrap_or_default()),
            None => Ok(()),
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// A system call failed.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// What it has written so far, to standard output and standard error.
    ///
    /// # Errors
    /// The log can't be read.
    pub fn output(&self) -> Result<String> {
        let mut text = Vec::new();
        let mut log = File::open(&self.log).with_context(|| format!("can't read {}", self.log.display()))?;
        log.seek(SeekFrom::Start(self.begins))?;
        log.read_to_end(&mut text)?;
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
    pub fn kill(&mut self) -> Result<()> {
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
            let output = self.output()?;
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
    pub async fn stop(&mut self, within: Duration) -> Result<()> {
        self.check_running()?;
        self.terminate()?;
        let status =
            self.ended(within).await.with_context(|| format!("SIGTERM doesn't end {}", self.name))?;
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

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Self { status: output.status, output: text.concat() }
    }
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
    Ok(output.into())
}

/// Sends what a command writes to the end of a log, and gives it nothing to read.
///
/// # Errors
/// The log can't be written.
pub fn log_to<'a>(command: &'a mut Command, log: &Path) -> Result<&'a mut Command> {
    let file = File::options().create(true).append(true).open(log);
    let file = file.with_context(|| format!("can't write {}", log.display()))?;
    Ok(command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file))
}

/// A program of this workspace: next to the running one, or in the directory above if that is a test.
///
/// # Errors
/// When it has not been built.
pub fn program(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("can't find this program's path")?;
    let dir = here.parent().context("this program is in no directory")?;
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    let path = dir.join(name);
    ensure!(path.is_file(), "{} is missing: build it with `cargo build --workspace`", path.display());
    Ok(path)
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
        let (_dir, mut bad) = spawn("exec sleep 60");
        let error = bad.stop(SOON).await.unwrap_err().to_string();
        assert!(error.contains("SIGTERM"), "{error}");
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
