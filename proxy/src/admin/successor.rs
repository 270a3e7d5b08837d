//! The predecessor's side of a [hand-over](crate::handover), up to the moment in which the successor leads: yields to it. If
//! it is gone before it leads, everything is as before. [`follow`] is what comes then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use uh_switching::{Health, RoutingRecord};
use uh_system::plain;

use super::control::Control;
use super::follow;
use super::leadership::{AnotherLeads, Leadership};
use super::upgrade::Leader;
use crate::fault;
use crate::handover::stay::Successor;
use crate::handover::wire::{self, EndpointName, FromPredecessor, FromSuccessor, Sender};
use crate::state::file::StateFile;
use crate::systemd;

/// Processes that are refused at once. More of them are closed without an answer.
const MOST_REFUSALS: usize = 8;

/// How long a successor may take to say that it wants to join.
const JOIN_WITHIN: Duration = Duration::from_secs(5);

/// How long it may probe before it asks to yield.
const PROBES_WITHIN: Duration = Duration::from_secs(120);

/// How long it may take from the yield until it leads. Nobody changes the routing meanwhile.
const LEADS_WITHIN: Duration = Duration::from_secs(5);

/// How long one that stays without requests may take to end, if there is a new successor.
const DISMISSED_WITHIN: Duration = Duration::from_secs(6);

/// The pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether this process still leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leads {
    Still,
    /// After it had yielded already.
    Again,
    NoMore,
}

/// Yields to the first successor that leads, and follows it. Others that come meanwhile are refused.
pub(crate) async fn serve(mut listener: UnixListener, leadership: Leadership) {
    let refusals = Arc::new(Semaphore::new(MOST_REFUSALS));
    loop {
        let stream = accept(&listener).await;
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let leads = {
            let mut hand_over = std::pin::pin!(hand_over(&leadership, stream));
            loop {
                tokio::select! {
                    leads = &mut hand_over => break leads,
                    other = accept(&listener) => refuse(other, pid, &refusals),
                }
            }
        };
        match leads {
            Leads::Still => {}
            // The other process may have bound one at the same path.
            Leads::Again => match leadership.listener() {
                Ok(again) => listener = again,
                Err(error) => tracing::error!(error = %plain(&error), "cannot wait for another successor"),
            },
            Leads::NoMore => return,
        }
    }
}

/// The next process that may take over.
async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = %plain(&error), "cannot accept a successor");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let uid = stream.peer_cred().map(|peer| peer.uid()).ok();
        if uid.is_some_and(|uid| uid == geteuid().as_raw() || uid == 0) {
            return stream;
        }
        tracing::warn!(uid, "rejected a process of another user that wants to take over");
    }
}

/// Refuses a process while another one, with this process ID, takes over.
fn refuse(stream: UnixStream, first: Option<i32>, refusals: &Arc<Semaphore>) {
    let Ok(permit) = Arc::clone(refusals).try_acquire_owned() else { return };
    let first = first.map_or_else(String::new, |pid| format!(" (process {pid})"));
    tokio::spawn(async move {
        let (mut from, mut to) = wire::messages::<FromSuccessor>(stream);
        if let Some(FromSuccessor::Join { version, .. }) = within(JOIN_WITHIN, &mut from).await {
            tracing::warn!(
                version,
                "refused a uh-proxy that wants to take over, since another one does already"
            );
            let reason = format!(
                "another uh-proxy{first} is taking over already: wait until it leads or ends, then try again"
            );
            // One that is gone needs no answer.
            let _ = to.send(&FromPredecessor::Refused { reason }).await;
        }
        drop(permit);
    });
}

