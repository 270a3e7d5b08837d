//! The main thread: handles signals and the end of threads, pings the systemd watchdog, and shuts everything down in
//! order.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use signal_hook::iterator::Signals;
use tokio::sync::watch;

use super::RunError;
use super::signals::{self, SignalAction};
use super::superseded::{self, Outcome};
use crate::admin::control::Control;
use crate::front::broadcast::StopDeadlines;
use crate::front::worker::Gate;
use crate::handover::stay::Successor;
use crate::handover::wire::FromSuccessor;
use crate::observe::access_log::Pending;
use crate::systemd;

/// After in-flight exchanges were cut, how long their connections may take to close.
pub(super) const CUT_GRACE: Duration = Duration::from_secs(1);

/// After the last worker has ended, how long the access log may take to write the remaining lines. A disk takes
/// milliseconds; a pipe without a reader never finishes.
const LOG_GRACE: Duration = Duration::from_secs(1);

/// How long the last replies on the admin socket may take.
const REPLY_GRACE: Duration = Duration::from_secs(1);

/// How often to look for their end.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long the process that has taken over may take to learn what happened to the last requests. It takes milliseconds.
const REPORT_GRACE: Duration = Duration::from_secs(1);

/// How long the process that this one has replaced may take to learn that it isn't to lead again. It takes milliseconds.
const DISMISSAL_GRACE: Duration = Duration::from_secs(3);

/// Extra time requested from systemd beyond the longest shutdown.
const EXTRA_TIME: Duration = Duration::from_secs(4);

/// What the main thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// One of [`signals::HANDLED`].
    Signal(i32),
    /// Another process leads and accepts: this one stays for a while, and ends with its last connection.
    Superseded(Successor),
    /// That one is ready.
    SuccessorReady,
    /// This process isn't to lead again.
    Leave,
    /// This process leads again.
    LeadsAgain,
    /// That one knows what happened to the last requests.
    Reported,
    /// A worker has ended.
    WorkerEnded,
    /// All workers have.
    WorkersEnded,
    /// Every log line has been written.
    LogEnded,
}

pub(super) fn start_joiner(
    workers: Vec<JoinHandle<()>>,
    log: JoinHandle<()>,
    events: Sender<Event>,
) -> io::Result<()> {
    let watch = |worker: JoinHandle<()>| {
        let events = events.clone();
        thread::Builder::new().name("joiner".to_owned()).spawn(move || {
            let _ = worker.join();
            let _ = events.send(Event::WorkerEnded);
        })
    };
    let watchers = workers.into_iter().map(watch).collect::<io::Result<Vec<_>>>()?;
    thread::Builder::new().name("joiner".to_owned()).spawn(move || {
        for watcher in watchers {
            let _ = watcher.join();
        }
        let _ = events.send(Event::WorkersEnded);
        // The log lanes are gone with the last worker, and the writer thread ends when it has written everything.
        let _ = log.join();
        let _ = events.send(Event::LogEnded);
    })?;
    Ok(())
}

