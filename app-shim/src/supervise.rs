//! The order of events, from the app's start to its end.
//!
//! ```text
//! Starting ──app accepts──▶ Serving ──SIGTERM──▶ Draining ──all drained, deadline, or a second SIGTERM──▶ Stopping
//!     └─────────────────────SIGTERM──────────────────▲                   app told, killed at its own deadline ──▶ end
//! ```
//! An app that ends by itself ends everything, whatever the phase.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::drain::{Drain, Outcome};
use crate::exit::Exit;
use crate::forward::Forwarder;
use crate::forward::upstream;
use crate::log::Log;
use crate::metrics::Meters;
use crate::process::{App, Ended};
use crate::settings::{AppAddress, Settings};
use crate::signals::Received;
use crate::sockets;

/// How often the app is asked whether it accepts, while it starts.
const START_POLL: Duration = Duration::from_millis(50);
/// After this, an app that does not accept yet is logged, with what the system says.
const START_LOGGED_AFTER: Duration = Duration::from_secs(5);
/// How often it is looked whether the last process of the app's group is gone. Most ends are told by SIGCHLD.
const GONE_POLL: Duration = Duration::from_millis(20);
/// How often the kernel's table is read. With thousands of connections that takes a millisecond.
const SOCKETS_POLL: Duration = Duration::from_millis(200);
/// How long answers may take to be written after the app has ended by itself: it has written its part.
const SETTLE: Duration = Duration::from_secs(1);
/// How long an app whose connections have broken may take to turn out dead.
const DEATH_WAIT: Duration = Duration::from_millis(500);
/// How long the kernel may take to end what was killed.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// What requests and health checks need to know of the order of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The app does not accept connections yet.
    Starting,
    /// It has accepted one.
    Serving,
    /// We are leaving.
    Draining,
}

/// Sees the app through.
pub(crate) struct Supervisor {
    pub(crate) settings: Settings,
    pub(crate) log: Log,
    pub(crate) signals: mpsc::Receiver<Received>,
    pub(crate) app: App,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) drain: Arc<Drain>,
    /// Ends when the port is closed.
    pub(crate) serving: Option<JoinHandle<()>>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) meters: Arc<Meters>,
}

enum Event {
    Stop(&'static str),
    AppEnded(Ended),
}

impl Supervisor {
    /// Runs to the end.
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