async fn hand_over(leadership: &Leadership, stream: UnixStream) -> Leads {
    let control = leadership.control();
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let (mut from, mut to) = wire::messages::<FromSuccessor>(stream);
    let Some(FromSuccessor::Join { version, back }) = within(JOIN_WITHIN, &mut from).await else {
        return Leads::Still;
    };
    let is_expected = back && control.end.expects_back();
    if is_expected {
        tracing::info!(version, "the uh-proxy that this one has replaced takes the lead back");
    } else {
        tracing::info!(version, "another uh-proxy wants to take over; it probes the backends first");
    }
    let joined = if back && !is_expected {
        Some(FromPredecessor::Refused { reason: "nobody wants it to lead again".to_owned() })
    } else if !is_expected && control.dismiss_predecessor(Instant::now() + DISMISSED_WITHIN).await.is_err() {
        Some(FromPredecessor::Refused {
            reason: "it has just replaced another one, which isn't gone yet".to_owned(),
        })
    } else {
        joined(control)
    };
    let Some(joined) = joined else { return Leads::Still };
    if to.send(&joined).await.is_err() || matches!(joined, FromPredecessor::Refused { .. }) {
        return Leads::Still;
    }
    fault::point("handover_joined");
    if !asks_to_yield(control, &mut from, &mut to).await {
        tracing::warn!("the uh-proxy that wanted to take over is gone; this one goes on");
        return Leads::Still;
    }
    let generation = match leadership.release().await {
        Ok(generation) => generation,
        Err(reason) => {
            tracing::error!(reason, "cannot hand over; this uh-proxy goes on");
            let _ = to.send(&FromPredecessor::Refused { reason }).await;
            return Leads::Still;
        }
    };
    fault::point("handover_released");
    // If it is gone, the next line finds out.
    let _ = to.send(&FromPredecessor::Yielded { generation }).await;
    if !matches!(within(LEADS_WITHIN, &mut from).await, Some(FromSuccessor::Leading)) {
        drop((from, to));
        return match leadership.take_back().await {
            Ok(()) => {
                tracing::error!(
                    "the uh-proxy that wanted to take over ended before it did; this one leads again"
                );
                Leads::Again
            }
            Err(AnotherLeads) => {
                tracing::error!(
                    "another uh-proxy leads, and this one can't follow it; closing all connections"
                );
                leadership.end(Successor::Other);
                leadership.leave();
                control.broadcasts.iter().for_each(|broadcast| broadcast.cut());
                Leads::NoMore
            }
        };
    }
    fault::point("handover_superseded");
    tracing::info!("another uh-proxy leads; finishing the requests in flight");
    let is_child = control.upgrades.lost_to(Leader { pid, version });
    let mut successor = Successor::Other;
    if is_expected {
        control.predecessor.forget();
        systemd::mute();
    } else if let Some(pid) = pid.filter(|_| is_child) {
        systemd::main_process(pid.cast_unsigned());
        successor = Successor::Started;
    }
    leadership.end(successor);
    follow::to_the_end(leadership, from, to, pid).await
}

/// Waits until the successor asks to yield and finds healthy what this process does; `false`: it is gone.
async fn asks_to_yield(control: &Control, from: &mut mpsc::Receiver<FromSuccessor>, to: &mut Sender) -> bool {
    let deadline = Instant::now() + PROBES_WITHIN;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(FromSuccessor::Yield { unhealthy }) = within(left, from).await else { return false };
        // As it is now, not when the other one joined.
        let healthy = healthy(control);
        if !unhealthy.iter().any(|endpoint| healthy.contains(endpoint)) {
            return true;
        }
        tracing::info!(
            "the uh-proxy that wants to take over doesn't find healthy yet what this one does; waiting for it"
        );
        if to.send(&FromPredecessor::NotYet { healthy }).await.is_err() {
            return false;
        }
    }
}

async fn within(at_most: Duration, from: &mut mpsc::Receiver<FromSuccessor>) -> Option<FromSuccessor> {
    let message = async {
        loop {
            match from.recv().await {
                Some(FromSuccessor::Unknown) => {}
                message => return message,
            }
        }
    };
    tokio::time::timeout(at_most, message).await.ok()?
}

/// A routing as it is on disk.
pub(crate) fn record(state: &StateFile) -> RoutingRecord {
    let services: BTreeMap<_, _> =
        state.services.iter().map(|(name, entry)| (name.clone(), entry.record())).collect();
    RoutingRecord { generation: state.generation, services }
}

fn joined(control: &Control) -> Option<FromPredecessor> {
    let state = Box::new(StateFile::of(&control.board.view())?);
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Some(FromPredecessor::Joined { version, pid: std::process::id(), state, healthy: healthy(control) })
}

/// The endpoints that pass the probes now.
fn healthy(control: &Control) -> Vec<EndpointName> {
    let live = control.board.live();
    let mut healthy = Vec::new();
    for service in &live.services {
        for backend in &service.backends {
            let good = backend.endpoints.iter().filter(|endpoint| endpoint.health() == Health::Healthy);
            healthy.extend(good.map(|endpoint| EndpointName {
                service: service.state.config.name.clone(),
                backend: backend.name().clone(),
                address: endpoint.address.to_string(),
            }));
        }
    }
    healthy
}
