//! The process that leads, for the one that takes over from it, up to the yield. From then on,
//! [`Predecessor`](super::predecessor::Predecessor) speaks with it. Blocks, so the admin thread uses it on another one.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use uh_switching::Health;

use super::wire::{self, EndpointName, FromPredecessor, FromSuccessor, MAX_MESSAGE_BYTES};
use crate::fault;
use crate::front::Board;
use crate::state::file::StateFile;

/// How long the other process may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(8);

/// How long the probes may take until they have found every endpoint healthy that the other process knows as healthy.
const PROBES_WITHIN: Duration = Duration::from_secs(60);

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why a process takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// It is new.
    New,
    /// The one that leads has replaced it, and wants it to lead again.
    Back,
}

/// Why this process can't take over. The other one goes on.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// Without a keeper, two processes can't accept from one queue.
    #[error(
        "--take-over needs server.keeper: without it, the sockets can't be shared (uh-proxy upgrade passes them on)"
    )]
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
    /// It hangs.
    #[error(
        "no answer from the uh-proxy that leads within {} s, so this one didn't take over",
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

/// The uh-proxy that leads.
pub(crate) struct Leader {
    stream: BufReader<UnixStream>,
    /// Its routing when this process joined.
    pub(crate) state: StateFile,
    healthy: Vec<EndpointName>,
}

impl Leader {
    /// Joins the process at this path; `None`: there is none.
    pub(crate) fn join(path: &Path, why: Why) -> Result<Option<Self>, TakeOverError> {
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
        send(
            &mut stream,
            &FromSuccessor::Join { version: env!("CARGO_PKG_VERSION").to_owned(), back: why == Why::Back },
        )?;
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

    /// Has it release its locks once the probes of this process have found what its own have, and returns the generation of
    /// the state on disk.
    pub(crate) fn yields(
        &mut self,
        board: &Board,
        mut may_go_on: impl FnMut() -> Result<(), TakeOverError>,
    ) -> Result<u64, TakeOverError> {
        let deadline = Instant::now() + PROBES_WITHIN;
        loop {
            self.wait_for_health(board, deadline, &mut may_go_on)?;
            fault::point("takeover_probed");
            may_go_on()?;
            send(&mut self.stream, &FromSuccessor::Yield { unhealthy: unhealthy(board) })?;
            match receive(&mut self.stream)? {
                FromPredecessor::Yielded { generation } => return Ok(generation),
                FromPredecessor::NotYet { healthy } => self.healthy = healthy,
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Waits until the probes of this process have found what those of the other one have, or that one is gone. Endpoints
    /// that aren't configured here don't count.
    fn wait_for_health(
        &mut self,
        board: &Board,
        deadline: Instant,
        mut may_go_on: impl FnMut() -> Result<(), TakeOverError>,
    ) -> Result<(), TakeOverError> {
        loop {
            may_go_on()?;
            let unhealthy = unhealthy(board);
            let missing: Vec<&EndpointName> =
                self.healthy.iter().filter(|endpoint| unhealthy.contains(endpoint)).collect();
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

    /// The connection, on which nothing is under way.
    pub(crate) fn into_stream(self) -> io::Result<UnixStream> {
        let stream = self.stream.into_inner();
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

/// The configured endpoints that don't pass the probes of this process.
fn unhealthy(board: &Board) -> Vec<EndpointName> {
    let live = board.live();
    let mut unhealthy = Vec::new();
    for service in &live.services {
        for backend in &service.backends {
            let worse = backend
                .endpoints
                .iter()
                .filter(|endpoint| matches!(endpoint.health(), Health::Unknown | Health::Unhealthy));
            unhealthy.extend(worse.map(|endpoint| EndpointName {
                service: service.state.config.name.clone(),
                backend: backend.name().clone(),
                address: endpoint.address.to_string(),
            }));
        }
    }
    unhealthy
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
        | FromPredecessor::NotYet { .. }
        | FromPredecessor::Yielded { .. }
        | FromPredecessor::Counts(_)
        | FromPredecessor::Unknown => "it sent an answer that this version doesn't expect".to_owned(),
    };
    TakeOverError::Refused { reason }
}
