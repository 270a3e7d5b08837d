//! The rollback that the watch of a release requests: all services return in one switch, if the release is still the
//! last change of every one of them.

use super::Release;
use super::deploy::{recover_all, who_serves};
use super::operation::ReleaseEnd;
use super::rollback::{carry_out, demand_one_release, in_service};
use crate::cli::exit::{CliError, Exit};
use crate::cli::monitor::Watcher;
use crate::cli::{Done, rollback};
use crate::deploy::facts::new_operation;
use crate::deploy::machine::Outcome;
use crate::evidence::Breach;
use crate::proxy::ProxyService;

/// Rolls the whole release back because of `breach`, which the watch of `bad` has found.
///
/// # Errors
/// [`Exit::Breach`]: the rollback was refused, and another attempt would be too. [`Exit::Attention`]: it failed and
/// has to be tried again.
pub(super) async fn roll_back(
    release: &Release,
    proxies: &[ProxyService],
    watchers: &[Watcher<'_>],
    bad: &Watcher<'_>,
    breach: &Breach,
) -> Done {
    let (reason, name) = (&breach.reason, bad.name());
    release.report.say(&format!("Rolling back all services of the release automatically: {name}: {reason}"));
    let ended = try_to_roll_back(release, proxies, watchers, bad, breach).await;
    if let Ok(ReleaseEnd { outcome: Outcome::RolledBack, members }) = &ended {
        for (watcher, ended) in watchers.iter().zip(members) {
            let before = watcher.answers_before(ended.serving.as_ref());
            rollback::after(watcher.session(), watcher.proxy(), before).await;
        }
        return Ok(Exit::RolledBack);
    }
    let ended = ended.map(|ended| (ended.outcome, who_serves(release, &ended)));
    rollback::not_rolled_back(&format!("{name} is failing ({reason})"), ended)
}

async fn try_to_roll_back(
    release: &Release,
    proxies: &[ProxyService],
    watchers: &[Watcher<'_>],
    bad: &Watcher<'_>,
    breach: &Breach,
) -> Result<ReleaseEnd, CliError> {
    let _locks = release.lock_patiently("automatic rollback").await?;
    if recover_all(release, proxies).await? == Exit::Attention {
        return Err(CliError::new(Exit::Attention, "an interrupted operation needs manual intervention"));
    }
    let operation = new_operation(jiff::Timestamp::now());
    let (mut facts, mut expected_routing, mut undone) = (Vec::new(), Vec::new(), Vec::new());
    for watcher in watchers {
        release.heading(watcher.session());
        let is_bad = std::ptr::eq(watcher, bad);
        let reason =
            if is_bad { breach.reason.clone() } else { format!("{}: {}", bad.name(), breach.reason) };
        let breach = Breach { reason, ..breach.clone() };
        let found = rollback::facts_of_watched(watcher, &breach, &operation).await;
        let (known, made, serving) = found.map_err(|failed| in_service(watcher.proxy(), &failed))?;
        expected_routing.push(serving.view().expected_routing(&known.to));
        facts.push(known);
        undone.push(made);
    }
    // Another attempt would be refused too.
    demand_one_release(&undone).map_err(|failed| CliError::new(Exit::Breach, failed.message()))?;
    carry_out(release, proxies, facts, expected_routing).await
}
