//! The HTTPS client for the certificate authority (CA): one connection for each request, a deadline, a limit on the reply,
//! and our own choice of whom to trust.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use jiff::fmt::rfc2822::DateTimeParser;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tls;

/// How long a request may take. A CA signs in seconds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The largest reply. A certificate chain takes a few kilobytes.
const MOST_BYTES: usize = 1 << 20;

/// CAs ask for a name that tells them whose fault a misbehaving client is.
const AGENT: &str = concat!("uh-proxy/", env!("CARGO_PKG_VERSION"), " instant-acme");

/// Why there is no usable reply. None of these are counted by a CA.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// No connection.
    #[error("cannot reach {host}; check the network, DNS and server.acme.directory")]
    Unreachable {
        /// The CA's host.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection isn't trusted, or isn't TLS.
    #[error("cannot connect to {host} by TLS; for a private CA, set server.acme.ca_file")]
    Tls {
        /// The CA's host.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("lost the connection to {host}")]
    Lost {
        /// The CA's host.
        host: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No reply in time.
    #[error("no reply from {host} within {} s", TIMEOUT.as_secs())]
    TimedOut {
        /// The CA's host.
        host: String,
    },
    /// A reply that no ACME server sends.
    #[error("{url} answered with status {status}, but not as an ACME server; check server.acme.directory")]
    NotAcme {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// A URL that can't be used.
    #[error("{url:?} isn't an https URL")]
    NotHttps {
        /// The URL.
        url: String,
    },
}

impl From<CaError> for Error {
    fn from(error: CaError) -> Self {
        Self::Other(Box::new(error))
    }
}

/// Why the CA's own certificate can't be verified.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file can't be read.
    #[error("cannot read server.acme.ca_file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It contains no certificate.
    #[error("server.acme.ca_file {} contains no CA certificate in PEM format", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// rustls reported an error.
    #[error("cannot set up TLS for the CA")]
    Library(#[from] rustls::Error),
}

/// What the last reply said about coming back. The protocol's library passes on only the body.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Option<Timestamp>>>);

impl Heard {
    /// When to come back, if the last reply said so.
    #[must_use]
    pub(crate) fn retry_after(&self) -> Option<Timestamp> {
        *self.0.lock()
    }

    fn note(&self, headers: &HeaderMap) {
        *self.0.lock() = headers.get(RETRY_AFTER).and_then(|value| moment(value, Timestamp::now()));
    }
}

/// `Retry-After`: seconds or a date (RFC 9110 §10.2.3).
fn moment(value: &HeaderValue, now: Timestamp) -> Option<Timestamp> {
    let value = value.to_str().ok()?.trim();
    match value.parse::<u32>() {
        Ok(seconds) => now.checked_add(SignedDuration::from_secs(seconds.into())).ok(),
        Err(_) => DateTimeParser::new().parse_timestamp(value).ok(),
    }
}

/// The client.
#[derive(Clone)]
pub(crate) struct CaClient {
    connector: TlsConnector,
    /// What the last reply said about coming back.
    pub heard: Heard,
}

impl CaClient {
    /// Trusts the certificates in a file, or the public CAs.
    ///
    /// # Errors
    /// If the file can't be used.
    pub(crate) fn new(ca_file: Option<&Path>) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        match ca_file {
            Some(path) => roots = read_roots(path)?,
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(tls::server::provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // A session belongs to a host name, whatever the port: a CA with several servers on one host would get the wrong one.
        config.resumption = Resumption::disabled();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), heard: Heard::default() })
    }

    async fn send(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let url = request.uri().clone();
        let host = url.host().unwrap_or_default().to_owned();
        let late = CaError::TimedOut { host };
        tokio::time::timeout(TIMEOUT, self.exchange(request, &url)).await.map_err(|_| late)?
    }

    async fn exchange(
        &self,
        mut request: Request<BodyWrapper<Bytes>>,
        url: &Uri,
    ) -> Result<BytesResponse, Error> {
        let stream = self.connect(url).await?;
        let host = || url.host().unwrap_or_default().to_owned();
        let lost = |source: hyper::Error| CaError::Lost { host: host(), source: Box::new(source) };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let connection = AbortOnDrop(tokio::spawn(async move {
            // The request fails too, and says why.
            let _ = connection.await;
        }));
        let not_https = || CaError::NotHttps { url: url.to_string() };
        let authority = url.authority().map(ToString::to_string).unwrap_or_default();
        let authority = HeaderValue::try_from(authority).map_err(|_| not_https())?;
        request.headers_mut().insert(HOST, authority);
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().map_err(|_| not_https())?;
        let (parts, body) = sender.send_request(request).await.map_err(lost)?.into_parts();
        let body = Limited::new(body, MOST_BYTES).collect().await;
        let body = body.map_err(|source| CaError::Lost { host: host(), source })?.to_bytes();
        drop(connection);
        self.heard.note(&parts.headers);
        let is_json = || serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
        if !parts.status.is_success() && !is_json() {
            let status = parts.status.as_u16();
            return Err(CaError::NotAcme { url: url.to_string(), status }.into());
        }
        Ok(BytesResponse::from(Response::from_parts(parts, Full::new(body))))
    }

    async fn connect(&self, url: &Uri) -> Result<tokio_rustls::client::TlsStream<TcpStream>, CaError> {
        let not_https = || CaError::NotHttps { url: url.to_string() };
        let host = url.host().filter(|_| url.scheme_str() == Some("https")).ok_or_else(not_https)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare.clone()).map_err(|_| not_https())?;
        let port = url.port_u16().unwrap_or(443);
        let unreachable = |source| CaError::Unreachable { host: host.to_owned(), source };
        let stream = TcpStream::connect((bare.as_str(), port)).await.map_err(unreachable)?;
        let failed = |source| CaError::Tls { host: host.to_owned(), source };
        self.connector.connect(name, stream).await.map_err(failed)
    }
}

/// Ends a task with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl HttpClient for CaClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        Box::pin(self.clone().send(request))
    }
}

fn read_roots(path: &Path) -> Result<RootCertStore, TrustError> {
    let pem = fs::read(path).map_err(|source| TrustError::Unreadable { path: path.to_owned(), source })?;
    let mut roots = RootCertStore::empty();
    let found = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
    let (usable, _) = roots.add_parsable_certificates(found);
    if usable == 0 { Err(TrustError::Empty { path: path.to_owned() }) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let now = Timestamp::from_second(784_111_700).unwrap();
        let read =
            |text: &'static str| moment(&HeaderValue::from_static(text), now).map(Timestamp::as_second);
        assert_eq!(read("120"), Some(784_111_820));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        for nonsense in ["", "soon", "-1", "1e3"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_file_without_a_certificate_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        assert!(matches!(CaClient::new(Some(&path)), Err(TrustError::Unreadable { .. })));
        fs::write(&path, "nothing").unwrap();
        assert!(matches!(CaClient::new(Some(&path)), Err(TrustError::Empty { .. })));
    }
}
