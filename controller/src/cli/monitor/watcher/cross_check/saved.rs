//! The check that is under way, in the file of its watch, and how another process goes on with it.

use std::time::Instant;

use uh_protocol::BackendName;

use super::found::{is_of, lost, worse};
use super::{WatchEnd, Watcher, stale};
use crate::deploy::trial::EarlierTrial;
use crate::deploy::watch::CrossCheck;
use crate::proxy::{ProxyError, ServiceView};
use crate::time::iso_millis;
use crate::verdict::judge::Suspicion;

impl Watcher<'_> {
    /// Continues the check that a process which is gone has begun. `None`: there was none, or the watch goes on.
    pub(in crate::cli) async fn resume_check(&mut self) -> Result<Option<WatchEnd>, ProxyError> {
        let Some(check) = self.record.as_ref().and_then(|record| record.watch.cross_check.clone()) else {
            return Ok(None);
        };
        let view = self.proxy.view().await?;
        if self.has_moved_on(&view) {
            return Ok(Some(WatchEnd::MovedOn(Box::new(view))));
        }
        let trial = view.service.trial.as_ref().filter(|trial| is_of(trial, &self.watched, None));
        let trial = trial.filter(|trial| check.earlier.as_ref() != Some(&EarlierTrial::new(trial)));
        let found = trial.and_then(|trial| worse(trial, &check.suspicion, &check.with));
        let report = &self.session.report;
        let split = match lost(&view, &check.with) {
            None => format!("half of the clients are still on {}", check.with),
            Some(_) => format!("its split has ended meanwhile, so all clients are on {}", self.watched),
        };
        report.say(&format!(
            "It was in a cross-check with {} (since {}): {}; {split}",
            check.with, check.began_at, check.suspicion.reason
        ));
        if let Some(reason) = found {
            report.say("uh-proxy has decided it since");
            return Ok(Some(WatchEnd::Breach(reason)));
        }
        let end = Instant::now() + self.left(jiff::Timestamp::now());
        Box::pin(self.cross_check(stale(check.suspicion), end)).await
    }

    pub(super) fn keep_check(&mut self, view: &ServiceView, with: &BackendName, suspicion: &Suspicion) {
        let Some(record) = &mut self.record else { return };
        let earlier = view.service.trial.as_ref().map(EarlierTrial::new);
        let earlier = match &record.watch.cross_check {
            Some(unfinished) => unfinished.earlier.clone(),
            None => earlier,
        };
        record.watch.cross_check = Some(Box::new(CrossCheck {
            with: with.clone(),
            began_at: iso_millis(jiff::Timestamp::now()),
            suspicion: suspicion.clone(),
            earlier,
        }));
        self.save();
    }

    pub(super) fn forget_check(&mut self) {
        if let Some(record) = &mut self.record
            && record.watch.cross_check.take().is_some()
        {
            self.save();
        }
    }
}
