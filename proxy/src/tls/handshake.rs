//! One handshake: from an accepted connection to a stream that the exchanges can use, or to the reason why not.
//!
//! The client's hello is read and looked at before anything is computed: a client that speaks plain HTTP, or asks for a
//! host that no certificate is for, costs no signature.

use std::io;
use std::sync::Arc;

use rustls::server::Acceptor;
use rustls::{CipherSuite, ProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::Certificate;
use super::crowd::Crowd;
use super::failure::HandshakeFailure;
use super::server::Server;
use super::stream::Client;
use crate::observe::line::TlsFields;

/// The first byte of a TLS connection: the type of a record with a handshake message (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// A fatal alert that says `unrecognized_name` (RFC 6066 §3), as a record that isn't encrypted yet.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What a handshake has agreed on.
#[derive(Debug)]
pub struct Session {
    /// `TLSv1.3`, as nginx and OpenSSL write it.
    pub version: &'static str,
    /// The cipher suite's registered name.
    pub cipher: &'static str,
    /// The host that the client asked for, if it named one.
    pub sni: Option<Box<str>>,
    /// The protocol agreed on by ALPN; empty: none, which means HTTP/1.1.
    pub alpn: &'static str,
    /// The certificate served. What other hosts the connection may be used for stands in it.
    pub certificate: Arc<Certificate>,
}

impl Session {
    /// For the access log.
    #[must_use]
    pub fn fields(&self) -> TlsFields<'_> {
        TlsFields {
            version: self.version,
            cipher: self.cipher,
            sni: self.sni.as_deref().unwrap_or_default(),
            alpn: self.alpn,
        }
    }
}

/// How a handshake ended, if it has not failed.
pub enum Done {
    /// The client speaks TLS.
    Tls(Box<Client>, Box<Session>),
    /// The client speaks plain HTTP. Nothing of it has been read.
    PlainHttp(TcpStream),
}

/// Why a handshake failed, and the host that the client asked for.
pub struct Failed(pub HandshakeFailure, pub Option<Box<str>>);

/// Carries out a handshake, and counts it if it is complete. How long it may take is up to the caller.
///
/// # Errors
/// It failed; the connection is closed.
pub async fn negotiate(stream: TcpStream, server: &Server, crowd: &Crowd) -> Result<Done, Failed> {
    let failed = |failure| Failed(failure, None);
    let mut first = [0];
    let peeked = stream.peek(&mut first).await.map_err(|_| failed(HandshakeFailure::Closed))?;
    match first {
        _ if peeked == 0 => return Err(failed(HandshakeFailure::Closed)),
        [HANDSHAKE_RECORD] => {}
        [byte] if byte.is_ascii_alphabetic() => return Ok(Done::PlainHttp(stream)),
        _ => return Err(failed(HandshakeFailure::NotTls)),
    }
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
    let start = hello.map_err(|error| failed(HandshakeFailure::of(&error)))?;
    let hello = start.client_hello();
    let sni: Option<Box<str>> = hello.server_name().map(Box::from);
    let names = server.names();
    let Some(certificate) = names.find(hello.server_name(), hello.signature_schemes()).cloned() else {
        // There is room for seven bytes in the socket of a client that was sent nothing yet.
        let _ = start.io.try_write(&UNRECOGNIZED_NAME);
        return Err(Failed(HandshakeFailure::UnknownHost, sni));
    };
    match crowd.in_turn(start.into_stream(server.settings())).await {
        Ok(stream) => {
            let session = session(&stream, sni, certificate);
            let (_, connection) = stream.get_ref();
            server.counts.done(connection.protocol_version(), connection.handshake_kind());
            Ok(Done::Tls(Box::new(Client::new(stream)), Box::new(session)))
        }
        Err(error) => Err(Failed(HandshakeFailure::of(&error), sni)),
    }
}

fn session(stream: &TlsStream<TcpStream>, sni: Option<Box<str>>, certificate: Arc<Certificate>) -> Session {
    let (_, connection) = stream.get_ref();
    let version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLSv1.2",
    };
    let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
    let alpn =
        connection.alpn_protocol().and_then(|agreed| super::server::ALPN.into_iter().find(|p| *p == agreed));
    Session {
        version,
        cipher: suite.map_or("", cipher),
        sni,
        alpn: alpn.and_then(|alpn| std::str::from_utf8(alpn).ok()).unwrap_or_default(),
        certificate,
    }
}

/// The name that a cipher suite is registered with. rustls has names of its own for those of TLS 1.3.
fn cipher(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or_default(),
    }
}

/// Whether an error of reading says that the client has closed its TCP connection without an end of TLS. What it sent
/// before is as good as if it had ended in order: a request says itself where it ends.
#[must_use]
pub fn is_end_without_notice(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}
