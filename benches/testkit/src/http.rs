//! A lean HTTP/1.1 client connection that tells apart every way in which an answer can fail.
//!
//! It never retries and never repairs: the load, which calls it, decides what a failure means.

use std::io::ErrorKind;
use std::net::SocketAddr;

use httparse::Status;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uh_protocol::BackendName;

/// The largest head, chunk line or trailer section that is read.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// The largest body that is read; the programs here ask for far less.
const MAX_BODY_BYTES: usize = 16 << 20;

/// More headers than any answer of our own apps has.
const MAX_HEADERS: usize = 64;

/// Room for one answer of the usual kind in one read.
const READ_BYTES: usize = 4096;

/// Why a request has no good answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Failure {
    /// No connection.
    #[error("could not connect")]
    Connect,
    /// Closed or reset with not one byte of an answer.
    #[error("closed before the response")]
    ClosedBeforeResponse,
    /// Closed or reset within the head.
    #[error("closed within the head")]
    ClosedMidHead,
    /// Closed or reset before the announced length or the last chunk.
    #[error("closed within the body")]
    ClosedMidBody,
    /// A whole answer with another status than 200.
    #[error("status {0}")]
    BadStatus(u16),
    /// No whole answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// Not HTTP/1, or framed in two ways at once.
    #[error("malformed response")]
    Malformed,
    /// Larger than anything that was asked for.
    #[error("response too large")]
    TooLarge,
    /// Bytes after the announced length, or that nobody asked for.
    #[error("bytes beyond the response")]
    ExtraBytes,
    /// No readable `x-backend` header, so that nobody knows who answered.
    #[error("response without a backend name")]
    Unidentified,
}

impl Failure {
    /// Whether the server ended a connection that the client wanted to keep.
    #[must_use]
    pub fn is_close(self) -> bool {
        matches!(self, Self::ClosedBeforeResponse | Self::ClosedMidHead | Self::ClosedMidBody)
    }
}

/// What the programs need to know of a response head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// `x-backend`: who answered.
    pub backend: Option<BackendName>,
    /// Where the body ends.
    pub framing: Framing,
    /// Whether the server closes the connection after this.
    pub close: bool,
    /// `sec-websocket-accept`.
    pub websocket_accept: Option<String>,
}

/// Where a body ends (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(usize),
    /// After the last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// Reads a head, if it is there as a whole, and says how long it is.
///
/// # Errors
/// `Malformed` and `TooLarge`.
pub fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() > MAX_HEAD_BYTES => return Err(Failure::TooLarge),
        Ok(Status::Partial) => return Ok(None),
        Err(_) => return Err(Failure::Malformed),
    };
    let status = response.code.ok_or(Failure::Malformed)?;
    let mut head = Head {
        status,
        backend: None,
        framing: Framing::UntilClose,
        close: response.version == Some(0),
        websocket_accept: None,
    };
    let (mut announced, mut chunked) = (None, false);
    for header in response.headers.iter() {
        let value = std::str::from_utf8(header.value).map_err(|_| Failure::Malformed)?.trim();
        match header.name.to_ascii_lowercase().as_str() {
            "x-backend" => head.backend = value.parse().ok(),
            "content-length" if announced.is_some() => return Err(Failure::Malformed),
            "content-length" => announced = Some(value.parse().map_err(|_| Failure::Malformed)?),
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => head.close |= value.eq_ignore_ascii_case("close"),
            "sec-websocket-accept" => head.websocket_accept = Some(value.to_owned()),
            _ => {}
        }
    }
    head.framing = match (announced, chunked) {
        (Some(_), true) => return Err(Failure::Malformed),
        _ if status < 200 || matches!(status, 204 | 304) => Framing::Length(0),
        (_, true) => Framing::Chunked,
        (Some(length), _) => Framing::Length(length),
        (None, false) => Framing::UntilClose,
    };
    head.close |= head.framing == Framing::UntilClose;
    Ok(Some((head, length)))
}

