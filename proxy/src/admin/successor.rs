//! The predecessor's side of a [hand-over](crate::handover): yields to a successor, and follows it until its own requests
//! are over. If the successor is gone before it leads, everything is as before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use uh_switching::{CloseSchedule, Health, RoutingRecord};
use uh_system::plain;

use super::control::Control;
use super::leadership::{AnotherLeads, Leadership};
use crate::fault;
use crate::front::LiveService;
use crate::handover::wire::{
    self, BackendCounts, Counts, EndpointName, FromPredecessor, FromSuccessor, InFlight, Sender,
};
use crate::state::file::StateFile;

/// How long a successor may take to say that it wants to join.
const JOIN_WITHIN: Duration = Duration::from_secs(5);

/// How long it may probe before it asks to yield.
const PROBES_WITHIN: Duration = Duration::from_secs(120);

/// How long it may take from the yield until it leads. Nobody changes the routing meanwhile.
const LEADS_WITHIN: Duration = Duration::from_secs(5);

/// How often changed counts are sent.
const COUNT_EVERY: Duration = Duration::from_millis(20);

/// The pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether this process still leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leads {
    Still,
    /// After it had yielded already.
    Again,
    NoMore,
}

/// Yields to the first successor that leads, and follows it.
pub(crate) async fn serve(mut listener: UnixListener, leadership: Leadership) {
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
        if !uid.is_some_and(|uid| uid == geteuid().as_raw() || uid == 0) {
            tracing::warn!(uid, "rejected a process of another user that wants to take over");
            continue;
        }
        match hand_over(&leadership, stream).await {
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

async fn hand_over(leadership: &Leadership, stream: UnixStream) -> Leads {
    let control = leadership.control();
    let (mut from, mut to) = wire::messages::<FromSuccessor>(stream);
    let Some(FromSuccessor::Join { version }) = within(JOIN_WITHIN, &mut from).await else {
        return Leads::Still;
    };
    tracing::info!(version, "another uh-proxy wants to take over; it probes the backends first");
    let joined = if control.predecessor.is_there() {
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
    let Some(FromSuccessor::Yield) = within(PROBES_WITHIN, &mut from).await else {
        tracing::warn!("the uh-proxy that wanted to take over is gone; this one goes on");
        return Leads::Still;
    };
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
                leadership.end();
                control.broadcasts.iter().for_each(|broadcast| broadcast.cut());
                Leads::NoMore
            }
        };
    }
    fault::point("handover_superseded");
    tracing::info!("another uh-proxy leads; finishing the requests in flight");
    leadership.end();
    follow(control, &mut from, &mut to).await;
    drop((from, to));
    if leadership.is_vacant() {
        tracing::warn!("the uh-proxy that leads is gone; still finishing the requests in flight");
    } else {
        tracing::error!("cut off by the uh-proxy that leads; closing all connections");
        control.broadcasts.iter().for_each(|broadcast| broadcast.cut());
    }
    Leads::NoMore
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

/// Follows the leader until it is gone.
async fn follow(control: &Control, from: &mut mpsc::Receiver<FromSuccessor>, to: &mut Sender) {
    let mut sent = Counts::default();
    let mut tick = tokio::time::interval(COUNT_EVERY);
    let mut seq = 0;
    loop {
        tokio::select! {
            message = from.recv() => match message {
                None => return,
                Some(FromSuccessor::Follow { seq: new, state }) => {
                    control.board.follow(&record(&state));
                    // Its backends may have other endpoints.
                    control.news.backends.notify_one();
                    fault::point("handover_followed");
                    seq = new;
                }
                Some(FromSuccessor::Cut { service, backend }) => {
                    if let Ok(drain) = control.board.drain(service.as_str(), &backend) {
                        drain.cut();
                        control.broadcasts.iter().for_each(|broadcast| broadcast.wake_all());
                    }
                }
                Some(FromSuccessor::CloseTunnels { service, backend, over_ms }) => {
                    if let Ok(drain) = control.board.drain(service.as_str(), &backend) {
                        let (from, over) = (tokio::time::Instant::now(), Duration::from_millis(over_ms));
                        drain.close_tunnels(CloseSchedule { from, over });
                        control.broadcasts.iter().for_each(|broadcast| broadcast.wake_all());
                    }
                }
                Some(
                    FromSuccessor::Join { .. }
                    | FromSuccessor::Yield
                    | FromSuccessor::Leading
                    | FromSuccessor::Unknown,
                ) => {}
            },
            _ = tick.tick() => {}
        }
        let counts = counts(control, seq);
        if counts != sent {
            if to.send(&FromPredecessor::Counts(counts.clone())).await.is_err() {
                return;
            }
            sent = counts;
        }
    }
}

fn counts(control: &Control, seq: u64) -> Counts {
    let live = control.board.live();
    let of_service = |service: &LiveService| {
        let name = service.state.config.name.clone();
        let of_backend = |backend: &Arc<crate::front::Backend>| {
            let drain = control.board.drain(name.as_str(), backend.name()).ok();
            BackendCounts {
                holding: control.board.holding(&name, backend.name()).into(),
                past: drain.as_ref().map(|drain| InFlight::from(drain.remaining())),
                drained: drain.is_some_and(|drain| drain.is_drained()),
                service: name.clone(),
                backend: backend.name().clone(),
            }
        };
        service.backends.iter().map(of_backend).collect::<Vec<_>>()
    };
    let backends = live.services.iter().flat_map(of_service).collect();
    Counts { seq, backends }
}

/// A routing as it is on disk.
pub(crate) fn record(state: &StateFile) -> RoutingRecord {
    let services: BTreeMap<_, _> =
        state.services.iter().map(|(name, entry)| (name.clone(), entry.record())).collect();
    RoutingRecord { generation: state.generation, services }
}

fn joined(control: &Control) -> Option<FromPredecessor> {
    let state = Box::new(StateFile::of(&control.board.view())?);
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
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Some(FromPredecessor::Joined { version, pid: std::process::id(), state, healthy })
}
