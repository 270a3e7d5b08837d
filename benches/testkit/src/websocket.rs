//! A minimal WebSocket client (RFC 6455): a handshake, one text at a time, and the demand that it comes back.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use uh_protocol::BackendName;

use crate::http::Connection;

/// The key of the RFC's own example and the answer to it (RFC 6455, 1.3): a fixed pair is proof enough that the
/// handshake reached a WebSocket server, and spares a hash.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The longest text that fits a frame's short form; the programs send less.
const MAX_SHORT_BYTES: usize = 125;

/// Any mask is as good as another between us and our own app.
const MASK: [u8; 4] = [0x3a, 0x7f, 0x11, 0xc5];

const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
const FINAL: u8 = 0x80;

/// An open WebSocket. The caller sets the deadlines.
#[derive(Debug)]
pub struct WebSocket {
    connection: Connection,
    backend: BackendName,
}

impl WebSocket {
    /// Connects and upgrades.
    ///
    /// # Errors
    /// When the server is not there, or does not upgrade.
    pub async fn open(target: SocketAddr, path: &str) -> Result<Self> {
        let mut connection = Connection::open(target).await?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: app.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\n"
        );
        connection.write(request.as_bytes()).await?;
        let head = connection.read_head().await?;
        ensure!(head.status == 101, "the upgrade was answered with status {}", head.status);
        ensure!(
            head.websocket_accept.as_deref() == Some(ACCEPT),
            "the upgrade has no right sec-websocket-accept"
        );
        let backend = head.backend.context("the upgrade does not say which backend it reached")?;
        Ok(Self { connection, backend })
    }

    /// Who is at the other end.
    #[must_use]
    pub fn backend(&self) -> &BackendName {
        &self.backend
    }

    /// Sends a short text and waits for the same text.
    ///
    /// # Errors
    /// When anything else comes back, or nothing does.
    pub async fn echo(&mut self, text: &str) -> Result<()> {
        self.send(TEXT, text.as_bytes()).await?;
        loop {
            let (opcode, payload) = self.receive().await?;
            match opcode {
                TEXT if payload == text.as_bytes() => return Ok(()),
                TEXT => bail!("sent {text:?}, got back {:?}", String::from_utf8_lossy(&payload)),
                CLOSE => bail!("the server closed the WebSocket"),
                other => self.answer_control(other, &payload).await?,
            }
        }
    }

    /// Closes with code 1000 and waits until the server agrees.
    ///
    /// # Errors
    /// When the connection ends without a close frame.
    pub async fn close(mut self) -> Result<()> {
        self.send(CLOSE, &1000_u16.to_be_bytes()).await?;
        loop {
            let (opcode, payload) = self.receive().await?;
            if opcode == CLOSE {
                return Ok(());
            }
            self.answer_control(opcode, &payload).await?;
        }
    }

    async fn answer_control(&mut self, opcode: u8, payload: &[u8]) -> Result<()> {
        match opcode {
            PING => self.send(PONG, payload).await,
            TEXT | PONG => Ok(()),
            other => bail!("a frame of unknown kind {other:#x}"),
        }
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) -> Result<()> {
        ensure!(payload.len() <= MAX_SHORT_BYTES, "{} bytes are too many for one short frame", payload.len());
        let mut frame = vec![FINAL | opcode, 0x80 | payload.len() as u8];
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        Ok(self.connection.write(&frame).await?)
    }

    async fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut start = Vec::with_capacity(2);
        self.connection.take(2, &mut start).await.context("the WebSocket ended without a close frame")?;
        let [kind, length] = start[..] else { bail!("a frame without a start") };
        ensure!(kind & 0xf0 == FINAL, "a fragment or an unrequested extension");
        ensure!(usize::from(length) <= MAX_SHORT_BYTES, "a masked or longer frame than any that was sent");
        let mut payload = Vec::with_capacity(length.into());
        self.connection
            .take(length.into(), &mut payload)
            .await
            .context("the WebSocket ended within a frame")?;
        Ok((kind & 0x0f, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// Upgrades, then answers every frame with these bytes.
    async fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 512]).await;
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nx-backend: blue\r\nsec-websocket-accept: {ACCEPT}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            while stream.read(&mut [0; 512]).await.is_ok_and(|n| n > 0) && !answer.is_empty() {
                stream.write_all(answer).await.unwrap();
            }
        });
        target
    }

    #[tokio::test]
    async fn an_echo_is_the_same_text_and_a_ping_may_come_first() {
        let mut socket = WebSocket::open(server(b"\x89\x01p\x81\x02hi").await, "/ws").await.unwrap();
        assert_eq!(socket.backend().as_str(), "blue");
        socket.echo("hi").await.unwrap();
    }

    #[tokio::test]
    async fn another_text_a_close_and_a_lost_connection_are_errors() {
        for (answer, reason) in [
            (&b"\x81\x02ho"[..], "got back"),
            (b"\x88\x02\x03\xe9", "closed the WebSocket"),
            (b"", "without a close frame"),
            (b"\x01\x02hi", "a fragment"),
            (b"\x83\x00", "unknown kind"),
        ] {
            let mut socket = WebSocket::open(server(answer).await, "/ws").await.unwrap();
            let error = format!("{:#}", socket.echo("hi").await.unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }

    #[tokio::test]
    async fn a_close_waits_for_the_servers_close() {
        WebSocket::open(server(b"\x88\x02\x03\xe8").await, "/ws").await.unwrap().close().await.unwrap();
        let lost = WebSocket::open(server(b"").await, "/ws").await.unwrap();
        lost.close().await.unwrap_err();
    }
}
