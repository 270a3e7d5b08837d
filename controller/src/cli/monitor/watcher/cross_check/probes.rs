//! Failed probes during a cross-check: they are judged as between checks, at every interval of the watch. No comparison is
//! needed, and a check may last until the end of the watch.

use std::time::Instant;

use super::super::Watcher;
use crate::proxy::ServiceView;
use crate::verdict::judge::Condition;

/// What the probes of the suspect have shown at the intervals of the watch since the check began.
pub(super) struct Probes {
    next: Instant,
    bad_in_a_row: u32,
}

impl Probes {
    /// None yet. `next`: when to look.
    pub(super) fn new(next: Instant) -> Self {
        Self { next, bad_in_a_row: 0 }
    }
}

impl Watcher<'_> {
    /// The reason of a breach, if probes have failed for as many intervals in a row as that takes.
    pub(super) fn judge_probes(&self, probes: &mut Probes, view: &ServiceView) -> Option<String> {
        let now = Instant::now();
        if now < probes.next {
            return None;
        }
        probes.next = now + self.plan.interval();
        let Condition::Unhealthy(why) = self.condition(view, None) else {
            probes.bad_in_a_row = 0;
            return None;
        };
        probes.bad_in_a_row += 1;
        let enough = probes.bad_in_a_row >= self.session.config.monitor.breach_after;
        enough.then(|| Condition::unhealthy(&why))
    }
}
