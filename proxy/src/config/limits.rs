//! `limits`, of a service and of some of its paths.

use std::time::Duration;

use uh_settings::Section;
use uh_settings::units::{DAY, MS, SECOND};

/// Limits on the size of a request and the speed of its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The largest request body, chunk framing not counted; `None`: any size.
    pub body_bytes: Option<u64>,
    /// Bytes per second that a client must send while its body is awaited; 0: no minimum.
    pub min_body_rate: u64,
    /// Bytes per second that a client must read while data is waiting for it; 0: no minimum.
    pub min_response_rate: u64,
    /// The time over which both rates are measured: shorter pauses do no harm.
    pub rate_window: Duration,
    /// The most fields of a response head.
    pub response_fields: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: Some(1 << 30),
            min_body_rate: 500,
            min_response_rate: 500,
            rate_window: 30 * SECOND,
            response_fields: 1000,
        }
    }
}

/// Larger than any useful limit: a pebibyte.
const MAX_BODY_BYTES: u64 = 1 << 50;

/// As many of the shortest possible fields as fit in a response head.
const MAX_RESPONSE_FIELDS: u32 = 10_000;

/// Where a key is missing, as `outer` says: the defaults for a service, and the service's for some of its paths.
pub(super) fn limits(section: &mut Section, outer: &Limits) -> Limits {
    let fields = u32::try_from(outer.response_fields).unwrap_or(MAX_RESPONSE_FIELDS);
    let body_bytes = section.size("body_bytes", outer.body_bytes.unwrap_or(0), (0, MAX_BODY_BYTES));
    Limits {
        body_bytes: Some(body_bytes).filter(|&most| most > 0),
        min_body_rate: section.size("min_body_rate", outer.min_body_rate, (0, 1 << 30)),
        min_response_rate: section.size("min_response_rate", outer.min_response_rate, (0, 1 << 30)),
        rate_window: section.duration("rate_window", outer.rate_window, (100 * MS, DAY)),
        response_fields: section.integer("response_fields", fields, (1, MAX_RESPONSE_FIELDS)) as usize,
    }
}
