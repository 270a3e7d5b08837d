//! Why an exchange ended, as logged in the access log.

/// The termination code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Termination {
    /// Normally.
    Done,
    /// No service is configured for this host and path.
    NoRoute,
    /// Answered by a file of the backend, or for want of one.
    File,
    /// Redirected to HTTPS, to the service's main host, or by a path rule.
    Redirect,
    /// A path rule gives the answer.
    FixedAnswer,
    /// A path rule doesn't allow its address.
    NotAllowed,
    /// A preview's link was followed, or it is for a standby that can't be looked at.
    Preview,
    /// The request was invalid or not allowed.
    BadRequest,
    /// The service is in maintenance.
    Maintenance,
    /// Its address has too many requests in flight.
    TooMany,
    /// The client makes more requests than its rate limit allows.
    RateLimited,
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
    /// The request was to be buffered, and the disk failed.
    BufferFailed,
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
            Self::File => "SF",
            Self::Redirect => "RD",
            Self::FixedAnswer => "FA",
            Self::NotAllowed => "NA",
            Self::Preview => "PV",
            Self::BadRequest => "BR",
            Self::Maintenance => "MT",
            Self::TooMany => "TM",
            Self::RateLimited => "RL",
            Self::TooLarge => "TL",
            Self::ClientTimeout => "DT",
            Self::ClientGone => "DC",
            Self::UpstreamUnreachable => "UF",
            Self::UpstreamClosed => "UC",
            Self::UpstreamTimeout => "UT",
            Self::UpstreamProtocol => "UP",
            Self::BufferFailed => "BF",
            Self::Drain => "DRAIN",
            Self::Stop => "STOP",
        }
    }
}
