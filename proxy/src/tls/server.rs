//! State shared by the handshakes of all workers: the current certificates, the TLS settings, the key for session
//! tickets, and the counters.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::certificate::{Certificate, CertificateError, Source};
use super::challenges::Challenges;
use super::failure::HandshakeCounts;
use super::names::Names;
use super::reloads::Reloads;
use crate::config::{Tls, TlsVersion};
use crate::observe::metrics::TlsCounts;

/// The protocols offered by ALPN (RFC 7301), best first.
pub(crate) const ALPN: [&[u8]; 2] = [HTTP2.as_bytes(), b"http/1.1"];

/// HTTP/2 over TLS (RFC 9113 §3.2).
pub(crate) const HTTP2: &str = "h2";

/// Holds everything that TLS connections need.
pub(crate) struct Server {
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
    names: Arc<CertificateResolver>,
    /// Held while the certificates change. Handshakes don't need it.
    changing: Mutex<()>,
    settings: ArcSwap<ServerConfig>,
    /// Counts handshakes by result.
    pub counts: HandshakeCounts,
    reloads: Reloads,
    /// What proves to a certificate authority that the hosts are ours.
    pub challenges: Arc<Challenges>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Why TLS can't be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Every certificate that can't be used, each with its configuration key.
    #[error("{}", .0.iter().map(|(key, error)| format!("{key}: {}", uh_system::plain(error))).collect::<Vec<_>>().join("\n  "))]
    Certificates(Vec<(String, CertificateError)>),
    /// rustls reported an error.
    #[error("cannot set up TLS")]
    Library(#[from] rustls::Error),
}

/// Certificates and settings that have been checked.
#[derive(Debug)]
pub(crate) struct CheckedTls {
    certificates: Vec<Arc<Certificate>>,
    min_version: TlsVersion,
}

impl CheckedTls {
    /// The certificates.
    #[must_use]
    pub(crate) fn certificates(&self) -> &[Arc<Certificate>] {
        &self.certificates
    }

    /// Whether a certificate covers a configured host, which may be a wildcard.
    #[must_use]
    pub(crate) fn serves(&self, host: &str) -> bool {
        self.certificates.iter().any(|certificate| {
            certificate.names.iter().any(|name| name == host)
                || !host.starts_with('*') && certificate.covers(host)
        })
    }
}

/// Loads and checks all configured certificates, without applying them.
///
/// # Errors
/// If a certificate can't be served.
pub(crate) fn check(tls: &Tls) -> Result<CheckedTls, TlsError> {
    let provider = provider();
    let mut errors = Vec::new();
    let mut certificates = Vec::new();
    for (index, files) in tls.certificates.iter().enumerate() {
        match Certificate::load(files, &provider) {
            Ok(certificate) => certificates.push(Arc::new(certificate)),
            Err(error) => errors.push((format!("server.tls.certificates[{index}]"), error)),
        }
    }
    if !errors.is_empty() {
        return Err(TlsError::Certificates(errors));
    }
    Ok(CheckedTls { certificates, min_version: tls.min_version })
}

impl Server {
    /// Creates a server from checked certificates and settings. Those from ACME come later.
    ///
    /// # Errors
    /// If rustls rejects them, which isn't expected.
    pub(crate) fn new(checked: CheckedTls) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        // One key for all workers, in memory only. It changes every 6 hours, and the previous one is still accepted.
        let tickets = aws_lc_rs::Ticketer::new()?;
        let names = Arc::new(CertificateResolver(ArcSwap::from_pointee(Names::new(checked.certificates))));
        let settings = settings(&provider, &tickets, &names, checked.min_version)?;
        Ok(Self {
            provider,
            tickets,
            names,
            changing: Mutex::new(()),
            settings: ArcSwap::from_pointee(settings),
            counts: HandshakeCounts::default(),
            reloads: Reloads::default(),
            challenges: Arc::default(),
        })
    }

