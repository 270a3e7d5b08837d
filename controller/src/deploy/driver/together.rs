//! The effects of an operation with several members. Each is the effect of all of them; traffic moves in one switch,
//! which uh-proxy carries out for all services or for none.
//!
//! That switch is what makes the operation whole: until uh-proxy has carried it out, no candidate serves, and all are
//! undone; afterwards all serve. So a recovery that asks uh-proxy gets the same answer for every member.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use uh_protocol::BackendName;
use uh_protocol::request::{ReleaseRequest, Released};

use crate::deploy::effects::traffic::{ELSEWHERE_ROUNDS, READY_POLL, TRY_ANYWAY_AFTER};
use crate::deploy::machine::{Effect, Event, FailureCause, InstanceOrigin, OperationKind, OperationTarget};
use crate::deploy::member::Member;
use crate::deploy::progress::{Progress, Unwritten};
use crate::fault;
use crate::proxy::ProxyError;

pub(super) async fn effect(members: &mut [Member<'_>], effect: Effect) -> Option<Event> {
    let event = match effect {
        Effect::Switch => Some(switch(members).await),
        Effect::SwitchBack => switch_back(members).await,
        Effect::Drain | Effect::Settle => at_once(members, effect).await,
        _ => in_turn(members, effect).await,
    };
    if matches!(event, Some(Event::Failed(_) | Event::Died | Event::Superseded | Event::Lost)) {
        share_reason(members);
    }
    event
}

/// The history of each member says why the whole operation failed.
fn share_reason(members: &mut [Member<'_>]) {
    let found = members.iter().find_map(|member| {
        let reason = member.results.reason.as_ref()?;
        Some((member.facts.service.clone(), reason.clone()))
    });
    let Some((service, reason)) = found else { return };
    for member in members.iter_mut().filter(|member| member.results.reason.is_none()) {
        member.results.reason = Some(format!("{service}: {reason}"));
    }
}

/// One member after the other. A member that fails or doesn't get an answer ends the effect, except that all are
/// undone before an undo fails.
async fn in_turn(members: &mut [Member<'_>], effect: Effect) -> Option<Event> {
    let undoes = matches!(effect, Effect::Undo(_));
    let mut events = Vec::with_capacity(members.len());
    for (number, member) in members.iter_mut().enumerate() {
        fault::point(&format!("effect.{}.member{number}", effect.name()));
        member.tell(Progress::Of(&member.facts.service));
        let event = part(member, effect).await;
        if event.is_none() && member.unanswered.is_some() {
            return None;
        }
        if matches!(event, Some(Event::Failed(_))) && !undoes {
            return event;
        }
        events.extend(event);
    }
    if undoes && events.contains(&Event::Serves) && events.contains(&Event::Undone) {
        let why = "only some of the candidates serve: another command has moved traffic";
        return members.first_mut().map(|first| first.fail(FailureCause::Overtaken, why));
    }
    all_of(&events)
}

/// The event of the whole, from those of its parts. The worst one counts.
fn all_of(events: &[Event]) -> Option<Event> {
    let weight = |event: &Event| match event {
        Event::Failed(_) => 4,
        Event::Lost => 3,
        Event::Superseded => 2,
        // One target of a rollback has to be started again.
        Event::Gone => 1,
        _ => 0,
    };
    events.iter().copied().max_by_key(weight)
}

/// The effect in one service. In a rollback, its target may be running while that of another service has to be started.
async fn part(member: &mut Member<'_>, effect: Effect) -> Option<Event> {
    let found = member.kind == OperationKind::Rollback && !member.starts_its_target();
    match effect {
        Effect::Clear if found => None,
        Effect::Start if found => Some(Event::Started),
        Effect::Prove if found => Some(Event::Proven),
        Effect::Register if found => member.readmit().await,
        Effect::Undo(target) if found => {
            let target = OperationTarget { origin: InstanceOrigin::Found, ..target };
            member.effect(Effect::Undo(target)).await
        }
        other => member.effect(other).await,
    }
}

/// All members at the same time. The first one that dies ends the effect.
async fn at_once(members: &mut [Member<'_>], effect: Effect) -> Option<Event> {
    let mut parts: FuturesUnordered<_> = members.iter_mut().map(|member| member.effect(effect)).collect();
    let mut last = None;
    while let Some(event) = parts.next().await {
        last = event;
        if event == Some(Event::Died) {
            break;
        }
    }
    last
}

async fn switch(members: &mut [Member<'_>]) -> Event {
    let mut handovers = Vec::with_capacity(members.len());
    for member in members.iter_mut() {
        member.tell(Progress::Of(&member.facts.service));
        member.tell_of_switch();
        let to = member.facts.to.clone();
        handovers.push(member.hand_over(&to).await);
    }
    let (released, pid) = match switch_when_ready(members).await {
        Ok(done) => done,
        Err(event) => return event,
    };
    for (member, handover) in members.iter_mut().zip(handovers) {
        if let Some(switched) = released.of(&member.facts.service) {
            member.has_switched(handover, &switched, pid);
        }
    }
    Event::Switched
}

fn request(
    members: &[Member<'_>],
    to: impl Fn(&Member<'_>) -> BackendName,
    generation: u64,
    force: bool,
) -> ReleaseRequest {
    let services = members.iter().map(|member| (member.facts.service.clone(), to(member))).collect();
    ReleaseRequest { services, expect_generation: Some(generation), force }
}

/// Switches as soon as uh-proxy has found all candidates healthy too. Returns the id of uh-proxy's process as well.
async fn switch_when_ready(members: &mut [Member<'_>]) -> Result<(Released, u32), Event> {
    let start = Instant::now();
    let deadline = start + longest(members);
    let force = members.iter().any(|member| member.facts.skip_health);
    let rollback = members.iter().any(|member| member.kind == OperationKind::Rollback);
    let known = |member: &Member<'_>| member.results.generation.unwrap_or(member.facts.generation);
    let mut generation = members.iter().map(known).max().unwrap_or_default();
    let mut rounds = 0;
    let mut try_at = start + if force { Duration::ZERO } else { TRY_ANYWAY_AFTER };
    loop {
        let (mut healthy, mut pid) = (true, 0);
        for member in members.iter_mut() {
            let view = member.view_for_switch().await.map_err(|e| member.refused(&e))?;
            let to = view.backend(&member.facts.to);
            healthy &= to.is_some_and(|backend| backend.healthy == Some(true));
            pid = view.status.proxy.pid;
        }
        if healthy || Instant::now() >= try_at {
            let proxy =
                members.first().map(|first| first.proxy).ok_or(Event::Failed(FailureCause::Refused))?;
            let wanted = request(members, |member| member.facts.to.clone(), generation, force);
            let sent = proxy.release(&wanted).await;
            let may_serve = !sent.as_ref().is_err_and(ProxyError::is_unsent);
            members.iter_mut().for_each(|member| member.may_serve |= may_serve);
            match sent {
                Ok(released) => return Ok((released, pid)),
                Err(e) if e.is_overtaken() && rounds < ELSEWHERE_ROUNDS => {
                    rounds += 1;
                    generation = moved_elsewhere(members, &e).await?;
                    continue;
                }
                Err(e) if e.is_unhealthy() && Instant::now() < deadline => {}
                // Nothing was sent: uh-proxy is restarting. A deploy gives up, a rollback must not.
                Err(e) if e.is_unsent() && rollback && Instant::now() < deadline => {}
                Err(e) => return Err(refused(members, &e)),
            }
            try_at = Instant::now() + TRY_ANYWAY_AFTER;
        }
        for member in members.iter_mut() {
            if let Some(event) = member.ended_early().await {
                return Err(event);
            }
        }
        tokio::time::sleep(READY_POLL).await;
    }
}

fn longest(members: &[Member<'_>]) -> Duration {
    members.iter().map(|member| member.config.deploy.ready_timeout).max().unwrap_or_default()
}

fn refused(members: &mut [Member<'_>], error: &ProxyError) -> Event {
    match members.first_mut() {
        Some(first) => first.refused(error),
        None => Event::Failed(FailureCause::Refused),
    }
}

/// The current generation, if only services that aren't members have changed.
async fn moved_elsewhere(members: &mut [Member<'_>], overtaken: &ProxyError) -> Result<u64, Event> {
    let mut generation = 0;
    for member in members.iter_mut() {
        let overtaken = ProxyError::Overtaken(crate::chain(overtaken));
        generation = match member.moved_elsewhere(overtaken).await {
            Ok(generation) => generation,
            Err(e) => return Err(member.refused(&e)),
        };
    }
    Ok(generation)
}

/// `None`: uh-proxy doesn't answer, so it is unknown which backends serve. The journal stays as it is, for `recover`
/// to continue from.
async fn switch_back(members: &mut [Member<'_>]) -> Option<Event> {
    let mut handovers = Vec::with_capacity(members.len());
    for member in members.iter_mut() {
        let from = member.facts.from.clone();
        member.tell(Progress::Of(&member.facts.service));
        member.tell(Progress::Returning(&from));
        handovers.push(member.hand_over(&from).await);
    }
    match try_to_switch_back(members).await {
        Ok(released) => {
            for (member, handover) in members.iter_mut().zip(handovers) {
                let switched = released.as_ref().and_then(|released| released.of(&member.facts.service));
                let Some(switched) = switched else { continue };
                if let Some(error) = &switched.persist_error {
                    member.unwritten(Unwritten::Return, &switched.to, error);
                }
                member.begin_activation(handover, switched.switched_at);
                member.tell(Progress::Switched);
            }
            Some(Event::Returned)
        }
        Err(error) if error.is_unanswered() => {
            members.first_mut()?.unanswered = Some(error);
            None
        }
        // The reason why it had to go back is the one to keep.
        Err(error) => {
            for member in members.iter() {
                member.tell(Progress::NotReturned { to: &member.facts.from, error: &error });
            }
            Some(Event::Failed(FailureCause::Refused))
        }
    }
}

/// Switches all members back. Waits for a uh-proxy that restarts, and for its first probes of the old backends.
/// `None`: they were already active.
async fn try_to_switch_back(members: &mut [Member<'_>]) -> Result<Option<Released>, ProxyError> {
    let deadline = Instant::now() + longest(members);
    loop {
        let (mut returned, mut generation) = (true, None);
        for member in members.iter() {
            let view = member.proxy.view_soon().await?;
            returned &= view.is_active(&member.facts.from);
            if !view.is_active(&member.facts.from) && !view.is_active(&member.facts.to) {
                let (service, active) = (&member.facts.service, &view.service.active);
                let message = format!("another command made {active} active for {service}");
                return Err(ProxyError::Overtaken(message));
            }
            // The first one's: if anything changes after that look, the switch is refused.
            generation.get_or_insert(view.generation);
        }
        let Some((generation, first)) = generation.zip(members.first()).filter(|_| !returned) else {
            return Ok(None);
        };
        fault::point("switch_back.looked");
        let back = request(members, |member| member.facts.from.clone(), generation, false);
        match first.proxy.release(&back).await {
            Ok(released) => return Ok(Some(released)),
            // It may have been carried out anyway: check again.
            Err(e) if e.is_unanswered() && Instant::now() < deadline => {}
            // Not probed yet, a failed probe, or another service has changed.
            Err(e) if (e.is_unhealthy() || e.is_overtaken()) && Instant::now() < deadline => {}
            Err(e) => return Err(e),
        }
        tokio::time::sleep(READY_POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_the_parts_counts() {
        use Event::{Alive, Confirmed, Failed, Gone, Lost, Superseded, Undone};
        let failed = Failed(FailureCause::Start);
        for (events, whole) in [
            (vec![Alive, Alive], Some(Alive)),
            (vec![Gone, Alive], Some(Gone)),
            (vec![Confirmed, Superseded], Some(Superseded)),
            (vec![Lost, Superseded, Confirmed], Some(Lost)),
            (vec![Undone, failed, Undone], Some(failed)),
            (vec![], None),
        ] {
            assert_eq!(all_of(&events), whole);
        }
    }
}
