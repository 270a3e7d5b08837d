//! Starts uh-proxy, runs it, and shuts it down.
//!
//! ```text
//! main thread     signals, the order of starting and stopping
//! worker-0..n     client connections (front)
//! admin           admin API, metrics, probes
//! acme            gets certificates, if configured
//! state           writes the state file
//! access-log      writes the access log
//! keeper          notices the end of uh-keeper, if configured
//! ```

mod bind;
mod error;
mod lead;
mod routing;
mod signals;
mod superseded;
mod supervise;
mod take_over;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::{Mutex, Notify, watch};
use uh_system::plain;

use crate::acme::{Acme, Plan};
use crate::admin::control::{Control, Reloading};
use crate::admin::upgrade::Upgrades;
use crate::config::{Config, Tls};
use crate::fault;
use crate::front::admission::Admission;
use crate::front::broadcast::Broadcast;
use crate::front::listener::{Listener, Speaks};
use crate::front::own_cookies::OwnCookies;
use crate::front::pool::RetiredConnections;
use crate::front::settings::{Settings, SettingsCell};
use crate::front::sticky::StickyKey;
use crate::front::trial::Trials;
use crate::front::upstream::Connector;
use crate::front::worker::{self, Gate, Worker};
use crate::handover::end::End;
use crate::handover::leader::TakeOverError;
use crate::handover::parent::{OwnSocket, Parent};
use crate::handover::predecessor::Predecessor;
use crate::observe::access_log::{self, LogLane};
use crate::observe::meters::Meters;
use crate::observe::metrics::{Metrics, ReadAcme, ReadTls};
use crate::state::cookie_key::CookieKey;
use crate::state::store::Loaded;
use crate::state::writer::StateWriter;
use crate::systemd::{self, Inherited};
use crate::tls;
pub use error::RunError;
use error::system;
use lead::{Lead, start_admin};
use routing::{board, reserve_generations, unknown_actives};
use supervise::{Event, Stop};

/// What uh-proxy starts from.
#[derive(Debug)]
pub struct Start {
    /// The path of the configuration file, for reloads.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// The parsed configuration.
    pub config: Config,
    /// Sockets passed by systemd.
    pub inherited: Inherited,
    /// Whether to replace a uh-proxy that runs.
    pub take_over: TakeOver,
    /// The path by which this program was called.
    pub program: PathBuf,
}

/// Whether to replace a uh-proxy that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeOver {
    /// If there is one.
    IfRunning,
    /// Never: two at once are a mistake.
    Never,
}

