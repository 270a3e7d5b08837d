//! Handshakes, each followed by one request: a few threads that block, with rustls.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

use crate::compare::proxies::host;
use crate::compare::rows::SMALL;

/// Handshakes at a time.
const THREADS: usize = 4;

/// How long one may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a client needs to trust the proxies' certificate.
#[derive(Debug, Clone)]
pub struct Trust(Arc<RootCertStore>);

impl Trust {
    /// Trusts this certificate.
    ///
    /// # Errors
    /// It is none.
    pub fn new(certificate: &CertificateDer<'static>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        Ok(Self(Arc::new(roots)))
    }

    /// TLS 1.3 with the key exchange that every proxy here has.
    fn config(&self, resumption: Resumption) -> Result<Arc<ClientConfig>> {
        let mut provider = default_provider();
        provider.kx_groups = vec![kx_group::X25519];
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut config = builder.with_root_certificates(Arc::clone(&self.0)).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = resumption;
        Ok(Arc::new(config))
    }
}

/// Clients that shake hands.
pub(super) struct Clients<'a> {
    pub(super) target: SocketAddr,
    pub(super) trust: &'a Trust,
    /// With tickets.
    pub(super) resumed: bool,
}

impl Clients<'_> {
    /// One handshake after the other for a time, and how many there were.
    pub(super) fn run(&self, time: Duration) -> Result<(usize, Duration)> {
        let start = Instant::now();
        let one = || -> Result<usize> {
            let tickets = if self.resumed { Resumption::default() } else { Resumption::disabled() };
            let config = self.trust.config(tickets)?;
            let mut count = 0;
            let mut wanted = HandshakeKind::Full;
            while count == 0 || start.elapsed() < time {
                let mut stream = connect(self.target, &config)?;
                ask(&mut stream, "Connection: close\r\n")?;
                let kind = stream.conn.handshake_kind();
                ensure!(kind == Some(wanted), "{kind:?} instead of {wanted:?}");
                if self.resumed {
                    wanted = HandshakeKind::Resumed;
                }
                count += 1;
            }
            Ok(count)
        };
        let counts = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(one)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
                .collect()
        });
        let counts: Result<Vec<usize>> = counts;
        Ok((counts?.into_iter().sum(), start.elapsed()))
    }
}

type Client = StreamOwned<ClientConnection, TcpStream>;

/// Connections that have had one answer and wait.
pub(super) fn open(target: SocketAddr, trust: &Trust, count: usize) -> Result<Vec<Client>> {
    let config = trust.config(Resumption::disabled())?;
    (0..count)
        .map(|_| {
            let mut stream = connect(target, &config)?;
            ask(&mut stream, "")?;
            Ok(stream)
        })
        .collect()
}

fn connect(target: SocketAddr, config: &Arc<ClientConfig>) -> Result<Client> {
    let socket = TcpStream::connect(target).context("can't connect")?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let name = ServerName::try_from(host(0))?;
    Ok(StreamOwned::new(ClientConnection::new(Arc::clone(config), name)?, socket))
}

/// Asks once, and reads the answer.
fn ask(stream: &mut Client, fields: &str) -> Result<()> {
    write!(stream, "GET /{SMALL} HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", host(0))?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).context("no answer")?;
        ensure!(read > 0, "closed before the end of the answer");
        answer.extend_from_slice(&buffer[..read]);
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
        if head.is_some_and(|head| answer.len() >= head + 4 + SMALL as usize) {
            ensure!(answer.starts_with(b"HTTP/1.1 200 "), "not 200");
            return Ok(());
        }
    }
}
