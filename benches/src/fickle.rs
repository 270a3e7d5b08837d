//! A backend that drops kept connections at the worst moment, and knows which requests it has carried out.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How a connection is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// Its sending side is closed, and what still comes is thrown away: the other side reads the end.
    End,
    /// It is reset: the other side's read fails, or its write if it comes later.
    Reset,
}

/// When a connection is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// So long after an answer, as servers do with idle connections.
    Idle(Duration),
    /// When the next request arrives on it. One that is ended is carried out first.
    OnArrival,
    /// When the first request of a burst arrives on any connection: all idle ones at once.
    OnBurst,
}

/// What it answers, as the only active backend of whoever has started it.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nX-Backend: blue\r\nContent-Length: 2\r\n\r\nok";

/// How long a connection whose sending side is closed goes on throwing away what comes.
const DISCARD_FOR: Duration = Duration::from_millis(200);

/// What the backend has carried out: how often each request, by its number.
#[derive(Debug, Clone, Default)]
pub struct Book(Arc<Mutex<HashMap<u64, u32>>>);

impl Book {
    fn note(&self, number: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(number).or_default() += 1;
    }

    /// How often a request was carried out.
    #[must_use]
    pub fn count(&self, number: u64) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&number).copied().unwrap_or(0)
    }
}

/// Starts the backend on the current runtime. Requests are `GET /NUMBER` or `POST /NUMBER` with a short body.
///
/// # Errors
/// When it can't listen.
pub async fn start(death: Death, when: When, book: Book) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let burst = Arc::new(watch::Sender::new(0u64));
        while let Ok((stream, _)) = listener.accept().await {
            let connection =
                Connection { stream, death, when, book: book.clone(), burst: Arc::clone(&burst) };
            tokio::spawn(connection.serve());
        }
    });
    Ok(address)
}

struct Connection {
    stream: TcpStream,
    death: Death,
    when: When,
    book: Book,
    /// Grows when a burst begins.
    burst: Arc<watch::Sender<u64>>,
}

enum Arrival {
    Request(String),
    /// Bytes of a request, or silence for too long, or a burst elsewhere: time to die.
    Die,
    Gone,
}

impl Connection {
    async fn serve(mut self) {
        let _ = self.stream.set_nodelay(true);
        let mut kept = false;
        loop {
            match self.arrival(kept).await {
                Arrival::Request(head) => {
                    if self.when == When::OnBurst {
                        self.burst.send_modify(|burst| *burst += 1);
                    }
                    let number = head.split(['/', ' ']).find_map(|part| part.parse().ok());
                    number.into_iter().for_each(|number| self.book.note(number));
                    if kept && self.when == When::OnArrival {
                        return self.die().await;
                    }
                    if self.stream.write_all(ANSWER).await.is_err() {
                        return;
                    }
                    kept = true;
                }
                Arrival::Die => return self.die().await,
                Arrival::Gone => return,
            }
        }
    }

    async fn arrival(&mut self, kept: bool) -> Arrival {
        let patience = match self.when {
            When::Idle(after) if kept => after,
            _ => Duration::from_secs(60),
        };
        let mut burst = self.burst.subscribe();
        let resets_on_arrival = kept && self.when == When::OnArrival && self.death == Death::Reset;
        let mut first = [0];
        tokio::select! {
            biased;
            peeked = self.stream.peek(&mut first) => match peeked {
                // With the request unread, so that closing resets.
                Ok(1) if resets_on_arrival => Arrival::Die,
                Ok(1) => self.read_request().await.map_or(Arrival::Gone, Arrival::Request),
                _ => Arrival::Gone,
            },
            _ = burst.changed(), if kept && self.when == When::OnBurst => Arrival::Die,
            () = sleep(patience) => Arrival::Die,
        }
    }

    /// Reads a head, and its body if it has one.
    async fn read_request(&mut self) -> Option<String> {
        let mut bytes = Vec::with_capacity(1024);
        loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
                let length =
                    head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                let mut missing = (end + 4 + length.unwrap_or(0usize)).saturating_sub(bytes.len());
                while missing > 0 {
                    missing = missing
                        .saturating_sub(self.stream.read(&mut [0; 4096]).await.ok().filter(|&n| n > 0)?);
                }
                return Some(head);
            }
            if self.stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        }
    }

    async fn die(mut self) {
        match self.death {
            Death::Reset => {
                let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
            }
            Death::End => {
                let _ = self.stream.shutdown().await;
                let discard =
                    async { while matches!(self.stream.read(&mut [0; 4096]).await, Ok(n) if n > 0) {} };
                let _ = timeout(DISCARD_FOR, discard).await;
            }
        }
    }
}
