//! A process that another one has replaced: finishes its requests and ends, unless it is to lead again before that.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::RunError;
use super::signals::{self, SignalAction};
use super::supervise::{CUT_GRACE, Ended, Ending, Event, Stop, active, begin, end_workers, timeouts};
use crate::admin::control::Control;
use crate::front::worker::Gate;
use crate::systemd;

/// How often to look what is left.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How many stop signals only say that another process has replaced this one.
const PATIENCE: u32 = 1;

/// Waits until the workers have ended, and returns how; `None`: this process leads again. If nothing is left to do, it stays for as long as that is possible.
pub(super) fn wait(
    inbox: &Receiver<Event>,
    stop: &Stop,
    control: &Control,
    stay: Duration,
) -> Result<Option<Ending>, RunError> {
    let (timeout, idle_grace) = timeouts(control);
    let (in_flight, timeout_s) = (active(control), timeout.as_secs());
    tracing::info!(in_flight, timeout_s, "stopping: another uh-proxy has taken over");
    let begun = Instant::now();
    let (deadline, mut stays_until) = (begun + timeout, begun + stay);
    stop.gate.send_replace(Gate::Paused);
    begin(control, timeout, idle_grace);
    let mut patience = PATIENCE;
    let mut cut = None;
    let mut watchdog = systemd::watchdog_interval().map(|interval| (begun, interval));
    loop {
        match inbox.recv_timeout(LOOK_EVERY) {
            Ok(Event::LeadsAgain) => {
                control.broadcasts.iter().for_each(|broadcast| broadcast.resume());
                stop.gate.send_replace(Gate::Open);
                control.end.open_way_back();
                tracing::info!("accepting connections again");
                return Ok(None);
            }
            Ok(Event::Leave) => stays_until = begun,
            Ok(Event::Signal(signal)) => {
                if signals::carry_out(signal, control) == SignalAction::Stop {
                    stays_until = begun;
                    control.end.close_way_back();
                    match patience.checked_sub(1) {
                        Some(less) => patience = less,
                        None => {
                            let (ended, cut) = (Ended::Hurried, active(control));
                            return Ok(Some(Ending { ended, cut, patience }));
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
        let is_over = if is_empty { now >= stays_until } else { now >= deadline + CUT_GRACE };
        // Unless it is about to lead again.
        if is_over && control.end.close_way_back() {
            break;
        }
    }
    stop.gate.send_replace(Gate::Left);
    // What a worker has accepted at the last moment has its time, too.
    let left = deadline.saturating_duration_since(Instant::now()).max(CUT_GRACE);
    let ending = end_workers(inbox, control, left, patience);
    Ok(Some(match cut {
        Some(cut) if ending.ended == Ended::InTime => Ending { ended: Ended::Late, cut, ..ending },
        _ => ending,
    }))
}
