//! Worker threads: each with its own runtime, connections, idle pools, counters and log buffer. They share the
//! listening sockets, but nothing that a request writes to.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use uh_system::plain;

use super::Board;
use super::admission::Admission;
use super::broadcast::Broadcast;
use super::client::http1::Http1;
use super::connection::{Arrival, Connection};
use super::http2;
use super::listener::{self, BACKLOG, Holder, Listener, Speaks, UNBLOCK_EVERY};
use super::own_cookies::OwnCookies;
use super::pool::RetiredConnections;
use super::proxy_header;
use super::secure;
use super::settings::{Settings, SettingsCell};
use super::sticky::StickyKey;
use super::trial::Trials;
use super::upstream::Connector;
use crate::observe::access_log::{HAND_OVER_AFTER, LogLane};
use crate::observe::meters::Meters;
use crate::tls;
use crate::tls::pending::PendingHandshakes;

/// How often idle upstream connections are checked. Until the next check, a dead one costs a file descriptor.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The pause after a failed accept, for example when no file descriptors are left: retrying immediately would only take
/// CPU time from the connections whose end would free some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections of one worker thread share.
pub(crate) struct Worker {
    /// Which worker it is, from 0.
    pub index: usize,
    /// Where requests pick.
    pub board: Arc<Board>,
    /// The settings that a reload may change.
    pub settings: Arc<SettingsCell>,
    /// How many connections there may be.
    pub admission: Arc<Admission>,
    /// Wakes all connections.
    pub broadcast: Arc<Broadcast>,
    /// The counters of all workers.
    pub meters: Arc<Meters>,
    /// Opens connections to endpoints.
    pub connector: Connector,
    /// The key of sticky cookies.
    pub sticky: Arc<StickyKey>,
    /// uh-proxy's own cookies.
    pub cookies: Arc<OwnCookies>,
    /// What trials count.
    pub trials: Arc<Trials>,
    /// Upstream connections that wait to be closed.
    pub retired_connections: Arc<RetiredConnections>,
    /// This worker's end of the access log.
    pub log: LogLane,
    /// Notified whenever the last connection is gone.
    pub all_gone: Notify,
    /// What serves TLS, where there is a listener for it.
    pub tls: Option<Arc<tls::Server>>,
    /// Its handshakes in progress.
    pub handshakes: Arc<PendingHandshakes>,
    /// How many workers there are.
    pub workers: usize,
}

impl Worker {
    /// The settings for a request that begins now: take them once, and keep them until it ends.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.settings.load()
    }

    /// Whether no client connection is open.
    fn is_empty(&self) -> bool {
        self.meters.worker(self.index).client_open.load(Ordering::Acquire) == 0
    }

    async fn until_empty(&self) {
        loop {
            let gone = self.all_gone.notified();
            tokio::pin!(gone);
            gone.as_mut().enable();
            if self.is_empty() {
                return;
            }
            gone.await;
        }
    }

    fn sweep(&self) {
        let now = Instant::now();
        self.board.for_each_active(|activation| activation.lane(self.index).payload().sweep(now));
    }
}

/// Whether workers accept connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// They do.
    Open,
    /// Another process does, from the same sockets; this one may again.
    Paused,
    /// No more. Those in a queue that no other process serves are accepted first.
    Closed,
    /// No more: another process serves the queues.
    Left,
}

/// The most threads of a worker that wait for the disk, to open and read files. The rest wait their turn: more would make
/// no disk faster.
const MOST_READERS: usize = 16;

/// Starts a worker's thread. It accepts connections as the gate says, and ends with its last connection once that is
/// closed.
///
/// # Errors
/// A socket can't be duplicated, or the thread can't be started.
pub(crate) fn spawn(
    worker: Arc<Worker>,
    listeners: &[Listener],
    gate: &watch::Receiver<Gate>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MOST_READERS)
        .build()?;
    let guard = runtime.enter();
    let mut accepting = Vec::new();
    for listener in listeners {
        listener::prepare(&listener.socket, &listener.holder)?;
        let socket = tokio::net::TcpListener::from_std(listener.socket.try_clone()?)?;
        let (holder, speaks) = (listener.holder.clone(), listener.speaks);
        accepting.push(runtime.spawn(accept(Arc::clone(&worker), socket, holder, speaks, gate.clone())));
    }
    drop(guard);
    std::thread::Builder::new().name(format!("worker-{}", worker.index)).spawn(move || {
        runtime.block_on(async move {
            let housekeeping = tokio::spawn(keep_house(Arc::clone(&worker)));
            for listener in accepting {
                // A panic has already been logged.
                let _ = listener.await;
            }
            worker.until_empty().await;
            housekeeping.abort();
            worker.log.flush();
        });
    })
}

