//! `uh-deploy rollback` of a release: all services return to what served before it, in one switch.

use super::Release;
use super::deploy::{say_attention, settle_before, together, who_serves};
use super::operation::{self as whole, ReleaseEnd};
use crate::cli::args::RollbackArgs;
use crate::cli::exit::{CliError, Exit};
use crate::cli::{Done, rollback};
use crate::deploy::facts::{OperationFacts, new_operation};
use crate::deploy::machine::{FailureCause, OperationKind, Outcome};
use crate::names::version_text;
use crate::proxy::{ExpectedRouting, ProxyService};
use crate::time::span;

pub(super) async fn rollback(release: &Release, args: &RollbackArgs) -> Done {
    let _locks = release.lock_patiently("rollback").await?;
    let proxies = release.proxies().await?;
    if settle_before(release, &proxies, "manual rollback").await? == Exit::Attention {
        return Ok(Exit::Attention);
    }
    let operation = new_operation(jiff::Timestamp::now());
    let (mut facts, mut expected_routing, mut undone) = (Vec::new(), Vec::new(), Vec::new());
    for (member, proxy) in release.members.iter().zip(&proxies) {
        release.heading(member);
        let serving = proxy.serving_soon().await?;
        let of = args.of.as_deref();
        let (known, made) = match &args.to {
            Some(to) => rollback::facts_to_backend(member, proxy, &serving, to, args.again, &operation)
                .map(|facts| (facts, None)),
            None => rollback::facts_in_release(member, proxy, &serving, of, &operation),
        }
        .map_err(|failed| in_service(proxy, &failed))?;
        expected_routing.push(serving.view().expected_routing(&known.to));
        facts.push(known);
        undone.push(made);
    }
    match &args.to {
        Some(_) => demand_one_version(&facts)?,
        None => demand_one_release(&undone)?,
    }
    let ended = carry_out(release, &proxies, facts, expected_routing).await?;
    if ended.outcome == Outcome::Returned {
        return Ok(Exit::Attention);
    }
    Ok(ended.outcome.into())
}

/// The same failure, with the service that it is about.
pub(super) fn in_service(proxy: &ProxyService, failed: &CliError) -> CliError {
    CliError::new(failed.exit(), format!("{}: {}", proxy.service, failed.message()))
}

/// Each service may have been deployed alone since. What served before that was never together with the others.
pub(super) fn demand_one_release(undone: &[Option<String>]) -> Result<(), CliError> {
    if undone.windows(2).all(|pair| pair[0] == pair[1] && pair[0].is_some()) {
        return Ok(());
    }
    let message = "nothing to roll back to: the last changes of the members weren't one release. Nothing was changed. Roll the members back one by one, each with its own configuration";
    Err(CliError::new(Exit::Failed, message))
}

/// A backend that the operator named must hold one version in all services: others were never together.
fn demand_one_version(facts: &[OperationFacts]) -> Result<(), CliError> {
    if facts.windows(2).all(|pair| pair[0].version == pair[1].version && pair[0].version.is_some()) {
        return Ok(());
    }
    let held = facts.iter().map(|facts| {
        let held = facts.version.as_deref().map_or_else(|| "an unknown version".to_owned(), version_text);
        format!("{}: {} holds {held}", facts.service, facts.to)
    });
    let held = held.collect::<Vec<_>>().join(", ");
    let message = format!(
        "the members don't hold one version there: {held}. Nothing was changed. Roll the members back one by one, each with its own configuration"
    );
    Err(CliError::new(Exit::Failed, message))
}

/// Moves all services in one switch, and reports how that ended. The locks are held.
pub(super) async fn carry_out(
    release: &Release,
    proxies: &[ProxyService],
    mut facts: Vec<OperationFacts>,
    expected_routing: Vec<ExpectedRouting>,
) -> Result<ReleaseEnd, CliError> {
    together(&mut facts);
    let kind = OperationKind::Rollback;
    let ended = whole::carry_out(release, proxies, kind, facts, expected_routing, &[]).await?;
    say(release, proxies, &ended).await;
    Ok(ended)
}

async fn say(release: &Release, proxies: &[ProxyService], ended: &ReleaseEnd) {
    let serves = who_serves(release, ended);
    let report = &release.report;
    match ended.outcome {
        Outcome::RolledBack => {
            let took = ended.members.iter().map(|ended| ended.took).max().unwrap_or_default();
            report.say(&format!("\n✅ Rollback complete in {}! {serves}", span(took)));
        }
        Outcome::Superseded | Outcome::Failed(FailureCause::Overtaken) => {
            report.say(&format!("\n❌ Superseded by a newer change: {serves}"));
        }
        Outcome::Failed(_) => report.say(&format!("\n❌ Rollback failed; nothing has changed: {serves}")),
        Outcome::Returned => report.say(&format!(
            "\n❌ The rollback failed: a target died after the switch, so traffic was moved back; {serves}. Manual intervention required"
        )),
        Outcome::Deployed | Outcome::Attention | Outcome::Held => say_attention(release, proxies, ended).await,
    }
}
