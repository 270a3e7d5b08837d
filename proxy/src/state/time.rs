//! Times as text: ISO 8601, UTC.

use jiff::Timestamp;

/// To the millisecond, for status and replies.
#[must_use]
pub(crate) fn iso_millis(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// To the second, as the guide's state file has it.
#[must_use]
pub(crate) fn iso_seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
