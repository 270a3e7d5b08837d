//! The reasons for failed handshakes, and the counters of all handshakes.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::{AlertDescription, CertificateError, Error, HandshakeKind, PeerIncompatible, ProtocolVersion};

use crate::observe::log_rate_limit::LogRateLimit;

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The client closed the connection before the handshake was complete.
    Closed,
    /// The handshake timed out.
    TimedOut,
    /// No certificate covers the host that the client asked for.
    UnknownHost,
    /// The client sent plain HTTP.
    PlainHttp,
    /// The client sent neither TLS nor HTTP.
    NotTls,
    /// Both sides have no TLS version in common.
    Version,
    /// Both sides have no cipher, signature algorithm or key exchange in common.
    Algorithms,
    /// Both sides have no application protocol (ALPN) in common.
    Protocol,
    /// The client rejected the certificate.
    Distrusted,
    /// The client aborted with another alert.
    Alert,
    /// The client violated the TLS protocol.
    Broken,
    /// It was the oldest when the limit was reached.
    Evicted,
    /// uh-proxy is stopping.
    Stopping,
}

impl HandshakeFailure {
    /// All reasons, in declaration order.
    pub(crate) const ALL: [Self; 13] = [
        Self::Closed,
        Self::TimedOut,
        Self::UnknownHost,
        Self::PlainHttp,
        Self::NotTls,
        Self::Version,
        Self::Algorithms,
        Self::Protocol,
        Self::Distrusted,
        Self::Alert,
        Self::Broken,
        Self::Evicted,
        Self::Stopping,
    ];

    /// Its label in logs and metrics.
    #[must_use]
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::TimedOut => "timeout",
            Self::UnknownHost => "unknown_host",
            Self::PlainHttp => "plain_http",
            Self::NotTls => "not_tls",
            Self::Version => "version",
            Self::Algorithms => "algorithms",
            Self::Protocol => "protocol",
            Self::Distrusted => "distrusted",
            Self::Alert => "alert",
            Self::Broken => "broken",
            Self::Evicted => "evicted",
            Self::Stopping => "stopping",
        }
    }

    /// What happened, and what to do if anything can be done.
    #[must_use]
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Closed => "the client closed the connection before the handshake was complete",
            Self::TimedOut => "it wasn't complete within server.limits.tls_handshake_timeout",
            Self::UnknownHost => {
                "no certificate covers the host that the client asked for; if the host is yours, add one to server.tls.certificates"
            }
            Self::PlainHttp => "the client sent plain HTTP; use https:// on this port",
            Self::NotTls => "the client sent neither TLS nor HTTP",
            Self::Version => "the client's newest TLS version is older than server.tls.min_version",
            Self::Algorithms => {
                "the client supports none of the offered ciphers, signature algorithms or key exchanges"
            }
            Self::Protocol => "the client offers only protocols other than HTTP/2 and HTTP/1.1",
            Self::Distrusted => {
                "the client rejected the certificate; check its names, dates and intermediates"
            }
            Self::Alert => "the client aborted the handshake",
            Self::Broken => "the client violated the TLS protocol",
            Self::Evicted => {
                "server.limits.tls_handshakes was reached, and this was the oldest handshake on its thread"
            }
            Self::Stopping => "uh-proxy is stopping",
        }
    }

    /// Whether to log it as a warning. The others result from every port scan, health check and shutdown.
    fn is_warning(self) -> bool {
        !matches!(self, Self::Closed | Self::Stopping)
    }

    /// The reason behind an error of the handshake.
    #[must_use]
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => Self::of_tls(error),
            None => Self::Closed,
        }
    }

    fn of_tls(error: &Error) -> Self {
        match error {
            Error::AlertReceived(alert) => match alert {
                AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown => Self::Distrusted,
                AlertDescription::CloseNotify | AlertDescription::UserCanceled => Self::Closed,
                AlertDescription::ProtocolVersion => Self::Version,
                _ => Self::Alert,
            },
            Error::PeerIncompatible(
                // A client without this extension doesn't support TLS 1.2.
                PeerIncompatible::SignatureAlgorithmsExtensionRequired
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::Tls13RequiredForQuic,
            ) => Self::Version,
            Error::PeerIncompatible(_) => Self::Algorithms,
            Error::NoApplicationProtocol => Self::Protocol,
            Error::InvalidCertificate(CertificateError::NotValidForName) => Self::UnknownHost,
            _ => Self::Broken,
        }
    }
}

/// The versions that a handshake can negotiate, by index.
pub(crate) const VERSIONS: [&str; 2] = ["1.2", "1.3"];

/// Whether the handshake was full or resumed a session, by index.
pub(crate) const KINDS: [&str; 2] = ["full", "resumed"];

/// Counts handshakes since the start. They are shared by all workers: a handshake costs far more than its counter.
#[derive(Debug, Default)]
pub(crate) struct HandshakeCounts {
    done: [[AtomicU64; VERSIONS.len()]; KINDS.len()],
    failed: [AtomicU64; HandshakeFailure::ALL.len()],
    logged: [LogRateLimit; HandshakeFailure::ALL.len()],
    in_progress: AtomicU64,
}

/// Counts one handshake as in progress until it is dropped.
#[derive(Debug)]
pub(crate) struct InProgress<'a>(&'a AtomicU64);

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HandshakeCounts {
    /// Counts a handshake that begins.
    pub(crate) fn begins(&self) -> InProgress<'_> {
        self.in_progress.fetch_add(1, Ordering::Relaxed);
        InProgress(&self.in_progress)
    }

    /// Counts a completed handshake.
    pub(crate) fn done(&self, version: Option<ProtocolVersion>, kind: Option<HandshakeKind>) {
        let version = usize::from(version == Some(ProtocolVersion::TLSv1_3));
        let kind = usize::from(kind == Some(HandshakeKind::Resumed));
        self.done[kind][version].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a failed handshake, and logs it with a rate limit for each reason.
    pub(crate) fn failed(&self, failure: HandshakeFailure, client: &str, sni: Option<&str>) {
        let index = failure as usize;
        self.failed[index].fetch_add(1, Ordering::Relaxed);
        if !failure.is_warning() {
            tracing::debug!(
                client,
                reason = failure.label(),
                "TLS handshake failed: {}",
                failure.description()
            );
        } else if let Some(more_since_last_line) = self.logged[index].allows() {
            tracing::warn!(
                client,
                sni = sni.unwrap_or("-"),
                reason = failure.label(),
                more_since_last_line,
                "TLS handshake failed: {}",
                failure.description()
            );
        }
    }

    /// Completed handshakes as kind, version and count.
    #[must_use]
    pub(crate) fn complete(&self) -> Vec<(&'static str, &'static str, u64)> {
        let each = KINDS.iter().zip(&self.done);
        each.flat_map(|(kind, counts)| {
            VERSIONS
                .iter()
                .zip(counts)
                .map(|(version, count)| (*kind, *version, count.load(Ordering::Relaxed)))
        })
        .collect()
    }

    /// Failed handshakes as reason and count.
    #[must_use]
    pub(crate) fn failures(&self) -> Vec<(&'static str, u64)> {
        let each = HandshakeFailure::ALL.iter().zip(&self.failed);
        each.map(|(failure, count)| (failure.label(), count.load(Ordering::Relaxed))).collect()
    }

    /// Handshakes in progress.
    #[must_use]
    pub(crate) fn in_progress(&self) -> u64 {
        self.in_progress.load(Ordering::Relaxed)
    }
}
