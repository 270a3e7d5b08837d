//! Puts the program together. The order matters: signal handlers first, so that no signal is lost; then the ports, so
//! that a mistake shows before the app starts; then the app.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use uh_system::ports::{self, UNKNOWN};

use crate::checks::{HealthChecks, InFlight};
use crate::drain::Drain;
use crate::exit::Exit;
use crate::forward::Forwarder;
use crate::health::{AppIdentity, HealthReporter};
use crate::lifecycle::Lifecycle;
use crate::log::Log;
use crate::metrics::ShimMetrics;
use crate::phase::AppPhase;
use crate::process::{self, App};
use crate::settings::{AppAddress, Mode, ShimSettings};
use crate::signals::ReceivedSignal;
use crate::{server, signals, status_server};

/// The most client connections at once. Each needs two descriptors and some tens of KiB.
const CONNECTIONS_MAX: u64 = 10_000;
/// Descriptors that aren't for clients: listeners, standard streams, idle connections to the app.
const DESCRIPTORS_RESERVED: u64 = 100;

/// Something the system refuses.
#[derive(Debug, thiserror::Error)]
#[error("can't {what}: {source}")]
pub(crate) struct RunError {
    what: String,
    source: io::Error,
}

/// How long a process that listens on the app's address may take to accept. It is on this machine.
const TAKEN_TIMEOUT: Duration = Duration::from_millis(500);

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> RunError {
    let what = what.into();
    move |source| RunError { what, source }
}

/// What must be in place before the app starts.
struct Bound {
    signals: mpsc::Receiver<ReceivedSignal>,
    path: Option<TcpListener>,
    health: Option<TcpListener>,
    metrics: Option<TcpListener>,
}

/// Runs the app until it exits.
pub(crate) fn run(settings: ShimSettings) -> Result<Exit, RunError> {
    let bound = bind(&settings)?;
    let (log, written) = Log::start().map_err(system("start a thread"))?;
    // One thread: the work is small, and the CPUs are for the app.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(system("start the runtime"))?;
    let exit = match App::spawn(&settings.command, &settings.app.environment()) {
        Ok(app) => runtime.block_on(supervise(settings, bound, app, log)),
        Err(error) => {
            log.line(format_args!("{error}: {}", error.source));
            drop(log);
            Ok(Exit::of_spawn(&error.source))
        }
    };
    // Anything left is cut here.
    runtime.shutdown_background();
    written.wait();
    exit
}

fn bind(settings: &ShimSettings) -> Result<Bound, RunError> {
    let signals = signals::install().map_err(system("handle signals"))?;
    process::adopt_orphans().map_err(system("adopt orphaned processes"))?;
    let (path, health) = match settings.mode {
        Mode::Forward(address) => (Some(listen(address)?), None),
        Mode::SuperviseOnly(address) => (None, address.map(listen).transpose()?),
    };
    if !settings.allow_listening {
        demand_nobody_listens(&settings.app)?;
    }
    Ok(Bound { signals, path, health, metrics: settings.metrics.map(listen).transpose()? })
}

/// Requires that nothing listens on the app's address yet: the shim would take it for the app and send it requests.
fn demand_nobody_listens(app: &AppAddress) -> Result<(), RunError> {
    let answers = |address: &SocketAddr| TcpStream::connect_timeout(address, TAKEN_TIMEOUT).is_ok();
    let listener = match app {
        AppAddress::Unix(path) => UnixStream::connect(path).is_ok().then(|| ports::listener_at(path)),
        AppAddress::Tcp(_) | AppAddress::Localhost(_) => {
            app.sockets().into_iter().find(answers).map(ports::listener)
        }
    };
    let Some(listener) = listener else { return Ok(()) };
    let who = listener.map_or_else(|| UNKNOWN.to_owned(), |listener| listener.to_string());
    let taken = format!("{who} already listens there; stop it, or give the app another address with --app");
    Err(system(format!("start the app on {app}"))(io::Error::new(io::ErrorKind::AddrInUse, taken)))
}

fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    let listener = TcpListener::bind(address).map_err(system(format!("listen on {address}")))?;
    listener.set_nonblocking(true).map_err(system("listen"))?;
    Ok(listener)
}

async fn supervise(settings: ShimSettings, bound: Bound, app: App, log: Log) -> Result<Exit, RunError> {
    let drain = Arc::new(Drain::default());
    let meters = Arc::new(ShimMetrics::new(Arc::clone(&drain)));
    let (phase, phases) = watch::channel(AppPhase::Starting);
    let health = HealthReporter::new(AppIdentity::from_lookup(|name| std::env::var(name).ok()));
    let in_flight = match settings.watched_port() {
        None => InFlight::Exchanges(Arc::clone(&drain)),
        Some(port) => InFlight::Connections(port),
    };
    let checks = Arc::new(HealthChecks::new(&settings, health, phases, in_flight));
    let forwarder =
        Forwarder::new(settings.app.clone(), Arc::clone(&drain), Arc::clone(&checks), Arc::clone(&meters));
    let forwarder = Arc::new(forwarder);
    let announce = |listener: &TcpListener, what| {
        if let Ok(address) = listener.local_addr() {
            log.line(format_args!("Listening on {address}{what}"));
        }
    };
    let serving = match bound.path {
        Some(listener) => {
            announce(&listener, "");
            Some(serve(listener, &drain, &forwarder).map_err(system("listen"))?)
        }
        None => None,
    };
    if let Some(listener) = bound.health {
        announce(&listener, " (health)");
        status_server::start(listener, Arc::clone(&checks), None).map_err(system("listen"))?;
    }
    if let Some(listener) = bound.metrics {
        announce(&listener, " (metrics)");
        status_server::start(listener, checks, Some(Arc::clone(&meters))).map_err(system("listen"))?;
    }
    let signals = bound.signals;
    Ok(Lifecycle { settings, log, signals, app, phase, drain, serving, forwarder, meters }.run().await)
}

fn serve(
    listener: TcpListener,
    drain: &Arc<Drain>,
    forwarder: &Arc<Forwarder>,
) -> io::Result<JoinHandle<()>> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let forwarder = Arc::clone(forwarder);
    let handler = move |request, peer| {
        let forwarder = Arc::clone(&forwarder);
        async move { forwarder.answer(request, peer).await }
    };
    Ok(tokio::spawn(server::serve(listener, Arc::clone(drain), connections_max(), handler)))
}

fn connections_max() -> usize {
    use rustix::process::{Resource, getrlimit};
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = descriptors.saturating_sub(DESCRIPTORS_RESERVED) / 2;
    room.clamp(1, CONNECTIONS_MAX) as usize
}
