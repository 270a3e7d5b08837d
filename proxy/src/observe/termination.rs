//! Why an exchange ended, as logged in the access log.

/// The termination code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Termination {
    /// Normally.
    Done,
    /// No service is configured for this host and path.
    NoRoute,
    /// Redirected to HTTPS, or to the service's main host.
    Redirect,
    /// The request was invalid or not allowed.
    BadRequest,
    /// The service is in maintenance.
    Maintenance,
    /// Its address has too many requests in flight.
    TooMany,
    /// The request exceeds a size limit.
    TooLarge,
    /// The client did not send its request, or did not read the response, in time.
    ClientTimeout,
    /// The client left.
    ClientGone,
    /// No endpoint could be reached.
    UpstreamUnreachable,
    /// The backend closed before its response was complete.
    UpstreamClosed,
    /// The backend timed out.
    UpstreamTimeout,
    /// The backend's response was invalid.
    UpstreamProtocol,
    /// Cut by a drain that had reached its deadline.
    Drain,
    /// Cut because the shutdown timeout was reached.
    Stop,
}

impl Termination {
    /// The text in the access log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "-",
            Self::NoRoute => "NR",
            Self::Redirect => "RD",
            Self::BadRequest => "BR",
            Self::Maintenance => "MT",
            Self::TooMany => "TM",
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
