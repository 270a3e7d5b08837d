//! The app as a process: started in its own process group, signalled as a group, reaped with all other children.
//!
//! As process 1 or as a subreaper, the shim is the parent of every orphan below it, so all children are waited for
//! here and nowhere else.
//!
//! The app must not outlive the shim: if the shim is killed, nothing would stop the app and free its port. Only the
//! child itself can ask the kernel for that, between its fork and its exec. So the child is this program again
//! (`app-shim --exec-for PID COMMAND…`), which asks for it and then executes the app in the same process.
//!
//! That covers only the app's first process: its children, such as the server that `npm start` runs, don't inherit
//! the request. In a container they end with process 1. Elsewhere, a killed app-shim can leave them behind, and the
//! next start refuses because they still listen on the app's address.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process_group, set_child_subreaper,
    set_parent_process_death_signal, test_kill_process_group, wait,
};

use crate::exit::{AppExit, Exit};
use uh_system::without_numbers;

/// This program, even if its file has been replaced or removed since.
const OURSELVES: &str = "/proc/self/exe";
/// The argument that makes this program execute the app. Not an option: only [`App::spawn`] passes it.
const EXEC_FOR: &str = "--exec-for";

/// The app couldn't be started.
#[derive(Debug, thiserror::Error)]
#[error("can't start {program:?}")]
pub(crate) struct SpawnError {
    program: OsString,
    #[source]
    pub(crate) source: io::Error,
}

/// The app's processes.
#[derive(Debug)]
pub(crate) struct App {
    /// The first process, whose exit is the app's exit; also the id of the group.
    pid: Pid,
    ended: Option<AppExit>,
}

fn exit_of(status: WaitStatus) -> Option<AppExit> {
    let exited = status.exit_status().map(|code| AppExit::Exited(code as u8));
    exited.or_else(|| status.terminating_signal().map(|signal| AppExit::Killed(signal as u8)))
}

/// Makes this process the parent of orphaned descendants, as process 1 always is.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// In the child of [`App::spawn`]: executes the app. `None`: this isn't that child. Returns `Some` only if it fails.
pub(crate) fn become_the_app(mut arguments: impl Iterator<Item = OsString>) -> Option<Exit> {
    if arguments.nth(1)? != EXEC_FOR {
        return None;
    }
    let parent: i32 = arguments.next()?.to_str()?.parse().ok()?;
    let program = arguments.next()?;
    let asked = set_parent_process_death_signal(Some(Signal::KILL));
    // The parent may have died before the request.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return Some(Exit::Failed);
    }
    let source = match asked {
        Ok(()) => Command::new(&program).args(arguments).exec(),
        Err(error) => error.into(),
    };
    let error = SpawnError { program, source };
    // One write, because the parent writes to standard error at the same time.
    let line = format!("app-shim: {error}: {}\n", without_numbers(&error.source.to_string()));
    let _ = io::stderr().write_all(line.as_bytes());
    Some(Exit::of_spawn(&error.source))
}

impl App {
    /// Starts the app. Don't reap until this returns: a failed exec shows up as a child that exited.
    pub(crate) fn spawn(command: &[OsString], environment: &[(&str, String)]) -> Result<Self, SpawnError> {
        let (program, arguments) = command
            .split_first()
            .map_or((OsString::new(), &[][..]), |(program, rest)| (program.clone(), rest));
        let mut command = if Path::new(OURSELVES).exists() {
            let mut command = Command::new(OURSELVES);
            let us = getpid().as_raw_nonzero().to_string();
            command.arg0("app-shim").args([EXEC_FOR, &us]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        command.args(arguments).process_group(0);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        match command.spawn() {
            // Not waited for as a `Child`, but with all others in `reap`.
            Ok(child) => Ok(Self { pid: Pid::from_child(&child), ended: None }),
            Err(source) => Err(SpawnError { program, source }),
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// How its first process exited, if it has.
    pub(crate) fn ended(&self) -> Option<AppExit> {
        self.ended
    }

    /// Reaps every child that has exited, including adopted ones.
    pub(crate) fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == self.pid {
                self.ended = self.ended.or(exit_of(status));
            }
        }
    }

    /// Signals all of its processes. It is fine if none is left.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// Whether all of its processes have exited.
    pub(crate) fn is_gone(&self) -> bool {
        self.ended.is_some() && test_kill_process_group(self.pid).is_err()
    }
}
