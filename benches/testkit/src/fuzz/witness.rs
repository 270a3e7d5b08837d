//! A backend that parses with the reference and records what it gets, and a comparison with what was sent.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::fuzz::reference::{Demand, Message, Read, is_same, read, read_all, read_leniently};
use crate::wait::SOON;

/// What the backend got since the last call.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// In the order of their arrival.
    pub messages: Vec<Message>,
    /// What it couldn't parse.
    pub bad: Vec<String>,
}

/// A running backend. It ends with the process.
#[derive(Debug)]
pub struct Witness {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Witness {
    /// Starts it.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Seen>>::default();
        let into = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let into = Arc::clone(&into);
                std::thread::spawn(move || serve(stream, &into));
            }
        });
        Self { address, seen }
    }

    /// Sends bytes to the program under test, waits until it has closed, and returns what arrived at the backend.
    /// `patience`: how long it may be silent before the close is sent; none: immediately.
    ///
    /// # Errors
    /// It doesn't answer properly.
    pub fn send(&self, target: SocketAddr, bytes: &[u8], patience: Option<Duration>) -> Result<Seen, String> {
        let mut stream = TcpStream::connect(target).map_err(|e| format!("no connection: {e}"))?;
        // It may close before it has read all.
        let _ = stream.write_all(bytes);
        let mut answers = Vec::new();
        if let Some(patience) = patience {
            stream.set_read_timeout(Some(patience)).unwrap();
            let _ = stream.read_to_end(&mut answers);
        }
        stream.set_read_timeout(Some(SOON)).unwrap();
        let _ = stream.shutdown(Shutdown::Write);
        match stream.read_to_end(&mut answers) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                return Err("it neither responds nor closes".to_owned());
            }
            _ => {}
        }
        if !answers.is_empty() && !answers.starts_with(b"HTTP/1.") {
            return Err(format!("an answer that is none: {:?}", String::from_utf8_lossy(&answers)));
        }
        Ok(std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Seen>) {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        loop {
            match read(&bytes) {
                Read::Whole(message, end) => {
                    let body: &[u8] = if message.method == "HEAD" { b"" } else { b"ok" };
                    seen.lock().unwrap_or_else(PoisonError::into_inner).messages.push(message);
                    bytes.drain(..end);
                    let answer = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", body].concat();
                    if stream.write_all(&answer).is_err() {
                        return;
                    }
                }
                Read::More => break,
                Read::Bad(why) => {
                    let bad = format!("{why}: {:?}", String::from_utf8_lossy(&bytes));
                    seen.lock().unwrap_or_else(PoisonError::into_inner).bad.push(bad);
                    return;
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return,
            Ok(length) => bytes.extend_from_slice(&part[..length]),
        }
    }
}

/// What arrived must be what was meant, in order.
///
/// # Errors
/// What isn't.
pub fn compare(sent: &[u8], seen: &Seen, demand: Demand) -> Result<(), String> {
    if let Some(bad) = seen.bad.first() {
        return Err(format!("the backend can't read what came through: {bad}"));
    }
    let meant = match demand {
        Demand::Strict => read_all(sent).0,
        Demand::WellFormed => read_leniently(sent),
    };
    let mut left = meant.iter();
    for came in &seen.messages {
        let found = match demand {
            Demand::Strict => left.next().is_some_and(|meant| is_same(meant, came, demand)),
            Demand::WellFormed => left.any(|meant| is_same(meant, came, demand)),
        };
        if !found {
            return Err(format!("came: {came:?}\nmeant: {meant:?}"));
        }
    }
    Ok(())
}

/// Everything valid that was sent must arrive.
///
/// # Errors
/// What doesn't.
pub fn all_came(sent: &[u8], seen: &Seen, demand: Demand) -> Result<(), String> {
    compare(sent, seen, demand)?;
    let (meant, _) = read_all(sent);
    if seen.messages.len() != meant.len() {
        return Err(format!("came: {:?}\nmeant: {meant:?}", seen.messages));
    }
    Ok(())
}
