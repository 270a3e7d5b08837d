//! TLS and HTTP/2: the rows, and how one of them is measured for one proxy.
//!
//! Requests come from `h2load`, which speaks HTTP/1.1 and HTTP/2 and counts answers that aren't 2xx; handshakes come from
//! rustls, in `handshakes`. Both offer TLS 1.3 with the key exchange that all proxies here know (X25519), and a
//! certificate on P-256.

mod h2load;
mod handshakes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;

use anyhow::{Context as _, Result};

use super::accounts::{cpu_time, resident_bytes};
use super::backend::Backends;
use super::proxies::{Listener, Pair, Proxy, Running, Terms, host};
use super::rows::{Effort, Measurement, SETTLE, SMALL, Setting, terms};
pub use h2load::{is_installed, succeeds};
pub use handshakes::Trust;

/// Idle TLS connections to measure memory with.
pub const IDLE: usize = 2_000;

/// How a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// So many bytes, on connections that stay.
    Get {
        /// HTTP/2; otherwise HTTP/1.1.
        http2: bool,
        /// Bytes of each answer.
        bytes: u64,
        /// Open connections.
        connections: usize,
        /// Requests in flight on each.
        streams: usize,
    },
    /// A handshake for each request, on a new connection.
    Handshake {
        /// With a ticket from an earlier one.
        resumed: bool,
    },
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// As the tables call it.
    pub name: &'static str,
    /// What the proxy listens for.
    pub listener: Listener,
    /// What is asked.
    pub ask: Ask,
}

const fn get(http2: bool, bytes: u64, connections: usize, streams: usize) -> Ask {
    Ask::Get { http2, bytes, connections, streams }
}

const fn row(name: &'static str, listener: Listener, ask: Ask) -> Row {
    Row { name, listener, ask }
}

/// All of them.
pub const ROWS: [Row; 8] = [
    row("HTTP/1.1 over TLS, 16 clients, 1 KiB", Listener::Tls, get(false, SMALL, 16, 1)),
    row("HTTP/2 over TLS, 16 clients, 1 stream each", Listener::Tls, get(true, SMALL, 16, 1)),
    row("HTTP/2 over TLS, 16 clients, 10 streams each", Listener::Tls, get(true, SMALL, 16, 10)),
    row("HTTP/2 without TLS, 16 clients, 10 streams each", Listener::ClearHttp2, get(true, SMALL, 16, 10)),
    row("10 MiB over TLS, HTTP/1.1, 8 clients", Listener::Tls, get(false, 10 << 20, 8, 1)),
    row("10 MiB over TLS, HTTP/2, 8 clients", Listener::Tls, get(true, 10 << 20, 8, 1)),
    row("full handshake and one request", Listener::Tls, Ask::Handshake { resumed: false }),
    row("resumed handshake and one request", Listener::Tls, Ask::Handshake { resumed: true }),
];

impl Row {
    /// Body bytes of one exchange.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        match self.ask {
            Ask::Get { bytes, .. } => bytes,
            Ask::Handshake { .. } => SMALL,
        }
    }

    /// Whether this proxy takes part.
    #[must_use]
    pub fn has(&self, proxy: Proxy) -> bool {
        proxy != Proxy::NginxByLine
    }
}

/// All samples, by row and proxy.
pub type Measurements = BTreeMap<(usize, Proxy), Vec<Measurement>>;

/// A certificate for all hosts of the comparison, in files, and what clients need to trust it.
pub struct Identity {
    /// Where it is.
    pub pair: Pair,
    /// What clients need.
    pub trust: Trust,
}

impl Identity {
    /// Makes one in a directory.
    ///
    /// # Errors
    /// It can't be written.
    pub fn make(dir: &Path) -> Result<Self> {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(vec![host(0)])?.self_signed(&key)?;
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
            Ok(path)
        };
        let (chain, secret) = (certificate.pem(), key.serialize_pem());
        let pair = Pair {
            certificate: write("cert.pem", &chain)?,
            key: write("key.pem", &secret)?,
            both: write("both.pem", &[chain, secret].concat())?,
        };
        Ok(Self { pair, trust: Trust::new(certificate.der())? })
    }
}

