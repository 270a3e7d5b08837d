//! The successor's side of a [hand-over](crate::handover), up to the moment in which it leads: joins the uh-proxy that
//! leads, waits until its probes know as much, and has it yield. From then on,
//! [`Predecessor`](crate::handover::predecessor::Predecessor) speaks with it.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::iterator::Signals;
use uh_switching::Health;
use uh_system::plain;

use super::bind::access;
use super::{RunError, TakeOver, signals};
use crate::admin::control::Control;
use crate::admin::socket::{AdminSocket, SocketError, successors_of};
use crate::admin::successor::record;
use crate::config::Server;
use crate::fault;
use crate::front::Board;
use crate::handover::wire::{self, EndpointName, FromPredecessor, FromSuccessor, MAX_MESSAGE_BYTES};
use crate::state::file::StateFile;
use crate::state::store::StoreError;

/// How long the other process may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(8);

/// How long the probes may take until they have found every endpoint healthy that the other process knows as healthy.
const PROBES_WITHIN: Duration = Duration::from_secs(60);

/// How long a process that says that it has released its locks may have them.
const RELEASED_WITHIN: Duration = Duration::from_secs(2);

/// How long one that says nothing more may have them: the kernel frees much memory first when a process dies.
const DIES_WITHIN: Duration = Duration::from_secs(10);

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why this process can't take over. The other one goes on.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// Without a keeper, two processes can't accept from one queue.
    #[error("--take-over needs server.keeper: without it, the sockets can't be shared")]
    NoKeeper,
    /// It is too old, or refuses.
    #[error("the uh-proxy that leads doesn't hand over, and goes on: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The connection broke.
    #[error("lost the connection to the uh-proxy that leads, and didn't take over")]
    Broken(#[source] io::Error),
    /// It serves one successor at a time.
    #[error(
        "no answer from the uh-proxy that leads within {} s, so this one didn't take over: another one may be about to; try again when that one has ended",
        ANSWERS_WITHIN.as_secs()
    )]
    Silent,
    /// Somebody stopped this process meanwhile.
    #[error("stopped by signal {signal}, and didn't take over")]
    Stopped {
        /// Which one.
        signal: i32,
    },
    /// The probes have found another picture.
    #[error(
        "the uh-proxy that leads finds these endpoints healthy, and this one doesn't, so it didn't take over: {endpoints}"
    )]
    Unhealthy {
        /// Which ones.
        endpoints: String,
    },
    /// The state on disk isn't the one that the other process has left.
    #[error(
        "the state file has generation {found}, but the uh-proxy that led reported {reported}: not taking over"
    )]
    OtherGeneration {
        /// From the file.
        found: u64,
        /// By the other process.
        reported: u64,
    },
}

/// Joins the uh-proxy that leads, if this start is to replace one and there is one.
pub(super) fn join_if(wanted: TakeOver, server: &Server) -> Result<Option<Leader>, TakeOverError> {
    match wanted {
        TakeOver::Never => Ok(None),
        TakeOver::IfRunning if server.keeper.is_none() => Err(TakeOverError::NoKeeper),
        TakeOver::IfRunning => {
            let leader = Leader::join(&successors_of(&server.admin_socket))?;
            fault::point("takeover_joined");
            Ok(leader)
        }
    }
}

