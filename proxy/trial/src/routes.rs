//! On which paths clients fail: a table of at most sixteen templates, filled by failures alone.

use crate::coin::CoinTest;
use crate::share::{Side, Weight};

/// How many templates are kept. What comes later is counted as [`OTHER`].
pub const MAX_ROUTES: usize = 16;

/// The template of all paths that the table has no room for.
pub const OTHER: &str = "(other)";

/// A template has at most this many segments and bytes; the rest of the path is left out.
const MAX_SEGMENTS: usize = 4;
const MAX_BYTES: usize = 64;

/// A longer segment is taken for a value.
const MAX_SEGMENT: usize = 24;

/// One row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// For example `/orders/*`.
    pub template: String,
    /// The clients that failed there first, and the evidence of the coin.
    pub coin: CoinTest,
}

/// The templates of paths on which clients failed first.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    rows: Vec<Route>,
}

impl Routes {
    /// A client has failed for the first time, on this path.
    pub fn record(&mut self, path: &[u8], side: Side, weight: Weight) {
        let template = template(path);
        let known = self.rows.iter().position(|row| row.template == template);
        let place = known.unwrap_or_else(|| {
            let template = if self.rows.len() < MAX_ROUTES { template } else { OTHER.to_owned() };
            self.rows.iter().position(|row| row.template == template).unwrap_or_else(|| {
                self.rows.push(Route { template, coin: CoinTest::default() });
                self.rows.len() - 1
            })
        });
        if let Some(row) = self.rows.get_mut(place) {
            row.coin.record(side, weight);
        }
    }

    /// The rows, those first on which most clients of the new version failed. At most one more than [`MAX_ROUTES`].
    #[must_use]
    pub fn top(&self) -> Vec<&Route> {
        let mut rows: Vec<&Route> = self.rows.iter().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.coin.clients(Side::New)));
        rows
    }
}

/// A path without its query and its values: a segment that contains a digit or anything but letters, `-`, `_` and `.`, or
/// that is long, becomes `*`.
#[must_use]
pub fn template(path: &[u8]) -> String {
    let path = path.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
    let mut template = String::new();
    let mut segments = path.split(|byte| *byte == b'/').filter(|segment| !segment.is_empty());
    for segment in segments.by_ref().take(MAX_SEGMENTS) {
        let word = |byte: &u8| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_' | b'.');
        let text = match std::str::from_utf8(segment) {
            Ok(text) if segment.len() <= MAX_SEGMENT && segment.iter().all(word) => text,
            _ => "*",
        };
        if template.len() + 1 + text.len() > MAX_BYTES {
            break;
        }
        template.push('/');
        template.push_str(text);
    }
    if template.is_empty() {
        template.push('/');
    }
    template
}
