//! The main thread: hears of signals and of threads that end, tells the service manager that we are alive, and takes
//! everything down in order.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use signal_hook::consts::SIGHUP;
use signal_hook::iterator::Signals;
use tokio::sync::watch;

use super::RunError;
use crate::admin::control::Control;
use crate::front::attention::Timetable;
use crate::systemd;

/// After exchanges in flight have been cut, how long their connections may take to end.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// What the service manager grants beyond the time that stopping takes at most: for the last log lines.
const EXTRA_TIME: Duration = Duration::from_secs(5);

/// What the main thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// SIGTERM, SIGINT or SIGHUP.
    Signal(i32),
    /// A worker has ended.
    WorkerEnded,
    /// All workers have, and every log line is written.
    AllEnded,
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
        // With the last worker its log lanes are gone, and the writing thread ends when it has written everything.
        let _ = log.join();
        let _ = events.send(Event::AllEnded);
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

/// Waits for the order to stop, and carries it out.
pub(super) fn supervise(
    inbox: &Receiver<Event>,
    stop: &watch::Sender<bool>,
    control: &Control,
) -> Result<(), RunError> {
    let settings = |control: &Control| control.reloading.settings.first().map(|cell| cell.load());
    let signal = until_told_to_stop(inbox, control)?;
    let (timeout, idle_grace) = settings(control)
        .map_or_else(Default::default, |settings| (settings.shutdown_timeout, settings.shutdown_idle_grace));
    let active = || control.meters.sum(|worker| &worker.client_active);
    tracing::info!(signal, in_flight = active(), timeout_s = timeout.as_secs(), "stopping");
    systemd::stopping(timeout + CUT_GRACE + EXTRA_TIME);
    let timetable = Timetable::new(tokio::time::Instant::now(), idle_grace, timeout, control.tunnels());
    control.bells.iter().for_each(|bell| bell.stop(timetable));
    stop.send_replace(true);
    match until_ended(inbox, timeout) {
        Some(Event::Signal(_)) => tracing::warn!(cut = active(), "a second signal: ending at once"),
        Some(_) => tracing::info!("stopped; nothing was cut"),
        None => {
            let cut = active();
            control.bells.iter().for_each(|bell| bell.cut());
            let _ended = until_ended(inbox, CUT_GRACE);
            tracing::warn!(cut, "stopped at the shutdown timeout; exchanges were cut");
        }
    }
    Ok(())
}

/// Serves until a signal says to stop, and returns it.
fn until_told_to_stop(inbox: &Receiver<Event>, control: &Control) -> Result<i32, RunError> {
    let mut watchdog = Watchdog::new();
    loop {
        match watchdog.next_event(inbox, control) {
            Ok(Event::Signal(SIGHUP)) => control.reloading.wanted.notify_one(),
            Ok(Event::Signal(signal)) => return Ok(signal),
            Ok(Event::WorkerEnded | Event::AllEnded) | Err(_) => return Err(RunError::WorkerLost),
        }
    }
}

/// The end of the last worker, or a signal that demands it; `None`: neither came in time.
fn until_ended(inbox: &Receiver<Event>, timeout: Duration) -> Option<Event> {
    let deadline = Instant::now() + timeout;
    // Threads that end are as it should be now: that this one waits is sign of life enough.
    let interval = systemd::watchdog_interval();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match inbox.recv_timeout(interval.map_or(left, |interval| interval.min(left))) {
            Ok(Event::WorkerEnded | Event::Signal(SIGHUP)) => {}
            Ok(event) => return Some(event),
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => systemd::alive(),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Tells the service manager that we are alive, for as long as every thread that serves makes progress.
struct Watchdog {
    interval: Option<Duration>,
    next: Instant,
    heartbeats: Vec<u64>,
}

impl Watchdog {
    fn new() -> Self {
        Self { interval: systemd::watchdog_interval(), next: Instant::now(), heartbeats: Vec::new() }
    }

    /// The next event; tells of signs of life while it waits.
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
        let workers = (0..control.bells.len()).map(|worker| &control.meters.worker(worker).heartbeat);
        let now: Vec<u64> = workers
            .chain([&control.admin_heartbeat])
            .map(|heartbeat| heartbeat.load(Ordering::Relaxed))
            .collect();
        let stuck = now.iter().zip(&self.heartbeats).filter(|(now, before)| now == before).count();
        self.heartbeats = now;
        if stuck == 0 {
            systemd::alive();
        } else {
            tracing::error!(
                stuck,
                "threads make no progress: the service manager is told of no sign of life"
            );
        }
    }
}

/// Makes sure that the admin thread's heartbeat goes on as long as the thread does.
pub(super) async fn beat(control: Arc<Control>) {
    let mut every = tokio::time::interval(Duration::from_millis(100));
    loop {
        every.tick().await;
        control.admin_heartbeat.fetch_add(1, Ordering::Relaxed);
    }
}
