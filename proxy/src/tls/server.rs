//! What all workers' handshakes share: the certificates in force, the settings of TLS, one key for session tickets, and
//! the counters.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::certificate::{Certificate, CertificateError};
use super::failure::HandshakeCounts;
use super::names::Names;
use super::reloads::Reloads;
use crate::config::{Tls, TlsVersion};
use crate::observe::metrics::TlsCounts;

/// The protocols that are offered by ALPN (RFC 7301), best first.
pub const ALPN: [&[u8]; 1] = [b"http/1.1"];

/// Serves TLS.
pub struct Server {
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
    names: Arc<Current>,
    settings: ArcSwap<ServerConfig>,
    /// Handshakes, by how they ended.
    pub counts: HandshakeCounts,
    reloads: Reloads,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Why TLS can't be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Certificates can't be used: all of them that can't, each with its key of the configuration.
    #[error("{}", .0.iter().map(|(key, error)| format!("{key}: {}", uh_system::plain(error))).collect::<Vec<_>>().join("\n  "))]
    Certificates(Vec<(String, CertificateError)>),
    /// The library refuses.
    #[error("cannot set up TLS")]
    Library(#[from] rustls::Error),
}

/// Certificates and settings that are known to work.
#[derive(Debug)]
pub struct Checked {
    certificates: Vec<Arc<Certificate>>,
    min_version: TlsVersion,
}

impl Checked {
    /// The certificates.
    #[must_use]
    pub fn certificates(&self) -> &[Arc<Certificate>] {
        &self.certificates
    }

    /// Whether a host of the configuration, which may have a wildcard, is served.
    #[must_use]
    pub fn serves(&self, host: &str) -> bool {
        self.certificates.iter().any(|certificate| {
            certificate.names.iter().any(|name| name == host)
                || !host.starts_with('*') && certificate.covers(host)
        })
    }
}

/// Reads everything that a configuration names, and changes nothing.
///
/// # Errors
/// A certificate can't be served.
pub fn check(tls: &Tls) -> Result<Checked, TlsError> {
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
    Ok(Checked { certificates, min_version: tls.min_version })
}

impl Server {
    /// Begins to serve what was checked.
    ///
    /// # Errors
    /// The library refuses; it has no reason to.
    pub fn new(checked: Checked) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        // One key for all workers, in memory only: it is replaced every 6 hours, and the one before is still accepted.
        let tickets = aws_lc_rs::Ticketer::new()?;
        let names = Arc::new(Current(ArcSwap::from_pointee(Names::new(checked.certificates))));
        let settings = settings(&provider, &tickets, &names, checked.min_version)?;
        Ok(Self {
            provider,
            tickets,
            names,
            settings: ArcSwap::from_pointee(settings),
            counts: HandshakeCounts::default(),
            reloads: Reloads::default(),
        })
    }

    /// Serves other certificates, with other settings, from the next handshake on. Connections stay as they are.
    ///
    /// # Errors
    /// The library refuses; it has no reason to. Then nothing has changed.
    pub fn replace(&self, checked: Checked) -> Result<(), TlsError> {
        let settings = settings(&self.provider, &self.tickets, &self.names, checked.min_version)?;
        self.settings.store(Arc::new(settings));
        self.install(checked.certificates);
        self.reloads.all_good();
        Ok(())
    }

    /// Serves other certificates from the next handshake on; the first also to clients that name no host.
    pub fn install(&self, certificates: Vec<Arc<Certificate>>) {
        let before = self.names.0.swap(Arc::new(Names::new(certificates)));
        log_changes(&before, &self.names());
    }

    /// The same, unless others were installed since `before` was in force.
    fn install_after(&self, before: &Arc<Names>, certificates: Vec<Arc<Certificate>>) {
        let new = Arc::new(Names::new(certificates));
        let found = self.names.0.compare_and_swap(before, Arc::clone(&new));
        if Arc::ptr_eq(&found, before) {
            log_changes(before, &new);
        }
    }

    /// Whether what was checked may take the place of what is in force: no certificate whose time is over does. One that
    /// has expired while it is in force is no news.
    ///
    /// # Errors
    /// It may not.
    pub fn may_replace(&self, checked: &Checked) -> Result<(), TlsError> {
        let (names, now) = (self.names(), Timestamp::now());
        let bad = |(index, new): (usize, &Arc<Certificate>)| {
            let error = new.check_dates(now).err()?;
            let in_force = names.all().iter().any(|old| old.is_same(new));
            (!in_force).then(|| (format!("server.tls.certificates[{index}]"), error))
        };
        let bad: Vec<_> = checked.certificates.iter().enumerate().filter_map(bad).collect();
        if bad.is_empty() { Ok(()) } else { Err(TlsError::Certificates(bad)) }
    }

    /// Reads every certificate again whose files have changed, and serves it. One that can't be served changes nothing:
    /// the one before stays, and it is tried again at the next call. Reads files, so it may take a while.
    pub fn reload_changed(&self) {
        let before = self.names();
        let mut changed = false;
        let again = |old: &Arc<Certificate>| {
            if !old.has_changed() {
                self.reloads.good(&old.files);
                return Arc::clone(old);
            }
            match self.load_again(old) {
                Ok(new) => {
                    changed = true;
                    self.reloads.good(&old.files);
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

    /// What the metrics show.
    #[must_use]
    pub fn counts(&self) -> TlsCounts {
        let mut expiries = BTreeMap::new();
        for certificate in self.names().all() {
            // Where several have one name, the one that expires first is what matters.
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

    /// Why a certificate's files, which have changed, can't be served; `None`: they can, or have not changed.
    #[must_use]
    pub fn problem(&self, certificate: &Certificate) -> Option<String> {
        self.reloads.problem(&certificate.files)
    }

    /// The certificates in force.
    #[must_use]
    pub fn names(&self) -> Arc<Names> {
        self.names.0.load_full()
    }

    /// The settings for a handshake that begins now.
    pub(super) fn settings(&self) -> Arc<ServerConfig> {
        self.settings.load_full()
    }

    /// Reads a certificate's files again. The same certificate in other files may be beyond its dates.
    fn load_again(&self, old: &Certificate) -> Result<Certificate, CertificateError> {
        let loaded = Certificate::load(&old.files, &self.provider)?;
        if !loaded.is_same(old) {
            loaded.check_dates(Timestamp::now())?;
        }
        Ok(loaded)
    }
}

fn log_changes(before: &Names, now: &Names) {
    for certificate in now.all() {
        if !before.all().iter().any(|old| old.is_same(certificate)) {
            let expires = Timestamp::from_second(certificate.not_after).unwrap_or_default();
            tracing::info!(name = certificate.name, %expires, "certificate loaded; new connections get it");
        }
    }
}

/// The certificates in force, as rustls asks for them. It asks before it looks at a session ticket: a ticket doesn't
/// bring back a host whose certificate was withdrawn.
#[derive(Debug)]
struct Current(ArcSwap<Names>);

impl ResolvesServerCert for Current {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let names = self.0.load();
        names.find(hello.server_name(), hello.signature_schemes()).map(|found| Arc::clone(&found.key))
    }
}

/// Named wherever it is used: the workspace has another one for other purposes, so there is no default.
fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

fn settings(
    provider: &Arc<CryptoProvider>,
    tickets: &Arc<dyn ProducesTickets>,
    names: &Arc<Current>,
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
    // Tickets hold the session, so nothing is remembered here: no memory for each client, no lock between workers.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // Early data can be replayed by anybody who has seen it, and an app can't tell.
    config.max_early_data_size = 0;
    Ok(config)
}
