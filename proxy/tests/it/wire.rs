//! A client that sees every byte: raw requests out, responses in, and whether the connection was kept.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::soon;

/// A client connection.
pub(crate) struct Wire<S = TcpStream> {
    pub(crate) stream: S,
    buffer: Vec<u8>,
    /// The other side has reset the connection.
    reset: bool,
}

/// A response, complete or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// Whether the body ended as announced.
    pub(crate) complete: bool,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
        Self::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Over a connection that is there.
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), reset: false }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let stream = &mut self.stream;
        let write = async {
            stream.write_all(bytes.as_ref()).await?;
            // What a full socket doesn't accept waits in TLS until it is flushed.
            stream.flush().await
        };
        soon("a write", write).await.unwrap();
    }

    /// Sends a `GET` and reads the response.
    pub(crate) async fn get(&mut self, path: &str) -> Response {
        self.send(get(path)).await;
        self.response().await
    }

    /// Reads a response to something other than `HEAD`.
    pub(crate) async fn response(&mut self) -> Response {
        self.read(false).await.expect("a response")
    }

    /// Reads a response to `HEAD`.
    pub(crate) async fn response_to_head(&mut self) -> Response {
        self.read(true).await.expect("a response")
    }

    /// Reads a response; `None` if the connection ends before one begins.
    pub(crate) async fn read(&mut self, to_head: bool) -> Option<Response> {
        soon("a response", self.read_response(to_head)).await
    }

    async fn read_response(&mut self, to_head: bool) -> Option<Response> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill().await {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end);
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let mut response = Response { status, head, body: Vec::new(), complete: true };
        if to_head || status < 200 || status == 204 || status == 304 {
            return Some(response);
        }
        if response.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            response.complete = self.read_chunks(&mut response.body).await;
        } else if let Some(length) = response.header("content-length") {
            let length: usize = length.parse().unwrap();
            while self.buffer.len() < length && self.fill().await {}
            response.complete = self.buffer.len() >= length;
            response.body = self.buffer.drain(..length.min(self.buffer.len())).collect();
        } else {
            while self.fill().await {}
            response.body = std::mem::take(&mut self.buffer);
            response.complete = !self.reset;
        }
        Some(response)
    }

    async fn read_chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let Some(line) = self.line().await else { return false };
            let Ok(size) = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16) else {
                return false;
            };
            while self.buffer.len() < size + 2 {
                if size == 0 {
                    break;
                }
                if !self.fill().await {
                    return false;
                }
            }
            if size == 0 {
                while let Some(line) = self.line().await {
                    if line.is_empty() {
                        return true;
                    }
                }
                return false;
            }
            body.extend(self.buffer.drain(..size));
            self.buffer.drain(..2);
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..at]).into_owned();
                self.buffer.drain(..at + 2);
                return Some(line);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Reads until these bytes have arrived.
    pub(crate) async fn read_until(&mut self, wanted: &[u8]) {
        soon("more bytes", async {
            while find(&self.buffer, wanted).is_none() {
                assert!(self.fill().await, "the connection ended early");
            }
        })
        .await;
    }

    /// Whether the other side has closed, with nothing more to read.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !soon("the end of the connection", self.fill()).await
    }

    /// Whether the other side has reset the connection.
    pub(crate) fn is_reset(&self) -> bool {
        self.reset
    }

    async fn fill(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.buffer).await;
        self.reset |= read.is_err();
        matches!(read, Ok(read) if read > 0)
    }
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n\r\n")
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
