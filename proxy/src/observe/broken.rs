//! How a backend breaks an exchange: the closed set of reasons of `uh_proxy_exchanges_broken_total`.
//!
//! A status code can't tell a complete response from one that is cut off after its head, so broken exchanges have their
//! own counter. An exchange counts once, when it breaks. A client that leaves, a drain and a shutdown don't count.

/// What a backend did to an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// No endpoint could be reached. The client got a 502 or 504.
    Unreachable,
    /// The connection was closed or reset before the client got anything. The client got a 502.
    Closed,
    /// The response was invalid. The client got a 502.
    NotUnderstood,
    /// The response timed out. The client got a 504.
    TimedOut,
    /// The connection was closed or reset within the response. The client has the app's status and a truncated
    /// response.
    CutShort,
    /// The response stalled for too long. The client has the app's status and a truncated response.
    Stalled,
    /// The framing of the response body was invalid. The client has the app's status and a truncated response.
    Garbled,
}

impl Broken {
    /// All of them, by their index.
    pub const ALL: [Self; 7] = [
        Self::Unreachable,
        Self::Closed,
        Self::NotUnderstood,
        Self::TimedOut,
        Self::CutShort,
        Self::Stalled,
        Self::Garbled,
    ];

    /// The value of the label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Closed => "closed",
            Self::NotUnderstood => "not_understood",
            Self::TimedOut => "timeout",
            Self::CutShort => "cut_short",
            Self::Stalled => "stalled",
            Self::Garbled => "garbled",
        }
    }

    /// The same fault after part of the response was sent, when the status can't show it.
    #[must_use]
    pub fn within_response(self) -> Self {
        match self {
            Self::Closed => Self::CutShort,
            Self::TimedOut => Self::Stalled,
            Self::NotUnderstood => Self::Garbled,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_counted_in_a_place_of_its_own() {
        for (place, reason) in Broken::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{}", reason.as_str());
            let same = Broken::ALL.iter().filter(|other| other.as_str() == reason.as_str()).count();
            assert_eq!(same, 1, "{}", reason.as_str());
        }
    }
}
