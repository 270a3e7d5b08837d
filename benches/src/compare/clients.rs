//! The load: any number of connections on one thread, closed loop or open loop, every answer checked.
//!
//! A closed loop keeps a number of requests in flight and finds out how many a proxy can answer. An open loop sends at
//! fixed times, whatever the proxy does, and counts the time from when a request was due: a slow proxy can't slow the
//! schedule down (no coordinated omission).

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::answer::{Answer, Expected};
use super::poll::{Poll, connect};

/// Nothing for so long means that nothing more will come.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// Taken from a socket at once.
const READ_BYTES: usize = 256 << 10;

/// The path to request.
#[derive(Debug, Clone)]
pub struct Job {
    /// Where to.
    pub target: SocketAddr,
    /// What is sent, one after the other in turn.
    pub requests: Vec<Arc<[u8]>>,
    /// What must come back.
    pub expected: Expected,
    /// Sent once on each connection before the first request; a `101` must come back.
    pub upgrade: Option<Arc<[u8]>>,
    /// Whether a connection is used again.
    pub reuse: bool,
    /// Whether a connection that breaks is counted and reopened instead of being an error.
    pub may_break: bool,
}

/// Its outcome.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// From the first request to the last answer.
    pub took: Duration,
    /// One for each request.
    pub latencies: Vec<Duration>,
    /// Connections that broke within an exchange or between two.
    pub broken: u64,
}

/// Clients with open connections.
pub struct Clients {
    job: Job,
    poll: Poll,
    clients: Vec<Client>,
    idle: VecDeque<usize>,
    next_request: usize,
    buffer: Vec<u8>,
    ready: Vec<usize>,
    outcome: Outcome,
}

#[derive(Debug)]
struct Client {
    stream: TcpStream,
    answer: Answer,
    /// What is in flight, and since when.
    asked: Option<(usize, Instant)>,
    sent: usize,
}

impl Clients {
    /// Opens this many connections.
    ///
    /// # Errors
    /// One can't be opened or upgraded.
    pub fn open(job: Job, connections: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let mut clients = Vec::with_capacity(connections);
        for number in 0..connections {
            clients.push(Client::open(&job, &poll, number)?);
        }
        Ok(Self {
            job,
            poll,
            clients,
            idle: (0..connections).collect(),
            next_request: 0,
            buffer: vec![0; READ_BYTES],
            ready: Vec::new(),
            outcome: Outcome::default(),
        })
    }

    /// Keeps `in_flight` requests in flight for a time, on one connection after the other, and waits for the last answer.
    ///
    /// # Errors
    /// An answer is wrong, or does not come.
    pub fn closed(&mut self, in_flight: usize, time: Duration) -> Result<Outcome> {
        let start = Instant::now();
        let mut busy = 0;
        loop {
            let goes_on = start.elapsed() < time;
            while goes_on && busy < in_flight && self.ask(Instant::now())? {
                busy += 1;
            }
            if busy == 0 {
                return Ok(self.finish(start));
            }
            busy -= self.wait(STUCK_AFTER)?;
        }
    }

    /// Asks once on each connection.
    ///
    /// # Errors
    /// See [`Clients::closed`].
    pub fn once_each(&mut self, in_flight: usize) -> Result<Outcome> {
        let start = Instant::now();
        let (mut left, mut busy) = (self.clients.len(), 0);
        loop {
            while left > 0 && busy < in_flight && self.ask(Instant::now())? {
                (left, busy) = (left - 1, busy + 1);
            }
            if busy == 0 {
                return Ok(self.finish(start));
            }
            busy -= self.wait(STUCK_AFTER)?;
        }
    }

    /// Sends `rate` requests a second for a time, and waits for the last answer.
    ///
    /// # Errors
    /// An answer is wrong, or does not come.
    pub fn open_loop(&mut self, rate: f64, time: Duration) -> Result<Outcome> {
        let start = Instant::now();
        let period = Duration::from_secs_f64(1.0 / rate);
        let end = start + time;
        let mut due = start;
        let mut waiting: VecDeque<Instant> = VecDeque::new();
        let mut busy = 0;
        loop {
            let now = Instant::now();
            while let Some(&since) = waiting.front() {
                if !self.ask(since)? {
                    break;
                }
                waiting.pop_front();
                busy += 1;
            }
            while due <= now && due < end {
                // A client that was free is late only by our own timer, which is no fault of the proxy.
                if waiting.is_empty() && self.ask(now)? {
                    busy += 1;
                } else {
                    waiting.push_back(due);
                }
                due += period;
            }
            if due >= end && busy == 0 && waiting.is_empty() {
                return Ok(self.finish(start));
            }
            let pause = if due < end { due.saturating_duration_since(Instant::now()) } else { STUCK_AFTER };
            busy -= self.wait(pause)?;
        }
    }

    /// Whether the last answer came from the backend `green`.
    #[must_use]
    pub fn saw_green(&self) -> bool {
        self.clients.iter().any(|client| client.answer.green)
    }

    fn finish(&mut self, start: Instant) -> Outcome {
        let outcome = std::mem::take(&mut self.outcome);
        Outcome { took: start.elapsed(), ..outcome }
    }

