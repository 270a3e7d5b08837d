//! How a command ended, and the one place where that becomes an exit code.

use std::process::ExitCode;

use uh_protocol::client::ClientError;

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

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0u8,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Refused => 3,
            Exit::NoProxy => 4,
            Exit::NotOnDisk => 5,
        })
    }
}

/// A command that did not do what it was asked.
#[derive(Debug)]
pub(super) struct Failed {
    exit: Exit,
    error: anyhow::Error,
}

impl Failed {
    /// What was typed can't be meant.
    pub(super) fn usage(message: String) -> Self {
        Self { exit: Exit::Usage, error: anyhow::Error::msg(message) }
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    /// The whole story in one line: what happened, and why.
    pub(super) fn message(&self) -> String {
        format!("{:#}", self.error)
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
            ClientError::Problem(problem) if problem.code.is_refusal() => Exit::Refused,
            ClientError::Problem(_) | ClientError::Broken { .. } | ClientError::TimedOut { .. } => {
                Exit::Failed
            }
        };
        Self { exit, error: error.into() }
    }
}
