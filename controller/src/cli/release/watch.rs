//! The watch of a release. Each service is measured and judged on its own, by its own `[monitor]`, and all at the same time.
//! The first one that is found bad ends the watch, and all services are rolled back together.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::{Release, automatic, weight};
use crate::cli::args::MonitorArgs;
use crate::cli::exit::{CliError, Exit};
use crate::cli::monitor::{self, WatchEnd, Watcher, resume as watches};
use crate::cli::session::Session;
use crate::cli::{Done, rollback};
use crate::deploy::facts::OperationFacts;
use crate::deploy::history::HistoryEntry;
use crate::deploy::link::WatchLink;
use crate::deploy::watch::{self, Watch, WatchFile, WatchPlan};
use crate::fault;
use crate::proxy::ProxyService;

/// Which of the watchers ended the watch early, and how. `None`: all services are well.
type Bad = Option<(usize, WatchEnd)>;

/// A member's part in the watch of its release. `interval`: by default the member's own.
pub(super) fn plan(
    member: &Session,
    duration: Duration,
    interval: Option<Duration>,
    auto_rollback: bool,
) -> WatchPlan {
    let interval = interval.unwrap_or(member.config.monitor.interval);
    WatchPlan::new(duration, interval, auto_rollback).of_release()
}

/// `uh-deploy monitor` of a release.
pub(super) async fn monitor(release: &Release, args: &MonitorArgs) -> Done {
    let before = resume(release).await?;
    if let Some(exit) =
        before.filter(|exit| !matches!(exit, Exit::Done | Exit::Superseded | Exit::NotEnoughData))
    {
        return Ok(exit);
    }
    let proxies = release.proxies().await?;
    let mut watchers = Vec::with_capacity(proxies.len());
    for (member, proxy) in release.members.iter().zip(&proxies) {
        let duration = args.duration.unwrap_or(member.config.monitor.duration);
        let plan = plan(member, duration, args.interval, args.auto_rollback);
        watchers.push(Watcher::of_active(member, proxy, plan).await?);
    }
    announce(release, &watchers);
    let bad = run(&mut watchers, |watcher| watcher.plan().duration(), &[]).await?;
    conclude(release, &proxies, &mut watchers, bad, args.require_verdict).await
}

/// The watch of a deploy: starts with the switch, in parallel with the drains and the hooks.
pub(super) async fn after_switch<'a>(
    release: &'a Release,
    proxies: &'a [ProxyService],
    operation: &str,
    plans: Vec<WatchPlan>,
    links: &[WatchLink],
) -> Result<(Vec<Watcher<'a>>, Bad), CliError> {
    for link in links {
        link.wait_for_switch().await;
    }
    let mut watchers = Vec::with_capacity(plans.len());
    for ((member, proxy), plan) in release.members.iter().zip(proxies).zip(plans) {
        watchers.push(monitor::begin(member, proxy, operation, plan).await?);
    }
    announce(release, &watchers);
    let bad = run(&mut watchers, |watcher| watcher.plan().duration(), links).await?;
    if let Some((index, WatchEnd::Breach(_))) = &bad
        && watchers[*index].plan().auto_rollback
    {
        links.iter().for_each(WatchLink::hurry);
    }
    Ok((watchers, bad))
}

/// Why the watch of a release isn't cross-checked, and what follows.
const NO_CROSS_CHECK: &str = "a release has no cross-check with the old version: it would give clients pages of one release and answers of the other. So an outage of both versions looks like a fault of the new one, and causes a rollback";

