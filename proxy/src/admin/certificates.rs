//! The certificates, as operators see them.

use std::sync::Arc;

use jiff::Timestamp;
use uh_protocol::status::{CertificateSource, CertificateStatus, Certificates};

use super::control::Control;
use crate::acme::SetStatus;
use crate::tls::Certificate;
use crate::tls::certificate::Source;

impl Control {
    /// `GET /v1/certificates`
    pub(super) fn certificate_list(&self) -> Certificates {
        Certificates { certificates: self.certificates() }
    }

    /// The certificates being served, and those that are still to be issued.
    pub(super) fn certificates(&self) -> Vec<CertificateStatus> {
        let Some(server) = &self.tls else { return Vec::new() };
        let sets = self.acme.as_ref().map(|acme| acme.sets()).unwrap_or_default();
        let names = server.names();
        let own = |set: &SetStatus, one: &Certificate| is_acme(one) && one.file() == set.file;
        let served = names.all().iter().map(|certificate| {
            let set = sets.iter().find(|set| own(set, certificate));
            let problem = match set {
                Some(set) => set.problem.clone(),
                None => server.problem(certificate),
            };
            status(certificate, set, problem)
        });
        let missing = sets.iter().filter(|set| !names.all().iter().any(|one| own(set, one)));
        served.chain(missing.map(not_issued)).collect()
    }
}

fn is_acme(certificate: &Certificate) -> bool {
    matches!(certificate.source, Source::Acme(_))
}

fn status(
    certificate: &Arc<Certificate>,
    set: Option<&SetStatus>,
    problem: Option<String>,
) -> CertificateStatus {
    CertificateStatus {
        name: certificate.name.clone(),
        names: certificate.names.clone(),
        source: if is_acme(certificate) { CertificateSource::Acme } else { CertificateSource::File },
        expires: Some(Timestamp::from_second(certificate.not_after).unwrap_or_default().to_string()),
        file: Some(certificate.file().display().to_string()),
        next_try: set.map(next_try),
        problem,
    }
}

fn not_issued(set: &SetStatus) -> CertificateStatus {
    CertificateStatus {
        name: set.name.clone(),
        names: set.hosts.clone(),
        source: CertificateSource::Acme,
        expires: None,
        file: None,
        next_try: Some(next_try(set)),
        problem: set.problem.clone(),
    }
}

/// To the second: fractions say nothing.
fn next_try(set: &SetStatus) -> String {
    Timestamp::from_second(set.next_try.as_second()).unwrap_or_default().to_string()
}
