//! A process that another one has replaced: follows the one that leads until its own requests are over. It leads again if
//! that one ends before, or wants it to.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use uh_switching::CloseSchedule;
use uh_system::plain;

use super::control::Control;
use super::leadership::Leadership;
use super::socket::{AdminSocket, successors_of};
use super::successor::{Leads, record};
use crate::fault;
use crate::front::LiveService;
use crate::handover::leader::{Leader, TakeOverError, Why};
use crate::handover::liveness::{Life, life};
use crate::handover::wire::{BackendCounts, Counts, FromPredecessor, FromSuccessor, InFlight, Sender};
use crate::state::store::{Loaded, StoreError};

/// How often changed counts are sent.
const COUNT_EVERY: Duration = Duration::from_millis(20);

/// How long a leader that dies may have its locks: the kernel frees much memory first.
const DIES_WITHIN: Duration = Duration::from_secs(10);

/// The same for one of which it isn't known whether it dies.
const MAY_DIE_WITHIN: Duration = Duration::from_millis(100);

/// How long one that has yielded may take to release its locks, and to yield.
const YIELDS_WITHIN: Duration = Duration::from_secs(5);

/// The pause between two attempts.
const RETRY_EVERY: Duration = Duration::from_millis(10);

/// Follows the process that leads, to the end of this one or until this one leads again. `leader`: its process ID.
pub(super) async fn to_the_end(
    leadership: &Leadership,
    mut from: mpsc::Receiver<FromSuccessor>,
    mut to: Sender,
    leader: Option<i32>,
) -> Leads {
    let control = leadership.control();
    match follow(leadership, &mut from, &mut to).await {
        Followed::ToTheEnd => {
            leadership.reported();
            return Leads::NoMore;
        }
        Followed::Back(left, stream) => {
            lead_again_after(leadership, &left, stream).await;
            return Leads::Again;
        }
        Followed::UntilItWasGone => drop((from, to)),
    }
    // First of all, so that this process doesn't end before it knows why.
    let can_lead = control.end.take_way_back();
    let is_gone = is_gone(leadership, leader).await;
    if is_gone && can_lead {
        tracing::error!("the uh-proxy that led is gone; this one takes the lead back");
        if leadership.take_back().await.is_ok() {
            leadership.begin_again();
            tracing::error!("this uh-proxy leads again");
            return Leads::Again;
        }
        tracing::error!("another uh-proxy leads, and this one can't follow it; closing all connections");
    } else if is_gone {
        tracing::warn!("the uh-proxy that leads is gone; still finishing the requests in flight");
        return Leads::NoMore;
    } else {
        tracing::error!("cut off by the uh-proxy that leads; closing all connections");
    }
    if can_lead {
        control.end.open_way_back();
    }
    leadership.leave();
    control.broadcasts.iter().for_each(|broadcast| broadcast.cut());
    Leads::NoMore
}