/// Says what is watched, and what an automatic rollback can't tell apart.
fn announce(release: &Release, watchers: &[Watcher<'_>]) {
    watchers.iter().for_each(Watcher::announce);
    if watchers.iter().any(|watcher| watcher.plan().auto_rollback) {
        release.report.say(&format!("Note: {NO_CROSS_CHECK}"));
        release
            .report
            .event("cross_check", serde_json::json!({"state": "impossible", "reason": NO_CROSS_CHECK}));
    }
}

/// All at the same time, until the first one that isn't well. `links`: to the operation it runs in parallel with.
async fn run(
    watchers: &mut [Watcher<'_>],
    duration: impl Fn(&Watcher<'_>) -> Duration,
    links: &[WatchLink],
) -> Result<Bad, CliError> {
    let watch = |(index, watcher): (usize, _)| {
        let watcher: &mut Watcher<'_> = watcher;
        let duration = duration(watcher);
        async move { (index, watcher.run(duration, links.get(index)).await) }
    };
    let mut running: FuturesUnordered<_> = watchers.iter_mut().enumerate().map(watch).collect();
    while let Some((index, ended)) = running.next().await {
        match ended? {
            WatchEnd::Well => {}
            bad => return Ok(Some((index, bad))),
        }
    }
    Ok(None)
}

/// Reports and records the result, and acts on it. The locks aren't held.
pub(super) async fn conclude(
    release: &Release,
    proxies: &[ProxyService],
    watchers: &mut [Watcher<'_>],
    bad: Bad,
    require_verdict: bool,
) -> Done {
    match bad {
        None => {
            let mut worst = Exit::Done;
            for watcher in watchers {
                let (session, proxy) = (watcher.session(), watcher.proxy());
                release.heading(session);
                let exit =
                    monitor::conclude(session, proxy, watcher, WatchEnd::Well, require_verdict).await?;
                if weight(exit) > weight(worst) {
                    worst = exit;
                }
            }
            Ok(worst)
        }
        Some((index, WatchEnd::Breach(reason))) => breached(release, proxies, watchers, index, &reason).await,
        Some((index, WatchEnd::MovedOn(view))) => {
            let why = format!("the watch of the release ended: {} was changed", watchers[index].name());
            close_others(watchers, index, &why);
            let watcher = &mut watchers[index];
            release.heading(watcher.session());
            monitor::moved_on(watcher.session(), watcher, &view);
            Ok(Exit::Superseded)
        }
        Some((_, WatchEnd::Well)) => Ok(Exit::Done),
    }
}

async fn breached(
    release: &Release,
    proxies: &[ProxyService],
    watchers: &mut [Watcher<'_>],
    bad: usize,
    reason: &str,
) -> Done {
    let session = watchers[bad].session();
    release.heading(session);
    let (breach, line) = monitor::report_breach(session, &watchers[bad], reason);
    fault::point("release.watch.breach");
    let rolls_back = watchers[bad].plan().auto_rollback;
    let done = if rolls_back {
        automatic::roll_back(release, proxies, watchers, &watchers[bad], &breach).await
    } else {
        Ok(monitor::suggest_rollback(&release.report))
    };
    // A rollback that failed is left to the next command, because users still see errors.
    if !matches!(&done, Err(failed) if failed.exit() == Exit::Attention) {
        let why = format!("the watch of the release ended: {}: {}", watchers[bad].name(), breach.reason);
        close_others(watchers, bad, &why);
        fault::point("release.watch.closing");
        watchers[bad].finish("breach");
    }
    // A completed rollback has already sent the notice.
    if !rolls_back || matches!(&done, Err(failed) if failed.exit() == Exit::Breach) {
        monitor::send_notice(session, &line).await;
    }
    done
}

/// Closes the watches of the other members. The one that ended the watch is closed after them: if this process is killed
/// in between, the next command finds the same reason again.
fn close_others(watchers: &mut [Watcher<'_>], except: usize, why: &str) {
    for (_, watcher) in watchers.iter_mut().enumerate().filter(|(index, _)| *index != except) {
        if watcher.is_recorded() {
            watcher
                .session()
                .remember(HistoryEntry { reason: Some(why.to_owned()), ..watcher.line("superseded") });
        }
        watcher.finish("superseded");
    }
}

/// A member's watch that has lost its process.
enum Lost {
    /// Saved before.
    Saved(WatchFile, Watch),
    /// The deploy was killed after its switch and before its watch was saved.
    Planned(OperationFacts, WatchPlan),
}

/// Continues the watch of a release whose process is gone, for the remaining time. `None`: there is none. The locks aren't
/// held, so that a manual rollback is possible meanwhile.
pub(super) async fn resume(release: &Release) -> Result<Option<Exit>, CliError> {
    let mut lost = Vec::with_capacity(release.members.len());
    for member in &release.members {
        lost.push(find_lost(release, member)?);
    }
    if lost.iter().all(Option::is_none) {
        return Ok(None);
    }
    let proxies = release.proxies().await.map_err(|failed| {
        let message = format!(
            "{}. The watch of a release is unfinished and can only continue once uh-proxy answers; then run `uh-deploy recover` again",
            failed.message()
        );
        CliError::new(Exit::Attention, message)
    })?;
    let mut watchers = Vec::with_capacity(proxies.len());
    let mut found = false;
    for ((member, proxy), lost) in release.members.iter().zip(&proxies).zip(lost) {
        watchers.push(match lost {
            Some(Lost::Saved(file, watch)) => {
                found = true;
                Watcher::of_record(member, proxy, file, watch)
            }
            Some(Lost::Planned(facts, plan)) if proxy.view().await?.is_active(&facts.to) => {
                found = true;
                monitor::begin(member, proxy, &facts.operation, plan).await?
            }
            // Its own watch has ended, but a rollback would move it too.
            Some(Lost::Planned(..)) | None => {
                let plan = plan(member, Duration::ZERO, None, false);
                Watcher::of_active(member, proxy, plan).await?
            }
        });
    }
    if !found {
        return Ok(None);
    }
    release.report.say("The process that watched the release is gone: continuing its watch");
    let bad = go_on(&mut watchers).await?;
    let moved_on = matches!(bad, Some((_, WatchEnd::MovedOn(_))));
    let exit = conclude(release, &proxies, &mut watchers, bad, false).await?;
    Ok(Some(if moved_on { Exit::Done } else { exit }))
}

/// Judges what happened meanwhile first.
async fn go_on(watchers: &mut [Watcher<'_>]) -> Result<Bad, CliError> {
    for (index, watcher) in watchers.iter_mut().enumerate() {
        if let Some(ended) = watcher.look().await? {
            return Ok(Some((index, ended)));
        }
    }
    run(watchers, |watcher| watcher.left(jiff::Timestamp::now()), &[]).await
}

fn find_lost(release: &Release, member: &Session) -> Result<Option<Lost>, CliError> {
    if let Some((file, watch)) = watches::orphan(member)?.filter(|(_, watch)| watch.plan.of_release) {
        return Ok(Some(Lost::Saved(file, watch)));
    }
    let newest = watch::look(&member.config.deploy.state_dir).map_err(|e| watches::unusable(&e))?;
    let Some(replayed) = watches::last_deploy(&release.config.state_dir)? else { return Ok(None) };
    let mut facts = std::iter::once(replayed.facts).chain(replayed.others);
    let facts = facts.find(|facts| Some(&facts.service) == member.config.deploy.service.as_ref());
    let Some(facts) = facts else { return Ok(None) };
    let Some(plan) = watches::never_began(&facts, newest.as_ref()) else { return Ok(None) };
    // The member may have been deployed alone since.
    let is_last = rollback::last_kept(member)?.is_some_and(|operation| operation == facts.operation);
    Ok(is_last.then_some(Lost::Planned(facts, plan)))
}
