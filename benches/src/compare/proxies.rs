//! What is compared: how each proxy is found, configured on equal terms, started, and switched.
//!
//! Equal terms: one worker, HTTP/1.1 with keep-alive to backends, the client's `Host` kept, `X-Forwarded-For`
//! and `-Proto` (and `-Host`, where the proxy has it) set, one access log line for each request in a file. Beyond
//! that each is as its maker ships it, but for limits that would close connections within a run.

mod caddy;
mod envoy;
mod haproxy;
mod nginx;
mod traefik;
mod uh_proxy;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::accounts::pin_this_thread;
use uh_testkit::process::{Process, program};
use uh_testkit::wait::free_address;

/// How long a proxy may take to start.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How often it is asked whether it is ready.
const POLL: Duration = Duration::from_millis(20);

/// File descriptors: enough for 9,000 clients with a backend's connection each, and no more than a container usually allows.
pub const DESCRIPTORS: u64 = 20_000;

/// A proxy to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proxy {
    /// Ours.
    UhProxy,
    /// Another build of ours, such as the one before a change: the program `uh-proxy-before`, where there is one.
    Before,
    /// With its access log written in batches, as ours is.
    Nginx,
    /// With its access log written line by line, as it is by default.
    NginxByLine,
    /// HAProxy.
    Haproxy,
    /// Caddy.
    Caddy,
    /// Envoy.
    Envoy,
    /// Traefik.
    Traefik,
}

/// All of them, in the order of the tables.
pub const ALL: [Proxy; 8] = [
    Proxy::UhProxy,
    Proxy::Before,
    Proxy::Nginx,
    Proxy::NginxByLine,
    Proxy::Haproxy,
    Proxy::Envoy,
    Proxy::Caddy,
    Proxy::Traefik,
];

/// What a proxy listens for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// HTTP/1.1.
    Plain,
    /// TLS, with HTTP/1.1 and HTTP/2 by ALPN.
    Tls,
    /// HTTP/2 by prior knowledge, without TLS.
    ClearHttp2,
}

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Both in one file, as HAProxy wants them.
    pub both: PathBuf,
}

/// On what terms a proxy is started.
#[derive(Debug, Clone)]
pub struct Terms {
    /// What it listens for.
    pub listener: Listener,
    /// Its certificate, if it listens for TLS.
    pub pair: Option<Arc<Pair>>,
    /// Whether each request is logged.
    pub access_log: bool,
    /// Worker threads (or processes), and the cores that they may use.
    pub cores: Vec<usize>,
    /// For each service, its backends blue and green; blue is active. Service `n` answers for the host [`host`]`(n)`.
    pub services: Vec<[SocketAddr; 2]>,
}

/// The host of a service.
#[must_use]
pub fn host(service: usize) -> String {
    format!("s{service}.test")
}

/// A running proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// Which.
    pub proxy: Proxy,
    /// Where clients connect.
    pub address: SocketAddr,
    /// For its configuration, sockets and logs.
    pub dir: PathBuf,
    /// Where it is controlled, if over TCP.
    admin: SocketAddr,
    terms: Terms,
    program: PathBuf,
    process: Process,
}

/// What a proxy's module is given to write a configuration from.
struct ProxyInputs<'a> {
    program: &'a Path,
    dir: &'a Path,
    listen: SocketAddr,
    admin: SocketAddr,
    terms: &'a Terms,
}

impl ProxyInputs<'_> {
    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The certificate, if this proxy is to listen for TLS.
    fn pair(&self) -> Option<&Pair> {
        self.terms.pair.as_deref().filter(|_| self.terms.listener == Listener::Tls)
    }

    fn clear_http2(&self) -> bool {
        self.terms.listener == Listener::ClearHttp2
    }

    fn workers(&self) -> usize {
        self.terms.cores.len()
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    }
}

