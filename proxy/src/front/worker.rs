//! Worker threads: each with its own runtime, connections, idle pools, counters and log buffer. They share the
//! listening sockets, and nothing that a request writes to.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::apps::ServerApp;
use pingora::listeners::ListenerConfig;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::protocols::{GetSocketDigest as _, SocketDigest, Stream, l4};
use pingora::server::{Fds, ShutdownWatch};
use pingora::services::Service as _;
use pingora::services::listening::Service;
use tokio::sync::Notify;

use super::Board;
use super::admission::Admission;
use super::attention::Bell;
use super::connection::Connection;
use super::pool::Graveyard;
use super::settings::{Settings, SettingsCell};
use super::unsent;
use super::upstream::Connector;
use crate::observe::access_log::{HAND_OVER_AFTER, LogLane};
use crate::observe::meters::Meters;

/// How often idle upstream connections are looked through. Between two looks a dead one costs a file descriptor.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Connections that the kernel completes before a worker accepts them.
const BACKLOG: i32 = 4096;

/// When no more connections are accepted, how long the tasks of the last ones may take to be seen for the first time:
/// before that, nobody counts them.
const SETTLE: Duration = Duration::from_millis(20);

/// A listening socket, and whose it is.
#[derive(Debug)]
pub struct Listener {
    /// The socket, ready for workers.
    pub socket: TcpListener,
    /// Who holds it beside us.
    pub holder: Holder,
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

/// Pingora's side of a worker.
struct FrontApp(Arc<Worker>);

#[async_trait]
impl ServerApp for FrontApp {
    async fn process_new(self: &Arc<Self>, stream: Stream, _shutdown: &ShutdownWatch) -> Option<Stream> {
        // On a task of its own: pingora's, which ends here, is four times as large as what a connection that waits needs.
        tokio::spawn(Connection::new(Arc::clone(&self.0), stream).serve());
        None
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

/// Starts a worker's thread. It accepts from the listeners until `shutdown` turns true, takes in who is still in their
/// queues, and ends when its last connection has.
///
/// # Errors
/// A socket can't be duplicated, or the thread can't be started.
pub fn spawn(
    worker: Arc<Worker>,
    listeners: &[Listener],
    shutdown: ShutdownWatch,
) -> io::Result<JoinHandle<()>> {
    let mut service = Service::new(format!("front-{}", worker.index), FrontApp(Arc::clone(&worker)));
    let mut fds = Fds::new();
    let mut ours = Vec::new();
    for Listener { socket: listener, holder } in listeners {
        let name = listener.local_addr()?.to_string();
        unsent::limit(listener);
        if *holder == Holder::Us {
            ours.push(listener.try_clone()?);
        }
        // Our connections read into buffers of their own: a second one below them would only cost memory.
        service.add_listener(ListenerConfig::tcp(name.clone()).l4_buffer(L4BufferSettings::unbuffered()));
        fds.add(name, listener.try_clone()?.into_raw_fd());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(format!("worker-{}", worker.index)).spawn(move || {
        runtime.block_on(async move {
            let housekeeping = tokio::spawn(keep_house(Arc::clone(&worker)));
            service.start_service(Some(Arc::new(Mutex::new(fds))), shutdown, 1).await;
            take_in(&worker, ours);
            tokio::time::sleep(SETTLE).await;
            worker.until_empty().await;
            housekeeping.abort();
            worker.log.flush();
        });
    })
}

/// Accepts who is still in the queues, and closes the listening sockets: who was let in is served, not reset. A
/// handshake that completes between the last look and the close is lost, if the socket is held by nobody else.
fn take_in(worker: &Arc<Worker>, listeners: Vec<TcpListener>) {
    for listener in listeners {
        // The queue holds no more than this; whoever comes while it is emptied must not keep us for ever.
        for _ in 0..=BACKLOG {
            let (stream, address) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, "cannot take in a connection while stopping");
                    continue;
                }
            };
            match prepare(stream, address) {
                Ok(stream) => {
                    tokio::spawn(Connection::new(Arc::clone(worker), stream).serve());
                }
                Err(error) => tracing::debug!(%error, "cannot take in a connection while stopping"),
            }
        }
    }
}

/// Makes of an accepted socket what pingora's listener would make of it.
fn prepare(stream: std::net::TcpStream, address: SocketAddr) -> io::Result<Stream> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let mut stream = l4::stream::Stream::from(tokio::net::TcpStream::from_std(stream)?);
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    let _ = digest.peer_addr.set(Some(address.into()));
    stream.set_socket_digest(digest);
    Ok(Box::new(stream))
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
