//! Why the Docker Engine did not do what it was asked.

use std::time::Duration;

use bollard::errors::Error;

use crate::redact::Foreign;
use crate::runtime::{InstanceId, RuntimeError};

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(in crate::runtime) enum EngineError {
    /// It can't be reached.
    #[error("the Docker Engine does not answer")]
    Unreachable(#[source] Foreign),
    /// It said no.
    #[error("{said}")]
    Refused {
        /// The status: 404 is "no such container", 409 a name that is taken. None if it broke off.
        status: Option<u16>,
        /// Its words.
        said: Foreign,
    },
    /// It took too long.
    #[error("the Docker Engine did not answer within {}", crate::time::span(*.0))]
    Slow(Duration),
    /// It was not asked: whose containers are meant can't be told.
    #[error(transparent)]
    Owner(RuntimeError),
}

impl EngineError {
    /// The status of a refusal: 404 is "no such container", 409 a name that is taken.
    pub(in crate::runtime) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => *status,
            _ => None,
        }
    }

    /// As the driver hears of it.
    pub(in crate::runtime) fn about(self, action: &'static str, instance: &InstanceId) -> RuntimeError {
        match self {
            Self::Refused { said, .. } => {
                RuntimeError::Instance { action, instance: instance.clone(), source: said.into() }
            }
            other => other.unreachable(),
        }
    }

    /// The same, where there is no instance to tell of.
    pub(in crate::runtime) fn unreachable(self) -> RuntimeError {
        let what = "the Docker Engine".to_owned();
        match self {
            Self::Unreachable(said) | Self::Refused { said, .. } => {
                RuntimeError::Unreachable { what, source: said.into() }
            }
            Self::Owner(error) => error,
            Self::Slow(after) => RuntimeError::Unreachable {
                what,
                source: format!("no answer within {}", crate::time::span(after)).into(),
            },
        }
    }
}

impl From<Error> for EngineError {
    fn from(error: Error) -> Self {
        let said = Foreign::error(&error);
        match error {
            Error::DockerResponseServerError { status_code, .. } => {
                Self::Refused { status: Some(status_code), said }
            }
            Error::DockerStreamError { .. } => Self::Refused { status: None, said },
            _ => Self::Unreachable(said),
        }
    }
}
