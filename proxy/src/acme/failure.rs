//! Why a certificate couldn't be obtained, in words for an operator, and by what it means for the next attempt.

use std::error::Error as _;
use std::fmt;

use instant_acme::{Error, Problem};
use jiff::Timestamp;
use uh_system::plain;

use super::http::{CaError, Heard};

/// What a failure means for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The CA refused: its limits, its policy, or a mistake in the configuration.
    Refused,
    /// The CA couldn't verify a challenge.
    Unproven,
    /// The CA can't be reached, or isn't one.
    Unreachable,
    /// This machine is the reason, such as a disk that is full.
    Local,
}

impl Cause {
    /// All causes, in declaration order.
    pub(crate) const ALL: [Self; 4] = [Self::Refused, Self::Unproven, Self::Unreachable, Self::Local];

    /// Its label in metrics.
    #[must_use]
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unproven => "unproven",
            Self::Unreachable => "unreachable",
            Self::Local => "local",
        }
    }
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What it means for the next attempt.
    pub cause: Cause,
    /// What failed, why, and what to do.
    pub words: String,
    /// When the CA lets us come back, if it said so.
    pub retry_after: Option<Timestamp>,
    /// Whether the CA doesn't know our account: it was deleted there, or the CA was set up again.
    pub unknown_account: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl Failure {
    /// This machine is the reason.
    pub(crate) fn local(words: impl Into<String>) -> Self {
        Self { cause: Cause::Local, words: words.into(), retry_after: None, unknown_account: false }
    }

    /// A challenge failed.
    pub(crate) fn unproven(words: impl Into<String>) -> Self {
        Self { cause: Cause::Unproven, ..Self::local(words) }
    }

    /// The CA refused.
    pub(crate) fn refused(words: impl Into<String>) -> Self {
        Self { cause: Cause::Refused, ..Self::local(words) }
    }

    /// From an error of the protocol, during a step such as "place the order".
    #[must_use]
    pub(crate) fn of(step: &str, error: &Error, heard: &Heard) -> Self {
        let retry_after = heard.retry_after();
        let (cause, why) = match error {
            Error::Api(problem) => (Cause::Refused, words_of(problem)),
            Error::Other(other) => match other.downcast_ref::<CaError>() {
                Some(error) => (Cause::Unreachable, plain(error).to_string()),
                None => (Cause::Refused, plain(&**other).to_string()),
            },
            Error::Crypto | Error::KeyRejected => (Cause::Local, "its key can't be used".to_owned()),
            Error::Json(_) => (
                Cause::Unreachable,
                "the reply isn't that of an ACME server; check server.acme.directory".to_owned(),
            ),
            other => (
                Cause::Refused,
                other.source().map_or_else(|| other.to_string(), |_| plain(other).to_string()),
            ),
        };
        let unknown_account = matches!(error, Error::Api(problem) if kind(problem) == "accountDoesNotExist");
        Self { cause, words: format!("cannot {step}: {why}"), retry_after, unknown_account }
    }
}

/// The last part of a problem's type, such as `rateLimited`.
#[must_use]
pub(crate) fn kind(problem: &Problem) -> &str {
    problem.r#type.as_deref().and_then(|kind| kind.rsplit(':').next()).unwrap_or_default()
}

/// A problem as a CA reports it: its explanation, and its type to search for.
#[must_use]
pub(crate) fn words_of(problem: &Problem) -> String {
    let mut words = problem.detail.clone().unwrap_or_default();
    for part in &problem.subproblems {
        let host = match &part.identifier {
            Some(instant_acme::Identifier::Dns(host)) => host.as_str(),
            _ => "?",
        };
        let detail = part.detail.as_deref().unwrap_or("no reason given");
        words.push_str(&format!("; {host}: {detail}"));
    }
    match (words.is_empty(), kind(problem)) {
        (true, "") => "the CA gave no reason".to_owned(),
        (true, kind) => format!("the CA said {kind}"),
        (false, "") => words,
        (false, kind) => format!("{words} ({kind})"),
    }
}
