//! What is said of a cross-check, for the terminal and with `--json`.

use uh_protocol::BackendName;

use super::super::super::clock;
use super::super::Watcher;
use crate::names::named;
use crate::verdict::judge::Suspicion;

impl Watcher<'_> {
    pub(super) fn say_begun(&self, with: &BackendName, suspicion: &Suspicion) {
        let (report, reason) = (&self.session.report, &suspicion.reason);
        let old = self.before.as_ref().and_then(|before| before.version.as_deref());
        report.say(&format!(
            "[{}] ⚠ Suspicious: {reason}. Cross-check: half of the clients go back to {} until it is certain",
            clock(),
            named(with, old)
        ));
        report.event(
            "cross_check",
            serde_json::json!({"state": "begun", "backend": self.watched, "with": with, "reason": reason}),
        );
    }

    pub(super) fn say_settled(&self, found: &str, state: &str, why: &str) {
        let report = &self.session.report;
        report.say(&format!("[{}] {found}: {why}. {} gets all clients again", clock(), self.name));
        report.event("cross_check", serde_json::json!({"state": state, "reason": why}));
    }

    pub(super) fn say_lost(&self, why: &str) {
        let report = &self.session.report;
        report.say(&format!("[{}] The cross-check is interrupted: {why}", clock()));
        report.event("cross_check", serde_json::json!({"state": "interrupted", "reason": why}));
    }
}
