//! What is wrong with certificate files that have changed, until they are put right.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::certificate::{Certificate, CertificateError};
use crate::config::CertificateFiles;
use uh_system::plain;

/// Failed attempts, and what came of the last one for each certificate.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    failures: AtomicU64,
    problems: Mutex<BTreeMap<PathBuf, String>>,
}

impl Reloads {
    /// A changed certificate can't be served. Logged when it becomes so, and when the reason changes.
    pub(super) fn failed(&self, in_force: &Certificate, error: &CertificateError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let problem = plain(error).to_string();
        let before = self.problems.lock().insert(in_force.files.cert.clone(), problem.clone());
        if before.as_ref() != Some(&problem) {
            tracing::error!(
                name = in_force.name,
                error = problem,
                "a changed certificate can't be loaded; the one before stays in force"
            );
        }
    }

    /// A certificate's files are served, or have not changed.
    pub(super) fn good(&self, files: &CertificateFiles) {
        self.problems.lock().remove(&files.cert);
    }

    /// All of them are served.
    pub(super) fn all_good(&self) {
        self.problems.lock().clear();
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(super) fn problem(&self, files: &CertificateFiles) -> Option<String> {
        self.problems.lock().get(&files.cert).cloned()
    }
}
