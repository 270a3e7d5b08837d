//! Clients: the programs openssl and curl, and rustls for tests that must see every byte.

use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificates::{Authority, Site};
use crate::harness::soon;
use crate::wire::Wire;

/// A client connection over TLS.
pub(crate) type Secure = Wire<TlsStream<TcpStream>>;

/// A rustls client.
pub(crate) struct Rustls(pub(crate) Arc<ClientConfig>);

impl Rustls {
    /// Trusts the authority, and supports every version.
    pub(crate) fn new(authority: &Authority) -> Self {
        Self::with(authority, rustls::ALL_VERSIONS, |_| {})
    }

    pub(crate) fn with(
        authority: &Authority,
        versions: &[&'static SupportedProtocolVersion],
        change: impl FnOnce(&mut ClientConfig),
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.der()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        change(&mut config);
        Self(Arc::new(config))
    }

    /// Trusts certificates issued under this one.
    pub(crate) fn trusting(root: CertificateDer<'static>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        // A resumed session shows the certificate of the first handshake, not the current one.
        config.resumption = rustls::client::Resumption::disabled();
        Self(Arc::new(config))
    }

    /// Connects, asking for a host.
    pub(crate) async fn connect(&self, address: SocketAddr, host: &str) -> std::io::Result<Secure> {
        let stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
        self.over(stream, host).await
    }

    /// Performs a handshake over a connection, asking for a host.
    pub(crate) async fn over(&self, stream: TcpStream, host: &str) -> std::io::Result<Secure> {
        let host = ServerName::try_from(host.to_owned()).unwrap();
        let connector = TlsConnector::from(Arc::clone(&self.0));
        soon("a handshake", connector.connect(host, stream)).await.map(Wire::over)
    }
}

/// The certificate that a connection was given.
pub(crate) fn peer_certificate(client: &Secure) -> CertificateDer<'static> {
    client.stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// A connection for `app.test`.
pub(crate) async fn secure(site: &Site) -> Secure {
    Rustls::new(&site.authority).connect(site.address, "app.test").await.unwrap()
}

/// Runs a program with this input until it exits.
pub(crate) async fn run(program: &str, args: &[&str], input: &[u8]) -> Output {
    let mut command = tokio::process::Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let _ = tokio::io::AsyncWriteExt::write_all(&mut stdin, input).await;
    drop(stdin);
    soon(program, child.wait_with_output()).await.unwrap()
}

/// Performs a handshake with `openssl s_client` and returns its output.
pub(crate) async fn s_client(address: SocketAddr, args: &[&str]) -> String {
    let address = address.to_string();
    let args = [&["s_client", "-connect", &address], args].concat();
    let output = run("openssl", &args, b"").await;
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Requests `https://app.test/PATH` with curl; returns its exit code and its output, with the response head.
pub(crate) async fn curl(site: &Site, path: &str, args: &[&str]) -> (i32, String) {
    let port = site.address.port();
    let (url, resolve) = (format!("https://app.test:{port}{path}"), format!("app.test:{port}:127.0.0.1"));
    let ca = site.home.path("ca.pem").display().to_string();
    let args =
        [&["-sSi", "--max-time", "15", "--cacert", &ca, "--resolve", &resolve], args, &[&url]].concat();
    let output = run("curl", &args, b"").await;
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}