/// Accepts connections until the gate is closed, then those still in the queue if no other process will.
async fn accept(
    worker: Arc<Worker>,
    mut listener: tokio::net::TcpListener,
    mut holder: Holder,
    speaks: Speaks,
    mut gate: watch::Receiver<Gate>,
) {
    let is_shared = holder.is_shared();
    let last = loop {
        let now = *gate.borrow_and_update();
        let changed = match now {
            Gate::Open => accept_while_open(&worker, &mut listener, &mut holder, speaks, &mut gate).await,
            Gate::Paused => gate.changed().await.is_ok(),
            Gate::Closed | Gate::Left => break now,
        };
        if !changed {
            break Gate::Closed;
        }
    };
    if last == Gate::Closed && !is_shared {
        close(&worker, listener, speaks);
    }
}

/// Accepts connections while the gate is open. Returns whether anybody can open it again.
async fn accept_while_open(
    worker: &Arc<Worker>,
    listener: &mut tokio::net::TcpListener,
    holder: &mut Holder,
    speaks: Speaks,
    gate: &mut watch::Receiver<Gate>,
) -> bool {
    let mut failing = false;
    let is_shared = holder.is_shared();
    let mut check = tokio::time::interval(UNBLOCK_EVERY);
    let shut = gate.wait_for(|gate| *gate != Gate::Open);
    tokio::pin!(shut);
    loop {
        let accepted = tokio::select! {
            biased;
            shut = &mut shut => return shut.is_ok(),
            accepted = listener.accept() => accepted,
            renewed = holder.renewed() => {
                match renewed {
                    // The keeper of the old one is gone, so no other process would serve its queue.
                    Ok(renewed) => close(worker, std::mem::replace(listener, renewed), speaks),
                    Err(error) => {
                        tracing::error!(error = %plain(&error), "cannot use a new socket of uh-keeper; keeping the old one");
                    }
                }
                continue;
            }
            _ = check.tick(), if is_shared => {
                listener::unblock(listener);
                continue;
            }
        };
        match accepted {
            Ok((stream, address)) => {
                failing = false;
                take_in(worker, stream, address, speaks);
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(error = %plain(&error), "cannot accept connections: open connections continue, new ones wait");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Closes a listening socket after the connections in its queue.
fn close(worker: &Arc<Worker>, listener: tokio::net::TcpListener, speaks: Speaks) {
    if let Ok(listener) = listener.into_std() {
        empty(worker, &listener, speaks);
    }
}

/// Serves a new connection.
fn take_in(worker: &Arc<Worker>, stream: TcpStream, address: SocketAddr, speaks: Speaks) {
    let arrival = Arrival::new(Arc::clone(worker), address);
    if arrival.expects_proxy_header() {
        tokio::spawn(proxy_header::serve(arrival, stream, speaks));
    } else {
        start(arrival, stream, speaks);
    }
}

/// Starts the task that serves a connection, once its client is known.
pub(super) fn start(arrival: Arrival, stream: TcpStream, speaks: Speaks) {
    match speaks {
        Speaks::Http => drop(tokio::spawn(Connection::new(arrival, Http1::Plain(stream), None).serve())),
        Speaks::Https => drop(tokio::spawn(secure::serve(arrival, stream))),
        Speaks::Http2 => drop(tokio::spawn(http2::serve(arrival, stream, None))),
    }
}

/// Accepts the connections still in the queue of a listening socket that is about to be closed: they are served, not
/// reset. A handshake that completes between the last accept and the close is lost, unless another process holds the
/// socket.
fn empty(worker: &Arc<Worker>, listener: &TcpListener, speaks: Speaks) {
    // The queue holds no more than this. Connections that arrive meanwhile must not keep this loop running
    // indefinitely.
    for _ in 0..=BACKLOG {
        let accepted = listener.accept().and_then(|(stream, address)| {
            stream.set_nonblocking(true)?;
            Ok((TcpStream::from_std(stream)?, address))
        });
        match accepted {
            Ok((stream, address)) => take_in(worker, stream, address, speaks),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => {
                tracing::debug!(error = %plain(&error), "cannot accept a queued connection while stopping");
            }
        }
    }
}

/// Flushes log lines in time, and closes idle upstream connections.
async fn keep_house(worker: Arc<Worker>) {
    let mut flush = tokio::time::interval(HAND_OVER_AFTER);
    let mut swept = Instant::now();
    loop {
        flush.tick().await;
        worker.meters.worker(worker.index).heartbeat.fetch_add(1, Ordering::Relaxed);
        worker.log.flush();
        worker.retired_connections.clear();
        if swept.elapsed() >= SWEEP_EVERY {
            swept = Instant::now();
            worker.sweep();
        }
    }
}
