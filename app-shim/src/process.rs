//! The app as a process: started in a group of its own, signalled as a group, reaped with everything else.
//!
//! As process 1, or as a subreaper, we are the parent of every orphan below us, so all children are waited for here
//! and by nobody else.
//!
//! The app must not outlive us: killed, we would leave it on its port with nobody to stop it. Only the child itself can
//! ask the kernel for that, between its fork and its exec. So the child is this program once more
//! (`app-shim --exec-for PID COMMAND…`), which asks and then becomes the app: same process, same id.
//!
//! That covers the app's first process alone: the kernel passes the request on to none of its children, such as the server
//! that `npm start` runs. As process 1 of a container they end with us; elsewhere, a killed app-shim can leave them behind,
//! and the next start refuses the address that they listen on.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process_group, set_child_subreaper,
    set_parent_process_death_signal, test_kill_process_group, wait,
};

use crate::exit::Exit;

/// This program, even where its file has been replaced or removed since.
const OURSELVES: &str = "/proc/self/exe";
/// The word that makes it become the app. Not an option: nobody but [`App::spawn`] says it.
const EXEC_FOR: &str = "--exec-for";

/// How the app ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, with this code.
    Exited(u8),
    /// By this signal.
    Killed(u8),
}

/// The app could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {program:?}")]
pub(crate) struct SpawnError {
    program: OsString,
    /// Why.
    #[source]
    pub(crate) source: io::Error,
}

/// The app's processes.
#[derive(Debug)]
pub(crate) struct App {
    /// The first process, whose end is the app's; also the number of the group.
    pid: Pid,
    ended: Option<Ended>,
}

impl Ended {
    /// As shells say it: the code, or 128 and the signal.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal,
        }
    }

    fn from_status(status: WaitStatus) -> Option<Self> {
        let exited = status.exit_status().map(|code| Self::Exited(code as u8));
        exited.or_else(|| status.terminating_signal().map(|signal| Self::Killed(signal as u8)))
    }
}

/// Makes this process the parent of orphans below it, as process 1 is anyway.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// In the child of [`App::spawn`]: becomes the app. `None`: this is not that child. Returns only if it fails.
pub(crate) fn become_the_app(mut arguments: impl Iterator<Item = OsString>) -> Option<Exit> {
    if arguments.nth(1)? != EXEC_FOR {
        return None;
    }
    let parent: i32 = arguments.next()?.to_str()?.parse().ok()?;
    let program = arguments.next()?;
    let asked = set_parent_process_death_signal(Some(Signal::KILL));
    // It may have died before we asked.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return Some(Exit::Failed);
    }
    let source = match asked {
        Ok(()) => Command::new(&program).args(arguments).exec(),
        Err(error) => error.into(),
    };
    let error = SpawnError { program, source };
    // In one piece: app-shim writes there at the same time.
    let line = format!("app-shim: {error}: {}\n", error.source);
    let _ = io::stderr().write_all(line.as_bytes());
    Some(Exit::of_spawn(&error))
}

impl App {
    /// Starts it. Nobody may reap until this is back: a failure to execute shows as a child that ended.
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
            // Never waited for as a `Child`, but with all others in `reap`.
            Ok(child) => Ok(Self { pid: Pid::from_child(&child), ended: None }),
            Err(source) => Err(SpawnError { program, source }),
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// How its first process ended, if it has.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Waits for every child that has ended, ours and adopted ones.
    pub(crate) fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == self.pid {
                self.ended = self.ended.or(Ended::from_status(status));
            }
        }
    }

    /// Signals all of its processes. That there is none left to signal is no failure.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// Whether none of its processes is left.
    pub(crate) fn is_gone(&self) -> bool {
        self.ended.is_some() && test_kill_process_group(self.pid).is_err()
    }
}