pub(super) fn start_signals(mut signals: Signals, events: Sender<Event>) -> io::Result<()> {
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// What tells the other threads to stop.
pub(super) struct Stop {
    /// Whether workers accept.
    pub(super) gate: watch::Sender<Gate>,
    /// Whether the process stops for good.
    pub(super) stop: watch::Sender<bool>,
}

/// Waits for a reason to stop, and shuts down. A process that another one has replaced may lead again meanwhile.
pub(super) fn supervise(
    inbox: &Receiver<Event>,
    stop: &Stop,
    control: &Control,
    log: &Pending,
) -> Result<(), RunError> {
    let (lost_before, is_superseded);
    let mut pending_stop = None;
    let Ending { ended, cut, mut patience } = loop {
        let why = match pending_stop.take() {
            Some(signal) => Why::Signal(signal),
            None => until_stop(inbox, control)?,
        };
        match why {
            Why::Signal(signal) => {
                (lost_before, is_superseded) = (lines_lost(control), false);
                let (timeout, idle_grace) = timeouts(control);
                let (in_flight, timeout_s) = (active(control), timeout.as_secs());
                tracing::info!(signal, in_flight, timeout_s, "stopping");
                systemd::stopping(timeout + CUT_GRACE + LOG_GRACE + EXTRA_TIME);
                dismiss_predecessor(control);
                control.upgrades.stop();
                begin(control, timeout, idle_grace);
                stop.gate.send_replace(Gate::Closed);
                stop.stop.send_replace(true);
                break end_workers(inbox, control, timeout, 0);
            }
            Why::Superseded(successor) => {
                let lost = lines_lost(control);
                match superseded::wait(inbox, stop, control, successor)? {
                    Outcome::LeadsAgain { stop_asked } => pending_stop = stop_asked,
                    Outcome::Ended(ending) => {
                        (lost_before, is_superseded) = (lost, true);
                        stop.stop.send_replace(true);
                        break ending;
                    }
                }
            }
        }
    };
    if ended != Ended::Hurried {
        let _ended = until_ended(inbox, LOG_GRACE, control, Event::LogEnded, &mut patience);
        if control.end.report() {
            until_replied(control);
            let _ended = until_ended(inbox, REPORT_GRACE, control, Event::Reported, &mut patience);
        }
    }
    let lines = lines_lost(control).saturating_sub(lost_before).saturating_add(log.lines());
    if lines > 0 {
        tracing::warn!(lines, "cannot write the last lines of the access log; at most this many are lost");
    }
    match (ended, cut) {
        (Ended::Hurried, cut) => tracing::warn!(cut, "second signal received; exiting now"),
        (Ended::InTime, _) => tracing::info!("stopped; nothing was cut"),
        (Ended::Late, 0) => {
            tracing::warn!(cut, "stopped at the shutdown timeout; idle connections were closed");
        }
        (Ended::Late, cut) => {
            tracing::warn!(cut, "stopped at the shutdown timeout; in-flight requests were cut");
        }
    }
    if is_superseded && patience > 0 {
        superseded::wait_for_removal(inbox, control);
    }
    Ok(())
}

/// How the workers have ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    pub(super) ended: Ended,
    /// What was in flight then.
    pub(super) cut: u64,
    /// How many more stop signals don't hurry the rest.
    pub(super) patience: u32,
}

/// Waits for the end of the workers, and cuts what is in flight after this time.
pub(super) fn end_workers(
    inbox: &Receiver<Event>,
    control: &Control,
    timeout: Duration,
    mut patience: u32,
) -> Ending {
    let ended = until_ended(inbox, timeout, control, Event::WorkersEnded, &mut patience);
    let cut = active(control);
    if ended == Ended::Late {
        control.broadcasts.iter().for_each(|broadcast| broadcast.cut());
        let _ended = until_ended(inbox, CUT_GRACE, control, Event::WorkersEnded, &mut patience);
    }
    Ending { ended, cut, patience }
}

/// How long the requests in flight may take, and how long idle connections stay open.
pub(super) fn timeouts(control: &Control) -> (Duration, Duration) {
    let settings = control.reloading.settings.first().map(|cell| cell.load());
    settings
        .map_or_else(Default::default, |settings| (settings.shutdown_timeout, settings.shutdown_idle_grace))
}

/// Requests and tunnels in flight.
pub(super) fn active(control: &Control) -> u64 {
    control.meters.sum(|worker| &worker.client_active)
}

/// Tells all connections that the process stops.
pub(super) fn begin(control: &Control, timeout: Duration, idle_grace: Duration) {
    let timetable = StopDeadlines::new(tokio::time::Instant::now(), idle_grace, timeout, control.tunnels());
    control.broadcasts.iter().for_each(|broadcast| broadcast.stop(timetable));
}

/// Makes sure that the process that this one has replaced doesn't lead again because this one ends.
fn dismiss_predecessor(control: &Control) {
    control.predecessor.order(FromSuccessor::Leave);
    let deadline = Instant::now() + DISMISSAL_GRACE;
    while !control.predecessor.leaves() && Instant::now() < deadline {
        thread::sleep(LOOK_EVERY);
    }
}

/// Waits until callers of the admin API have their replies, such as the one who wanted another process to take over.
fn until_replied(control: &Control) {
    let deadline = Instant::now() + REPLY_GRACE;
    while control.end.has_calls() && Instant::now() < deadline {
        thread::sleep(LOOK_EVERY);
    }
}

