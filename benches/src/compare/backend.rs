//! The app behind every proxy: as lean as can be, so that the proxy is what limits, and the same for all.
//!
//! One thread serves any number of backends. `/N` answers with N bytes, a body is read completely and discarded, and
//! an upgrade turns the connection into a WebSocket that answers each frame of [`MESSAGE_BYTES`] with one as long.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::accounts::pin_this_thread;
use super::poll::Poll;

/// The payload of a WebSocket message, in bytes; fits the short form of a frame (RFC 6455 §5.2).
pub const MESSAGE_BYTES: usize = 64;

/// A client's frame: two bytes of head, four of mask.
pub const CLIENT_FRAME_BYTES: usize = MESSAGE_BYTES + 6;

/// A server's frame: two bytes of head.
pub const SERVER_FRAME_BYTES: usize = MESSAGE_BYTES + 2;

/// How soon the thread sees that it is to end.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// Taken from a socket at once.
const READ_BYTES: usize = 256 << 10;

/// More header fields than any proxy here sends.
const MAX_FIELDS: usize = 64;

/// Running backends; they end when this is dropped.
#[derive(Debug)]
pub struct Backends {
    /// Where each of them listens.
    pub addresses: Vec<SocketAddr>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backends {
    /// Starts one backend for each name, all on one thread on this core. Each says its name in `x-backend`.
    ///
    /// # Errors
    /// The system refuses a socket or the thread.
    pub fn start(names: &[String], core: usize) -> Result<Self> {
        let listen = |_: &String| {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listeners = names.iter().map(listen).collect::<io::Result<Vec<_>>>().context("no listener")?;
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let names = names.to_vec();
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("backends".to_owned()).spawn(move || {
            // Not pinned, it still serves.
            let _ = pin_this_thread(&[core]);
            let Ok(mut server) = Server::new(listeners, names) else { return };
            while !stopped.load(Ordering::Relaxed) && server.turn().is_ok() {}
        })?;
        Ok(Self { addresses, stop, thread: Some(thread) })
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

struct Server {
    poll: Poll,
    listeners: Vec<TcpListener>,
    names: Vec<String>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    ready: Vec<usize>,
    buffer: Vec<u8>,
    answers: HashMap<(usize, usize), Rc<[u8]>>,
}

enum State {
    Head,
    Body { left: usize, answer: usize },
    WebSocket { partial: usize },
}

struct Connection {
    stream: TcpStream,
    backend: usize,
    state: State,
    head: Vec<u8>,
    out: Option<(Rc<[u8]>, usize)>,
}

impl Server {
    fn new(listeners: Vec<TcpListener>, names: Vec<String>) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (number, listener) in listeners.iter().enumerate() {
            poll.add_listener(listener, number)?;
        }
        Ok(Self {
            poll,
            listeners,
            names,
            connections: Vec::new(),
            free: Vec::new(),
            ready: Vec::new(),
            buffer: vec![0; READ_BYTES],
            answers: HashMap::new(),
        })
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut ready = std::mem::take(&mut self.ready);
        self.poll.wait(LOOK_AROUND, &mut ready)?;
        for number in ready.drain(..) {
            match number.checked_sub(self.listeners.len()) {
                None => self.accept(number)?,
                Some(slot) => self.serve(slot),
            }
        }
        self.ready = ready;
        Ok(())
    }

    fn accept(&mut self, backend: usize) -> io::Result<()> {
        while let Ok((stream, _)) = self.listeners[backend].accept() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let slot = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.poll.add(&stream, self.listeners.len() + slot)?;
            let connection = Connection { stream, backend, state: State::Head, head: Vec::new(), out: None };
            self.connections[slot] = Some(connection);
        }
        Ok(())
    }

    fn serve(&mut self, slot: usize) {
        let Some(mut connection) = self.connections.get_mut(slot).and_then(Option::take) else { return };
        match self.advance(&mut connection) {
            Ok(()) => self.connections[slot] = Some(connection),
            // Closed, by either side: the slot is free.
            Err(_) => self.free.push(slot),
        }
    }

    fn advance(&mut self, connection: &mut Connection) -> io::Result<()> {
        connection.flush()?;
        loop {
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = (&connection.stream).read(&mut buffer);
            let result = match &read {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.take(connection, &buffer[..*n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                Err(error) => Err(error.kind().into()),
            };
            let full = read.is_ok_and(|n| n == buffer.len());
            self.buffer = buffer;
            result?;
            if !full {
                return Ok(());
            }
        }
    }

    fn take(&mut self, connection: &mut Connection, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match &mut connection.state {
                State::Head => {
                    connection.head.extend_from_slice(bytes);
                    let Some(request) = Request::parse(&connection.head)? else { return Ok(()) };
                    let rest = connection.head.len() - request.length;
                    bytes = &bytes[bytes.len() - rest..];
                    connection.head.clear();
                    if request.upgrade {
                        connection.state = State::WebSocket { partial: 0 };
                        connection.send(upgrade(&self.names[connection.backend]))?;
                    } else if request.body == 0 {
                        connection.send(self.answer(connection.backend, request.size))?;
                    } else {
                        connection.state = State::Body { left: request.body, answer: request.size };
                    }
                }
                State::Body { left, answer } => {
                    let n = bytes.len().min(*left);
                    *left -= n;
                    bytes = &bytes[n..];
                    if *left == 0 {
                        let answer = *answer;
                        connection.state = State::Head;
                        connection.send(self.answer(connection.backend, answer))?;
                    }
                }
                State::WebSocket { partial } => {
                    let there = *partial + bytes.len();
                    *partial = there % CLIENT_FRAME_BYTES;
                    let frame = [&[0x82, MESSAGE_BYTES as u8][..], &[b'x'; MESSAGE_BYTES]].concat();
                    if there >= CLIENT_FRAME_BYTES {
                        connection.send(frame.repeat(there / CLIENT_FRAME_BYTES).into())?;
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, backend: usize, size: usize) -> Rc<[u8]> {
        let name = &self.names[backend];
        let answer = self.answers.entry((backend, size)).or_insert_with(|| {
            let mut answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {size}\r\n\
                 Cache-Control: no-store\r\nDate: Mon, 23 Nov 2026 17:18:17 GMT\r\nx-backend: {name}\r\n\r\n"
            )
            .into_bytes();
            answer.resize(answer.len() + size, b'x');
            answer.into()
        });
        Rc::clone(answer)
    }
}

fn upgrade(name: &str) -> Rc<[u8]> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nx-backend: {name}\r\n\r\n"
    )
    .into_bytes()
    .into()
}

impl Connection {
    fn send(&mut self, bytes: Rc<[u8]>) -> io::Result<()> {
        if self.out.is_some() {
            // A second request before the first one's answer: no proxy here may do that.
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.out = Some((bytes, 0));
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some((bytes, sent)) = &mut self.out {
            match (&self.stream).write(&bytes[*sent..]) {
                Ok(n) => *sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            if *sent == bytes.len() {
                self.out = None;
            }
        }
        Ok(())
    }
}

struct Request {
    length: usize,
    size: usize,
    body: usize,
    upgrade: bool,
}

impl Request {
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let length = match request.parse(bytes).map_err(|_| bad())? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial => return Ok(None),
        };
        let path = request.path.unwrap_or_default().trim_start_matches('/');
        let mut parsed = Self { length, size: path.parse().unwrap_or(0), body: 0, upgrade: false };
        for field in request.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                let text = std::str::from_utf8(field.value).map_err(|_| bad())?;
                parsed.body = text.trim().parse().map_err(|_| bad())?;
            }
            parsed.upgrade |= field.name.eq_ignore_ascii_case("upgrade");
        }
        Ok(Some(parsed))
    }
}