/// Runs uh-proxy until a signal stops it. `parent`: the uh-proxy that has started this one, if there is one.
///
/// # Errors
/// If it can't start, or a worker thread ends unexpectedly.
pub fn run(start: Start, parent: Option<&mut Parent>) -> Result<(), RunError> {
    let Start { path, text, config, inherited, take_over, program } = start;
    let config = &config;
    let started = Instant::now();
    let settings = Settings::load(&config.server).map_err(system("use the configuration"))?;
    let tls = config.server.tls.as_ref().map(|settings| start_tls(config, settings)).transpose()?;
    let (tls, acme) = tls.unzip();
    if parent.is_some() {
        // Until this process leads, the other one is the service's main process.
        systemd::mute();
    }
    let leader = take_over::join_if(take_over, &config.server, parent.is_some())?;
    let mut bound = bind::bind(&config.server, inherited, parent, leader.is_some())?;
    let descriptors = raise_descriptor_limit();
    let mut loaded = match &leader {
        Some(leader) => Loaded { state: Some(leader.state.clone()), warnings: Vec::new() },
        None => bound.store.load()?,
    };
    let workers = config.server.threads;
    let meters = Arc::new(Meters::new(workers));
    let retired_connections = Arc::new(RetiredConnections::default());
    let board =
        Arc::new(board(config, &loaded, bound.store.is_new(), workers, &meters, &retired_connections));
    loaded.warnings.extend(unknown_actives(config, loaded.state.as_ref(), &board));
    for warning in &loaded.warnings {
        tracing::warn!("state: {warning}");
    }
    let known = loaded.state.as_ref().map(|state| state.services.clone()).unwrap_or_default();
    let state_writer = StateWriter::start(bound.store, known, board.reserved());
    let state_writer = Arc::new(state_writer.map_err(system("start the state thread"))?);
    if leader.is_none() {
        reserve_generations(&state_writer, &board);
    }
    let broadcasts: Vec<Arc<Broadcast>> = (0..workers).map(|_| Arc::default()).collect();
    let settings = (0..workers).map(|_| Arc::new(SettingsCell::new(settings.clone()))).collect();
    let admission = Arc::new(Admission::new(descriptors, workers));
    admission.rates.prepare(&config.services);
    let sticky = StickyKey::default();
    if sticky.is_missing(&config.services) {
        let key = CookieKey::open(&config.server.state_file).map_err(system("make a key for cookies"))?;
        sticky.set(key);
    }
    let most_connections = admission.most(&config.server.limits);
    if config.server.limits.connections.is_some_and(|most| most as usize > most_connections) {
        tracing::warn!(
            descriptors,
            most_connections,
            "the file descriptor limit is too low for server.limits.connections: raise it (LimitNOFILE= in the unit, or ulimit -n)"
        );
    }
    let log = access_log::start(&config.server.access_log, workers, &meters)
        .map_err(system("open the access log"))?;
    let (stop, stopped) = watch::channel(false);
    let (gate, gates) = watch::channel(Gate::Open);
    let stop = Stop { gate, stop };
    let listen = bind::addresses(&bound.listeners, Speaks::Http)?;
    let listen_tls = bind::addresses(&bound.listeners, Speaks::Https)?;
    let listen_h2c = bind::addresses(&bound.listeners, Speaks::Http2)?;
    let own_sockets = bound.listeners.iter().chain(&bound.metrics).map(OwnSocket::of);
    let own_sockets = own_sockets.filter_map(io::Result::transpose).collect::<io::Result<_>>();
    let own_sockets = own_sockets.map_err(system("duplicate the listening sockets"))?;
    let trials = Arc::new(Trials::default());
    let predecessor = Arc::<Predecessor>::default();
    let control = Arc::new(Control {
        metrics: Metrics::new(
            {
                let (board, predecessor) = (Arc::clone(&board), Arc::clone(&predecessor));
                Box::new(move || {
                    let mut view = board.view();
                    predecessor.add_to(&mut view);
                    view
                })
            },
            Arc::clone(&meters),
            Arc::clone(&state_writer),
            {
                let admission = Arc::clone(&admission);
                Box::new(move || admission.counts())
            },
            tls.clone().map(|server| Box::new(move || server.counts()) as ReadTls),
            acme.clone().map(|acme| Box::new(move || acme.counts()) as ReadAcme),
            {
                let trials = Arc::clone(&trials);
                Box::new(move || trials.read())
            },
        )?,
        board: Arc::clone(&board),
        state_writer,
        meters: Arc::clone(&meters),
        broadcasts,
        tls,
        acme,
        reloading: Reloading {
            path,
            text: Mutex::new(text.clone()),
            text_at_start: text,
            settings,
            log_control: log.log_control,
            wanted: Notify::new(),
            reopen_wanted: Notify::new(),
            reopening: Arc::default(),
        },
        admin_heartbeat: AtomicU64::new(0),
        rates: Arc::clone(&admission.rates),
        sticky: Arc::new(sticky),
        cookies: Arc::new(OwnCookies::new(&config.server.state_file)),
        trials,
        predecessor,
        upgrades: Upgrades::new(program, own_sockets),
        end: End::default(),
        news: Arc::default(),
        split_health: Notify::new(),
        started,
        listen: listen.clone(),
        listen_tls: listen_tls.clone(),
        listen_h2c: listen_h2c.clone(),
        metrics_address: bound
            .metrics
            .as_ref()
            .and_then(|m| m.socket.local_addr().ok())
            .map(|a| a.to_string()),
        warnings: loaded.warnings,
    });
    let (events, inbox) = channel();
    let lead = start_admin(&control).map_err(system("start the admin thread"))?;
    let (admin, predecessor) = match (leader, bound.admin) {
        (None, Some(admin)) => (admin, None),
        (Some(leader), _) => {
            let (admin, stream) = take_over::take_over(leader, &control, &config.server, &mut bound.signals)?;
            reserve_generations(&control.state_writer, &board);
            (admin, stream)
        }
        // Never: without a leader, it is bound.
        (None, None) => return Err(RunError::WorkerLost),
    };
    let threads =
        start_workers(&control, &retired_connections, &admission, log.lanes, &bound.listeners, &gates)?;
    supervise::start_joiner(threads, log.writer, events.clone()).map_err(system("start a thread"))?;
    if let Some(keeper) = bound.keeper {
        keeper.start(stopped).map_err(system("start the keeper thread"))?;
    }
    let successors = admin.for_successors()?;
    let admin = Arc::new(parking_lot::Mutex::new(admin));
    fault::point("takeover_accepting");
    // The last moment at which the other process can go on.
    let stop_asked =
        predecessor.as_ref().and_then(|_| signals::carry_out_pending(&mut bound.signals, &control));
    supervise::start_signals(bound.signals, events.clone()).map_err(system("start a thread"))?;
    if let Some(signal) = stop_asked {
        if let Err(reason) = control.state_writer.release() {
            tracing::error!(reason, "cannot give the state file back before the end of this process");
        }
        admin.lock().release();
        // It takes the locks back, and this process finishes what it has accepted.
        drop((lead, predecessor));
        let _ = events.send(Event::Signal(signal));
        supervise::supervise(&inbox, &stop, &control, &log.pending)?;
        return Err(TakeOverError::Stopped { signal }.into());
    }
    let lead_now = Lead {
        socket: Arc::clone(&admin),
        users: config.server.admin_users.clone(),
        metrics: bound.metrics,
        successors,
        predecessor,
        events,
    };
    if lead.send(lead_now).is_err() {
        return Err(RunError::WorkerLost);
    }
    // The workers have their own listening sockets: the port closes when they close theirs.
    drop(bound.listeners);
    for state in &board.snapshot().services {
        tracing::info!(service = %state.config.name, active = %state.active.backend, "serving");
    }
    tracing::info!(
        listen = listen.join(", "),
        listen_tls = listen_tls.join(", "),
        listen_h2c = listen_h2c.join(", "),
        workers,
        descriptors,
        most_connections,
        pid = std::process::id(),
        "ready"
    );
    if let Some(acme) = &control.acme {
        acme.start().map_err(system("start the acme thread"))?;
    }
    systemd::unmute();
    systemd::ready(&format!("serving, generation {}", board.snapshot().generation));
    let ended = supervise::supervise(&inbox, &stop, &control, &log.pending);
    // The admin thread, which shares it, continues until the process ends.
    admin.lock().remove();
    ended
}