    /// Sends the next request on the connection that was idle longest; `false`: none is idle.
    fn ask(&mut self, since: Instant) -> Result<bool> {
        let Some(number) = self.idle.pop_front() else { return Ok(false) };
        let request = self.next_request;
        self.next_request = (request + 1) % self.job.requests.len();
        let client = &mut self.clients[number];
        client.asked = Some((request, since));
        client.sent = 0;
        if let Err(error) = client.push(&self.job) {
            self.broke(number, error)?;
            // Send it again on the new connection.
            self.clients[number].asked = Some((request, since));
            self.clients[number].push(&self.job)?;
        }
        Ok(true)
    }

    /// Waits for something to happen, and says how many answers are complete.
    fn wait(&mut self, at_most: Duration) -> Result<usize> {
        let mut ready = std::mem::take(&mut self.ready);
        self.poll.wait(at_most, &mut ready)?;
        ensure!(!ready.is_empty() || at_most < STUCK_AFTER, "no answer for {} s", STUCK_AFTER.as_secs());
        let mut complete = 0;
        for number in ready.drain(..) {
            complete += usize::from(self.look(number)?);
        }
        self.ready = ready;
        Ok(complete)
    }

    /// Moves one connection on; `true`: its answer is complete.
    fn look(&mut self, number: usize) -> Result<bool> {
        let client = &mut self.clients[number];
        let Some((_, since)) = client.asked else {
            // Readiness of a connection that waits: closed, or the echo of an earlier edge.
            match (&client.stream).read(&mut self.buffer) {
                Ok(0) if self.job.may_break => self.broke(number, io::ErrorKind::UnexpectedEof.into())?,
                Ok(0) => bail!("an idle connection was closed"),
                Ok(_) => bail!("unrequested bytes"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => self.broke(number, error)?,
            }
            return Ok(false);
        };
        match client.pull(&mut self.buffer, &self.job) {
            Ok(false) => Ok(false),
            Ok(true) => {
                self.outcome.latencies.push(since.elapsed());
                client.asked = None;
                if !self.job.reuse {
                    self.reopen(number)?;
                }
                self.idle.push_back(number);
                Ok(true)
            }
            Err(error) if self.job.may_break => {
                self.broke(number, error)?;
                self.idle.push_back(number);
                Ok(true)
            }
            Err(error) => Err(error).context("an exchange failed"),
        }
    }

    fn broke(&mut self, number: usize, error: io::Error) -> Result<()> {
        if !self.job.may_break {
            return Err(error).context("a connection broke");
        }
        self.outcome.broken += 1;
        self.reopen(number)
    }

    fn reopen(&mut self, number: usize) -> Result<()> {
        self.clients[number] = Client::open(&self.job, &self.poll, number)?;
        Ok(())
    }
}

impl Client {
    fn open(job: &Job, poll: &Poll, number: usize) -> Result<Self> {
        let stream = connect(job.target).context("can't connect")?;
        if let Some(upgrade) = &job.upgrade {
            handshake(&stream, upgrade)?;
        }
        poll.add(&stream, number)?;
        Ok(Self { stream, answer: Answer::default(), asked: None, sent: 0 })
    }

    /// Sends what is left of the request.
    fn push(&mut self, job: &Job) -> io::Result<()> {
        let Some((request, _)) = self.asked else { return Ok(()) };
        let bytes = &job.requests[request];
        while self.sent < bytes.len() {
            match (&self.stream).write(&bytes[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what has arrived; `true`: the response is complete.
    fn pull(&mut self, buffer: &mut [u8], job: &Job) -> io::Result<bool> {
        self.push(job)?;
        loop {
            match (&self.stream).read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    let complete = self.answer.feed(&buffer[..n], job.expected);
                    if complete.map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, wrong))? {
                        return Ok(true);
                    }
                    if n < buffer.len() {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Opens a tunnel, and waits for it.
fn handshake(mut stream: &TcpStream, request: &[u8]) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STUCK_AFTER))?;
    stream.write_all(request)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        ensure!(stream.read(&mut byte)? == 1, "closed instead of upgraded");
        head.push(byte[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101 "), "not upgraded: {}", String::from_utf8_lossy(&head));
    Ok(stream.set_nonblocking(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::backend::Backends;

    fn job(path: &str, expected: u64, target: SocketAddr) -> Job {
        Job {
            target,
            requests: vec![format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes().into()],
            expected: Expected::Body(expected),
            upgrade: None,
            reuse: true,
            may_break: false,
        }
    }

    #[test]
    fn every_request_is_answered_in_either_loop() {
        let backends = Backends::start(&["green".to_owned()], 0).unwrap();
        let target = backends.addresses[0];
        let mut clients = Clients::open(job("/3000000", 3_000_000, target), 3).unwrap();
        assert_eq!(clients.once_each(2).unwrap().latencies.len(), 3);
        assert!(clients.saw_green());
        assert!(!clients.closed(2, Duration::from_millis(20)).unwrap().latencies.is_empty());
        let mut clients = Clients::open(Job { reuse: false, ..job("/10", 10, target) }, 2).unwrap();
        assert_eq!(clients.open_loop(100.0, Duration::from_millis(95)).unwrap().latencies.len(), 10);
    }

    #[test]
    fn a_wrong_answer_fails_the_run() {
        let backends = Backends::start(&["blue".to_owned()], 0).unwrap();
        let mut clients = Clients::open(job("/10", 11, backends.addresses[0]), 1).unwrap();
        clients.once_each(1).unwrap_err();
    }
}
