//! How a command ended, and the one place where that becomes an exit code.

use std::process::ExitCode;

use serde_json::{Value, json};
use uh_protocol::Problem;
use uh_protocol::client::ClientError;
use uh_system::without_numbers;

/// The exit codes. Fixed; see docs/cli.md. 2 (usage) is clap's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Done,
    Failed,
    Usage,
    Refused,
    NoProxy,
    NotOnDisk,
}

impl Exit {
    fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
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

/// A command that did not do what it was asked.
#[derive(Debug)]
pub(super) struct Failed {
    exit: Exit,
    error: anyhow::Error,
}

impl Failed {
    /// Invalid arguments.
    pub(super) fn usage(message: String) -> Self {
        Self { exit: Exit::Usage, error: anyhow::Error::msg(message) }
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    /// The whole story in one line: what happened, and why.
    pub(super) fn message(&self) -> String {
        let unknown = match self.error.downcast_ref::<ClientError>() {
            Some(ClientError::Broken { .. } | ClientError::TimedOut { .. }) => {
                "; the call may or may not have been carried out: uh-proxy status shows what is in force"
            }
            _ => "",
        };
        without_numbers(&format!("{:#}{unknown}", self.error))
    }

    /// The same for programs: the problem as the admin API has it, and the exit code.
    pub(super) fn json(&self) -> Value {
        let own = |code, title| json!({"code": code, "title": title, "detail": self.message()});
        let problem = match self.error.downcast_ref::<ClientError>() {
            Some(ClientError::Problem(problem)) => {
                json!(Problem { detail: self.message(), ..problem.clone() })
            }
            Some(ClientError::NoProxy { .. }) => own("no_proxy", "no uh-proxy"),
            Some(ClientError::NoPermission { .. }) => own("no_permission", "no permission"),
            Some(ClientError::Broken { .. }) => own("broken", "the call broke off"),
            Some(ClientError::TimedOut { .. }) => own("timed_out", "no reply in time"),
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
