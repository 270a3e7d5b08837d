//! Which certificate a client gets, by the host that it names in its hello (SNI, RFC 6066 §3).
//!
//! The exact name first, then the wildcard of its parent. A client that names none gets the first certificate; one that
//! names a host which no certificate is for gets none. Where several are for one name, such as one with RSA and one
//! with ECDSA, the first whose signatures the client understands.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureScheme;

use super::Certificate;

/// Certificates by name.
#[derive(Debug, Default)]
pub struct Names {
    exact: HashMap<String, Vec<Arc<Certificate>>>,
    /// By what follows the `*.`.
    wildcard: HashMap<String, Vec<Arc<Certificate>>>,
    all: Vec<Arc<Certificate>>,
}

impl Names {
    /// Of these certificates, the first of which is served to clients that name no host.
    #[must_use]
    pub fn new(all: Vec<Arc<Certificate>>) -> Self {
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

    /// All certificates, in the order of the configuration.
    #[must_use]
    pub fn all(&self) -> &[Arc<Certificate>] {
        &self.all
    }

    /// Whether there is a certificate for a host.
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        !self.of_host(host).is_empty()
    }

    /// The certificate for a client that names this host, or none, and understands these signatures.
    #[must_use]
    pub fn find(&self, host: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<Certificate>> {
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
