//! How a backend breaks an exchange: the closed set of reasons of `uh_proxy_exchanges_broken_total`.
//!
//! A status code alone can't tell a whole response from one that breaks off after its head, so broken exchanges have a
//! counter of their own. An exchange counts once, when it breaks. A client that leaves, a drain and a stop break nothing.

/// What a backend did to an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// No endpoint could be reached. The client got a 502 or 504.
    Unreachable,
    /// The connection ended or was reset before the client got anything. The client got a 502.
    Closed,
    /// The answer could not be understood. The client got a 502.
    NotUnderstood,
    /// No answer came in time. The client got a 504.
    TimedOut,
    /// The connection ended or was reset within the response. The client has the app's status, and a cut response.
    CutShort,
    /// The response stopped moving for too long. The client has the app's status, and a cut response.
    Stalled,
    /// The response's framing broke within the body. The client has the app's status, and a cut response.
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

    /// As the label shows it.
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

    /// The same fault once the client has a part of the response. Then its status says nothing of it.
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
