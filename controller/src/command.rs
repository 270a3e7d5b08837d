//! Runs external commands to their end, with a deadline, and leaves no processes behind.
//!
//! A command has ended when its process has exited, even if a child (a daemon, a notifier) keeps its output open:
//! after the exit, output is read only for a short grace period.

use std::collections::VecDeque;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::sync::mpsc;

use crate::lines::{LineSplitter, Lines};
use crate::redact::Foreign;

/// How long output is read after the command's exit. Its own output is already in the pipe.
const GRACE: Duration = Duration::from_millis(500);

/// How much is read at once.
const CHUNK_BYTES: usize = 16 << 10;

/// How many lines may wait to be shown: at most 4 MiB.
const LINES_WAITING: usize = 64;

/// The largest output that is returned as a whole: a resolved compose file has some kilobytes.
const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// How much of such a command's standard error is kept.
const MAX_ERROR_BYTES: usize = 256 << 10;

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandFailed {
    /// How it ended: `npm failed: exit status: 1`.
    pub reason: String,
    /// The last lines of its output.
    pub log: Vec<Foreign>,
}

impl CommandFailed {
    fn new(reason: String) -> Self {
        Self { reason, log: Vec::new() }
    }

    /// Whether one of its last lines contains this text.
    #[must_use]
    pub(crate) fn said(&self, words: &str) -> bool {
        self.log.iter().any(|line| line.as_str().contains(words))
    }
}

/// The reason and the last lines, in one line.
impl std::fmt::Display for CommandFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)?;
        self.log.iter().try_for_each(|line| write!(f, "; {line}"))
    }
}

/// Runs a command, passes each line of its output to `line`, and keeps the last ones for the error.
///
/// # Errors
/// It can't be started, fails, or doesn't exit in time; then it and its children are killed.
pub(crate) async fn run_lines(
    command: &Command,
    timeout: Duration,
    line: Lines<'_>,
    keep: usize,
) -> Result<(), CommandFailed> {
    run(command, None, timeout, line, keep).await
}

/// The same, with something on the command's standard input.
///
/// # Errors
/// As for [`run_lines`].
pub(crate) async fn run(
    command: &Command,
    input: Option<Vec<u8>>,
    timeout: Duration,
    line: Lines<'_>,
    keep: usize,
) -> Result<(), CommandFailed> {
    let mut running = Running::start(command, input)?;
    let (sender, mut lines) = mpsc::channel(LINES_WAITING);
    if let Some(stdout) = running.child.stdout.take() {
        tokio::spawn(read_lines(stdout, sender.clone()));
    }
    if let Some(stderr) = running.child.stderr.take() {
        tokio::spawn(read_lines(stderr, sender));
    }
    let mut log = VecDeque::new();
    let output = async {
        while let Some(text) = lines.recv().await {
            line(&text);
            if log.len() >= keep {
                log.pop_front();
            }
            log.push_back(text);
        }
    };
    let ended = running.end(timeout, output).await;
    ended.map_err(|reason| CommandFailed { reason, log: log.into() })
}

/// Runs a command and returns its standard output; its standard error is what an error shows.
///
/// # Errors
/// As for [`run_lines`], or it prints too much.
pub(crate) async fn output(
    command: &Command,
    timeout: Duration,
    keep: usize,
) -> Result<String, CommandFailed> {
    answer(command, None, timeout, keep).await
}

