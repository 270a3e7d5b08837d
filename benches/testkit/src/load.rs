//! Open-loop load: every request has its time fixed in advance, and every answer is recorded.
//!
//! A slow server can't slow the schedule down: a request that had to wait for the one before it counts its
//! latency from the time at which it was due (no coordinated omission). The load runs on a thread of its own,
//! so that whoever calls the admin API is not held up by it.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use uh_protocol::BackendName;

use crate::http::{Connection, Failure, Head, Idle};

/// Clients start a moment after they are made, so that the first requests are on time too.
const START_DELAY: Duration = Duration::from_millis(20);

/// How much longer than one request's deadline the end of the load may take.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// Users have the addresses from this one on.
const FIRST_USER: u32 = u32::from_be_bytes([10, 0, 0, 0]);

/// Whether a client uses its connection again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// One connection for as long as the server keeps it.
    KeepAlive,
    /// A new connection for each request.
    Never,
}

/// Clients that all ask for the same.
#[derive(Debug, Clone)]
pub struct Group {
    /// The path that they ask for.
    pub path: String,
    /// How many there are.
    pub clients: usize,
    /// How many requests per second they make together.
    pub rate: f64,
    /// Whether they use their connections again.
    pub reuse: Reuse,
}

/// How the times of requests are fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrivals {
    /// The same time after one another.
    Even,
    /// At random (a Poisson process), as those of independent users.
    Random,
}

impl Arrivals {
    /// The time from one request of a client to its next one.
    fn gap(self, period: Duration) -> Duration {
        match self {
            Self::Even => period,
            Self::Random => period.mul_f64(-(1.0 - fastrand::f64()).ln()),
        }
    }
}

/// What load to make.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where to.
    pub target: SocketAddr,
    /// The clients.
    pub groups: Vec<Group>,
    /// When a request without a whole answer has failed.
    pub request_timeout: Duration,
}

/// One request and what came of it.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The index of its group in the plan.
    pub group: usize,
    /// Just before its first byte was written (or, without a connection, given up).
    pub sent_at: Instant,
    /// When its answer was complete, or failed.
    pub done_at: Instant,
    /// The time that a user would have waited.
    pub latency: Duration,
    /// How long after its time it was sent, for whatever reason.
    pub late: Duration,
    /// Whose request it was, if the load is that of many users.
    pub user: Option<Ipv4Addr>,
    /// Who answered, or why nobody did.
    pub outcome: Result<BackendName, Failure>,
}

/// All that happened, in the order of sending.
#[derive(Debug, Default)]
pub struct Recording {
    /// One for each request.
    pub samples: Vec<Sample>,
    /// Connections that the server ended, between answers or within one.
    pub closed_by_server: usize,
}

/// Load that is running. Dropping it lets it end by itself.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<()>,
    recording: oneshot::Receiver<Result<Recording>>,
    progress: Arc<Progress>,
    ends_within: Duration,
}

#[derive(Debug, Default)]
struct Progress {
    requests: AtomicUsize,
    failures: AtomicUsize,
}

impl Load {
    /// Starts the load on a thread of its own.
    ///
    /// # Errors
    /// When the system refuses the thread.
    pub fn start(plan: Plan) -> Result<Self> {
        Self::start_as(plan, Arrivals::Even, None)
    }

    /// The same, with requests that arrive at random.
    ///
    /// # Errors
    /// When the system refuses the thread.
    pub fn start_at_random(plan: Plan) -> Result<Self> {
        Self::start_as(plan, Arrivals::Random, None)
    }

    /// The load of a proxy that has this many users behind it: each request is that of any of them, who is named in
    /// `X-Forwarded-For`. The server has to trust the proxy.
    ///
    /// # Errors
    /// When the system refuses the thread.
    pub fn start_for_users(plan: Plan, users: NonZeroU32) -> Result<Self> {
        Self::start_as(plan, Arrivals::Even, Some(users))
    }