/// Lines of the access log that were lost since the start.
fn lines_lost(control: &Control) -> u64 {
    control.meters.sum(|worker| &worker.log_lines_lost)
}

/// Why the process stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// A stop signal.
    Signal(i32),
    /// Another process has taken over.
    Superseded(Successor),
}

/// Serves until there is a reason to stop, and returns it.
fn until_stop(inbox: &Receiver<Event>, control: &Control) -> Result<Why, RunError> {
    let mut watchdog = Watchdog::new();
    loop {
        match watchdog.next_event(inbox, control) {
            Ok(Event::Signal(signal)) => {
                if signals::carry_out(signal, control) == SignalAction::Stop {
                    return Ok(Why::Signal(signal));
                }
            }
            Ok(Event::Superseded(successor)) => return Ok(Why::Superseded(successor)),
            Ok(Event::SuccessorReady | Event::Reported | Event::Leave | Event::LeadsAgain) => {}
            Ok(Event::WorkerEnded | Event::WorkersEnded | Event::LogEnded) | Err(_) => {
                return Err(RunError::WorkerLost);
            }
        }
    }
}

/// The result of waiting for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It ended in time.
    InTime,
    /// It didn't.
    Late,
    /// A second signal demands an immediate exit.
    Hurried,
}

/// Waits for an event, at most this long. `patience`: how many more stop signals don't hurry it.
fn until_ended(
    inbox: &Receiver<Event>,
    timeout: Duration,
    control: &Control,
    wanted: Event,
    patience: &mut u32,
) -> Ended {
    let deadline = Instant::now() + timeout;
    // Threads are expected to end now, so this thread's own progress is enough for the watchdog.
    let interval = systemd::watchdog_interval();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match inbox.recv_timeout(interval.map_or(left, |interval| interval.min(left))) {
            Ok(event) if event == wanted => return Ended::InTime,
            Ok(Event::Signal(signal)) => {
                if signals::carry_out(signal, control) == SignalAction::Stop {
                    match patience.checked_sub(1) {
                        Some(less) => *patience = less,
                        None => return Ended::Hurried,
                    }
                }
            }
            Ok(
                Event::Superseded(_)
                | Event::SuccessorReady
                | Event::Leave
                | Event::LeadsAgain
                | Event::Reported
                | Event::WorkerEnded
                | Event::WorkersEnded
                | Event::LogEnded,
            ) => {}
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => systemd::alive(),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ended::Late,
        }
    }
}

/// Pings the systemd watchdog as long as every serving thread makes progress.
struct Watchdog {
    interval: Option<Duration>,
    next: Instant,
    heartbeats: Vec<u64>,
}

impl Watchdog {
    fn new() -> Self {
        Self { interval: systemd::watchdog_interval(), next: Instant::now(), heartbeats: Vec::new() }
    }

    /// The next event; pings the watchdog while waiting.
    fn next_event(&mut self, inbox: &Receiver<Event>, control: &Control) -> Result<Event, RecvTimeoutError> {
        let Some(interval) = self.interval else { return inbox.recv().map_err(RecvTimeoutError::from) };
        loop {
            match inbox.recv_timeout(self.next.saturating_duration_since(Instant::now())) {
                Err(RecvTimeoutError::Timeout) => {}
                other => return other,
            }
            self.next = Instant::now() + interval;
            self.look(control);
        }
    }

    fn look(&mut self, control: &Control) {
        let workers = (0..control.broadcasts.len()).map(|worker| &control.meters.worker(worker).heartbeat);
        let now: Vec<u64> = workers
            .chain([&control.admin_heartbeat])
            .map(|heartbeat| heartbeat.load(Ordering::Relaxed))
            .collect();
        let stuck = now.iter().zip(&self.heartbeats).filter(|(now, before)| now == before).count();
        self.heartbeats = now;
        if stuck == 0 {
            systemd::alive();
        } else {
            tracing::error!(stuck, "threads stalled; withholding the systemd watchdog ping");
        }
    }
}

/// Increments the admin thread's heartbeat as long as the thread runs.
pub(super) async fn beat(control: Arc<Control>) {
    let mut every = tokio::time::interval(Duration::from_millis(100));
    loop {
        every.tick().await;
        control.admin_heartbeat.fetch_add(1, Ordering::Relaxed);
    }
}
