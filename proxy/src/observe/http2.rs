//! What is counted about HTTP/2: connections, streams, resets by error code, and why connections were ended.

use std::sync::atomic::{AtomicU64, Ordering};

use h2::Reason;

/// Why a connection was ended, or announced its end, with a GOAWAY frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoAwayReason {
    /// uh-proxy stops.
    Stopping,
    /// No request came within `limits.idle_timeout`.
    Idle,
    /// It was idle, and its slot was needed.
    Evicted,
    /// It has carried `limits.requests_per_connection` requests.
    RequestsPerConnection,
    /// Too many frames that move nothing: `limits.h2_control_frames`.
    Flood,
    /// Too many requests cancelled before they were answered: `limits.h2_cancelled_requests`.
    CancelledRequests,
    /// The client has broken the protocol.
    ProtocolError,
}

/// All reasons, by their index.
pub(crate) const GO_AWAY_REASONS: [&str; 7] = [
    "stopping",
    "idle",
    "evicted",
    "requests_per_connection",
    "flood",
    "cancelled_requests",
    "protocol_error",
];

impl GoAwayReason {
    /// The error code in the frame.
    #[must_use]
    pub fn code(self) -> Reason {
        match self {
            Self::Stopping | Self::Idle | Self::Evicted | Self::RequestsPerConnection => Reason::NO_ERROR,
            Self::Flood | Self::CancelledRequests => Reason::ENHANCE_YOUR_CALM,
            Self::ProtocolError => Reason::PROTOCOL_ERROR,
        }
    }
}

/// Who has sent a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The client.
    Received,
    /// uh-proxy.
    Sent,
}

/// Both directions, by their index.
pub(crate) const DIRECTIONS: [&str; 2] = ["received", "sent"];

/// The error codes (RFC 9113 §7), by their number; any other counts as the last.
pub(crate) const ERROR_CODES: [&str; 15] = [
    "no_error",
    "protocol_error",
    "internal_error",
    "flow_control_error",
    "settings_timeout",
    "stream_closed",
    "frame_size_error",
    "refused_stream",
    "cancel",
    "compression_error",
    "connect_error",
    "enhance_your_calm",
    "inadequate_security",
    "http_1_1_required",
    "other",
];

/// One worker's counters of HTTP/2.
#[derive(Debug, Default)]
pub struct Http2Meters {
    /// Connections, open.
    pub connections: AtomicU64,
    /// Streams opened by clients since the start.
    pub streams: AtomicU64,
    resets: [[AtomicU64; ERROR_CODES.len()]; DIRECTIONS.len()],
    go_aways: [AtomicU64; GO_AWAY_REASONS.len()],
}

impl Http2Meters {
    /// Counts a stream.
    pub fn stream_opened(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a stream that was reset.
    pub fn was_reset(&self, direction: Direction, code: u32) {
        let place = usize::try_from(code).map_or(ERROR_CODES.len(), |code| code).min(ERROR_CODES.len() - 1);
        self.resets[direction as usize][place].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that was ended.
    pub fn went_away(&self, reason: GoAwayReason) {
        self.go_aways[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counter of resets, by the indices of direction and code.
    #[must_use]
    pub fn resets(&self, direction: usize, code: usize) -> &AtomicU64 {
        &self.resets[direction][code]
    }

    /// The counter of ended connections, by the index of the reason.
    #[must_use]
    pub fn go_aways(&self, reason: usize) -> &AtomicU64 {
        &self.go_aways[reason]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_and_reason_has_its_label() {
        for (code, label) in [
            (Reason::NO_ERROR, "no_error"),
            (Reason::REFUSED_STREAM, "refused_stream"),
            (Reason::CANCEL, "cancel"),
            (Reason::ENHANCE_YOUR_CALM, "enhance_your_calm"),
            (Reason::HTTP_1_1_REQUIRED, "http_1_1_required"),
        ] {
            assert_eq!(ERROR_CODES[u32::from(code) as usize], label);
        }
        let meters = Http2Meters::default();
        meters.was_reset(Direction::Sent, 8);
        meters.was_reset(Direction::Received, 12_345);
        assert_eq!(meters.resets(1, 8).load(Ordering::Relaxed), 1);
        assert_eq!(meters.resets(0, ERROR_CODES.len() - 1).load(Ordering::Relaxed), 1);
        assert_eq!(GO_AWAY_REASONS[GoAwayReason::ProtocolError as usize], "protocol_error");
        assert_eq!(GO_AWAY_REASONS[GoAwayReason::Stopping as usize], "stopping");
    }
}
