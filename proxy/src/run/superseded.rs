//! A process that another one has replaced: finishes its requests, stays for a while, and ends, unless it leads again before
//! that.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::RunError;
use super::signals::{self, SignalAction};
use super::supervise::{CUT_GRACE, Ended, Ending, Event, Stop, active, begin, end_workers, timeouts};
use crate::admin::control::Control;
use crate::front::worker::Gate;
use crate::handover::stay::{Stay, Successor};
use crate::systemd;

/// How often to look what is left.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How many stop signals only end the stay, and don't hurry the requests in flight.
const PATIENCE: u32 = 1;

/// What has become of it.
pub(super) enum Outcome {
    /// It leads again. `stop_asked`: somebody has stopped it meanwhile.
    LeadsAgain { stop_asked: Option<i32> },
    /// Its workers have ended.
    Ended(Ending),
}

/// Waits until this process leads again, or its workers have ended.
pub(super) fn wait(
    inbox: &Receiver<Event>,
    stop: &Stop,
    control: &Control,
    successor: Successor,
) -> Result<Outcome, RunError> {
    let (timeout, idle_grace) = timeouts(control);
    let (in_flight, timeout_s) = (active(control), timeout.as_secs());
    tracing::info!(in_flight, timeout_s, "stopping: another uh-proxy has taken over");
    let begun = Instant::now();
    let deadline = begun + timeout;
    let mut stay = Stay::begin(begun, successor);
    stop.gate.send_replace(Gate::Paused);
    begin(control, timeout, idle_grace);
    let mut patience = PATIENCE;
    let (mut stop_asked, mut cut) = (None, None);
    let mut watchdog = systemd::watchdog_interval().map(|interval| (begun, interval));
    loop {
        match inbox.recv_timeout(LOOK_EVERY) {
            Ok(Event::LeadsAgain) => {
                control.broadcasts.iter().for_each(|broadcast| broadcast.resume());
                stop.gate.send_replace(Gate::Open);
                control.end.open_way_back();
                tracing::info!("accepting connections again");
                return Ok(Outcome::LeadsAgain { stop_asked });
            }
            Ok(Event::SuccessorReady) => stay.successor_is_ready(Instant::now()),
            Ok(Event::Leave) => stay.dismiss(),
            Ok(Event::Signal(signal)) => {
                if signals::carry_out(signal, control) == SignalAction::Stop {
                    stop_asked = Some(signal);
                    stay.dismiss();
                    control.end.close_way_back();
                    match patience.checked_sub(1) {
                        Some(less) => patience = less,
                        None => {
                            let (ended, cut) = (Ended::Hurried, active(control));
                            return Ok(Outcome::Ended(Ending { ended, cut, patience }));
                        }
                    }
                }
            }
            Ok(Event::Superseded(_) | Event::Reported) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Event::WorkerEnded | Event::WorkersEnded | Event::LogEnded)
            | Err(RecvTimeoutError::Disconnected) => return Err(RunError::WorkerLost),
        }
        let now = Instant::now();
        if watchdog.is_some_and(|(next, _)| now >= next) {
            systemd::alive();
            watchdog = watchdog.map(|(_, interval)| (now + interval, interval));
        }
        let is_empty = control.meters.sum(|worker| &worker.client_open) == 0;
        if !is_empty && now >= deadline && cut.is_none() {
            cut = Some(active(control));
            control.broadcasts.iter().for_each(|broadcast| broadcast.cut());
        }
        let is_over = stay.is_over(now) && (is_empty || now >= deadline + CUT_GRACE);
        // Unless it is about to lead again.
        if is_over && control.end.close_way_back() {
            break;
        }
    }
    stop.gate.send_replace(Gate::Left);
    // What a worker has accepted at the last moment has its time, too.
    let left = deadline.saturating_duration_since(Instant::now()).max(CUT_GRACE);
    let ending = end_workers(inbox, control, left, patience);
    Ok(Outcome::Ended(match cut {
        Some(cut) if ending.ended == Ended::InTime => Ending { ended: Ended::Late, cut, ..ending },
        _ => ending,
    }))
}

/// A container that ends by itself is started again by its restart policy, and would take over from its own successor. So
/// a process 1 that was replaced stays until somebody stops it. It doesn't lead again meanwhile: the restart policy starts
/// its successor again.
pub(super) fn wait_for_removal(inbox: &Receiver<Event>, control: &Control) {
    if std::process::id() != 1 {
        return;
    }
    tracing::info!("replaced: this container can be stopped and removed");
    while let Ok(event) = inbox.recv() {
        if let Event::Signal(signal) = event
            && signals::carry_out(signal, control) == SignalAction::Stop
        {
            return;
        }
    }
}
