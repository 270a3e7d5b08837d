//! Selects a certificate by the host in the ClientHello (SNI, RFC 6066 §3).
//!
//! An exact name takes precedence over a wildcard. A client that sends no SNI gets the first certificate; one that asks
//! for a host without a certificate gets none. If several certificates cover a name, such as an RSA and an ECDSA one,
//! the client gets the first whose signature algorithm it supports.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureScheme;

use super::Certificate;

/// The certificates, by the names they cover.
#[derive(Debug, Default)]
pub(crate) struct Names {
    exact: HashMap<String, Vec<Arc<Certificate>>>,
    /// By the part after `*.`.
    wildcard: HashMap<String, Vec<Arc<Certificate>>>,
    all: Vec<Arc<Certificate>>,
}

impl Names {
    /// Indexes certificates by name. Clients that send no SNI get the first one.
    #[must_use]
    pub(crate) fn new(all: Vec<Arc<Certificate>>) -> Self {
        let mut names = Self::default();
        for certificate in &all {
            for name in &certificate.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut names.wildcard, parent),
                    None => (&mut names.exact, name.as_str()),
                };
                map.entry(name.to_owned()).or_default().push(Arc::clone(certificate));
            }
        }
        names.all = all;
        names
    }

    /// All certificates, in configuration order.
    #[must_use]
    pub(crate) fn all(&self) -> &[Arc<Certificate>] {
        &self.all
    }

    /// Whether a certificate covers a host.
    #[must_use]
    pub(crate) fn covers(&self, host: &str) -> bool {
        !self.of_host(host).is_empty()
    }

    /// The certificate for a client that asks for this host (`None`: no SNI) and supports these signature schemes.
    #[must_use]
    pub(crate) fn find(&self, host: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<Certificate>> {
        let candidates = match host {
            Some(host) => self.of_host(host),
            None => self.all.get(..1).unwrap_or_default(),
        };
        let fits = |certificate: &&Arc<Certificate>| certificate.key.key.choose_scheme(schemes).is_some();
        candidates.iter().find(fits).or(candidates.first())
    }

    fn of_host(&self, host: &str) -> &[Arc<Certificate>] {
        let lower;
        let mut host = host.trim_end_matches('.');
        if host.bytes().any(|b| b.is_ascii_uppercase()) {
            lower = host.to_ascii_lowercase();
            host = &lower;
        }
        let wildcard = || self.wildcard.get(host.split_once('.')?.1);
        self.exact.get(host).or_else(wildcard).map_or(&[], Vec::as_slice)
    }
}
