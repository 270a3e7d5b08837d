//! Runs a query on a PostgreSQL database, with TLS according to the URL's `sslmode` (libpq, "SSL Mode Descriptions").
//!
//! | `sslmode` | TLS | verification of the certificate |
//! |---|---|---|
//! | `disable` | never | |
//! | `prefer`, `allow`, not set | if the server offers it | none |
//! | `require`, `no-verify` | always | none; with `sslrootcert` as for `verify-ca` |
//! | `verify-ca` | always | signed by `sslrootcert`, or by an authority that this machine trusts |
//! | `verify-full` | always | the same, and it must name the host |

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

use crate::files;
use crate::redact::Foreign;

/// The trusted authorities of the machine: on Debian, Alpine and Red Hat.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt"];

/// The largest file of certificates: a system's has about a quarter of a megabyte.
const MAX_ROOTS_BYTES: usize = 8 << 20;

/// The URL parameters of the connection. Others belong to the app's driver (`pgbouncer`, `schema`).
const KNOWN: [&str; 15] = [
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "sslnegotiation",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
];

/// Runs `SELECT 1`, and returns the server's version and whether the connection used TLS.
pub(super) async fn ask(url: &str) -> Result<String, String> {
    let wanted = DatabaseUrl::of(url)?;
    let mut config: tokio_postgres::Config = wanted.url.parse().map_err(said)?;
    config.ssl_mode(wanted.mode);
    let tls = Tls::new(&wanted)?;
    let (client, connection) = config.connect(tls).await.map_err(said)?;
    let connection = tokio::spawn(connection);
    let asked = async {
        client.query_one("SELECT 1", &[]).await?;
        let version: String = client.query_one("SHOW server_version", &[]).await?.get(0);
        let over_tls = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let tls = client.query_opt(over_tls, &[]).await.ok().flatten().is_some_and(|row| row.get(0));
        Ok::<_, tokio_postgres::Error>(format!("PostgreSQL {version}{}", if tls { ", over TLS" } else { "" }))
    };
    let answer = asked.await.map_err(said);
    drop(client);
    connection.abort();
    answer
}

#[expect(clippy::needless_pass_by_value, reason = "the signature map_err needs")]
fn said(error: tokio_postgres::Error) -> String {
    Foreign::error(&error).to_string()
}

/// What is verified in a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verify {
    Nothing,
    Chain,
    ChainAndName,
}

/// The connection that a URL describes.
#[derive(Debug, PartialEq, Eq)]
struct DatabaseUrl {
    url: String,
    mode: SslMode,
    verify: Verify,
    roots: Option<String>,
}

impl DatabaseUrl {
    fn of(url: &str) -> Result<Self, String> {
        let (mut mode, mut roots) = (None, None);
        let mut keep = |name: &str, value: &str| match name {
            "sslmode" => {
                mode = Some(value.to_owned());
                false
            }
            "sslrootcert" => {
                roots = Some(decoded(value)).filter(|path| path != "system");
                false
            }
            name => KNOWN.contains(&name) || name.starts_with("keepalives_"),
        };
        let kept = if let Some((base, query)) = url.split_once('?') {
            let pairs = query.split('&').filter(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                keep(name, value)
            });
            let query = pairs.collect::<Vec<_>>().join("&");
            if query.is_empty() { base.to_owned() } else { format!("{base}?{query}") }
        } else if url.contains("://") {
            url.to_owned()
        } else {
            // host=… sslmode=…
            let pairs = url.split_ascii_whitespace().filter(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                !matches!(name, "sslmode" | "sslrootcert") || keep(name, value)
            });
            pairs.collect::<Vec<_>>().join(" ")
        };
        let (mode, verify) = match (mode.as_deref(), roots.is_some()) {
            (Some("disable"), _) => (SslMode::Disable, Verify::Nothing),
            (None | Some("prefer" | "allow"), _) => (SslMode::Prefer, Verify::Nothing),
            (Some("require"), true) | (Some("verify-ca"), _) => (SslMode::Require, Verify::Chain),
            (Some("require" | "no-verify"), _) => (SslMode::Require, Verify::Nothing),
            (Some("verify-full"), _) => (SslMode::Require, Verify::ChainAndName),
            (Some(other), _) => {
                let other = Foreign::new(other);
                return Err(format!(
                    "sslmode {other} isn't one of disable, allow, prefer, require, verify-ca, verify-full"
                ));
            }
        };
        Ok(Self { url: kept, mode, verify, roots })
    }
}

