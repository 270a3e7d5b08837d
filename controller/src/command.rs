//! Commands that are run to their end: their output line by line, a deadline, and nothing left behind.

use std::collections::VecDeque;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::sync::mpsc;

/// A command that did not do what it was run for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandFailed {
    /// How it ended: `npm ended with exit status: 1`.
    pub reason: String,
    /// The last lines of its output.
    pub log: Vec<String>,
}

/// The reason and the last lines, in one line.
impl std::fmt::Display for CommandFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)?;
        self.log.iter().try_for_each(|line| write!(f, "; {line}"))
    }
}

/// Runs a command, gives each line of its output to `line`, and keeps the last ones for the error.
///
/// # Errors
/// It can't be started, ends with another code than 0, or does not end in time; then it and what it started are killed.
pub async fn run_lines(
    command: &Command,
    timeout: Duration,
    line: crate::runtime::Lines<'_>,
    keep: usize,
) -> Result<(), CommandFailed> {
    run(command, None, timeout, line, keep).await
}

/// The same, with something on the command's standard input.
///
/// # Errors
/// As for [`run_lines`].
pub async fn run(
    command: &Command,
    input: Option<Vec<u8>>,
    timeout: Duration,
    line: crate::runtime::Lines<'_>,
    keep: usize,
) -> Result<(), CommandFailed> {
    let program = command.get_program().display().to_string();
    let failed = |reason: String, log: VecDeque<String>| CommandFailed { reason, log: log.into() };
    let mut ready = in_its_own_group(command);
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    ready.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child =
        ready.spawn().map_err(|e| failed(format!("cannot run {program}: {e}"), VecDeque::new()))?;
    let group = Group(child.id());
    let (sender, mut lines) = mpsc::channel(64);
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(read(stdout, sender.clone()));
    }
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(read(stderr, sender));
    }
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A command that does not care for its input is fine.
        tokio::spawn(async move { drop(stdin.write_all(&input).await) });
    }
    let mut log = VecDeque::new();
    let ended = tokio::time::timeout(timeout, async {
        while let Some(text) = lines.recv().await {
            line(&text);
            if log.len() >= keep {
                log.pop_front();
            }
            log.push_back(text);
        }
        child.wait().await
    })
    .await;
    match ended {
        Ok(Ok(status)) if status.success() => {
            group.forget();
            Ok(())
        }
        Ok(Ok(status)) => Err(failed(format!("{program} ended with {status}"), log)),
        Ok(Err(e)) => Err(failed(format!("cannot wait for {program}: {e}"), log)),
        Err(_) => Err(failed(format!("{program} was still running after {timeout:?} and was killed"), log)),
    }
}

/// Runs a command and returns its standard output; its standard error is what an error shows.
///
/// # Errors
/// As for [`run_lines`].
pub async fn output(command: &Command, timeout: Duration, keep: usize) -> Result<String, CommandFailed> {
    let program = command.get_program().display().to_string();
    let failed = |reason: String, log: Vec<String>| CommandFailed { reason, log };
    let mut ready = in_its_own_group(command);
    ready.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = ready.spawn().map_err(|e| failed(format!("cannot run {program}: {e}"), Vec::new()))?;
    let group = Group(child.id());
    match tokio::time::timeout(timeout, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.success() => {
            group.forget();
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = said.lines().collect();
            let last = lines[lines.len().saturating_sub(keep)..].iter().map(|line| (*line).to_owned());
            Err(failed(format!("{program} ended with {}", output.status), last.collect()))
        }
        Ok(Err(e)) => Err(failed(format!("cannot wait for {program}: {e}"), Vec::new())),
        Err(_) => {
            Err(failed(format!("{program} was still running after {timeout:?} and was killed"), Vec::new()))
        }
    }
}

/// The same command, with the environment that it names and no other, in a process group of its own.
fn in_its_own_group(command: &Command) -> tokio::process::Command {
    let mut own = Command::new(command.get_program());
    own.args(command.get_args()).process_group(0).env_clear();
    if let Some(directory) = command.get_current_dir() {
        own.current_dir(directory);
    }
    own.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    own.into()
}

async fn read(stream: impl AsyncRead + Unpin, lines: mpsc::Sender<String>) {
    let mut reader = BufReader::new(stream);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).await.is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if lines.send(text).await.is_err() {
            return;
        }
        bytes.clear();
    }
}

/// The command's process group: killed when this is dropped, unless all went well.
struct Group(Option<u32>);

impl Group {
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let group = self.0.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(group) = group {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}
