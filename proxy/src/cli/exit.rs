//! Exit codes: the one place where a command's result becomes one.

use std::process::ExitCode;

use serde_json::{Value, json};
use uh_protocol::Problem;
use uh_protocol::client::ClientError;
use uh_system::without_numbers;

/// The exit codes. They are a contract: see docs/cli.md. 2 (usage) is clap's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Done,
    Failed,
    Usage,
    Refused,
    /// Imported, but something behaves differently.
    Incomplete,
    NoProxy,
    NotOnDisk,
}

impl Exit {
    fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused | Self::Incomplete => 3,
            Self::NoProxy => 4,
            Self::NotOnDisk => 5,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// A failed command.
#[derive(Debug)]
pub(super) struct Failed {
    exit: Exit,
    error: anyhow::Error,
}

impl Failed {
    /// Invalid arguments, or a file that can't be read.
    pub(super) fn usage(message: String) -> Self {
        Self { exit: Exit::Usage, error: anyhow::Error::msg(message) }
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    /// The error with its causes in one line.
    pub(super) fn message(&self) -> String {
        let unknown = match self.error.downcast_ref::<ClientError>() {
            Some(ClientError::Broken { .. } | ClientError::TimedOut { .. }) => {
                "; the change may or may not have been applied: run uh-proxy status to find out"
            }
            _ => "",
        };
        without_numbers(&format!("{:#}{unknown}", self.error))
    }

    /// The error as JSON: the problem as in the admin API, and the exit code.
    pub(super) fn json(&self) -> Value {
        let own = |code, title| json!({"code": code, "title": title, "detail": self.message()});
        let problem = match self.error.downcast_ref::<ClientError>() {
            Some(ClientError::Problem(problem)) => {
                json!(Problem { detail: self.message(), ..problem.clone() })
            }
            Some(ClientError::NoProxy { .. }) => own("no_proxy", "uh-proxy isn't running"),
            Some(ClientError::NoPermission { .. }) => own("no_permission", "permission denied"),
            Some(ClientError::Broken { .. }) => own("broken", "connection lost"),
            Some(ClientError::TimedOut { .. }) => own("timed_out", "timed out"),
            None if self.exit == Exit::Usage => own("usage", "invalid arguments"),
            None => own("failed", "failed"),
        };
        json!({"problem": problem, "exit": self.exit.code()})
    }
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: Exit::Failed, error }
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::NoProxy { .. } => Exit::NoProxy,
            ClientError::NoPermission { .. } => Exit::Refused,
            ClientError::Problem(problem) if problem.code.is_refusal() => Exit::Refused,
            ClientError::Problem(_) | ClientError::Broken { .. } | ClientError::TimedOut { .. } => {
                Exit::Failed
            }
        };
        Self { exit, error: error.into() }
    }
}