    /// Replaces certificates and settings, from the next handshake on. Open connections keep theirs. Returns whether
    /// there are new certificates.
    ///
    /// # Errors
    /// If rustls rejects the settings, which isn't expected; nothing has changed then.
    pub(crate) fn replace(&self, checked: CheckedTls) -> Result<bool, TlsError> {
        self.age_tickets();
        let settings = settings(&self.provider, &self.tickets, &self.names, checked.min_version)?;
        self.settings.store(Arc::new(settings));
        let new = self.install(checked.certificates, |certificate| certificate.files().is_none());
        self.reloads.all_good();
        Ok(new)
    }

    /// Changes the key of session tickets if it is old enough. rustls does so only when it uses the key: without handshakes,
    /// an old one would stay in memory and be accepted.
    pub(crate) fn age_tickets(&self) {
        let _unused = self.tickets.encrypt(&[]);
    }

    /// Replaces the certificates from ACME, from the next handshake on. Those from files stay.
    pub(crate) fn install_acme(&self, certificates: Vec<Arc<Certificate>>) {
        self.install(certificates, |certificate| certificate.files().is_some());
    }

    /// Adds certificates to those that are kept, from the next handshake on. Those from files take precedence, and clients
    /// that send no SNI get the first. Returns whether any of them is new.
    fn install(&self, certificates: Vec<Arc<Certificate>>, is_kept: impl Fn(&Certificate) -> bool) -> bool {
        let _one_at_a_time = self.changing.lock();
        let before = self.names();
        let kept = before.all().iter().filter(|certificate| is_kept(certificate)).cloned();
        let mut all: Vec<Arc<Certificate>> = kept.chain(certificates).collect();
        all.sort_by_key(|certificate| certificate.files().is_none());
        let new = Arc::new(Names::new(all));
        self.names.0.store(Arc::clone(&new));
        log_new(&before, &new)
    }

    /// Replaces all certificates, unless others have replaced `before` in the meantime.
    fn install_after(&self, before: &Arc<Names>, certificates: Vec<Arc<Certificate>>) {
        let _one_at_a_time = self.changing.lock();
        if Arc::ptr_eq(&self.names(), before) {
            let new = Arc::new(Names::new(certificates));
            self.names.0.store(Arc::clone(&new));
            log_new(before, &new);
        }
    }

    /// Checks the dates of new certificates before they replace the current ones. A certificate that expired while it is
    /// being served doesn't prevent a reload.
    ///
    /// # Errors
    /// If a new certificate has expired or isn't valid yet.
    pub(crate) fn may_replace(&self, checked: &CheckedTls) -> Result<(), TlsError> {
        let (names, now) = (self.names(), Timestamp::now());
        let bad = |(index, new): (usize, &Arc<Certificate>)| {
            let error = new.check_dates(now).err()?;
            let in_force = names.all().iter().any(|old| old.is_same(new));
            (!in_force).then(|| (format!("server.tls.certificates[{index}]"), error))
        };
        let bad: Vec<_> = checked.certificates.iter().enumerate().filter_map(bad).collect();
        if bad.is_empty() { Ok(()) } else { Err(TlsError::Certificates(bad)) }
    }

    /// Reloads every certificate whose files have changed. If one can't be served, the previous one stays, and the next
    /// call tries again. Reads files, so it may block.
    pub(crate) fn reload_changed(&self) {
        let before = self.names();
        let mut changed = false;
        let again = |old: &Arc<Certificate>| {
            if !old.has_changed() {
                self.reloads.good(old);
                return Arc::clone(old);
            }
            match self.load_again(old) {
                Ok(new) => {
                    changed = true;
                    self.reloads.good(old);
                    Arc::new(new)
                }
                Err(error) => {
                    self.reloads.failed(old, &error);
                    Arc::clone(old)
                }
            }
        };
        let certificates = before.all().iter().map(again).collect();
        if changed {
            self.install_after(&before, certificates);
        }
    }

