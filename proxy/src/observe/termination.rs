//! Why an exchange ended, as the access log says it.

/// The reason in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Termination {
    /// As it should.
    Done,
    /// No service answers for this host and path.
    NoRoute,
    /// Redirected to HTTPS, or to the service's main host.
    Redirect,
    /// The request could not be understood or was not allowed.
    BadRequest,
    /// The service is in maintenance.
    Maintenance,
    /// The request is larger than it may be.
    TooLarge,
    /// The client did not send its request, or did not read the response, in time.
    ClientTimeout,
    /// The client left.
    ClientGone,
    /// No endpoint could be reached.
    UpstreamUnreachable,
    /// The backend closed before its response was complete.
    UpstreamClosed,
    /// The backend did not answer in time.
    UpstreamTimeout,
    /// The backend's answer could not be understood.
    UpstreamProtocol,
    /// Cut by a drain that had reached its deadline.
    Drain,
    /// Cut because the front door had reached its shutdown deadline.
    Stop,
}

impl Termination {
    /// As the access log shows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "-",
            Self::NoRoute => "NR",
            Self::Redirect => "RD",
            Self::BadRequest => "BR",
            Self::Maintenance => "MT",
            Self::TooLarge => "TL",
            Self::ClientTimeout => "DT",
            Self::ClientGone => "DC",
            Self::UpstreamUnreachable => "UF",
            Self::UpstreamClosed => "UC",
            Self::UpstreamTimeout => "UT",
            Self::UpstreamProtocol => "UP",
            Self::Drain => "DRAIN",
            Self::Stop => "STOP",
        }
    }
}
