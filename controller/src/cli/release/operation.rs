//! What deploys and rollbacks of a release have in common: one journal, one driver with a member for each service.

use super::Release;
use crate::cli::exit::CliError;
use crate::cli::session::Session;
use crate::cli::{Exit, operation, wording};
use crate::deploy::driver::Driver;
use crate::deploy::facts::OperationFacts;
use crate::deploy::journal::ReplayedOperation;
use crate::deploy::link::WatchLink;
use crate::deploy::machine::{OperationKind, Outcome};
use crate::deploy::member::{Member, OperationEnd};
use crate::deploy::progress::Progress;
use crate::proxy::{ExpectedRouting, ProxyService};

/// How an operation of a release ended: for each member, in order.
pub(super) struct ReleaseEnd {
    pub(super) outcome: Outcome,
    pub(super) members: Vec<OperationEnd>,
}

/// Runs an operation to its end. `links`: to the watch of each member, if there is one. The locks are held, and any
/// interrupted operation was recovered before.
pub(super) async fn carry_out(
    release: &Release,
    proxies: &[ProxyService],
    kind: OperationKind,
    facts: Vec<OperationFacts>,
    expected_routing: Vec<ExpectedRouting>,
    links: &[WatchLink],
) -> Result<ReleaseEnd, CliError> {
    let (journal, replayed) = release.journal()?;
    operation::demand_finished(replayed)?;
    let targets: Vec<_> = facts.iter().map(|facts| facts.to.clone()).collect();
    let listeners = listeners(release);
    let mut driver = Driver::new(journal, members(release, proxies, &listeners, facts, links)?);
    let interrupted = tokio::select! {
        ended = driver.run(kind, expected_routing) => Ok(ended),
        interrupt = release.interrupts.take() => Err(interrupt.name),
    };
    match interrupted {
        Ok(Ok(outcome)) => {
            let mut ends = Vec::with_capacity(targets.len());
            for (((member, proxy), to), ended) in
                release.members.iter().zip(proxies).zip(&targets).zip(driver.ended(outcome))
            {
                operation::readmit(member, proxy).await;
                ends.push(operation::look_again(member, proxy, ended, to).await);
            }
            let moved = ends.iter().find(|end| end.outcome != outcome).map(|end| end.outcome);
            Ok(ReleaseEnd { outcome: moved.unwrap_or(outcome), members: ends })
        }
        Ok(Err(e)) => Err(operation::stopped(&e, first(proxies)?).await),
        Err(signal) => {
            drop(driver);
            operation::say_undoing(&release.report, signal);
            let nothing = || CliError::new(Exit::Failed, "interrupted before anything was done");
            recover(release, proxies).await?.ok_or_else(nothing)
        }
    }
}

/// Finishes or undoes an interrupted operation of the release, if there is one. The locks are held.
pub(super) async fn recover_if_needed(
    release: &Release,
    proxies: &[ProxyService],
) -> Result<Option<Outcome>, CliError> {
    Ok(recover(release, proxies).await?.map(|ended| ended.outcome))
}

async fn recover(release: &Release, proxies: &[ProxyService]) -> Result<Option<ReleaseEnd>, CliError> {
    let (journal, replayed) = release.journal()?;
    let Some(replayed) = replayed.filter(ReplayedOperation::is_unfinished) else { return Ok(None) };
    operation::say_found(&release.report, &replayed);
    let known: Vec<OperationFacts> =
        std::iter::once(&replayed.facts).chain(&replayed.others).cloned().collect();
    let facts = in_order(release, known)?;
    for (member, facts) in release.members.iter().zip(&facts) {
        operation::demand_runtime(member, facts)?;
    }
    let listeners = listeners(release);
    let mut driver = Driver::new(journal, members(release, proxies, &listeners, facts, &[])?);
    let outcome = match driver.recover(&replayed).await {
        Ok(outcome) => outcome,
        Err(e) => return Err(operation::stopped(&e, first(proxies)?).await),
    };
    for (member, proxy) in release.members.iter().zip(proxies) {
        operation::readmit(member, proxy).await;
    }
    let members = driver.ended(outcome);
    for (member, ended) in release.members.iter().zip(&members) {
        release.heading(member);
        release.report.say(&operation::recovered(ended));
    }
    Ok(Some(ReleaseEnd { outcome, members }))
}

/// The facts of an interrupted operation, in the order of the members of the configuration, which must be the same ones.
fn in_order(release: &Release, mut known: Vec<OperationFacts>) -> Result<Vec<OperationFacts>, CliError> {
    let mut ordered = Vec::with_capacity(known.len());
    for member in &release.members {
        let is_its = |facts: &OperationFacts| Some(&facts.service) == member.config.deploy.service.as_ref();
        let Some(place) = known.iter().position(is_its) else { return Err(other_members(release)) };
        ordered.push(known.remove(place));
    }
    if known.is_empty() { Ok(ordered) } else { Err(other_members(release)) }
}

fn other_members(release: &Release) -> CliError {
    let message = format!(
        "the interrupted release has other members than {} lists; nothing was changed. Put `release.members` back, then run `uh-deploy recover`",
        release.file.display()
    );
    CliError::new(Exit::Attention, message)
}

type SaysProgress<'a> = Box<dyn Fn(Progress<'_>) + 'a>;

fn listeners(release: &Release) -> Vec<SaysProgress<'_>> {
    let listener = |member| Box::new(move |progress: Progress<'_>| wording::progress(member, progress)) as _;
    release.members.iter().map(listener).collect()
}

fn members<'a>(
    release: &'a Release,
    proxies: &'a [ProxyService],
    listeners: &'a [SaysProgress<'a>],
    facts: Vec<OperationFacts>,
    links: &'a [WatchLink],
) -> Result<Vec<Member<'a>>, CliError> {
    if facts.len() != release.members.len() || proxies.len() != facts.len() {
        return Err(CliError::new(Exit::Failed, "internal error: a member of the release has no facts"));
    }
    let links = links.iter().map(Some).chain(std::iter::repeat(None));
    let parts = release.members.iter().zip(proxies).zip(listeners).zip(facts).zip(links);
    let member = |((((session, proxy), listener), facts), link): (
        (((&'a Session, _), &'a SaysProgress<'a>), _),
        _,
    )| {
        Member::new(&session.config, &*session.runtime, proxy, &**listener, facts).linked(link)
    };
    Ok(parts.map(member).collect())
}

fn first(proxies: &[ProxyService]) -> Result<&ProxyService, CliError> {
    proxies.first().ok_or_else(|| CliError::new(Exit::Failed, "internal error: the release has no member"))
}