/// Takes over: when this returns, this process has the locks and the admin socket, and no change has been lost. Changes
/// are refused until [`lead_after`]. If the other process has died, there is no connection to it.
///
/// Whoever stops this process meanwhile wants the other one to go on, so a stop ends it here.
pub(super) fn take_over(
    mut leader: Leader,
    control: &Control,
    server: &Server,
    signals: &mut Signals,
) -> Result<(AdminSocket, Option<UnixStream>), RunError> {
    let mut may_go_on = || match signals::carry_out_pending(signals, control) {
        Some(signal) => Err(TakeOverError::Stopped { signal }),
        None => Ok(()),
    };
    leader.wait_for_health(&control.board, &mut may_go_on)?;
    fault::point("takeover_probed");
    control.board.freeze();
    may_go_on()?;
    let reported = match leader.yields() {
        Ok(generation) => Some(generation),
        Err(TakeOverError::Broken(error)) => {
            tracing::warn!(error = %plain(&error), "lost the uh-proxy that leads; leading in its place if it is dead");
            None
        }
        Err(error) => return Err(error.into()),
    };
    fault::point("takeover_yielded");
    let deadline = Instant::now() + if reported.is_some() { RELEASED_WITHIN } else { DIES_WITHIN };
    until_released(deadline, &mut may_go_on, || Ok(control.state_writer.acquire()?))?;
    fault::point("takeover_locked");
    let loaded = control.state_writer.load()?;
    for warning in &loaded.warnings {
        tracing::warn!("state: {warning}");
    }
    let found = loaded.state.as_ref().map_or(0, |state| state.generation);
    if let Some(reported) = reported.filter(|reported| *reported != found) {
        return Err(TakeOverError::OtherGeneration { found, reported }.into());
    }
    if let Some(state) = &loaded.state {
        control.board.follow(&record(state));
        // Its backends may have other endpoints.
        control.news.backends.notify_one();
    }
    let socket = until_released(deadline, &mut may_go_on, || {
        Ok(AdminSocket::take_over(&server.admin_socket, access(server))?)
    })?;
    fault::point("takeover_renamed");
    if reported.is_none() {
        control.board.unfreeze();
        return Ok((socket, None));
    }
    let stream = leader.into_stream().map_err(TakeOverError::Broken)?;
    Ok((socket, Some(stream)))
}

/// Takes a lock. A process that is about to die may have it for another moment; one that is alive keeps it.
fn until_released<T>(
    deadline: Instant,
    mut may_go_on: impl FnMut() -> Result<(), TakeOverError>,
    mut take: impl FnMut() -> Result<T, RunError>,
) -> Result<T, RunError> {
    loop {
        match take() {
            Err(RunError::Store(StoreError::Taken { .. }) | RunError::Socket(SocketError::Taken { .. }))
                if Instant::now() < deadline =>
            {
                may_go_on()?;
                thread::sleep(LOOK_EVERY);
            }
            result => return result,
        }
    }
}

/// Has the predecessor stop accepting and follow, and allows changes once it does. What it holds is known then: a
/// status before that would report backends in use as idle.
pub(super) async fn lead_after(stream: UnixStream, control: &Control) {
    match tokio::net::UnixStream::from_std(stream) {
        Ok(stream) => drop(control.predecessor.attend(stream)),
        Err(error) => tracing::error!(error = %plain(&error), "lost the connection to the uh-proxy that led"),
    }
    control.follow().await;
    fault::point("takeover_followed");
    control.board.unfreeze();
    tracing::info!(generation = control.board.snapshot().generation, "took over; this uh-proxy leads");
}

/// The uh-proxy that leads.
pub(super) struct Leader {
    stream: BufReader<UnixStream>,
    /// Its routing when this process joined.
    pub(super) state: StateFile,
    healthy: Vec<EndpointName>,
}

