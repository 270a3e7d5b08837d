//! How a command ended, and the only place where that becomes an exit code.

use std::process::ExitCode;

use uh_protocol::client::ClientError;

use crate::deploy::journal::JournalError;
use crate::deploy::lock::LockError;
use crate::deploy::machine::{FailureCause, Outcome};
use crate::proxy::ProxyError;

/// The exit codes. They are a contract: see docs/cli.md. 2 (invalid arguments) is clap's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Done,
    Failed,
    Usage,
    RolledBack,
    Locked,
    Superseded,
    Attention,
    Breach,
    /// Not enough data to decide, where a verdict was required or a trial is held.
    NotEnoughData,
    /// Ended by a signal: 128 plus its number.
    Interrupted(u8),
}

impl Exit {
    /// As a number.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::RolledBack => 3,
            Self::Locked => 4,
            Self::Superseded => 5,
            Self::Attention => 6,
            Self::Breach => 7,
            Self::NotEnoughData => 8,
            Self::Interrupted(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Deployed | Outcome::RolledBack => Self::Done,
            Outcome::Superseded | Outcome::Failed(FailureCause::Overtaken) => Self::Superseded,
            Outcome::Failed(FailureCause::Undecided) | Outcome::Held => Self::NotEnoughData,
            Outcome::Returned | Outcome::Failed(FailureCause::Worse) => Self::RolledBack,
            Outcome::Failed(_) => Self::Failed,
            Outcome::Attention => Self::Attention,
        }
    }
}

/// Why a command failed, and its exit code.
#[derive(Debug)]
pub(super) struct CliError {
    exit: Exit,
    message: String,
    of_journal: bool,
}

impl CliError {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), of_journal: false }
    }

    /// The same, because the journal can't be used.
    pub(super) fn of_journal(self) -> Self {
        Self { of_journal: true, ..self }
    }

    /// Whether the journal can't be used.
    pub(super) fn is_of_journal(&self) -> bool {
        self.of_journal
    }

    /// Invalid arguments.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    /// Appends something to try.
    pub(super) fn with_hint(self, hint: &str) -> Self {
        Self { message: format!("{}. {hint}", self.message), ..self }
    }

    /// What happened and why, in one line.
    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, format!("{error:#}"))
    }
}

impl From<LockError> for CliError {
    fn from(error: LockError) -> Self {
        let exit = match error {
            LockError::Held { .. } | LockError::JournalHeld { .. } => Exit::Locked,
            LockError::File { .. } => Exit::Failed,
        };
        Self::new(exit, crate::chain(&error))
    }
}

/// If the journal can't be used, nothing may be done, because nothing could be recorded.
pub(super) fn journal_failed(error: &JournalError) -> CliError {
    CliError::new(Exit::Attention, crate::chain(error)).of_journal()
}

impl From<ProxyError> for CliError {
    fn from(error: ProxyError) -> Self {
        let next = match &error {
            ProxyError::Call(ClientError::NoProxy { .. }) => {
                "; nothing was changed. Start uh-proxy or fix `deploy.admin_socket`"
            }
            ProxyError::Call(ClientError::NoPermission { .. }) => "; nothing was changed",
            _ => "",
        };
        let exit = if error.is_overtaken() && !error.is_in_use() { Exit::Superseded } else { Exit::Failed };
        Self::new(exit, format!("{}{next}", crate::chain(&error)))
    }
}

impl From<crate::runtime::RuntimeError> for CliError {
    fn from(error: crate::runtime::RuntimeError) -> Self {
        Self::new(Exit::Failed, crate::chain(&error))
    }
}