/// One request on a new connection: the head of its answer, and the body.
///
/// # Errors
/// Any `Failure` but `BadStatus`, `TimedOut` and `Unidentified`. The caller sets the deadline.
pub async fn get(target: SocketAddr, path: &str) -> Result<(Head, String), Failure> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n");
    let mut body = Vec::new();
    let head = Connection::open(target).await?.exchange(request.as_bytes(), &mut body).await?;
    Ok((head, String::from_utf8_lossy(&body).into_owned()))
}

/// What a connection did while it was idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Nothing: it can be used.
    Quiet,
    /// The server closed it.
    Closed,
    /// The server sent bytes that nobody asked for.
    Spoke,
}

/// One connection, with the bytes that were read and not yet used.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// `Connect`.
    pub async fn open(target: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(target).await.map_err(|_| Failure::Connect)?;
        stream.set_nodelay(true).map_err(|_| Failure::Connect)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends a request and reads its whole answer; `body` is replaced. The caller sets the deadline.
    ///
    /// # Errors
    /// Any `Failure` but `Connect`, `BadStatus`, `TimedOut` and `Unidentified`.
    pub async fn exchange(&mut self, request: &[u8], body: &mut Vec<u8>) -> Result<Head, Failure> {
        body.clear();
        self.write(request).await?;
        let mut head = self.read_head().await?;
        while head.status < 200 && head.status != 101 {
            head = self.read_head().await?;
        }
        match head.framing {
            Framing::Length(length) => self.take(length, body).await?,
            Framing::Chunked => self.take_chunks(body).await?,
            Framing::UntilClose => self.take_rest(body).await?,
        }
        if self.buffer.is_empty() { Ok(head) } else { Err(Failure::ExtraBytes) }
    }

    /// Looks at the connection between two exchanges, without waiting.
    pub fn idle(&self) -> Idle {
        match self.stream.try_read(&mut [0]) {
            Ok(0) => Idle::Closed,
            Ok(_) => Idle::Spoke,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Idle::Quiet,
            Err(_) => Idle::Closed,
        }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(bytes).await.map_err(|_| Failure::ClosedBeforeResponse)
    }

    pub(crate) async fn read_head(&mut self) -> Result<Head, Failure> {
        loop {
            if let Some((head, length)) = parse_head(&self.buffer)? {
                self.buffer.drain(..length);
                return Ok(head);
            }
            let nothing_yet = self.buffer.is_empty();
            self.fill(if nothing_yet { Failure::ClosedBeforeResponse } else { Failure::ClosedMidHead })
                .await?;
        }
    }

    /// Moves exactly `length` bytes to the end of `to`.
    pub(crate) async fn take(&mut self, length: usize, to: &mut Vec<u8>) -> Result<(), Failure> {
        if to.len().saturating_add(length) > MAX_BODY_BYTES {
            return Err(Failure::TooLarge);
        }
        let mut left = length;
        while left > 0 {
            if self.buffer.is_empty() {
                self.fill(Failure::ClosedMidBody).await?;
            }
            let there = left.min(self.buffer.len());
            to.extend(self.buffer.drain(..there));
            left -= there;
        }
        Ok(())
    }

    async fn take_chunks(&mut self, body: &mut Vec<u8>) -> Result<(), Failure> {
        loop {
            let (line, size) = match httparse::parse_chunk_size(&self.buffer) {
                Ok(Status::Complete(found)) => found,
                Ok(Status::Partial) if self.buffer.len() < MAX_HEAD_BYTES => {
                    self.fill(Failure::ClosedMidBody).await?;
                    continue;
                }
                _ => return Err(Failure::Malformed),
            };
            self.buffer.drain(..line);
            if size == 0 {
                while self.take_line().await? > 0 {}
                return Ok(());
            }
            self.take(usize::try_from(size).map_err(|_| Failure::TooLarge)?, body).await?;
            if self.take_line().await? != 0 {
                return Err(Failure::Malformed);
            }
        }
    }

    /// Drops one line and says how long it was without its end.
    async fn take_line(&mut self) -> Result<usize, Failure> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                self.buffer.drain(..end + 2);
                return Ok(end);
            }
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(Failure::TooLarge);
            }
            self.fill(Failure::ClosedMidBody).await?;
        }
    }

    async fn take_rest(&mut self, body: &mut Vec<u8>) -> Result<(), Failure> {
        loop {
            body.append(&mut self.buffer);
            match self.fill(Failure::ClosedMidBody).await {
                Ok(()) if body.len() > MAX_BODY_BYTES => return Err(Failure::TooLarge),
                Ok(()) => {}
                Err(_) => return Ok(()),
            }
        }
    }

    async fn fill(&mut self, when_closed: Failure) -> Result<(), Failure> {
        self.buffer.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => Err(when_closed),
            Ok(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn head(text: &str) -> Head {
        parse_head(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn a_head_says_who_answered_and_where_the_body_ends() {
        let blue = head("HTTP/1.1 200 OK\r\nX-Backend: blue\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(blue.backend.unwrap().as_str(), "blue");
        assert_eq!((blue.status, blue.framing, blue.close), (200, Framing::Length(5), false));

        let chunked = head("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: Close\r\n\r\n");
        assert_eq!((chunked.framing, chunked.close, chunked.backend), (Framing::Chunked, true, None));

        let bare = head("HTTP/1.1 502 Bad Gateway\r\n\r\n");
        assert_eq!((bare.framing, bare.close), (Framing::UntilClose, true));
        assert_eq!(head("HTTP/1.1 204 No Content\r\n\r\n").framing, Framing::Length(0));
        assert!(head("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n").close);
    }

    #[test]
    fn a_head_is_incomplete_until_its_empty_line() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        for cut in 0..whole.len() {
            assert_eq!(parse_head(&whole[..cut]), Ok(None), "cut at {cut}");
        }
        assert_eq!(parse_head(whole).unwrap().unwrap().1, whole.len());
    }

    #[test]
    fn a_bad_head_is_malformed() {
        for bad in [
            "SSH-2.0-OpenSSH_9\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(parse_head(bad.as_bytes()), Err(Failure::Malformed), "{bad}");
        }
    }

    /// Asks a server that sends these pieces, a moment apart, and closes.
    async fn ask(pieces: &'static [&'static str]) -> Result<String, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 64]).await;
            for piece in pieces {
                let _ = stream.write_all(piece.as_bytes()).await;
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        });
        let mut body = Vec::new();
        let mut connection = Connection::open(target).await.unwrap();
        let answer = connection.exchange(b"GET / HTTP/1.1\r\n\r\n", &mut body).await;
        server.await.unwrap();
        answer.map(|_| String::from_utf8(body).unwrap())
    }

    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

    #[tokio::test]
    async fn bodies_are_read_to_their_end_however_they_are_cut() {
        let lengthy = ask(&["HTTP/1.1 200 OK\r\ncontent-le", "ngth: 5\r\n\r\nhe", "llo"]).await;
        assert_eq!(lengthy.as_deref(), Ok("hello"));
        let chunked =
            ask(&[CHUNKED, "2\r\nhe\r", "\n3;x=y\r\nllo\r\n0", "\r\nx-trailer: 1\r\n", "\r\n"]).await;
        assert_eq!(chunked.as_deref(), Ok("hello"));
        let rest = ask(&["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nhel", "lo"]).await;
        assert_eq!(rest.as_deref(), Ok("hello"));
    }

    #[tokio::test]
    async fn a_body_that_is_cut_or_too_long_is_a_failure() {
        assert_eq!(ask(&[CHUNKED, "5\r\nhel"]).await, Err(Failure::ClosedMidBody));
        assert_eq!(ask(&[CHUNKED, "5\r\nhello\r\n"]).await, Err(Failure::ClosedMidBody));
        assert_eq!(ask(&[CHUNKED, "2\r\nhello\r\n0\r\n\r\n"]).await, Err(Failure::Malformed));
        assert_eq!(ask(&[CHUNKED, "0\r\n\r\nHTTP/1.1"]).await, Err(Failure::ExtraBytes));
        assert_eq!(
            ask(&["HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n"]).await,
            Err(Failure::TooLarge)
        );
    }
}