    /// Starts and serves until there is an order to stop.
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
                    self.phase.send_replace(Phase::Serving);
                    let (app, after) = (&self.settings.app, started_at.elapsed().as_secs_f64());
                    self.log.line(format_args!("App accepts connections on {app} after {after:.1} s"));
                }
                event = next_event(&mut self.signals, &mut self.app) => match event {
                    Event::Stop(signal) => return Ok(signal),
                    Event::AppEnded(ended) => return Err(self.app_ended(ended, None).await),
                }
            }
        }
    }

    async fn start_failed(&mut self) -> Exit {
        let (app, timeout) = (&self.settings.app, self.settings.start_timeout);
        self.log
            .line(format_args!("App does not accept connections on {app} after {timeout:?}: stopping it"));
        self.end_app().await;
        Exit::Failed
    }

    /// Lets what is in flight finish.
    async fn drained(&mut self) -> Result<Outcome, Exit> {
        self.phase.send_replace(Phase::Draining);
        self.drain.start(self.settings.drain_timeout);
        if let Some(serving) = self.serving.take() {
            // It can't fail but by a panic, and then the port is closed too.
            let _ = serving.await;
            self.log.line("Stopping new connections");
        }
        let in_flight = self.in_flight();
        self.log.line(format_args!("Draining {in_flight} active connections"));
        let broken_before = self.meters.broken();
        tokio::select! {
            outcome = finish(&self.drain, self.settings.watched_port()) => {
                // Where the app dies, its connections break before its end is told.
                if self.meters.broken() > broken_before
                    && let Some(ended) = self.ends_within(DEATH_WAIT).await
                {
                    return Err(self.app_ended(ended, Some(broken_before)).await);
                }
                Ok(outcome)
            }
            event = next_event(&mut self.signals, &mut self.app) => match event {
                Event::Stop(signal) => {
                    self.log.line(format_args!("Received {signal} again: not waiting any longer"));
                    Ok(Outcome::of(self.in_flight()))
                }
                Event::AppEnded(ended) => Err(self.app_ended(ended, Some(broken_before)).await),
            }
        }
    }

    async fn ends_within(&mut self, timeout: Duration) -> Option<Ended> {
        match tokio::time::timeout(timeout, next_event(&mut self.signals, &mut self.app)).await {
            Ok(Event::AppEnded(ended)) => Some(ended),
            Ok(Event::Stop(_)) | Err(_) => None,
        }
    }

    fn in_flight(&self) -> usize {
        match self.settings.watched_port() {
            None => self.drain.in_flight(),
            Some(port) => sockets::established(port).unwrap_or_else(|error| {
                self.log.line(format_args!("Cannot tell the app's connections: {error}"));
                0
            }),
        }
    }

    async fn stop_app(&mut self, outcome: Outcome) -> Exit {
        match outcome {
            Outcome::Clean => self.log.line("All connections drained"),
            Outcome::Cut(count) => self.log.line(format_args!("Cutting {count} active connections")),
        }
        let killed = self.end_app().await;
        let exit = match (outcome, killed) {
            (Outcome::Cut(_), _) => Exit::Cut,
            (Outcome::Clean, true) => Exit::AppKilled,
            (Outcome::Clean, false) => Exit::Drained,
        };
        match exit {
            Exit::Drained => self.log.line("Server exiting gracefully"),
            exit => self.log.line(format_args!("Server exiting with code {}", exit.code())),
        }
        exit
    }

    /// Tells the app to end, and kills it if it does not. Says whether it had to be killed.
    async fn end_app(&mut self) -> bool {
        self.forwarder.close();
        self.app.signal(Signal::TERM);
        // A stopped process gets its signals only when it goes on.
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

    /// Waits until all of the app's processes are gone. Another order to stop ends the wait.
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
                    Some(Received::Stop(_)) => return false,
                    Some(Received::Forward(signal)) => self.app.signal(signal),
                    Some(Received::Child) | None => {}
                }
            }
        }
    }

    /// The app has ended by itself: what it has answered is still delivered. In a drain, what it has not answered is
    /// counted, from `broken_before` on.
    async fn app_ended(&mut self, ended: Ended, broken_before: Option<usize>) -> Exit {
        match ended {
            Ended::Exited(code) => self.log.line(format_args!("App ended by itself with exit code {code}")),
            Ended::Killed(signal) => {
                self.log.line(format_args!("App was ended by signal {signal} (exit code {})", ended.code()));
            }
        }
        self.phase.send_replace(Phase::Draining);
        self.drain.start(SETTLE);
        // It gives up at the deadline, which in a drain may be far.
        let _ = tokio::time::timeout(SETTLE, self.drain.finish()).await;
        let cut = broken_before.map_or(0, |before| self.drain.in_flight() + self.meters.broken() - before);
        if cut > 0 {
            self.log.line(format_args!("{cut} active connections were cut"));
        }
        match ended {
            Ended::Exited(0) if cut > 0 => Exit::Cut,
            ended => Exit::AppEnded(ended),
        }
    }
}

/// Waits until nothing is in flight, or the drain's deadline. Connections to a watched port are all that is known of
/// an app that we don't sit in front of.
async fn finish(drain: &Drain, watched_port: Option<u16>) -> Outcome {
    let Some(port) = watched_port else { return drain.finish().await };
    let mut work = drain.begin_work();
    let deadline = work.drain_started().await;
    loop {
        // Without the table there is nothing to wait for.
        let outcome = Outcome::of(sockets::established(port).unwrap_or_default());
        if outcome == Outcome::Clean || Instant::now() >= deadline {
            return outcome;
        }
        sleep_until(deadline.min(Instant::now() + SOCKETS_POLL)).await;
    }
}

/// The next event that changes the order of things. Signals for the app are forwarded meanwhile.
async fn next_event(signals: &mut mpsc::Receiver<Received>, app: &mut App) -> Event {
    loop {
        match signals.recv().await {
            Some(Received::Stop(name)) => return Event::Stop(name),
            Some(Received::Forward(signal)) => app.signal(signal),
            Some(Received::Child) => {
                app.reap();
                if let Some(ended) = app.ended() {
                    return Event::AppEnded(ended);
                }
            }
            // The signal thread has died, which it can't: we could not be told to stop any more.
            None => return Event::Stop("nothing"),
        }
    }
}

/// Waits until the app accepts connections. Says whether it did in time; logs once that it takes long, and why.
async fn accepts(app: AppAddress, timeout: Duration, log: Log) -> bool {
    let begun = Instant::now();
    let trying = async {
        let mut logged = false;
        while let Err(error) = upstream::connect(&app).await {
            if !logged && begun.elapsed() >= START_LOGGED_AFTER {
                logged = true;
                log.line(format_args!(
                    "App does not accept connections on {app} yet: {error}; waiting for up to {timeout:?}. It must \
                     listen there: it gets PORT and HOSTNAME, or say --app"
                ));
            }
            tokio::time::sleep(START_POLL).await;
        }
    };
    tokio::time::timeout(timeout, trying).await.is_ok()
}