/// The same, with something on the command's standard input.
///
/// # Errors
/// As for [`output`].
pub(crate) async fn answer(
    command: &Command,
    input: Option<Vec<u8>>,
    timeout: Duration,
    keep: usize,
) -> Result<String, CommandFailed> {
    let mut running = Running::start(command, input)?;
    let (mut output, mut said) = (Vec::new(), Vec::new());
    let streams = (running.child.stdout.take(), running.child.stderr.take());
    let read = async {
        let stdout = read_some(streams.0, &mut output, MAX_OUTPUT_BYTES);
        tokio::join!(stdout, read_some(streams.1, &mut said, MAX_ERROR_BYTES));
    };
    let ended = running.end(timeout, read).await;
    if let Err(reason) = ended {
        let (mut cutter, mut log) = (LineSplitter::default(), VecDeque::new());
        let mut last = |line| {
            if log.len() >= keep {
                log.pop_front();
            }
            log.push_back(line);
        };
        // Some tools, such as credential helpers, report errors on standard output.
        let complaint = if said.is_empty() { &output[..output.len().min(MAX_ERROR_BYTES)] } else { &said };
        cutter.push(complaint, &mut last);
        cutter.finish(&mut last);
        return Err(CommandFailed { reason, log: log.into() });
    }
    if output.len() > MAX_OUTPUT_BYTES {
        let program = command.get_program().display();
        return Err(CommandFailed::new(format!("{program} printed more than {MAX_OUTPUT_BYTES} bytes")));
    }
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// A running command.
struct Running {
    program: String,
    child: Child,
    group: Group,
}

impl Running {
    fn start(command: &Command, input: Option<Vec<u8>>) -> Result<Self, CommandFailed> {
        let program = command.get_program().display().to_string();
        let mut ready = in_its_own_group(command);
        let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        ready.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let spawned = ready.spawn();
        let mut child =
            spawned.map_err(|e| CommandFailed::new(format!("can't run {program}: {}", crate::chain(&e))))?;
        let group = Group(child.id());
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // A command may ignore its input.
            tokio::spawn(async move { drop(stdin.write_all(&input).await) });
        }
        Ok(Self { program, child, group })
    }

    /// Waits for its exit while reading its output, then briefly for the rest of the output.
    async fn end(mut self, timeout: Duration, output: impl Future<Output = ()>) -> Result<(), String> {
        tokio::pin!(output);
        let ended = tokio::time::timeout(timeout, async {
            let mut all_read = false;
            let status = loop {
                tokio::select! {
                    () = &mut output, if !all_read => all_read = true,
                    status = self.child.wait() => break status,
                }
            };
            if !all_read {
                // A child that still has it open isn't waited for.
                let _ = tokio::time::timeout(GRACE, output).await;
            }
            status
        })
        .await;
        let program = &self.program;
        match ended {
            Ok(Ok(status)) if ExitStatus::success(&status) => {
                self.group.forget();
                Ok(())
            }
            Ok(Ok(status)) => Err(format!("{program} failed: {status}")),
            Ok(Err(e)) => Err(format!("can't wait for {program}: {}", crate::chain(&e))),
            Err(_) => Err(format!(
                "{program} was still running after {} and was killed",
                crate::time::span(timeout)
            )),
        }
    }
}

/// The same command in its own process group, with only the environment it sets.
fn in_its_own_group(command: &Command) -> tokio::process::Command {
    let mut own = Command::new(command.get_program());
    own.args(command.get_args()).process_group(0).env_clear();
    if let Some(directory) = command.get_current_dir() {
        own.current_dir(directory);
    }
    own.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    own.into()
}

async fn read_lines(mut stream: impl AsyncRead + Unpin, lines: mpsc::Sender<Foreign>) {
    let mut cutter = LineSplitter::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut found = Vec::new();
    loop {
        let read = tokio::select! {
            read = stream.read(&mut chunk) => read,
            // The reader is gone: don't wait for a child that still has the other end open.
            () = lines.closed() => return,
        };
        match read {
            Ok(0) | Err(_) => cutter.finish(&mut |line| found.push(line)),
            Ok(length) => cutter.push(&chunk[..length], &mut |line| found.push(line)),
        }
        for line in found.drain(..) {
            if lines.send(line).await.is_err() {
                return;
            }
        }
        if !matches!(read, Ok(1..)) {
            return;
        }
    }
}

/// Reads a stream to its end, and keeps at most one byte more than the limit.
async fn read_some(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>, limit: usize) {
    let Some(mut stream) = stream else { return };
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(length @ 1..) = stream.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..length.min(limit + 1 - kept.len())]);
    }
}

/// The command's process group, killed on drop unless the command succeeded.
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
