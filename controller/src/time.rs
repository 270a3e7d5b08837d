//! Times as text: ISO 8601, UTC.

use jiff::Timestamp;

/// To the millisecond.
#[must_use]
pub fn iso_millis(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}
