//! One check of `validate`, with its result.

use serde::Serialize;

/// A check and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What holds if it passes: `Docker Engine running`.
    pub name: String,
    /// Whether it passed.
    pub passed: bool,
    /// What was found: a version, a size, an error.
    pub found: String,
    /// What to do if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    /// A check that passed.
    #[must_use]
    pub fn passed(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), passed: true, found: found.into(), remedy: None }
    }

    /// A check that failed, with what to do about it.
    #[must_use]
    pub fn failed(name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.into(), passed: false, found: found.into(), remedy: Some(remedy.into()) }
    }
}