impl Proxy {
    /// As the tables call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UhProxy => "uh-proxy",
            Self::Before => "uh-proxy before",
            Self::Nginx => "nginx",
            Self::NginxByLine => "nginx, log by line",
            Self::Haproxy => "HAProxy",
            Self::Caddy => "Caddy",
            Self::Envoy => "Envoy",
            Self::Traefik => "Traefik",
        }
    }

    /// Where its program is; `None`: not installed.
    #[must_use]
    pub fn program(self) -> Option<PathBuf> {
        let name = match self {
            Self::UhProxy => return program("uh-proxy").ok(),
            Self::Before => return program("uh-proxy-before").ok(),
            Self::Nginx | Self::NginxByLine => "nginx",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
            Self::Envoy => "envoy",
            Self::Traefik => "traefik",
        };
        let path = std::env::var_os("PATH")?;
        // Debian keeps servers where an ordinary user's shell doesn't look.
        let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
        dirs.map(|dir| dir.join(name)).find(|program| program.is_file())
    }

    /// Its version, as it says itself; only the number.
    #[must_use]
    pub fn version(self) -> Option<String> {
        let flag = match self {
            Self::Nginx | Self::NginxByLine | Self::Haproxy => "-v",
            Self::UhProxy | Self::Before | Self::Envoy => "--version",
            Self::Caddy | Self::Traefik => "version",
        };
        let output = Command::new(self.program()?).arg(flag).stdin(Stdio::null()).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let number = |word: &str| {
            let word =
                word.rsplit('/').find(|part| part.contains('.')).unwrap_or(word).trim_start_matches('v');
            (word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')).then(|| word.to_owned())
        };
        text.split_whitespace().find_map(number)
    }

    /// Starts it, and waits until it answers.
    ///
    /// # Errors
    /// It is not installed, or does not get ready.
    pub fn start(self, dir: &Path, terms: &Terms) -> Result<Running> {
        let program = self.program().with_context(|| format!("{} is not installed", self.name()))?;
        let dir = dir.join(format!("{self:?}"));
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        let (listen, admin) = (free_address(), free_address());
        let stage = ProxyInputs { program: &program, dir: &dir, listen, admin, terms };
        let mut command = match self {
            Self::UhProxy | Self::Before => uh_proxy::command(&stage)?,
            Self::Nginx => nginx::command(&stage, nginx::Log::InBatches)?,
            Self::NginxByLine => nginx::command(&stage, nginx::Log::ByLine)?,
            Self::Haproxy => haproxy::command(&stage)?,
            Self::Caddy => caddy::command(&stage)?,
            Self::Envoy => envoy::command(&stage)?,
            Self::Traefik => traefik::command(&stage)?,
        };
        command.current_dir(&dir);
        // A child inherits the cores of the thread that starts it.
        pin_this_thread(&terms.cores)?;
        // Its messages lie where a run that fails shows them.
        let process = Process::spawn(self.name(), &mut command, dir.parent().unwrap_or(&dir));
        super::rows::pin_the_load()?;
        let mut running = Running {
            proxy: self,
            address: listen,
            dir,
            admin,
            terms: terms.clone(),
            program,
            process: process?,
        };
        running.wait_until_ready().with_context(|| format!("{} doesn't start", self.name()))?;
        Ok(running)
    }
}

impl Running {
    /// The process that was started; its children may do the work.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        let request = format!("GET /1 HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host(0));
        loop {
            self.process.check_running()?;
            let ready = match self.terms.listener {
                Listener::Plain => {
                    TcpStream::connect(self.address).is_ok_and(|stream| answers(stream, &request))
                }
                secure => super::secure::succeeds(secure, self.address),
            };
            if ready {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "no valid response after {} s", READY_WITHIN.as_secs());
            std::thread::sleep(POLL);
        }
    }

    /// Makes blue (0) or green (1) of the first service active, as this proxy's users do it. Returns when the control
    /// call does.
    ///
    /// # Errors
    /// The proxy refuses.
    pub fn switch(&self, to: usize) -> Result<()> {
        let stage = ProxyInputs {
            program: &self.program,
            dir: &self.dir,
            listen: self.address,
            admin: self.admin,
            terms: &self.terms,
        };
        match self.proxy {
            Proxy::UhProxy | Proxy::Before => uh_proxy::switch(&stage, to),
            Proxy::Nginx | Proxy::NginxByLine => nginx::switch(&stage, to),
            Proxy::Haproxy => haproxy::switch(&stage, to),
            Proxy::Caddy => caddy::switch(&stage, to),
            Proxy::Envoy => envoy::switch(&stage, to),
            Proxy::Traefik => traefik::switch(&stage, to),
        }
    }
}

/// Whether one request is answered with 200.
fn answers(mut stream: TcpStream, request: &str) -> bool {
    use std::io::{Read as _, Write as _};
    let mut answer = Vec::new();
    let asked = stream
        .set_read_timeout(Some(READY_WITHIN))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .and_then(|()| stream.read_to_end(&mut answer));
    asked.is_ok() && answer.starts_with(b"HTTP/1.1 200 ")
}

/// Replaces a file as a whole, so that nobody reads half of it.
fn replace_file(dir: &Path, name: &str, text: &str) -> Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    fs::write(&temporary, text)?;
    Ok(fs::rename(&temporary, dir.join(name))?)
}

/// A JSON string is also one in TOML's and YAML's syntax.
fn quoted(text: impl AsRef<str>) -> String {
    serde_json::Value::from(text.as_ref()).to_string()
}
