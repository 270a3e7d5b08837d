//! The order of events, from the app's start to its end.
//!
//! ```text
//! Starting ──app accepts──▶ Serving ──SIGTERM──▶ Draining ──all drained, deadline, or a second SIGTERM──▶ Stopping
//!     └─────────────────────SIGTERM──────────────────▲                   SIGTERM, then SIGKILL to the app ──▶ end
//! ```
//! If the app exits on its own, the shim exits too, in any phase.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::app_link;
use crate::drain::{Drain, DrainOutcome};
use crate::exit::{AppExit, Exit};
use crate::forward::Forwarder;
use crate::log::Log;
use crate::metrics::ShimMetrics;
use crate::phase::AppPhase;
use crate::process::App;
use crate::settings::{AppAddress, ShimSettings};
use crate::signals::ReceivedSignal;
use crate::sockets;

/// How often a connection to the app is tried while it starts.
const START_POLL: Duration = Duration::from_millis(50);
/// After this, an app that doesn't accept connections yet is logged, with the system's error.
const START_LOGGED_AFTER: Duration = Duration::from_secs(5);
/// How often to check whether the last process of the app's group has exited. SIGCHLD reports most exits.
const GONE_POLL: Duration = Duration::from_millis(20);
/// How often the kernel's table is read. With thousands of connections, that takes a millisecond.
const SOCKETS_POLL: Duration = Duration::from_millis(200);
/// How long responses may take to reach clients after the app exited on its own.
const SETTLE: Duration = Duration::from_secs(1);
/// How long to wait for the app's exit after its connections broke.
const DEATH_WAIT: Duration = Duration::from_millis(500);
/// How long the kernel may take to end killed processes.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// Takes the app from its start to its end.
pub(crate) struct Lifecycle {
    pub(crate) settings: ShimSettings,
    pub(crate) log: Log,
    pub(crate) signals: mpsc::Receiver<ReceivedSignal>,
    pub(crate) app: App,
    pub(crate) phase: watch::Sender<AppPhase>,
    pub(crate) drain: Arc<Drain>,
    /// Completes when the port is closed.
    pub(crate) serving: Option<JoinHandle<()>>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) meters: Arc<ShimMetrics>,
}

enum StopReason {
    Signal(&'static str),
    AppExited(AppExit),
}

impl Lifecycle {
    /// Runs until the app has exited.
    pub(crate) async fn run(mut self) -> Exit {
        self.log.line(format_args!("Started {} (pid {})", self.command(), self.app.pid().as_raw_nonzero()));
        let signal = match self.until_stop().await {
            Ok(signal) => signal,
            Err(exit) => return exit,
        };
        self.log.line(format_args!("Received {signal}"));
        match self.drained().await {
            Ok(outcome) => self.stop_app(outcome).await,
            Err(exit) => exit,
        }
    }

    fn command(&self) -> String {
        let words: Vec<_> = self.settings.command.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    /// Starts and serves until a signal to stop.
    async fn until_stop(&mut self) -> Result<&'static str, Exit> {
        let (app, timeout) = (self.settings.app.clone(), self.settings.start_timeout);
        let mut starting = std::pin::pin!(accepts(app, timeout, self.log.clone()));
        let mut started = false;
        let started_at = Instant::now();
        loop {
            tokio::select! {
                accepts = starting.as_mut(), if !started => {
                    started = true;
                    if !accepts {
                        return Err(self.start_failed().await);
                    }
                    self.phase.send_replace(AppPhase::Serving);
                    let (app, after) = (&self.settings.app, started_at.elapsed().as_secs_f64());
                    self.log.line(format_args!("App accepts connections on {app} after {after:.1} s"));
                }
                event = next_event(&mut self.signals, &mut self.app) => match event {
                    StopReason::Signal(signal) => return Ok(signal),
                    StopReason::AppExited(ended) => return Err(self.app_ended(ended, None).await),
                }
            }
        }
    }

    async fn start_failed(&mut self) -> Exit {
        let (app, timeout) = (&self.settings.app, self.settings.start_timeout);
        self.log.line(format_args!("App doesn't accept connections on {app} after {timeout:?}: stopping it"));
        self.end_app().await;
        Exit::Failed
    }

    /// Lets requests in flight finish.
    async fn drained(&mut self) -> Result<DrainOutcome, Exit> {
        self.phase.send_replace(AppPhase::Draining);
        self.drain.start(self.settings.drain_timeout);
        if let Some(serving) = self.serving.take() {
            // It can only fail by a panic, and then the port is closed too.
            let _ = serving.await;
            self.log.line("Stopping new connections");
        }
        let in_flight = self.in_flight();
        self.log.line(format_args!("Draining {in_flight} active connections"));
        let broken_before = self.meters.broken();
        tokio::select! {
            outcome = finish(&self.drain, self.settings.watched_port()) => {
                // If the app dies, its connections break before SIGCHLD arrives.
                if self.meters.broken() > broken_before
                    && let Some(ended) = self.ends_within(DEATH_WAIT).await
                {
                    return Err(self.app_ended(ended, Some(broken_before)).await);
                }
                Ok(outcome)
            }
            event = next_event(&mut self.signals, &mut self.app) => match event {
                StopReason::Signal(signal) => {
                    self.log.line(format_args!("Received {signal} again: not waiting any longer"));
                    Ok(DrainOutcome::of(self.in_flight()))
                }
                StopReason::AppExited(ended) => Err(self.app_ended(ended, Some(broken_before)).await),
            }
        }
    }

    async fn ends_within(&mut self, timeout: Duration) -> Option<AppExit> {
        match tokio::time::timeout(timeout, next_event(&mut self.signals, &mut self.app)).await {
            Ok(StopReason::AppExited(ended)) => Some(ended),
            Ok(StopReason::Signal(_)) | Err(_) => None,
        }
    }

