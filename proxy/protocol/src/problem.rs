//! Errors of the admin API: `application/problem+json` (RFC 9457) with a stable `code`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::name::ServiceName;

/// The media type of a [`Problem`].
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// What went wrong, for programs. Stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No service of that name.
    UnknownService,
    /// The service has no backend of that name.
    UnknownBackend,
    /// No such API call.
    UnknownCall,
    /// The call exists, with another method.
    MethodNotAllowed,
    /// The backend isn't known to be healthy.
    BackendUnhealthy,
    /// An expectation did not hold.
    Conflict,
    /// The backend is active, and this is for standbys only: a drain, a withdrawal, or new endpoints without `force`.
    BackendActive,
    /// The backend is withdrawn: nothing switches to it until it is registered again.
    BackendWithdrawn,
    /// The request is malformed, too large or out of range.
    InvalidRequest,
    /// The configuration file is invalid.
    InvalidConfiguration,
    /// The peer's user may not do this.
    Forbidden,
    /// Too many admin connections at once.
    Busy,
    /// Not built yet.
    NotSupported,
    /// An internal error of uh-proxy.
    Internal,
}

impl Code {
    /// The HTTP status that carries it.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Forbidden => 403,
            Self::UnknownService | Self::UnknownBackend | Self::UnknownCall => 404,
            Self::MethodNotAllowed => 405,
            Self::BackendUnhealthy | Self::Conflict | Self::BackendActive | Self::BackendWithdrawn => 409,
            Self::InvalidConfiguration => 422,
            Self::Internal => 500,
            Self::NotSupported => 501,
            Self::Busy => 503,
        }
    }

    /// Whether uh-proxy understood the request and refused it, so that repeating it won't help unless something
    /// changes.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::BackendUnhealthy
                | Self::Conflict
                | Self::BackendActive
                | Self::BackendWithdrawn
                | Self::InvalidConfiguration
                | Self::Forbidden
        )
    }
}

/// An error as the admin API sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// What went wrong, for programs.
    pub code: Code,
    /// The HTTP status.
    pub status: u16,
    /// A short title.
    pub title: String,
    /// What happened, the current state, and what to do next.
    pub detail: String,
    /// For a call about several services: the ones that stand in the way, each with its reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<ServiceName, ServiceProblem>,
}

/// Why one of several services can't change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceProblem {
    /// What is wrong, for programs.
    pub code: Code,
    /// The current state, and what to do next.
    pub detail: String,
}

impl Problem {
    /// An error with the status that belongs to its code.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self::with_status(code, code.status(), detail)
    }

    /// An error with a status of its own, such as 413 and 422 for an invalid request.
    #[must_use]
    pub fn with_status(code: Code, status: u16, detail: impl Into<String>) -> Self {
        let title = match code {
            Code::UnknownService => "unknown service",
            Code::UnknownBackend => "unknown backend",
            Code::UnknownCall => "unknown API call",
            Code::MethodNotAllowed => "method not allowed",
            Code::BackendUnhealthy => "backend unhealthy",
            Code::Conflict => "conflict",
            Code::BackendActive => "backend active",
            Code::BackendWithdrawn => "backend withdrawn",
            Code::InvalidRequest => "invalid request",
            Code::InvalidConfiguration => "invalid configuration",
            Code::Forbidden => "forbidden",
            Code::Busy => "busy",
            Code::NotSupported => "not supported",
            Code::Internal => "internal error",
        };
        Self { code, status, title: title.to_owned(), detail: detail.into(), services: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_snake_case_on_the_wire() {
        let problem = Problem::new(Code::UnknownBackend, "service app has no backend red");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["code"], "unknown_backend");
        assert_eq!(json["status"], 404);
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }
}
