//! A backend that parses with the reference and records what it gets, and a comparison with what was sent.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// What the backend sends for a request.
#[derive(Debug)]
pub struct Reply {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether they are a whole response. Otherwise nothing can follow, and the backend stops sending.
    pub is_whole: bool,
}

impl Witness {
    /// Starts it. It answers each request with a short body.
    #[must_use]
    pub fn start() -> Self {
        Self::answering(|message| {
            let body: &[u8] = if message.method == "HEAD" { b"" } else { b"ok" };
            let bytes = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", body].concat();
            Reply { bytes, is_whole: true }
        })
    }

    /// Starts it with other answers.
    pub fn answering(answer: impl Fn(&Message) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Seen>>::default();
        let (into, answer) = (Arc::clone(&seen), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (into, answer) = (Arc::clone(&into), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &into, &*answer));
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
        let (seen, answers) = self.exchange(target, bytes, patience)?;
        if !answers.is_empty() && !answers.starts_with(b"HTTP/1.") {
            return Err(format!("an answer that is none: {:?}", String::from_utf8_lossy(&answers)));
        }
        Ok(seen)
    }

    /// The same, with what the client got.
    ///
    /// # Errors
    /// It neither responds nor closes.
    pub fn exchange(
        &self,
        target: SocketAddr,
        bytes: &[u8],
        patience: Option<Duration>,
    ) -> Result<(Seen, Vec<u8>), String> {
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
        if stream.read_to_end(&mut answers).is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
            return Err("it neither responds nor closes".to_owned());
        }
        Ok((std::mem::take(&mut *lock(&self.seen)), answers))
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads requests strictly, and answers each.
fn serve(mut stream: TcpStream, seen: &Mutex<Seen>, answer: &dyn Fn(&Message) -> Reply) {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        match read(&bytes) {
            Read::Whole(message, end) => {
                bytes.drain(..end);
                let Reply { bytes: reply, is_whole } = answer(&message);
                lock(seen).messages.push(message);
                if stream.write_all(&reply).is_err() || !is_whole {
                    let _ = stream.shutdown(Shutdown::Write);
                    // Else what is still unread would reset the connection, and take the answer with it.
                    while matches!(stream.read(&mut part), Ok(1..)) {}
                    return;
                }
                continue;
            }
            Read::Bad(why) => {
                lock(seen).bad.push(format!("{why}: {:?}", String::from_utf8_lossy(&bytes)));
                return;
            }
            Read::More => {}
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
