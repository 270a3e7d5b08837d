//! Finds the rule for a path. Pure, and on the path of every request of a service with rules: no allocation.
//!
//! Paths are compared as the client wrote them, as the prefixes of services are: see [`uh_switching::route`]. The most
//! specific pattern wins, whatever the order of the rules: an exact path, then the longest prefix, and of the same
//! prefix the longest suffix.

use memchr::memchr;
use uh_switching::route::{is_under, starts_with};

use super::pattern::Pattern;

/// All patterns of a service's rules, with the numbers of their rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PathTable {
    /// Sorted, to be searched.
    exact: Vec<(Box<[u8]>, u16)>,
    /// The most specific ones first.
    under: Vec<Under>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Under {
    prefix: Box<[u8]>,
    suffix: Box<[u8]>,
    rule: u16,
}

impl PathTable {
    /// For these patterns, of which no two are equal.
    pub(super) fn new(patterns: Vec<(Pattern, u16)>) -> Self {
        let (mut exact, mut under) = (Vec::new(), Vec::new());
        for (pattern, rule) in patterns {
            match pattern {
                Pattern::Exact(path) => exact.push((path, rule)),
                Pattern::Under { prefix, suffix } => under.push(Under { prefix, suffix, rule }),
            }
        }
        exact.sort();
        under.sort_by_key(|under| std::cmp::Reverse((under.prefix.len(), under.suffix.len())));
        Self { exact, under }
    }

    /// The rule for a path, which may have a query.
    pub(super) fn find(&self, path: &[u8]) -> Option<u16> {
        // RFC 9112 §3.2.1: an empty path is sent as "/".
        match &path[..memchr(b'?', path).unwrap_or(path.len())] {
            b"" => self.find_by(b"/", is_under),
            path => self.find_by(path, is_under),
        }
    }

    /// The rule for a path without a query that may leave a prefix through dot segments and still counts as under it.
    pub(super) fn find_literally(&self, path: &[u8]) -> Option<u16> {
        self.find_by(if path.is_empty() { b"/" } else { path }, starts_with)
    }

    fn find_by(&self, path: &[u8], is_under: fn(&[u8], &[u8]) -> bool) -> Option<u16> {
        if let Ok(at) = self.exact.binary_search_by(|(exact, _)| (**exact).cmp(path)) {
            return Some(self.exact[at].1);
        }
        let found =
            self.under.iter().find(|under| ends_with(path, &under.suffix) && is_under(path, &under.prefix));
        found.map(|under| under.rule)
    }
}

/// Whether a path ends like this, in any case: `.JPG` is a `.jpg`.
fn ends_with(path: &[u8], suffix: &[u8]) -> bool {
    let start = path.len().checked_sub(suffix.len());
    start.is_some_and(|start| path[start..].eq_ignore_ascii_case(suffix))
}