    fn start_as(plan: Plan, arrivals: Arrivals, users: Option<NonZeroU32>) -> Result<Self> {
        let ends_within = plan.request_timeout + STOP_MARGIN;
        let (stop, stopped) = watch::channel(());
        let (report, recording) = oneshot::channel();
        let progress = Arc::new(Progress::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let counts = Arc::clone(&progress);
        thread::Builder::new().name("load".to_owned()).spawn(move || {
            // If the receiver is gone, there is nothing to notify.
            let _ = report.send(runtime.block_on(run(plan, arrivals, users, &stopped, &counts)));
        })?;
        Ok(Self { stop, recording, progress, ends_within })
    }

    /// Requests that are over, and how many of them failed.
    #[must_use]
    pub fn so_far(&self) -> (usize, usize) {
        let failures = self.progress.failures.load(Ordering::Relaxed);
        (self.progress.requests.load(Ordering::Relaxed), failures)
    }

    /// Lets every client finish its request, and returns what happened.
    ///
    /// # Errors
    /// When the load ended before its time, or does not end.
    pub async fn stop(self) -> Result<Recording> {
        drop(self.stop);
        let recording = timeout(self.ends_within, self.recording).await.context("the load doesn't end")?;
        recording.context("the load's thread died")?
    }
}

async fn run(
    plan: Plan,
    arrivals: Arrivals,
    users: Option<NonZeroU32>,
    stopped: &watch::Receiver<()>,
    progress: &Arc<Progress>,
) -> Result<Recording> {
    let start = Instant::now() + START_DELAY;
    let mut clients = JoinSet::new();
    for (index, group) in plan.groups.iter().enumerate() {
        let request: Arc<[u8]> = prepare(&group.path, None).into();
        let period = Duration::from_secs_f64(group.clients as f64 / group.rate);
        for nth in 0..group.clients {
            let client = Client {
                group: index,
                target: plan.target,
                path: group.path.clone(),
                request: Arc::clone(&request),
                users,
                user: None,
                reuse: group.reuse,
                request_timeout: plan.request_timeout,
                connection: None,
                body: Vec::new(),
                recording: Recording::default(),
                progress: Arc::clone(progress),
            };
            // Spread evenly over one period, so that the whole rate is even too.
            let first = start + period.mul_f64(nth as f64 / group.clients as f64);
            clients.spawn(client.run(first, period, arrivals, stopped.clone()));
        }
    }
    let mut all = Recording::default();
    while let Some(one) = clients.join_next().await {
        let one = one.context("a client of the load died")?;
        all.samples.extend(one.samples);
        all.closed_by_server += one.closed_by_server;
    }
    all.samples.sort_unstable_by_key(|sample| sample.sent_at);
    Ok(all)
}

fn prepare(path: &str, user: Option<Ipv4Addr>) -> Vec<u8> {
    let forwarded = user.map_or_else(String::new, |user| format!("x-forwarded-for: {user}\r\n"));
    format!(
        "GET {path} HTTP/1.1\r\nhost: app.test\r\nuser-agent: uh-benches\r\naccept: */*\r\n{forwarded}\r\n"
    )
    .into_bytes()
}

struct Client {
    group: usize,
    target: SocketAddr,
    path: String,
    request: Arc<[u8]>,
    users: Option<NonZeroU32>,
    /// Whose turn it is, if there are users.
    user: Option<Ipv4Addr>,
    reuse: Reuse,
    request_timeout: Duration,
    connection: Option<Connection>,
    body: Vec<u8>,
    recording: Recording,
    progress: Arc<Progress>,
}

impl Client {
    async fn run(
        mut self,
        first: Instant,
        period: Duration,
        arrivals: Arrivals,
        mut stopped: watch::Receiver<()>,
    ) -> Recording {
        let mut due_at = first;
        loop {
            let free_at = Instant::now();
            tokio::select! {
                biased;
                _ = stopped.changed() => break,
                () = sleep_until(due_at.into()) => {}
            }
            // A client that was free is late only by its own timer, which is no fault of the server.
            let counted_from = if free_at > due_at { due_at } else { Instant::now() };
            self.check_idle();
            self.ask(due_at, counted_from).await;
            due_at += arrivals.gap(period);
        }
        self.check_idle();
        self.recording
    }

    /// Notices what the server did to the connection since the last answer.
    fn check_idle(&mut self) {
        let now = Instant::now();
        match self.connection.as_ref().map(Connection::idle) {
            None | Some(Idle::Quiet) => return,
            Some(Idle::Closed) => self.recording.closed_by_server += 1,
            Some(Idle::Spoke) => self.record(now, now, now, now, Err(Failure::ExtraBytes)),
        }
        self.connection = None;
    }

    async fn ask(&mut self, due_at: Instant, counted_from: Instant) {
        if let Some(users) = self.users {
            let user = Ipv4Addr::from(FIRST_USER.wrapping_add(fastrand::u32(..users.get())));
            self.user = Some(user);
            self.request = prepare(&self.path, Some(user)).into();
        }
        let mut sent_at = Instant::now();
        let request_timeout = self.request_timeout;
        let answer = match timeout(request_timeout, self.exchange(&mut sent_at)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::TimedOut),
        };
        let done_at = Instant::now();
        let closed = match &answer {
            Ok(head) => head.close,
            Err(failure) => failure.is_close(),
        };
        self.recording.closed_by_server += usize::from(closed);
        if closed || answer.is_err() || self.reuse == Reuse::Never {
            self.connection = None;
        }
        self.record(due_at, counted_from, sent_at, done_at, answer.and_then(identify));
    }

    async fn exchange(&mut self, sent_at: &mut Instant) -> Result<Head, Failure> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Connection::open(self.target).await?),
        };
        *sent_at = Instant::now();
        connection.exchange(&self.request, &mut self.body).await
    }

    fn record(
        &mut self,
        due_at: Instant,
        counted_from: Instant,
        sent_at: Instant,
        done_at: Instant,
        outcome: Result<BackendName, Failure>,
    ) {
        self.progress.requests.fetch_add(1, Ordering::Relaxed);
        self.progress.failures.fetch_add(usize::from(outcome.is_err()), Ordering::Relaxed);
        let latency = done_at.saturating_duration_since(counted_from);
        let late = sent_at.saturating_duration_since(due_at);
        let (group, user) = (self.group, self.user);
        self.recording.samples.push(Sample { group, sent_at, done_at, latency, late, user, outcome });
    }
}

fn identify(head: Head) -> Result<BackendName, Failure> {
    match head {
        Head { status: 200, backend: Some(backend), .. } => Ok(backend),
        Head { status: 200, .. } => Err(Failure::Unidentified),
        Head { status, .. } => Err(Failure::BadStatus(status)),
    }
}

#[cfg(test)]
mod tests;
