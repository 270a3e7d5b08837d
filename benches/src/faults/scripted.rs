//! A backend whose misbehaviour can be changed at run time, for all its connections at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// How it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Normally.
    Good,
    /// Accepts, reads, and never answers.
    Silent,
    /// Sends one byte of its answers each second.
    Drip,
}

/// A running backend. It ends with the runtime.
#[derive(Debug, Clone)]
pub struct Scripted {
    /// Where it listens.
    pub address: SocketAddr,
    manner: Arc<watch::Sender<Manner>>,
}

impl Scripted {
    /// Starts it on the current runtime.
    ///
    /// # Errors
    /// When it can't listen.
    pub async fn start(name: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let manner = Arc::new(watch::Sender::new(Manner::Good));
        let manners = Arc::clone(&manner);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, name, manners.subscribe()));
            }
        });
        Ok(Self { address, manner })
    }

    /// Changes its manner. A connection that was left without an answer is dropped when that is over.
    pub fn behave(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }
}

/// Until the connection ends, for whatever reason.
async fn serve(mut stream: TcpStream, name: &'static str, mut manner: watch::Receiver<Manner>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let body = if head.starts_with(b"GET /api/health ") { "{\"status\":\"healthy\"}" } else { "ok\n" };
        let answer =
            format!("HTTP/1.1 200 OK\r\nX-Backend: {name}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let now = *manner.borrow_and_update();
        match now {
            Manner::Good => stream.write_all(answer.as_bytes()).await.ok()?,
            Manner::Silent => {
                manner.changed().await.ok()?;
                return None;
            }
            Manner::Drip => {
                for byte in answer.bytes() {
                    stream.write_u8(byte).await.ok()?;
                    tokio::select! {
                        _ = manner.changed() => return None,
                        () = sleep(Duration::from_secs(1)) => {}
                    }
                }
            }
        }
    }
}
