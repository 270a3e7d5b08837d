//! A client and a scripted app that handle HTTP/1.1 byte by byte.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::shim::within;

/// One connection.
pub(crate) struct Wire(TcpStream);

impl Wire {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self(within("a connection", TcpStream::connect(address)).await.unwrap())
    }

    /// The next connection to a listener.
    pub(crate) async fn accept(listener: &TcpListener) -> Self {
        Self(within("a connection", listener.accept()).await.unwrap().0)
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("bytes to leave", self.0.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Sends, although the other side may have closed.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within("bytes to leave", self.0.write_all(bytes.as_ref())).await;
    }

    /// Reads a request's head, unless the other side only connects.
    pub(crate) async fn asked(&mut self) -> bool {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match within("a request", self.0.read_u8()).await {
                Ok(byte) => head.push(byte),
                Err(_) => return false,
            }
        }
        true
    }

    pub(crate) async fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: a.test\r\n\r\n")).await;
    }

    /// Reads until the received bytes end with `end`, and returns them.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            let read = within(end, self.0.read_u8()).await;
            text.push(read.unwrap_or_else(|_| panic!("ended with {:?}", String::from_utf8_lossy(&text))));
        }
        String::from_utf8(text).unwrap()
    }

    /// Reads a head, including its empty line.
    pub(crate) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// Reads head and body of a response with a length.
    pub(crate) async fn answer(&mut self) -> String {
        let head = self.head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        within("the body", self.0.read_exact(&mut body)).await.unwrap();
        head + std::str::from_utf8(&body).unwrap()
    }

    pub(crate) async fn read_exact(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        within("bytes", self.0.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// Reads until the other side closes. Distinguishes a reset.
    pub(crate) async fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        within("the end", self.0.read_to_end(&mut bytes)).await?;
        Ok(bytes)
    }

    /// Reads the rest as text, and fails on a reset.
    pub(crate) async fn rest_text(&mut self) -> String {
        String::from_utf8(self.rest().await.unwrap()).unwrap()
    }

    /// Any bytes as text.
    pub(crate) async fn rest_lossy(&mut self) -> String {
        String::from_utf8_lossy(&self.rest().await.unwrap()).into_owned()
    }
}

/// One exchange on a new connection.
pub(crate) async fn get(address: SocketAddr, path: &str) -> String {
    let mut wire = Wire::open(address).await;
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n")).await;
    wire.rest_text().await
}

/// A response with a length.
pub(crate) fn response(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Opens a WebSocket of the sample app.
pub(crate) async fn websocket(address: SocketAddr) -> Wire {
    let mut wire = Wire::open(address).await;
    wire.send(
        "GET /ws HTTP/1.1\r\nhost: a.test\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await;
    let head = wire.head().await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    wire
}

/// A client's text frame, with a mask of zeroes.
pub(crate) fn masked(text: &str) -> Vec<u8> {
    [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat()
}

impl Wire {
    /// Sends a text over a WebSocket and expects its echo.
    pub(crate) async fn echoes(&mut self, text: &str) {
        self.send(masked(text)).await;
        let echo = [&[0x81, text.len() as u8], text.as_bytes()].concat();
        assert_eq!(self.read_exact(echo.len()).await, echo);
    }
}

/// A server's close frame with code 1001.
pub(crate) const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xE9];
/// The same from a client.
pub(crate) const GOING_AWAY_MASKED: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xE9];
