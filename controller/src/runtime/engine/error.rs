//! Errors of the Docker Engine.

use std::time::Duration;

use bollard::errors::Error;

use crate::redact::Foreign;
use crate::runtime::{InstanceId, RuntimeError};

/// Why a call of the engine failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::runtime) enum EngineError {
    /// It can't be reached.
    #[error("the Docker Engine doesn't answer")]
    Unreachable(#[source] Foreign),
    /// It returned an error.
    #[error("{said}")]
    Refused {
        /// The status: 404 is "no such container", 409 a name that is in use. `None` if it broke off.
        status: Option<u16>,
        /// Its message.
        said: Foreign,
    },
    /// It took too long.
    #[error("the Docker Engine didn't answer within {}", crate::time::span(*.0))]
    Slow(Duration),
    /// It wasn't called, because the id of the state directory can't be read.
    #[error(transparent)]
    Owner(RuntimeError),
}

impl EngineError {
    /// The status of an error: 404 is "no such container", 409 a name that is in use.
    pub(in crate::runtime) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => *status,
            _ => None,
        }
    }

    /// As an error about an instance.
    pub(in crate::runtime) fn about(self, action: &'static str, instance: &InstanceId) -> RuntimeError {
        match self {
            Self::Refused { said, .. } => {
                RuntimeError::Instance { action, instance: instance.clone(), source: said.into() }
            }
            other => other.unreachable(),
        }
    }

    /// As an error without an instance.
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
