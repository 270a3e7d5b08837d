//! One question that `validate` asks, and its answer.

use serde::Serialize;

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What holds if all is well: `Docker Engine running`.
    pub name: String,
    /// Whether it does.
    pub passed: bool,
    /// What was found: a version, a size, an error.
    pub found: String,
    /// What to do if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    /// All is well.
    #[must_use]
    pub fn passed(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), passed: true, found: found.into(), remedy: None }
    }

    /// It is not, and this is what to do.
    #[must_use]
    pub fn failed(name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.into(), passed: false, found: found.into(), remedy: Some(remedy.into()) }
    }
}