    fn in_flight(&self) -> usize {
        match self.settings.watched_port() {
            None => self.drain.in_flight(),
            Some(port) => sockets::established(port).unwrap_or_else(|error| {
                self.log.line(format_args!("Can't count the app's connections: {error}"));
                0
            }),
        }
    }

    async fn stop_app(&mut self, outcome: DrainOutcome) -> Exit {
        match outcome {
            DrainOutcome::Clean => self.log.line("All connections drained"),
            DrainOutcome::Cut(count) => self.log.line(format_args!("Cutting {count} active connections")),
        }
        let killed = self.end_app().await;
        let exit = match (outcome, killed) {
            (DrainOutcome::Cut(_), _) => Exit::Cut,
            (DrainOutcome::Clean, true) => Exit::AppKilled,
            (DrainOutcome::Clean, false) => Exit::Drained,
        };
        match exit {
            Exit::Drained => self.log.line("Server exiting gracefully"),
            exit => self.log.line(format_args!("Server exiting with code {}", exit.code())),
        }
        exit
    }

    /// Sends SIGTERM to the app, and kills it if it doesn't exit. Returns whether it had to be killed.
    async fn end_app(&mut self) -> bool {
        self.forwarder.close();
        self.app.signal(Signal::TERM);
        // A stopped process receives its signals only once it continues.
        self.app.signal(Signal::CONT);
        if self.gone_within(self.settings.kill_after).await {
            return false;
        }
        let after = self.settings.kill_after;
        self.log
            .line(format_args!("App is still running {after:?} after SIGTERM: killing it (exit code 137)"));
        self.app.signal(Signal::KILL);
        self.gone_within(KILL_WAIT).await;
        true
    }

    /// Waits until all of the app's processes have exited. Another signal to stop ends the wait.
    async fn gone_within(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            self.app.reap();
            if self.app.is_gone() {
                return true;
            }
            let wait = sleep_until(deadline.min(Instant::now() + GONE_POLL));
            tokio::select! {
                () = wait => if Instant::now() >= deadline { return false },
                received = self.signals.recv() => match received {
                    Some(ReceivedSignal::Stop(_)) => return false,
                    Some(ReceivedSignal::Forward(signal)) => self.app.signal(signal),
                    Some(ReceivedSignal::Child) | None => {}
                }
            }
        }
    }

    /// The app exited on its own: its responses are still delivered. In a drain, requests without a complete response
    /// are counted, from `broken_before` on.
    async fn app_ended(&mut self, ended: AppExit, broken_before: Option<usize>) -> Exit {
        match ended {
            AppExit::Exited(code) => self.log.line(format_args!("App exited with code {code}")),
            AppExit::Killed(signal) => {
                self.log.line(format_args!("App was killed by signal {signal} (exit code {})", ended.code()));
            }
        }
        self.phase.send_replace(AppPhase::Draining);
        self.drain.start(SETTLE);
        // `finish` waits until the deadline, which may be far off in a drain.
        let _ = tokio::time::timeout(SETTLE, self.drain.finish()).await;
        let cut = broken_before.map_or(0, |before| self.drain.in_flight() + self.meters.broken() - before);
        if cut > 0 {
            self.log.line(format_args!("{cut} active connections were cut"));
        }
        match ended {
            AppExit::Exited(0) if cut > 0 => Exit::Cut,
            ended => Exit::AppEnded(ended),
        }
    }
}

/// Waits until nothing is in flight, or until the drain's deadline. With `--supervise-only`, connections to the app's
/// port are counted instead of requests.
async fn finish(drain: &Drain, watched_port: Option<u16>) -> DrainOutcome {
    let Some(port) = watched_port else { return drain.finish().await };
    let mut work = drain.begin_work();
    let deadline = work.drain_started().await;
    loop {
        // If the table can't be read, there is nothing to wait for.
        let outcome = DrainOutcome::of(sockets::established(port).unwrap_or_default());
        if outcome == DrainOutcome::Clean || Instant::now() >= deadline {
            return outcome;
        }
        sleep_until(deadline.min(Instant::now() + SOCKETS_POLL)).await;
    }
}

/// The next signal to stop, or the app's exit. Other signals are forwarded meanwhile.
async fn next_event(signals: &mut mpsc::Receiver<ReceivedSignal>, app: &mut App) -> StopReason {
    loop {
        match signals.recv().await {
            Some(ReceivedSignal::Stop(name)) => return StopReason::Signal(name),
            Some(ReceivedSignal::Forward(signal)) => app.signal(signal),
            Some(ReceivedSignal::Child) => {
                app.reap();
                if let Some(ended) = app.ended() {
                    return StopReason::AppExited(ended);
                }
            }
            // The signal thread has ended, which can't happen: without it no signal could arrive.
            None => return StopReason::Signal("nothing"),
        }
    }
}

/// Waits until the app accepts connections. Returns whether it did in time; logs once if it takes long, with the
/// reason.
async fn accepts(app: AppAddress, timeout: Duration, log: Log) -> bool {
    let begun = Instant::now();
    let trying = async {
        let mut logged = false;
        while let Err(error) = app_link::connect(&app).await {
            if !logged && begun.elapsed() >= START_LOGGED_AFTER {
                logged = true;
                log.line(format_args!(
                    "App doesn't accept connections on {app} yet: {error}; waiting up to {timeout:?}. It must listen on the PORT and HOSTNAME in its environment; set --app if it listens elsewhere"
                ));
            }
            tokio::time::sleep(START_POLL).await;
        }
    };
    tokio::time::timeout(timeout, trying).await.is_ok()
}
