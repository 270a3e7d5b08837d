//! `uh-deploy blue-green` of a release: all candidates are built, started and proven, then traffic moves in one switch.

use super::{Release, first, operation as whole, watch};
use crate::cli::args::BlueGreenArgs;
use crate::cli::exit::{CliError, Exit};
use crate::cli::monitor::{self, resume};
use crate::cli::{Done, blue_green, operation, wording};
use crate::deploy::facts::{OperationFacts, new_operation};
use crate::deploy::link::WatchLink;
use crate::deploy::machine::{FailureCause, OperationKind, Outcome};
use crate::deploy::progress::DeployStage;
use crate::names::named;
use crate::proxy::{ProxyService, Serving};

pub(super) async fn deploy(release: &Release, args: &BlueGreenArgs) -> Done {
    let version = blue_green::version(args)?;
    if !args.no_canary
        && let Some(member) = release.members.iter().find(|member| member.config.canary.is_some())
    {
        let service = member.config.deploy.service.as_ref().map_or("", |service| service.as_str());
        return Err(CliError::usage(format!(
            "a release can't be tried on some clients yet, and the configuration of {service} has [canary]; nothing was changed. Deploy {service} on its own, or pass --no-canary"
        )));
    }
    if args.dry_run {
        return dry_run(release, args, &version).await;
    }
    let what = format!("release of {version}");
    if args.first && first::serves_already(release, &first::proxies(release).await?).await? {
        return Ok(Exit::Done);
    }
    let locks = release.lock(&what)?;
    let proxies = release.proxies().await?;
    if settle_before(release, &proxies, &what).await? == Exit::Attention {
        return Ok(Exit::Attention);
    }
    // The recovery may just have finished a release.
    if args.first && first::serves_already(release, &proxies).await? {
        return Ok(Exit::Done);
    }
    let Some(first) = release.members.first() else { return Ok(Exit::Usage) };
    wording::deploy_stage(first, DeployStage::Choose);
    let operation = new_operation(jiff::Timestamp::now());
    let (mut facts, mut expected_routing) = (Vec::new(), Vec::new());
    for (member, proxy) in release.members.iter().zip(&proxies) {
        let view = proxy.view().await?;
        if args.first {
            blue_green::demand_nothing_served(&view)?;
        }
        let mut known = blue_green::facts(member, proxy, &view, &version, args, operation.clone())?;
        known.watch = args.watch.map(|duration| watch::plan(member, duration, None, args.auto_rollback));
        release.report.line(&format!("{}: {} → {}", known.service, known.from, known.to));
        expected_routing.push(view.expected_routing(&known.to));
        facts.push(known);
    }
    release.report.fact("Version", &version);
    together(&mut facts);
    let olds: Vec<String> =
        facts.iter().map(|facts| named(&facts.from, facts.from_version.as_deref())).collect();
    let kept: Vec<bool> = facts.iter().map(|facts| facts.from_version.is_some()).collect();
    let links: Vec<WatchLink> = release.members.iter().map(|_| WatchLink::default()).collect();
    let plans: Vec<_> = facts.iter().filter_map(|facts| facts.watch.clone()).collect();
    let mut watching = Box::pin(watch::after_switch(release, &proxies, &operation, plans, &links));
    let kind = OperationKind::Deploy;
    let deploy = whole::carry_out(release, &proxies, kind, facts, expected_routing, &links);
    let (ended, watched) = monitor::in_parallel(deploy, watching.as_mut()).await;
    let ended = ended?;
    links.iter().for_each(WatchLink::set_over);
    say(release, &proxies, &version, &ended).await;
    if ended.outcome != Outcome::Deployed {
        release.members.iter().for_each(|member| monitor::drop_watch(member, &operation));
        return Ok(ended.outcome.into());
    }
    for ((member, old), _) in release.members.iter().zip(&olds).zip(&kept).filter(|(_, kept)| **kept) {
        release.heading(member);
        release.report.say(&format!("   {}", blue_green::fate_of_old(member, old)));
    }
    // A manual rollback must be possible meanwhile.
    drop(locks);
    let mut exit = Exit::Done;
    if args.watch.is_some() {
        // An operation that its recovery finished hasn't signalled the switch.
        links.iter().for_each(WatchLink::switched);
        let (mut watchers, bad) = match watched {
            Some(watched) => watched?,
            None => watching.await?,
        };
        exit = watch::conclude(release, &proxies, &mut watchers, bad, args.require_verdict).await?;
    }
    // Only now, since a rollback mustn't wait for this or find its target gone.
    if matches!(exit, Exit::Done | Exit::NotEnoughData) {
        for ((member, old), kept) in release.members.iter().zip(&olds).zip(kept) {
            if member.config.deploy.warm.is_zero() && kept {
                blue_green::stop_old(member, old).await;
            }
            crate::cli::prune::after_deploy(member).await;
        }
    }
    Ok(exit)
}

