//! Why a handshake failed, in words that an operator can use, and how handshakes are counted.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::{AlertDescription, CertificateError, Error, HandshakeKind, PeerIncompatible, ProtocolVersion};

use crate::observe::log_rate_limit::LogRateLimit;

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The client closed the connection before it was complete.
    Closed,
    /// It took too long.
    TimedOut,
    /// The client named a host that no certificate is for.
    UnknownHost,
    /// The client spoke plain HTTP.
    PlainHttp,
    /// It spoke something else.
    NotTls,
    /// There is no version of TLS that both sides speak.
    Version,
    /// There is no cipher, signature or key exchange that both sides know.
    Algorithms,
    /// There is no application protocol that both sides speak.
    Protocol,
    /// The client doesn't accept the certificate.
    Distrusted,
    /// The client broke off with another alert.
    Alert,
    /// The client broke the rules of TLS.
    Broken,
    /// It made room for newer ones.
    Crowded,
    /// The process stops.
    Stopping,
}

impl HandshakeFailure {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 13] = [
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
        Self::Crowded,
        Self::Stopping,
    ];

    /// Its label in the metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
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
            Self::Crowded => "crowded",
            Self::Stopping => "stopping",
        }
    }

    /// What happened, and what can be done.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Closed => "the client closed the connection before the handshake was complete",
            Self::TimedOut => "the handshake wasn't complete within server.limits.tls_handshake_timeout",
            Self::UnknownHost => {
                "no certificate is for the host that the client asked for; add one to server.tls.certificates"
            }
            Self::PlainHttp => "the client spoke plain HTTP; use https:// on this port",
            Self::NotTls => "the client spoke neither TLS nor HTTP",
            Self::Version => "the client's newest TLS version is older than server.tls.min_version",
            Self::Algorithms => "the client knows none of our ciphers, signatures or key exchanges",
            Self::Protocol => "the client wants another protocol than HTTP/1.1",
            Self::Distrusted => {
                "the client doesn't accept the certificate; check its names, its dates and its intermediates"
            }
            Self::Alert => "the client broke off the handshake",
            Self::Broken => "the client sent something that TLS doesn't allow",
            Self::Crowded => {
                "more than server.limits.tls_handshakes were in progress, and this was the oldest on its thread"
            }
            Self::Stopping => "uh-proxy is stopping",
        }
    }

    /// Whether it says something of us or of somebody's mistake. Others come from every port scan and health check.
    fn is_news(self) -> bool {
        !matches!(self, Self::Closed | Self::Stopping)
    }

    /// What an error of the handshake means.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
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
                // A client without this extension knows no TLS 1.2.
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

/// Versions that a handshake may agree on, by their index.
pub const VERSIONS: [&str; 2] = ["1.2", "1.3"];

/// Whether the handshake took a session up again, by its index.
pub const KINDS: [&str; 2] = ["full", "resumed"];

/// Handshakes since the start. A handshake costs far more than what its counter costs.
#[derive(Debug, Default)]
pub struct HandshakeCounts {
    done: [[AtomicU64; VERSIONS.len()]; KINDS.len()],
    failed: [AtomicU64; HandshakeFailure::ALL.len()],
    logged: [LogRateLimit; HandshakeFailure::ALL.len()],
    in_progress: AtomicU64,
}

/// Counts a handshake that is in progress, for as long as this lives.
#[derive(Debug)]
pub struct InProgress<'a>(&'a AtomicU64);

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HandshakeCounts {
    /// A handshake begins.
    pub fn begins(&self) -> InProgress<'_> {
        self.in_progress.fetch_add(1, Ordering::Relaxed);
        InProgress(&self.in_progress)
    }

    /// A handshake is complete.
    pub fn done(&self, version: Option<ProtocolVersion>, kind: Option<HandshakeKind>) {
        let version = usize::from(version == Some(ProtocolVersion::TLSv1_3));
        let kind = usize::from(kind == Some(HandshakeKind::Resumed));
        self.done[kind][version].fetch_add(1, Ordering::Relaxed);
    }

    /// A handshake has failed. It is logged, unless one was for the same reason a moment ago.
    pub fn failed(&self, failure: HandshakeFailure, client: &str, sni: Option<&str>) {
        let index = failure as usize;
        self.failed[index].fetch_add(1, Ordering::Relaxed);
        if !failure.is_news() {
            tracing::debug!(client, reason = failure.label(), "TLS handshake failed: {}", failure.words());
        } else if let Some(more_since_last_line) = self.logged[index].allows() {
            tracing::warn!(
                client,
                sni = sni.unwrap_or("-"),
                reason = failure.label(),
                more_since_last_line,
                "TLS handshake failed: {}",
                failure.words()
            );
        }
    }

    /// Complete handshakes: kind, version, how many.
    #[must_use]
    pub fn complete(&self) -> Vec<(&'static str, &'static str, u64)> {
        let each = KINDS.iter().zip(&self.done);
        each.flat_map(|(kind, counts)| {
            VERSIONS
                .iter()
                .zip(counts)
                .map(|(version, count)| (*kind, *version, count.load(Ordering::Relaxed)))
        })
        .collect()
    }

    /// Handshakes that have failed: why, and how many.
    #[must_use]
    pub fn failures(&self) -> Vec<(&'static str, u64)> {
        let each = HandshakeFailure::ALL.iter().zip(&self.failed);
        each.map(|(failure, count)| (failure.label(), count.load(Ordering::Relaxed))).collect()
    }

    /// Handshakes that are in progress.
    #[must_use]
    pub fn in_progress(&self) -> u64 {
        self.in_progress.load(Ordering::Relaxed)
    }
}
