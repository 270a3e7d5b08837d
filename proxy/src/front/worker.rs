//! Worker threads: each with its own runtime, connections, idle pools, counters and log buffer. They share the
//! listening sockets, and nothing that a request writes to.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pingora::protocols::{Stream, l4};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use uh_system::plain;

use super::Board;
use super::admission::Admission;
use super::attention::Bell;
use super::connection::{Arrival, Connection};
use super::pool::Graveyard;
use super::secure;
use super::settings::{Settings, SettingsCell};
use super::unsent;
use super::upstream::Connector;
use crate::observe::access_log::{HAND_OVER_AFTER, LogLane};
use crate::observe::meters::Meters;
use crate::tls;
use crate::tls::crowd::Crowd;

/// How often idle upstream connections are looked through. Between two looks a dead one costs a file descriptor.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Connections that the kernel completes before a worker accepts them.
const BACKLOG: i32 = 4096;

/// How long nothing is accepted after that has failed, as when the process or the machine has no more descriptors: to
/// try again at once would only take CPU time from those whose end would give some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket, and whose it is.
#[derive(Debug)]
pub struct Listener {
    /// The socket, ready for workers.
    pub socket: TcpListener,
    /// Who holds it beside us.
    pub holder: Holder,
    /// What its clients speak.
    pub speaks: Speaks,
}

/// What is spoken on a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

/// Who holds a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// We alone: when we close it, whoever waits in its queue is reset.
    Us,
    /// The service manager: whoever waits in its queue is served by the next process.
    ServiceManager,
}

/// What all connections of one worker thread work with.
pub struct Worker {
    /// Which worker it is, from 0.
    pub index: usize,
    /// Where requests pick.
    pub board: Arc<Board>,
    /// What a reload may change.
    pub settings: Arc<SettingsCell>,
    /// How many connections there may be.
    pub admission: Arc<Admission>,
    /// Calls for the attention of all connections.
    pub bell: Arc<Bell>,
    /// The counters of all workers.
    pub meters: Arc<Meters>,
    /// Opens connections to endpoints.
    pub connector: Connector,
    /// Connections that wait to be closed.
    pub graveyard: Arc<Graveyard>,
    /// This worker's end of the access log.
    pub log: LogLane,
    /// Told whenever the last connection is gone.
    pub all_gone: Notify,
    /// What serves TLS, where there is a listener for it.
    pub tls: Option<Arc<tls::Server>>,
    /// Its handshakes in progress.
    pub handshakes: Arc<Crowd>,
    /// How many workers there are.
    pub workers: usize,
}

impl Worker {
    /// The settings for a request that begins now: to be taken once, and kept until it ends.
    pub fn settings(&self) -> Arc<Settings> {
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

/// Binds a listening socket, ready for workers.
///
/// # Errors
/// The address is taken, not ours, or needs a privilege.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // So that a restart need not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Starts a worker's thread. It accepts from the listeners until `stopped` turns true, takes in who is still in their
/// queues, and ends when its last connection has.
///
/// # Errors
/// A socket can't be duplicated, or the thread can't be started.
pub fn spawn(
    worker: Arc<Worker>,
    listeners: &[Listener],
    stopped: &watch::Receiver<bool>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut accepting = Vec::new();
    for listener in listeners {
        prepare(&listener.socket)?;
        let socket = tokio::net::TcpListener::from_std(listener.socket.try_clone()?)?;
        let (holder, speaks) = (listener.holder, listener.speaks);
        accepting.push(runtime.spawn(accept(Arc::clone(&worker), socket, holder, speaks, stopped.clone())));
    }
    drop(guard);
    std::thread::Builder::new().name(format!("worker-{}", worker.index)).spawn(move || {
        runtime.block_on(async move {
            let housekeeping = tokio::spawn(keep_house(Arc::clone(&worker)));
            for listener in accepting {
                // One that has panicked has said so.
                let _ = listener.await;
            }
            worker.until_empty().await;
            housekeeping.abort();
            worker.log.flush();
        });
    })
}

/// Sets what connections are to have on the socket that they will be accepted from: they inherit it.
fn prepare(listener: &TcpListener) -> io::Result<()> {
    unsent::limit(listener);
    // An answer that is written in two parts must not wait for the first to be acknowledged.
    SockRef::from(listener).set_tcp_nodelay(true)
}

/// Accepts connections until `stopped` turns true, and then who is still in the queue.
async fn accept(
    worker: Arc<Worker>,
    listener: tokio::net::TcpListener,
    holder: Holder,
    speaks: Speaks,
    mut stopped: watch::Receiver<bool>,
) {
    let mut failing = false;
    let stopped = stopped.wait_for(|stopped| *stopped);
    tokio::pin!(stopped);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut stopped => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                failing = false;
                take_in(&worker, stream, address, speaks);
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(error = %plain(&error), "cannot accept connections: those that are there go on, new ones wait");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if holder == Holder::Us
        && let Ok(listener) = listener.into_std()
    {
        empty(&worker, &listener, speaks);
    }
}

/// Serves a new connection.
fn take_in(worker: &Arc<Worker>, stream: TcpStream, address: SocketAddr, speaks: Speaks) {
    let arrival = Arrival::new(Arc::clone(worker), address);
    match speaks {
        Speaks::Http => drop(tokio::spawn(Connection::new(arrival, plain_http(stream), None).serve())),
        Speaks::Https => drop(tokio::spawn(secure::serve(arrival, stream))),
    }
}

/// A plain connection, as the exchanges expect it.
pub(super) fn plain_http(stream: TcpStream) -> Stream {
    Box::new(l4::stream::Stream::from(stream))
}

/// Accepts who is still in the queue of a listening socket that is about to be closed: who was let in is served, not
/// reset. A handshake that completes between the last look and the close is lost, if the socket is held by nobody else.
fn empty(worker: &Arc<Worker>, listener: &TcpListener, speaks: Speaks) {
    // The queue holds no more than this; whoever comes while it is emptied must not keep us for ever.
    for _ in 0..=BACKLOG {
        let accepted = listener.accept().and_then(|(stream, address)| {
            stream.set_nonblocking(true)?;
            Ok((TcpStream::from_std(stream)?, address))
        });
        match accepted {
            Ok((stream, address)) => take_in(worker, stream, address, speaks),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => {
                tracing::debug!(error = %plain(&error), "cannot take in a connection while stopping");
            }
        }
    }
}

/// Hands log lines over in time, and clears idle upstream connections away.
async fn keep_house(worker: Arc<Worker>) {
    let mut flush = tokio::time::interval(HAND_OVER_AFTER);
    let mut swept = Instant::now();
    loop {
        flush.tick().await;
        worker.meters.worker(worker.index).heartbeat.fetch_add(1, Ordering::Relaxed);
        worker.log.flush();
        worker.graveyard.clear();
        if swept.elapsed() >= SWEEP_EVERY {
            swept = Instant::now();
            worker.sweep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_inherit_what_saves_a_system_call_for_each() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        prepare(&listener).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(accepted.nodelay().unwrap(), "small writes would wait for acknowledgements");
    }
}
