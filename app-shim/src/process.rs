//! The app as a process: started in a group of its own, signalled as a group, reaped with everything else.
//!
//! As process 1, or as a subreaper, we are the parent of every orphan below us, so all children are waited for here
//! and by nobody else.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process_group, set_child_subreaper,
    test_kill_process_group, wait,
};

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

impl App {
    /// Starts it. Nobody may reap until this is back: a failure to execute shows as a child that ended.
    pub(crate) fn spawn(command: &[OsString], environment: &[(&str, String)]) -> Result<Self, SpawnError> {
        let (program, arguments) = command
            .split_first()
            .map_or((OsString::new(), &[][..]), |(program, rest)| (program.clone(), rest));
        let mut command = Command::new(&program);
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
