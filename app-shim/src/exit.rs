//! How the program ended, and the only place where that becomes an exit code.

use std::io;
use std::process::ExitCode;

/// The exit codes; see docs/cli.md. 2 (invalid arguments) is clap's. 124 to 127 mean what they mean for `timeout` and
/// `env`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Drained, and the app exited when asked to.
    Drained,
    /// The app exited on its own.
    AppEnded(AppExit),
    /// Exchanges were cut.
    Cut,
    /// Drained, but the app had to be killed.
    AppKilled,
    /// The shim itself failed.
    Failed,
    /// The command can't be executed.
    NotExecutable,
    /// The command doesn't exist.
    NotFound,
}

/// How the app exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppExit {
    /// With this code.
    Exited(u8),
    /// Killed by this signal.
    Killed(u8),
}

impl AppExit {
    /// As in shells: the code, or 128 plus the signal.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal,
        }
    }
}

impl Exit {
    /// As a number.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Drained => 0,
            Self::AppEnded(ended) => ended.code(),
            Self::Cut => 124,
            Self::Failed => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
            Self::AppKilled => 137,
        }
    }

    /// For an app that couldn't be started, for this reason.
    pub(crate) fn of_spawn(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            // The system has no room for another process, whatever the command.
            io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock => Self::Failed,
            _ => Self::NotExecutable,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