/// Whether the process that has led is gone, and not only its connection.
async fn is_gone(leadership: &Leadership, leader: Option<i32>) -> bool {
    let begun = Instant::now();
    loop {
        if leadership.is_vacant().await {
            return true;
        }
        let at_most = match life(leader) {
            Life::Ends => DIES_WITHIN,
            Life::Unknown => MAY_DIE_WITHIN,
            Life::Goes => return false,
        };
        if begun.elapsed() > at_most {
            return false;
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// Takes over from the process that has replaced this one. When this returns, this process has the locks and the admin
/// socket.
fn come_back(control: &Control, socket: &Mutex<AdminSocket>) -> Result<(Loaded, UnixStream), String> {
    let path = successors_of(socket.lock().path());
    let deadline = Instant::now() + YIELDS_WITHIN;
    let in_time = || if Instant::now() < deadline { Ok(()) } else { Err(TakeOverError::Silent) };
    let joined = Leader::join(&path, Why::Back).map_err(|error| plain(&error))?;
    let mut leader = joined.ok_or("the uh-proxy that leads doesn't wait for a successor")?;
    let reported = leader.yields(&control.board, in_time).map_err(|error| plain(&error))?;
    fault::point("back_yielded");
    let writer = &control.state_writer;
    loop {
        match writer.acquire() {
            Err(StoreError::Taken { .. }) if Instant::now() < deadline => std::thread::sleep(RETRY_EVERY),
            result => break result.map_err(|error| plain(&error))?,
        }
    }
    fault::point("back_locked");
    let left = writer.load().map_err(|error| plain(&error)).and_then(|left| {
        let found = left.state.as_ref().map_or(0, |state| state.generation);
        if found != reported {
            return Err(plain(&TakeOverError::OtherGeneration { found, reported }));
        }
        socket.lock().take_back().map_err(|error| plain(&error))?;
        Ok(left)
    });
    let left = left.inspect_err(|_| {
        // The other one takes it back.
        let _ = writer.release();
    })?;
    Ok((left, leader.into_stream().map_err(|error| plain(&error))?))
}

/// Leads again, with the locks. The other process follows from now on.
async fn lead_again_after(leadership: &Leadership, left: &Loaded, stream: UnixStream) {
    let control = leadership.control();
    leadership.adopt(left);
    match tokio::net::UnixStream::from_std(stream) {
        Ok(stream) => drop(control.predecessor.attend(stream)),
        Err(error) => tracing::error!(error = %plain(&error), "lost the connection to the uh-proxy that led"),
    }
    // Not before: a stop that waits for this process to lead must find the other one, to tell it not to lead again.
    leadership.begin_again();
    // What it holds is known then.
    control.follow().await;
    leadership.lead_again();
    control.predecessor.order(FromSuccessor::Ready);
    tracing::info!(generation = control.board.snapshot().generation, "this uh-proxy leads again");
}

/// How following ended.
enum Followed {
    /// Nothing is left here, and the leader knows what happened to it.
    ToTheEnd,
    /// The leader is gone.
    UntilItWasGone,
    /// The leader has yielded to this process: what it has left, and the connection on which it follows.
    Back(Loaded, UnixStream),
}

/// Follows the leader until it is gone, or nothing is left to do.
async fn follow(
    leadership: &Leadership,
    from: &mut mpsc::Receiver<FromSuccessor>,
    to: &mut Sender,
) -> Followed {
    let mut coming_back = None;
    let followed = follow_until(leadership, from, to, &mut coming_back).await;
    // The leader may be gone because it has yielded, or in the middle of that.
    let Some(task) = coming_back else { return followed };
    returned(leadership, task.await).unwrap_or(followed)
}

/// An attempt to lead again.
type ComingBack = JoinHandle<Result<(Loaded, UnixStream), String>>;

/// What has become of it; `None`: it has failed.
fn returned(
    leadership: &Leadership,
    result: Result<Result<(Loaded, UnixStream), String>, JoinError>,
) -> Option<Followed> {
    match result.unwrap_or_else(|error| Err(plain(&error))) {
        Ok((left, stream)) => Some(Followed::Back(left, stream)),
        Err(reason) => {
            tracing::error!(reason, "cannot take the lead back");
            leadership.control().end.open_way_back();
            None
        }
    }
}

async fn follow_until(
    leadership: &Leadership,
    from: &mut mpsc::Receiver<FromSuccessor>,
    to: &mut Sender,
    coming_back: &mut Option<ComingBack>,
) -> Followed {
    let control = leadership.control();
    let mut sent = Counts::default();
    let mut tick = tokio::time::interval(COUNT_EVERY);
    let mut seq = 0;
    let following = control.end.following();
    loop {
        let mut is_last = false;
        tokio::select! {
            Some(result) = async { Some(coming_back.as_mut()?.await) }, if coming_back.is_some() => {
                *coming_back = None;
                if let Some(followed) = returned(leadership, result) {
                    return followed;
                }
            }
            message = from.recv() => match message {
                None => return Followed::UntilItWasGone,
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
                Some(FromSuccessor::Back) => {
                    if control.end.take_way_back() {
                        let (control, socket) = (Arc::clone(control), Arc::clone(leadership.socket()));
                        *coming_back = Some(tokio::task::spawn_blocking(move || come_back(&control, &socket)));
                    }
                }
                Some(FromSuccessor::Ready) => leadership.successor_ready(),
                Some(FromSuccessor::Leave) => leadership.leave(),
                Some(
                    FromSuccessor::Join { .. }
                    | FromSuccessor::Yield { .. }
                    | FromSuccessor::Leading
                    | FromSuccessor::Unknown,
                ) => {}
            },
            _ = tick.tick() => {}
            () = following.wait() => is_last = true,
        }
        let counts = counts(control, seq);
        if counts != sent {
            if to.send(&FromPredecessor::Counts(counts.clone())).await.is_err() {
                return Followed::UntilItWasGone;
            }
            sent = counts;
        }
        if is_last {
            return Followed::ToTheEnd;
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
                // After the others: what is cut counts before it is no longer held.
                cut: control.meters.backend(&name, backend.name()).cut_total(),
                service: name.clone(),
                backend: backend.name().clone(),
            }
        };
        service.backends.iter().map(of_backend).collect::<Vec<_>>()
    };
    let backends = live.services.iter().flat_map(of_service).collect();
    Counts { seq, leaves: control.end.is_closed(), backends }
}
