//! Tracks changed certificate files that can't be loaded, until they are fixed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::certificate::{Certificate, CertificateError};
use uh_system::plain;

/// Counts failed attempts, and holds the current problem of each certificate.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    failures: AtomicU64,
    problems: Mutex<BTreeMap<PathBuf, String>>,
}

impl Reloads {
    /// Records that a changed certificate can't be served. Logs the first failure, and again when the reason changes.
    pub(super) fn failed(&self, in_force: &Certificate, error: &CertificateError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let problem = plain(error).to_string();
        let before = self.problems.lock().insert(in_force.file().to_owned(), problem.clone());
        if before.as_ref() != Some(&problem) {
            tracing::error!(
                name = in_force.name,
                error = problem,
                "cannot load a changed certificate; still serving the previous one"
            );
        }
    }

    /// Clears a certificate's problem: its files are served or unchanged.
    pub(super) fn good(&self, certificate: &Certificate) {
        self.problems.lock().remove(certificate.file());
    }

    /// Clears all problems.
    pub(super) fn all_good(&self) {
        self.problems.lock().clear();
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(super) fn problem(&self, certificate: &Certificate) -> Option<String> {
        self.problems.lock().get(certificate.file()).cloned()
    }
}