/// Recovers what was interrupted, of the release and of each member on its own, and ends the members' watches.
pub(super) async fn settle_before(release: &Release, proxies: &[ProxyService], what: &str) -> Done {
    if recover_all(release, proxies).await? == Exit::Attention {
        return Ok(Exit::Attention);
    }
    for member in &release.members {
        resume::supersede(member, &format!("the {what}"))?;
    }
    Ok(Exit::Done)
}

/// Recovers what was interrupted, of the release and of each member on its own.
pub(super) async fn recover_all(release: &Release, proxies: &[ProxyService]) -> Done {
    if whole::recover_if_needed(release, proxies).await? == Some(Outcome::Attention) {
        return Ok(Exit::Attention);
    }
    for (member, proxy) in release.members.iter().zip(proxies) {
        let recovered = operation::recover_if_needed(member, proxy).await?;
        if recovered.is_some_and(|(_, ended)| ended.outcome == Outcome::Attention) {
            return Ok(Exit::Attention);
        }
    }
    Ok(Exit::Done)
}

/// Each member's facts name the others.
pub(super) fn together(facts: &mut [OperationFacts]) {
    let all: Vec<_> = facts.iter().map(|facts| facts.service.clone()).collect();
    for facts in facts {
        facts.together_with = all.iter().filter(|service| **service != facts.service).cloned().collect();
    }
}

/// `web: green (v2) serves; api: green (v2) serves`
pub(super) fn who_serves(release: &Release, ended: &whole::ReleaseEnd) -> String {
    let services = release.members.iter().filter_map(|member| member.config.deploy.service.as_ref());
    let each = services.zip(&ended.members);
    let each = each.map(|(service, ended)| format!("{service}: {}", operation::who_serves(ended)));
    each.collect::<Vec<_>>().join("; ")
}

async fn say(release: &Release, proxies: &[ProxyService], version: &str, ended: &whole::ReleaseEnd) {
    let report = &release.report;
    let serves = who_serves(release, ended);
    match ended.outcome {
        Outcome::Deployed => {
            report.say(&format!("\n✅ Release complete! {serves}"));
            for (member, ended) in release.members.iter().zip(&ended.members) {
                release.heading(member);
                report.say(&format!("   Downtime: {}", ended.downtime));
                let warnings = ended.serving.iter().flat_map(Serving::warnings);
                warnings.for_each(|warning| report.say(&format!("   ⚠ {warning}")));
            }
        }
        Outcome::Superseded => report.say(&format!(
            "\n❌ Superseded: traffic was switched to {version} and then moved again; {serves}. The candidates keep running"
        )),
        Outcome::Failed(FailureCause::Overtaken) => {
            report.say(&format!("\n❌ Superseded: {version} wasn't released: {serves}"));
        }
        Outcome::Failed(_) => {
            report.say(&format!("\n❌ Release failed; nothing has changed for users: {serves}"));
        }
        Outcome::Returned => report.say(&format!(
            "\n❌ Rolled back: a candidate of {version} died after the switch, so traffic of all services was moved back; {serves}"
        )),
        Outcome::RolledBack | Outcome::Attention | Outcome::Held => say_attention(release, proxies, ended).await,
    }
}

pub(super) async fn say_attention(release: &Release, proxies: &[ProxyService], ended: &whole::ReleaseEnd) {
    for ((member, proxy), ended) in release.members.iter().zip(proxies).zip(&ended.members) {
        release.heading(member);
        operation::say_attention(member, proxy, ended).await;
    }
}

/// Shows what a deploy would do. Takes no lock, writes nothing.
async fn dry_run(release: &Release, args: &BlueGreenArgs, version: &str) -> Done {
    for member in &release.members {
        release.heading(member);
        blue_green::dry_run(member, args, version).await?;
    }
    release.report.say(
        "All candidates are started and checked before the first switch, and all services are switched in one step.",
    );
    Ok(Exit::Done)
}