/// Raises the soft limit of file descriptors to the hard one: each client and each backend connection takes one.
fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(error = %plain(&error), "cannot raise the file descriptor limit");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Loads the certificates. An expired one is logged and served, so that the other hosts stay available. Those that ACME is
/// to get are loaded if they are on disk; nothing waits for the others.
fn start_tls(config: &Config, settings: &Tls) -> Result<(Arc<tls::Server>, Arc<Acme>), RunError> {
    let checked = tls::server::check(settings)?;
    for certificate in checked.certificates() {
        tls::server::warn_of_exposed_key(certificate);
        if let Err(error) = certificate.check_dates(jiff::Timestamp::now()) {
            tracing::error!(error = %plain(&error), "serving a certificate that clients will reject");
        }
    }
    let plan = Plan::of(config, &checked);
    let server = Arc::new(tls::Server::new(checked)?);
    let acme = Arc::new(Acme::new(Arc::clone(&server), plan)?);
    Ok((server, acme))
}

fn start_workers(
    control: &Control,
    retired_connections: &Arc<RetiredConnections>,
    admission: &Arc<Admission>,
    lanes: Vec<LogLane>,
    listeners: &[Listener],
    gate: &watch::Receiver<Gate>,
) -> Result<Vec<JoinHandle<()>>, RunError> {
    let worker = |index, log, broadcast: &Arc<Broadcast>, settings: &Arc<SettingsCell>| {
        let worker = Worker {
            index,
            board: Arc::clone(&control.board),
            settings: Arc::clone(settings),
            admission: Arc::clone(admission),
            broadcast: Arc::clone(broadcast),
            meters: Arc::clone(&control.meters),
            connector: Connector::default(),
            sticky: Arc::clone(&control.sticky),
            cookies: Arc::clone(&control.cookies),
            trials: Arc::clone(&control.trials),
            retired_connections: Arc::clone(retired_connections),
            log,
            all_gone: Notify::new(),
            tls: control.tls.clone(),
            handshakes: Arc::default(),
            workers: control.broadcasts.len(),
        };
        worker::spawn(Arc::new(worker), listeners, gate)
    };
    let own = control.broadcasts.iter().zip(&control.reloading.settings);
    let workers = lanes.into_iter().zip(own).enumerate();
    workers
        .map(|(index, (log, (broadcast, settings)))| worker(index, log, broadcast, settings))
        .collect::<io::Result<_>>()
        .map_err(system("start a worker"))
}
