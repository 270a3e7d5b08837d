//! `replace_prefix`: another start of the path, for the backend.

use uh_settings::Section;

use super::pattern::{PathPrefix, Pattern};

/// What replaces the start of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// What is removed; empty: nothing.
    pub from: Box<[u8]>,
    /// What is put in its place; the rest follows, or ends it.
    pub to: Box<[u8]>,
}

impl Replacement {
    pub(super) fn new(pattern: &Pattern, PathPrefix(to): &PathPrefix) -> Self {
        match pattern {
            Pattern::Exact(path) => Self { from: path.clone(), to: to.as_bytes().into() },
            Pattern::Under { prefix, .. } => {
                Self { from: prefix.clone(), to: to.trim_end_matches('/').as_bytes().into() }
            }
        }
    }

    /// Whether the backend gets this path for one that a client has sent.
    #[must_use]
    pub fn leads_to(&self, path: &[u8], target: &[u8]) -> bool {
        let Some(rest) = path.strip_prefix(&*self.from) else { return false };
        let root = self.to.is_empty() && rest.is_empty();
        target.strip_prefix(&*self.to) == Some(if root { b"/" } else { rest })
    }
}

/// Reads the new prefix of a rule, if it has one.
pub(super) fn new_prefix(rule: &mut Section) -> Option<PathPrefix> {
    if rule.has("replace_prefix") && !rule.has("match") {
        rule.mistake("replace_prefix", "needs match: the prefix to replace");
    }
    rule.parsed("replace_prefix")
}