impl Leader {
    /// Joins the process at this path; `None`: there is none.
    pub(super) fn join(path: &Path) -> Result<Option<Self>, TakeOverError> {
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(TakeOverError::Broken(error)),
        };
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(&stream, Some(ANSWERS_WITHIN)).map_err(TakeOverError::Broken)?;
        }
        let mut stream = BufReader::new(stream);
        send(&mut stream, &FromSuccessor::Join { version: env!("CARGO_PKG_VERSION").to_owned() })?;
        let answer = receive(&mut stream).map_err(|error| match error {
            TakeOverError::Broken(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                TakeOverError::Silent
            }
            error => error,
        })?;
        match answer {
            FromPredecessor::Joined { version, pid, state, healthy } => {
                tracing::info!(version, pid, generation = state.generation, "joined the uh-proxy that leads");
                Ok(Some(Self { stream, state: *state, healthy }))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Waits until the probes of this process have found what those of the other one have, or that one is gone. Endpoints
    /// that aren't configured here don't count.
    fn wait_for_health(
        &mut self,
        board: &Board,
        mut may_go_on: impl FnMut() -> Result<(), TakeOverError>,
    ) -> Result<(), TakeOverError> {
        let deadline = Instant::now() + PROBES_WITHIN;
        loop {
            may_go_on()?;
            let missing: Vec<&EndpointName> =
                self.healthy.iter().filter(|endpoint| is_worse_here(board, endpoint)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let name = |endpoint: &&EndpointName| {
                    format!("{} of {} in {}", endpoint.address, endpoint.backend, endpoint.service)
                };
                let endpoints = missing.iter().map(name).collect::<Vec<_>>().join(", ");
                return Err(TakeOverError::Unhealthy { endpoints });
            }
            if self.is_gone_within(LOOK_EVERY).map_err(TakeOverError::Broken)? {
                return Ok(());
            }
        }
    }

    /// Whether the other process ends within this time. It doesn't speak unasked, so there is nothing else to read.
    fn is_gone_within(&mut self, at_most: Duration) -> io::Result<bool> {
        self.stream.get_ref().set_read_timeout(Some(at_most))?;
        let is_gone = match self.stream.fill_buf() {
            Ok(_) => true,
            // A signal interrupts it, too.
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
            ),
        };
        self.stream.get_ref().set_read_timeout(Some(ANSWERS_WITHIN))?;
        Ok(is_gone)
    }

    /// Has it release its locks, and returns the generation of the state on disk.
    pub(super) fn yields(&mut self) -> Result<u64, TakeOverError> {
        send(&mut self.stream, &FromSuccessor::Yield)?;
        match receive(&mut self.stream)? {
            FromPredecessor::Yielded { generation } => Ok(generation),
            other => Err(unexpected(&other)),
        }
    }

    /// The connection, on which nothing is under way.
    pub(super) fn into_stream(self) -> io::Result<UnixStream> {
        let stream = self.stream.into_inner();
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

fn is_worse_here(board: &Board, wanted: &EndpointName) -> bool {
    let live = board.live();
    let service = live.service(wanted.service.as_str());
    let backend = service.and_then(|service| service.backend(&wanted.backend));
    let mut endpoints = backend.into_iter().flat_map(|backend| backend.endpoints.iter());
    let endpoint = endpoints.find(|endpoint| endpoint.address.to_string() == wanted.address);
    endpoint.is_some_and(|endpoint| matches!(endpoint.health(), Health::Unknown | Health::Unhealthy))
}

fn send(stream: &mut BufReader<UnixStream>, message: &FromSuccessor) -> Result<(), TakeOverError> {
    let sent = wire::line(message).and_then(|line| stream.get_mut().write_all(&line));
    sent.map_err(TakeOverError::Broken)
}

fn receive(stream: &mut BufReader<UnixStream>) -> Result<FromPredecessor, TakeOverError> {
    let mut line = Vec::new();
    stream.take(MAX_MESSAGE_BYTES).read_until(b'\n', &mut line).map_err(TakeOverError::Broken)?;
    if line.is_empty() {
        return Err(TakeOverError::Broken(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&line).map_err(|error| TakeOverError::Broken(error.into()))
}

fn unexpected(message: &FromPredecessor) -> TakeOverError {
    let reason = match message {
        FromPredecessor::Refused { reason } => reason.clone(),
        FromPredecessor::Joined { .. }
        | FromPredecessor::Yielded { .. }
        | FromPredecessor::Counts(_)
        | FromPredecessor::Unknown => "it sent an answer that this version doesn't expect".to_owned(),
    };
    TakeOverError::Refused { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken() -> RunError {
        SocketError::Taken { path: "admin.sock".into() }.into()
    }

    #[test]
    fn a_lock_of_a_process_that_dies_is_waited_for_until_the_deadline() {
        let mut results = vec![Ok(1), Err(taken()), Err(StoreError::Taken { path: "state".into() }.into())];
        let deadline = Instant::now() + DIES_WITHIN;
        assert_eq!(until_released(deadline, || Ok(()), || results.pop().unwrap()).unwrap(), 1);
        let late = until_released(Instant::now(), || Ok(()), || Err::<(), _>(taken()));
        assert!(matches!(late, Err(RunError::Socket(SocketError::Taken { .. }))), "{late:?}");
    }

    #[test]
    fn a_stop_ends_the_wait_for_a_lock() {
        let deadline = Instant::now() + DIES_WITHIN;
        let stop = || Err(TakeOverError::Stopped { signal: 2 });
        let stopped = until_released(deadline, stop, || Err::<(), _>(taken()));
        assert!(
            matches!(stopped, Err(RunError::TakeOver(TakeOverError::Stopped { signal: 2 }))),
            "{stopped:?}"
        );
    }
}