    /// The values for the metrics.
    #[must_use]
    pub(crate) fn counts(&self) -> TlsCounts {
        let mut expiries = BTreeMap::new();
        for certificate in self.names().all() {
            // If several share a name, report the one that expires first.
            let at = expiries.entry(certificate.name.clone()).or_insert(i64::MAX);
            *at = certificate.not_after.min(*at);
        }
        TlsCounts {
            complete: self.counts.complete(),
            failed: self.counts.failures(),
            in_progress: self.counts.in_progress(),
            expiries,
            reload_failures: self.reloads.failures(),
        }
    }

    /// Logs the certificates that have expired since the last call, while they are served.
    pub(crate) fn log_expired(&self, since: Timestamp, now: Timestamp) {
        for certificate in self.names().all() {
            if (since.as_second()..now.as_second()).contains(&certificate.not_after) {
                let what_next = match certificate.source {
                    Source::Files(..) => "replace its files with renewed ones",
                    Source::Acme(_) => "run uh-proxy certificates to see why it wasn't renewed",
                };
                let expired = Timestamp::from_second(certificate.not_after).unwrap_or_default();
                tracing::error!(name = certificate.name, %expired, "a certificate has expired; clients reject it; {what_next}");
            }
        }
    }

    /// Why a certificate's changed files can't be served; `None` if they can or haven't changed.
    #[must_use]
    pub(crate) fn problem(&self, certificate: &Certificate) -> Option<String> {
        self.reloads.problem(certificate)
    }

    /// The current certificates.
    #[must_use]
    pub(crate) fn names(&self) -> Arc<Names> {
        self.names.0.load_full()
    }

    /// The current settings, for a new handshake.
    pub(super) fn settings(&self) -> Arc<ServerConfig> {
        self.settings.load_full()
    }

    /// Reads a certificate's files again. If it is still the same certificate, its dates don't matter.
    fn load_again(&self, old: &Certificate) -> Result<Certificate, CertificateError> {
        let loaded = match &old.source {
            Source::Files(files, _) => Certificate::load(files, &self.provider)?,
            Source::Acme(path) => Certificate::load_acme(path, &old.name, &self.provider)?,
        };
        if !loaded.is_same(old) {
            loaded.check_dates(Timestamp::now())?;
        }
        Ok(loaded)
    }
}

/// Logs the certificates that weren't served before, and returns whether there are any.
fn log_new(before: &Names, now: &Names) -> bool {
    let mut any = false;
    for certificate in now.all() {
        if !before.all().iter().any(|old| old.is_same(certificate)) {
            any = true;
            let expires = Timestamp::from_second(certificate.not_after).unwrap_or_default();
            tracing::info!(name = certificate.name, %expires, "certificate loaded; new connections get it");
            warn_of_exposed_key(certificate);
        }
    }
    any
}

/// Logs if every local user can read a certificate's key.
pub(crate) fn warn_of_exposed_key(certificate: &Certificate) {
    if certificate.is_key_exposed()
        && let Some(files) = certificate.files()
    {
        tracing::warn!(key = %files.key.display(), "every local user can read this private key; run chmod o-r on it");
    }
}

/// Resolves certificates for rustls. rustls asks before it accepts a session ticket, so a ticket can't resume a session
/// for a host whose certificate was removed.
#[derive(Debug)]
struct CertificateResolver(ArcSwap<Names>);

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let names = self.0.load();
        names.find(hello.server_name(), hello.signature_schemes()).map(|found| Arc::clone(&found.key))
    }
}

/// Passed explicitly everywhere: no process-wide default is installed.
pub(crate) fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

fn settings(
    provider: &Arc<CryptoProvider>,
    tickets: &Arc<dyn ProducesTickets>,
    names: &Arc<CertificateResolver>,
    min_version: TlsVersion,
) -> Result<ServerConfig, TlsError> {
    const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
    let versions = match min_version {
        TlsVersion::Tls12 => BOTH,
        TlsVersion::Tls13 => &BOTH[..1],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(names) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    config.ticketer = Arc::clone(tickets);
    // Tickets hold the session, so the server stores none: no memory per client, no lock shared by workers.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // Anyone who has captured early data can replay it, and the app can't tell.
    config.max_early_data_size = 0;
    Ok(config)
}
