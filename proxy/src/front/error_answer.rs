//! What a client gets when there is no response for it.

use super::relay::ExchangeFailure;
use crate::observe::broken::Broken;
use crate::observe::termination::Termination;

/// The answer to a client when there is no response.
pub(super) struct ErrorAnswer {
    pub status: u16,
    pub detail: &'static str,
    pub termination: Termination,
    /// What the backend did, if it is at fault.
    pub broken: Option<Broken>,
    /// Why connecting failed, or the response was invalid.
    pub reason: Option<&'static str>,
}

impl ExchangeFailure {
    /// The answer to the client for this failure, if nothing was sent to it yet.
    pub(super) fn refusal(&self) -> ErrorAnswer {
        let (status, detail, termination) = match self {
            Self::Client(Termination::ClientTimeout) => {
                (408, "the request did not arrive in time", Termination::ClientTimeout)
            }
            Self::Client(Termination::BadRequest) => {
                (400, "the request body is malformed", Termination::BadRequest)
            }
            Self::Client(Termination::TooLarge) => {
                (413, "the request body is too large", Termination::TooLarge)
            }
            // nginx's code for a client that left; only seen in the log and the counters.
            Self::Client(_) => (499, "", Termination::ClientGone),
            Self::UpstreamClosed { .. } => {
                (502, "the app closed the connection", Termination::UpstreamClosed)
            }
            Self::UpstreamBroke => (
                502,
                "the app closed the connection before its response was complete",
                Termination::UpstreamClosed,
            ),
            Self::UpstreamProtocol(_) => {
                (502, "the app sent an invalid response", Termination::UpstreamProtocol)
            }
            Self::UpstreamTimeout => (504, "the app did not answer in time", Termination::UpstreamTimeout),
            Self::Storage => (503, "the request could not be buffered", Termination::BufferFailed),
            Self::Cut(Termination::Drain) => {
                (503, "this version of the app is being retired", Termination::Drain)
            }
            Self::Cut(_) => (503, "the proxy is shutting down", Termination::Stop),
        };
        ErrorAnswer { status, detail, termination, broken: self.broken(), reason: self.reason() }
    }
}

impl ExchangeFailure {
    /// What the backend did, if it is at fault. Total, so that a new failure can't go uncounted by accident.
    fn broken(&self) -> Option<Broken> {
        match self {
            Self::Client(_) | Self::Storage | Self::Cut(_) => None,
            Self::UpstreamClosed { .. } | Self::UpstreamBroke => Some(Broken::Closed),
            Self::UpstreamProtocol(_) => Some(Broken::NotUnderstood),
            Self::UpstreamTimeout => Some(Broken::TimedOut),
        }
    }

    fn reason(&self) -> Option<&'static str> {
        if let Self::UpstreamProtocol(reason) = self { Some(reason) } else { None }
    }
}