/// The terms of these rows: one worker, one service, with an access log.
fn secure_terms(listener: Listener, identity: &Identity, backends: &Backends) -> Terms {
    Terms { listener, pair: Some(Arc::new(identity.pair.clone())), ..terms(Setting::Standard, backends) }
}

/// Measures the rows that have `named` in their name, each proxy in turn, several rounds.
///
/// # Errors
/// An answer is wrong or missing, or a proxy is gone.
pub fn measure_rows(
    named: &str,
    proxies: &[Proxy],
    backends: &Backends,
    identity: &Identity,
    dir: &Path,
    effort: Effort,
) -> Result<Measurements> {
    let mut samples = Measurements::new();
    for listener in [Listener::Tls, Listener::ClearHttp2] {
        let rows = ROWS.iter().enumerate();
        let rows: Vec<_> =
            rows.filter(|(_, row)| row.listener == listener && row.name.contains(named)).collect();
        if rows.is_empty() {
            continue;
        }
        let terms = secure_terms(listener, identity, backends);
        let takes_part = proxies.iter().filter(|proxy| **proxy != Proxy::NginxByLine);
        let running: Result<Vec<Running>> = takes_part.map(|proxy| proxy.start(dir, &terms)).collect();
        let running = running?;
        for round in 0..effort.rounds {
            for (index, row) in &rows {
                for turn in 0..running.len() {
                    let proxy = &running[(turn + round) % running.len()];
                    let sample = measure(row, proxy, identity, effort)
                        .with_context(|| format!("{}: {}", proxy.proxy.name(), row.name))?;
                    samples.entry((*index, proxy.proxy)).or_default().push(sample);
                }
            }
        }
    }
    Ok(samples)
}

/// Measures one row once.
fn measure(row: &Row, proxy: &Running, identity: &Identity, effort: Effort) -> Result<Measurement> {
    let outcome = match row.ask {
        Ask::Get { .. } => {
            let job = h2load::Job::new(row, proxy.address);
            // How many requests the time is good for; and pools and caches fill up.
            let requests = job.requests_in(effort.time)?;
            let before = cpu_time(proxy.pid())?;
            let took = job.run(requests)?;
            (requests, took, cpu_time(proxy.pid())?.since(&before))
        }
        Ask::Handshake { resumed } => {
            let clients = handshakes::Clients { target: proxy.address, trust: &identity.trust, resumed };
            clients.run(super::rows::WARM_UP)?;
            let before = cpu_time(proxy.pid())?;
            let (count, took) = clients.run(effort.time)?;
            (count, took, cpu_time(proxy.pid())?.since(&before))
        }
    };
    let (requests, took, cpu) = outcome;
    Ok(Measurement {
        cpu_us: cpu.total.as_nanos() as f64 / 1000.0 / requests as f64,
        kernel_share: cpu.kernel_share(),
        rate: requests as f64 / took.as_secs_f64(),
        busy: cpu.total.as_secs_f64() / took.as_secs_f64(),
        latency_us: [0.0; 3],
    })
}

/// What an idle TLS connection that has had one answer holds in a proxy's memory, in bytes.
///
/// # Errors
/// See [`measure_rows`].
pub fn idle_connection(proxy: Proxy, backends: &Backends, identity: &Identity, dir: &Path) -> Result<f64> {
    let running = proxy.start(dir, &secure_terms(Listener::Tls, identity, backends))?;
    let open = |count| handshakes::open(running.address, &identity.trust, count);
    // What the first connections cost, whoever opens them, is not the price of one.
    drop(open(64)?);
    sleep(SETTLE);
    let before = resident_bytes(running.pid())?;
    let clients = open(IDLE)?;
    sleep(SETTLE);
    let after = resident_bytes(running.pid())?;
    drop(clients);
    Ok(after.saturating_sub(before) as f64 / IDLE as f64)
}
