//! An HTTP/1 connection as the link to its client: bodies are the bytes themselves, and what the client has taken is
//! what its TCP has acknowledged.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite as _;
use tokio::net::TcpStream;

use super::presence::{self, Presence};
use super::{ClientLink, Watched};
use crate::front::pump::ends::{Parts, PlainSocket, PumpSink, PumpSource, fill_from, write_to};
use crate::tls::carrier::TlsClient;
use crate::tls::handshake::is_end_without_notice;
use uh_http1::body::Framing;
use uh_http1::buffer::Buffer;
use uh_http1::request::RequestHead;
use uh_http1::response::Coding;

/// A client's connection, plain or encrypted.
#[derive(Debug)]
pub(crate) enum Http1 {
    /// Plain HTTP.
    Plain(TcpStream),
    /// HTTPS.
    Tls(Box<TlsClient>),
}

impl Http1 {
    /// Ends the sending side. Over TLS, with a `close_notify`, so that the client can tell an end from a cut.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    /// The socket, to ask the kernel about: what it carries may be encrypted.
    #[must_use]
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.get_ref().0.0,
        }
    }
}

impl PumpSource for Http1 {
    fn poll_fill(&mut self, cx: &mut Context<'_>, slot: &mut Option<Buffer>) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => fill_from(socket, cx, slot),
            Self::Tls(stream) => fill_from(stream, cx, slot),
        }
    }

    fn plain(&self) -> Option<PlainSocket<'_>> {
        match self {
            Self::Plain(socket) => Some(socket.into()),
            Self::Tls(_) => None,
        }
    }
}

impl PumpSink for Http1 {
    fn poll_write(&mut self, cx: &mut Context<'_>, parts: Parts<'_>) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => write_to(socket, cx, parts),
            Self::Tls(stream) => write_to(stream, cx, parts),
        }
    }

    /// What the socket doesn't accept waits in TLS.
    fn buffers(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn plain(&self) -> Option<PlainSocket<'_>> {
        PumpSource::plain(self)
    }
}

impl ClientLink for Http1 {
    const HTTP2: bool = false;
    const NEEDS_LOOKS: bool = true;

    fn request_body(request: &RequestHead) -> (Framing, Coding) {
        (request.framing, Coding::AsItIs)
    }

    /// Reads ahead one buffer at most, until there is nothing more to read, so that this task is woken by a pipelined
    /// request or by the client's close.
    fn watch(&mut self, cx: &mut Context<'_>, ahead: &mut Option<Buffer>) -> Watched {
        loop {
            if ahead.as_mut().is_some_and(|ahead| ahead.room().is_empty()) {
                return Watched::Here;
            }
            match self.poll_fill(cx, ahead) {
                Poll::Ready(Ok(0)) => return Watched::Ended,
                // The request is complete, so a client that closed without close_notify has cut nothing off.
                Poll::Ready(Err(error)) if is_end_without_notice(&error) => return Watched::Ended,
                Poll::Ready(Err(_)) => return Watched::Gone,
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return Watched::Here,
            }
        }
    }

    fn presence(&self) -> Presence {
        presence::presence(self.socket())
    }

    fn taken(&self) -> Option<u64> {
        presence::taken(self.socket())
    }

    fn has_taken_all(&self) -> Option<bool> {
        presence::has_taken_all(self.socket())
    }
}