/// Decodes percent encoding, such as `%2F`.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = || u8::from_str_radix(text.get(at + 1..at + 3)?, 16).ok();
        match (byte, hex()) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Makes TLS connections according to the URL.
#[derive(Clone)]
struct Tls(Arc<ClientConfig>);

impl Tls {
    fn new(wanted: &DatabaseUrl) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = match wanted.verify {
            Verify::Nothing => None,
            Verify::Chain | Verify::ChainAndName => {
                let roots = Arc::new(roots(wanted.roots.as_deref())?);
                let built = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
                Some(built.map_err(|e| crate::chain(&e))?)
            }
        };
        let verifier = Verifier { chain, verify: wanted.verify, provider: Arc::clone(&provider) };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| crate::chain(&e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

/// The authorities of a file, or of this machine.
fn roots(file: Option<&str>) -> Result<RootCertStore, String> {
    let of_variable = std::env::var("SSL_CERT_FILE").ok();
    let system = || SYSTEM_ROOTS.iter().map(|path| (*path).to_owned()).find(|path| Path::new(path).exists());
    let path = file.map(str::to_owned).or(of_variable).or_else(system);
    let path = path.ok_or("no certificate authorities are installed here: set sslrootcert")?;
    let read = files::read_foreign(Path::new(&path), MAX_ROOTS_BYTES);
    let bytes = read.map_err(|e| format!("can't read {path}: {}", crate::chain(&e)))?;
    let mut roots = RootCertStore::empty();
    // A bundle may contain an authority in an outdated format.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok));
    if roots.is_empty() { Err(format!("{path} contains no certificate")) } else { Ok(roots) }
}

/// Verifies what the URL requires of a certificate.
#[derive(Debug)]
struct Verifier {
    chain: Option<Arc<WebPkiServerVerifier>>,
    verify: Verify,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(certificate, others, name, ocsp, now) {
            // The name is checked last, so the chain is valid.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.verify == Verify::Chain => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Tls {
    type Stream = Stream<S>;
    type TlsConnect = Connect;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Connect> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(Connect { config: Arc::clone(&self.0), name })
    }
}

/// A connection to make.
struct Connect {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Connect {
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let connector = TlsConnector::from(self.config);
            Ok(Stream(Box::new(connector.connect(self.name, stream).await?)))
        })
    }
}

/// A connection with TLS.
struct Stream<S>(Box<tokio_rustls::client::TlsStream<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_decides_what_is_verified_and_loses_parameters_of_the_app_driver() {
        let wanted = |url: &str| DatabaseUrl::of(url).map(|w| (w.url, w.mode, w.verify, w.roots));
        let plain = "postgres://u:p@h:6543/db".to_owned();
        for (query, mode, verify, roots) in [
            ("", SslMode::Prefer, Verify::Nothing, None),
            ("?pgbouncer=true&sslmode=disable", SslMode::Disable, Verify::Nothing, None),
            ("?sslmode=require", SslMode::Require, Verify::Nothing, None),
            ("?sslmode=require&sslrootcert=%2Fca.crt", SslMode::Require, Verify::Chain, Some("/ca.crt")),
            ("?sslmode=verify-ca&schema=public", SslMode::Require, Verify::Chain, None),
            ("?sslrootcert=system&sslmode=verify-full", SslMode::Require, Verify::ChainAndName, None),
        ] {
            let expected = (plain.clone(), mode, verify, roots.map(str::to_owned));
            assert_eq!(wanted(&format!("{plain}{query}")), Ok(expected), "{query}");
        }
        let (url, mode, ..) = wanted("host=h user=u sslmode=verify-full dbname=d").unwrap();
        assert_eq!((url.as_str(), mode), ("host=h user=u dbname=d", SslMode::Require));
        assert!(wanted("postgres://h/d?sslmode=maybe").unwrap_err().contains("maybe isn't one of"));
    }
}
