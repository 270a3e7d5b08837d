//! A set of hosts with its certificate: what is known about it, and when it is due.

use std::path::Path;
use std::sync::Arc;

use instant_acme::CertificateIdentifier;
use jiff::Timestamp;
use rustls::pki_types::Der;
use uh_system::plain;

use super::SetStatus;
use super::hosts::HostSet;
use super::schedule;
use super::store::{Record, Store};
use crate::config;
use crate::tls::{self, Certificate};

/// A set of hosts with its certificate.
pub(super) struct Managed {
    pub(super) set: HostSet,
    pub(super) record: Record,
    pub(super) certificate: Option<Arc<Certificate>>,
    /// When the certificate is to be renewed.
    pub(super) renew_at: Timestamp,
    /// When to ask the CA for renewal information.
    pub(super) check_at: Timestamp,
    /// The window that the CA has suggested for the current certificate, in seconds since 1970.
    pub(super) window: Option<(i64, i64)>,
}

impl Managed {
    pub(super) fn load(store: &Store, set: &HostSet, settings: &config::Acme) -> Self {
        let mut record = store.record(set);
        if record.tried_with != fingerprint(settings) {
            // An operator who corrects the settings needn't wait.
            record = Record { failures: 0, next_try: None, problem: None, ..record };
        }
        let path = store.certificate_path(set);
        let certificate = if path.exists() { load(&path, set.name()) } else { None };
        let certificate =
            certificate.filter(|certificate| set.hosts().iter().all(|host| certificate.covers(host)));
        let mut managed = Self {
            set: set.clone(),
            record,
            certificate: None,
            renew_at: Timestamp::MIN,
            check_at: Timestamp::MIN,
            window: None,
        };
        managed.takes(certificate, settings);
        managed
    }

    /// Takes a certificate into use, and plans its renewal.
    pub(super) fn takes(&mut self, certificate: Option<Arc<Certificate>>, settings: &config::Acme) {
        let by_date = |one: &Arc<Certificate>| schedule::renewal(one.not_before, one.not_after);
        let from_another = self.record.issuer.as_ref().is_some_and(|issuer| *issuer != settings.directory);
        let renew_at = certificate.as_ref().filter(|_| !from_another).map(by_date);
        self.renew_at = renew_at.unwrap_or(Timestamp::MIN);
        self.check_at = Timestamp::MIN;
        self.window = None;
        self.certificate = certificate;
    }

    /// When to try next.
    pub(super) fn due(&self) -> Timestamp {
        let record = &self.record;
        if record.trying && (record.order.is_some() || record.failures <= schedule::MOST_INTERRUPTED) {
            return Timestamp::MIN;
        }
        let after_failure = record.next_try.and_then(|second| Timestamp::from_second(second).ok());
        after_failure.map_or(self.renew_at, |next| next.max(self.renew_at))
    }

    pub(super) fn status(&self, store: &Store) -> SetStatus {
        SetStatus {
            name: self.set.name().to_owned(),
            hosts: self.set.hosts().to_vec(),
            file: store.certificate_path(&self.set),
            // What is due is tried now.
            next_try: self.due().max(Timestamp::now()),
            problem: self.record.problem.clone(),
            failures: self.record.failures.saturating_sub(u32::from(self.record.trying)),
        }
    }
}

/// Identifies the settings that decide whether an attempt succeeds.
pub(super) fn fingerprint(settings: &config::Acme) -> String {
    let config::Acme { directory, ca_file, challenge, profile, contact, .. } = settings;
    let ca_file = ca_file.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let profile = profile.as_deref().unwrap_or_default();
    format!("{directory} {} {profile} {ca_file} {}", challenge.as_str(), contact.join(" "))
}

/// A certificate on disk; `None`, with a line in the log, if it can't be used.
pub(super) fn load(path: &Path, name: &str) -> Option<Arc<Certificate>> {
    match Certificate::load_acme(path, name, &tls::server::provider()) {
        Ok(certificate) => Some(Arc::new(certificate)),
        Err(error) => {
            tracing::error!(error = %plain(&error), "cannot use a certificate of the ACME state; getting a new one");
            None
        }
    }
}

/// How a CA identifies a certificate that it has issued (RFC 9773 §4.1).
pub(super) fn identifier(certificate: &Certificate) -> Option<CertificateIdentifier<'static>> {
    let (authority, serial) = certificate.identity()?;
    Some(CertificateIdentifier::new(Der::from_slice(authority), Der::from_slice(serial)).into_owned())
}
