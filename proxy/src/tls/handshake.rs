//! One handshake: turns an accepted connection into a stream for exchanges, or reports why it failed.
//!
//! The ClientHello is checked before any cryptography: a client that sends plain HTTP, or asks for a host that no
//! certificate covers, costs no signature.

use std::io;
use std::sync::Arc;

use rustls::server::Acceptor;
use rustls::{CipherSuite, ProtocolVersion};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;

use super::carrier::{Carrier, TlsClient};
use super::certificate::Certificate;
use super::failure::HandshakeFailure;
use super::pending::PendingHandshakes;
use super::server::Server;
use crate::observe::line::TlsFields;

/// The first byte of a TLS connection: the record type of a handshake message (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// An unencrypted record with the fatal alert `unrecognized_name` (RFC 6066 §3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What a handshake has negotiated.
#[derive(Debug)]
pub(crate) struct TlsSession {
    /// `TLSv1.3`, as nginx and OpenSSL write it.
    pub version: &'static str,
    /// The cipher suite's registered name.
    pub cipher: &'static str,
    /// The host that the client asked for, if any (SNI).
    pub sni: Option<Box<str>>,
    /// The protocol negotiated by ALPN; empty if the client offered none, which means HTTP/1.1.
    pub alpn: &'static str,
    /// The certificate that was served. It lists the other hosts that the connection may be used for.
    pub certificate: Arc<Certificate>,
}

impl TlsSession {
    /// The fields for the access log.
    #[must_use]
    pub(crate) fn fields(&self) -> TlsFields<'_> {
        TlsFields {
            version: self.version,
            cipher: self.cipher,
            sni: self.sni.as_deref().unwrap_or_default(),
            alpn: self.alpn,
        }
    }
}

/// The result of a handshake that didn't fail.
pub(crate) enum Negotiated {
    /// The client speaks TLS.
    Tls(Box<TlsClient>, Arc<TlsSession>),
    /// The client speaks plain HTTP. None of its bytes have been read.
    PlainHttp(TcpStream),
    /// The client is a certificate authority and has seen the proof that it asked for. The connection is closed.
    Proof,
}

/// Why a handshake failed, and the host that the client asked for, if known.
pub(crate) struct FailedHandshake(pub HandshakeFailure, pub Option<Box<str>>);

/// Performs a handshake, and counts it if it completes. The caller must set a deadline.
///
/// # Errors
/// If the handshake failed; the connection is closed.
pub(crate) async fn negotiate(
    stream: TcpStream,
    server: &Server,
    pending: &PendingHandshakes,
) -> Result<Negotiated, FailedHandshake> {
    let failed = |failure| FailedHandshake(failure, None);
    let mut first = [0];
    let peeked = stream.peek(&mut first).await.map_err(|_| failed(HandshakeFailure::Closed))?;
    match first {
        _ if peeked == 0 => return Err(failed(HandshakeFailure::Closed)),
        [HANDSHAKE_RECORD] => {}
        [byte] if byte.is_ascii_alphabetic() => return Ok(Negotiated::PlainHttp(stream)),
        _ => return Err(failed(HandshakeFailure::NotTls)),
    }
    let hello = LazyConfigAcceptor::new(Acceptor::default(), Carrier(stream)).await;
    let start = hello.map_err(|error| failed(HandshakeFailure::of(&error)))?;
    let hello = start.client_hello();
    let sni: Option<Box<str>> = hello.server_name().map(Box::from);
    if let Some(settings) = server.challenges.handshake(&hello) {
        return match pending.in_turn(start.into_stream(settings)).await {
            Ok(mut stream) => {
                // The CA has what it needs: whether it reads our goodbye doesn't matter.
                let _ = stream.shutdown().await;
                Ok(Negotiated::Proof)
            }
            Err(error) => Err(FailedHandshake(HandshakeFailure::of(&error), sni)),
        };
    }
    let names = server.names();
    let Some(certificate) = names.find(hello.server_name(), hello.signature_schemes()).cloned() else {
        // Nothing was sent before, so the socket's buffer has room for seven bytes.
        let _ = start.io.0.try_write(&UNRECOGNIZED_NAME);
        return Err(FailedHandshake(HandshakeFailure::UnknownHost, sni));
    };
    match pending.in_turn(start.into_stream(server.settings())).await {
        Ok(stream) => {
            let session = session(&stream, sni, certificate);
            let (_, connection) = stream.get_ref();
            server.counts.done(connection.protocol_version(), connection.handshake_kind());
            Ok(Negotiated::Tls(Box::new(stream), Arc::new(session)))
        }
        Err(error) => Err(FailedHandshake(HandshakeFailure::of(&error), sni)),
    }
}

fn session(stream: &TlsClient, sni: Option<Box<str>>, certificate: Arc<Certificate>) -> TlsSession {
    let (_, connection) = stream.get_ref();
    let version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLSv1.2",
    };
    let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
    let alpn =
        connection.alpn_protocol().and_then(|agreed| super::server::ALPN.into_iter().find(|p| *p == agreed));
    TlsSession {
        version,
        cipher: suite.map_or("", cipher),
        sni,
        alpn: alpn.and_then(|alpn| std::str::from_utf8(alpn).ok()).unwrap_or_default(),
        certificate,
    }
}

/// The registered name of a cipher suite. rustls names those of TLS 1.3 differently.
fn cipher(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or_default(),
    }
}

/// Whether a read failed because the client closed TCP without `close_notify`. The bytes before are still valid: a
/// request's own framing says where it ends.
#[must_use]
pub(crate) fn is_end_without_notice(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}
