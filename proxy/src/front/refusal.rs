//! What a client is told when there is no response for it.

use super::relay::Failure;
use crate::observe::broken::Broken;
use crate::observe::termination::Termination;

/// What the client hears when no response could be had.
pub(super) struct Refusal {
    pub status: u16,
    pub detail: &'static str,
    pub termination: Termination,
    /// What the backend did, if the fault is its.
    pub broken: Option<Broken>,
    /// Why it could not be connected to, or its answer not be understood.
    pub reason: Option<&'static str>,
}

impl Failure {
    /// What the client hears of this failure, if it has heard nothing yet.
    pub(super) fn refusal(&self) -> Refusal {
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
            // nginx's code for a client that left; nobody sees it but the log and the counters.
            Self::Client(_) => (499, "", Termination::ClientGone),
            Self::UpstreamClosed { .. } => {
                (502, "the app closed the connection", Termination::UpstreamClosed)
            }
            Self::UpstreamBroke => (502, "the app's response broke off", Termination::UpstreamClosed),
            Self::UpstreamProtocol(_) => {
                (502, "the app's response could not be understood", Termination::UpstreamProtocol)
            }
            Self::UpstreamTimeout => (504, "the app did not answer in time", Termination::UpstreamTimeout),
            Self::Cut(Termination::Drain) => {
                (503, "this version of the app is being retired", Termination::Drain)
            }
            Self::Cut(_) => (503, "the front door is stopping", Termination::Stop),
        };
        Refusal { status, detail, termination, broken: self.broken(), reason: self.reason() }
    }
}

impl Failure {
    /// What the backend did, if the fault is its. Total, so that a new failure can't go uncounted by accident.
    fn broken(&self) -> Option<Broken> {
        match self {
            Self::Client(_) | Self::Cut(_) => None,
            Self::UpstreamClosed { .. } | Self::UpstreamBroke => Some(Broken::Closed),
            Self::UpstreamProtocol(_) => Some(Broken::NotUnderstood),
            Self::UpstreamTimeout => Some(Broken::TimedOut),
        }
    }

    fn reason(&self) -> Option<&'static str> {
        if let Self::UpstreamProtocol(reason) = self { Some(reason) } else { None }
    }
}

impl Refusal {
    pub(super) fn internal() -> Self {
        let (detail, termination) = ("no backend is available", Termination::NoRoute);
        Self { status: 503, detail, termination, broken: None, reason: None }
    }
}
