//! Configuration: a TOML file → checked values. Every mistake in a file is reported at once, each with its key; an
//! unknown key is a mistake; nothing malformed is ever replaced by a default.
//!
//! [`load`] reads a file, [`parse`] a text; the values here are what the rest of the program works with.

mod reader;
pub mod units;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reader::Section;
use uh_protocol::{BackendName, ServiceName};

use crate::switching::Address;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What concerns the process.
    pub server: Server,
    /// At least one, in the order of the file.
    pub services: Vec<Service>,
}

/// What concerns the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where clients connect; at least one.
    pub listen: Vec<SocketAddr>,
    /// Where Prometheus scrapes.
    pub metrics: Option<SocketAddr>,
    /// The admin channel.
    pub admin_socket: PathBuf,
    /// User ids that may use it, beside our own and root.
    pub admin_users: Vec<u32>,
    /// Where the routing facts are kept.
    pub state_file: PathBuf,
    /// Worker threads; already resolved to a number of cores if the file says 0.
    pub threads: usize,
    /// How long SIGTERM waits for exchanges in flight.
    pub shutdown_timeout: Duration,
    /// One line per exchange.
    pub access_log: AccessLog,
    /// Our own messages, to stderr.
    pub log: LogFormat,
    /// What a client may do before its request is known.
    pub limits: ServerLimits,
}

/// Where the access log goes, and its format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// `None`: standard output.
    pub path: Option<PathBuf>,
    /// How a line looks.
    pub format: AccessLogFormat,
}

/// How a line of the access log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object a line.
    Json,
    /// nginx's `combined`.
    Combined,
    /// The guide's `timed_combined`: the request time, in seconds, is the last field.
    TimedCombined,
    /// None at all.
    Off,
}

/// How our own messages look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// What a client may do before its request is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerLimits {
    /// The largest request head, request line included.
    pub header_bytes: usize,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// How long a client connection is kept between requests.
    pub idle_timeout: Duration,
}

/// An app published through the front door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Which hosts it answers for; empty: any host that no other service names.
    pub hosts: Vec<String>,
    /// Which paths it answers for, on segment boundaries.
    pub path_prefix: String,
    /// Active while there is no state file.
    pub active: BackendName,
    /// What `uh-proxy drain` waits for at most, unless told.
    pub drain_timeout: Duration,
    /// At least one, in the order of the file.
    pub backends: Vec<BackendConfig>,
    /// How endpoints are probed.
    pub health: HealthCheck,
    /// How long each part of an exchange may take.
    pub timeouts: Timeouts,
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendConfig {
    /// Its name.
    pub name: BackendName,
    /// At least one.
    pub endpoints: Vec<Address>,
    /// The app's version, where it is known beforehand.
    pub version: Option<String>,
}

/// How endpoints are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Off: every backend is taken as healthy.
    pub enabled: bool,
    /// What is asked for.
    pub path: String,
    /// The `Host` header; `None`: the endpoint's address.
    pub host: Option<String>,
    /// From one probe's start to the next.
    pub interval: Duration,
    /// How long a probe may take.
    pub timeout: Duration,
    /// Good probes in a row that make an endpoint healthy.
    pub healthy_after: u32,
    /// Bad probes in a row that make it unhealthy.
    pub unhealthy_after: u32,
    /// Whether the body's `deployment` must name the backend.
    pub expect_identity: bool,
}

/// How long each part of an exchange may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For one connection attempt to an endpoint.
    pub connect: Duration,
    /// Without any byte moving, while the backend is the one waited for.
    pub read: Duration,
    /// Without any byte moving, while the backend takes none of the request.
    pub write: Duration,
    /// How long an upstream connection is kept for the next exchange. Below Node's keep-alive of 5 s, so that we
    /// close first.
    pub idle: Duration,
    /// Without any byte moving, while the client is the one waited for: its body, or its reading of ours.
    pub client: Duration,
    /// Without any byte moving in a tunnel.
    pub tunnel_idle: Duration,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML; the message has line and column.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// It has mistakes.
    #[error("{0}")]
    Mistakes(Mistakes),
}

/// All mistakes in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mistakes(pub Vec<Mistake>);

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The full key: `services.app.health.interval`.
    pub key: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "{count} mistake{} in the configuration:", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {}: {}", mistake.key, mistake.reason))
    }
}

/// Reads and checks a configuration file.
///
/// # Errors
/// The file can't be read, is not TOML, or has mistakes.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(&text)
}

/// Checks a configuration.
///
/// # Errors
/// It is not TOML, or has mistakes.
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax(e.to_string()))?;
    let mut root = Section::root(table);
    let mistakes = root.mistakes();
    let server = server(&mut root.section("server"));
    let has_services = root.has("services");
    let services: Vec<Service> =
        root.sections("services").into_iter().filter_map(|(name, section)| service(&name, section)).collect();
    check_services(&root, has_services, &services);
    drop(root);
    let mistakes = reader::collect(&mistakes);
    if mistakes.0.is_empty() { Ok(Config { server, services }) } else { Err(ConfigError::Mistakes(mistakes)) }
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A request head is read into one buffer, so it can't be larger than that.
const MAX_HEADER_BYTES: u64 = 60 << 10;

/// More worker threads than any machine this is meant for has cores.
const MAX_THREADS: u32 = 1024;

fn server(section: &mut Section) -> Server {
    let nowhere = !section.has("listen") || section.is_empty_list("listen");
    let listen = section.list::<ListenAddress>("listen").unwrap_or_default();
    if nowhere {
        section.mistake("listen", "missing: where clients connect, as in [\"0.0.0.0:80\"]");
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = section.integer("threads", 0, (0, MAX_THREADS));
    Server {
        listen: listen.into_iter().map(|address| address.0).collect(),
        metrics: section.parsed::<ListenAddress>("metrics").map(|address| address.0),
        admin_socket: section.path("admin_socket", uh_protocol::DEFAULT_ADMIN_SOCKET),
        admin_users: section.numbers("admin_users"),
        state_file: section.path("state_file", "/var/lib/uh-proxy/.deployment-state.json"),
        threads: if threads == 0 { cores } else { threads as usize },
        shutdown_timeout: section.duration("shutdown_timeout", 30 * SECOND, (Duration::ZERO, DAY)),
        access_log: access_log(&mut section.section("access_log")),
        log: section.choice("log", LogFormat::Text, &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        limits: server_limits(&mut section.section("limits")),
    }
}

fn access_log(section: &mut Section) -> AccessLog {
    let path = section.path("path", "-");
    let formats = [
        ("json", AccessLogFormat::Json),
        ("combined", AccessLogFormat::Combined),
        ("timed_combined", AccessLogFormat::TimedCombined),
        ("off", AccessLogFormat::Off),
    ];
    let format = section.choice("format", AccessLogFormat::Json, &formats);
    AccessLog { path: (path.as_os_str() != "-").then_some(path), format }
}

fn server_limits(section: &mut Section) -> ServerLimits {
    let header_bytes = section.size("header_bytes", 32 << 10, (1 << 10, MAX_HEADER_BYTES));
    ServerLimits {
        header_bytes: usize::try_from(header_bytes).unwrap_or(usize::MAX),
        header_timeout: section.duration("header_timeout", 15 * SECOND, (MS, DAY)),
        idle_timeout: section.duration("idle_timeout", 75 * SECOND, (MS, DAY)),
    }
}

fn service(name: &str, mut section: Section) -> Option<Service> {
    let hosts = section.list::<HostPattern>("hosts").unwrap_or_default();
    let path_prefix = section.text("path_prefix").unwrap_or_else(|| "/".to_owned());
    if !path_prefix.starts_with('/')
        || path_prefix.bytes().any(|b| b <= b' ' || b == b'?' || b == b'#' || b == 0x7f)
    {
        section.mistake(
            "path_prefix",
            format!("{path_prefix:?} is not a path: it starts with / and has no query"),
        );
    }
    let drain_timeout = section.duration("drain_timeout", 30 * SECOND, (Duration::ZERO, DAY));
    let health = health(&mut section.section("health"));
    let timeouts = timeouts(&mut section.section("timeouts"));
    let backends: Vec<BackendConfig> = section
        .sections("backends")
        .into_iter()
        .filter_map(|(name, section)| backend(&name, section))
        .collect();
    let has_active = section.has("active");
    let active = section.parsed::<BackendName>("active");
    if !has_active {
        section.mistake("active", "missing: which backend is active at the very first start");
    }
    if backends.is_empty() {
        section.mistake("backends", "missing: at least one, as in [services.NAME.backends.blue]");
    } else if let Some(active) = active.as_ref().filter(|active| !backends.iter().any(|b| b.name == **active))
    {
        let names: Vec<&str> = backends.iter().map(|b| b.name.as_str()).collect();
        section.mistake("active", format!("no backend is called {active}; there are: {}", names.join(", ")));
    }
    let name = match name.parse() {
        Ok(name) => name,
        Err(e) => {
            section.mistake("", format!("{e}"));
            return None;
        }
    };
    let hosts = hosts.into_iter().map(|host| host.0).collect();
    Some(Service { name, hosts, path_prefix, active: active?, drain_timeout, backends, health, timeouts })
}

fn backend(name: &str, mut section: Section) -> Option<BackendConfig> {
    let (has_endpoints, none) = (section.has("endpoints"), section.is_empty_list("endpoints"));
    let endpoints = section.list::<Address>("endpoints").unwrap_or_default();
    if !has_endpoints {
        section.mistake("endpoints", "missing: at least one, as in [\"127.0.0.1:3008\"]");
    } else if none {
        section.mistake("endpoints", "empty: at least one, as in [\"127.0.0.1:3008\"]");
    } else if endpoints.len() > MAX_ENDPOINTS {
        section.mistake("endpoints", format!("more than {MAX_ENDPOINTS}"));
    }
    let version = section.text("version");
    match name.parse() {
        Ok(name) => Some(BackendConfig { name, endpoints, version }),
        Err(e) => {
            section.mistake("", format!("{e}"));
            None
        }
    }
}

fn health(section: &mut Section) -> HealthCheck {
    let path = section.text("path").unwrap_or_else(|| "/api/health".to_owned());
    if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b >= 0x7f) {
        section.mistake("path", format!("{path:?} is not a path"));
    }
    let host = section.text("host");
    if host.as_ref().is_some_and(|host| host.is_empty() || host.bytes().any(|b| b <= b' ' || b >= 0x7f)) {
        section.mistake("host", "not a host");
    }
    HealthCheck {
        enabled: section.boolean("enabled", true),
        path,
        host,
        interval: section.duration("interval", SECOND, (10 * MS, DAY)),
        timeout: section.duration("timeout", 2 * SECOND, (10 * MS, DAY)),
        healthy_after: section.integer("healthy_after", 2, (1, 1000)),
        unhealthy_after: section.integer("unhealthy_after", 3, (1, 1000)),
        expect_identity: section.boolean("expect_identity", false),
    }
}

fn timeouts(section: &mut Section) -> Timeouts {
    Timeouts {
        connect: section.duration("connect", 2 * SECOND, (MS, DAY)),
        read: section.duration("read", 60 * SECOND, (MS, DAY)),
        write: section.duration("write", 60 * SECOND, (MS, DAY)),
        idle: section.duration("idle", 4 * SECOND, (Duration::ZERO, DAY)),
        client: section.duration("client", 60 * SECOND, (MS, DAY)),
        tunnel_idle: section.duration("tunnel_idle", 3600 * SECOND, (MS, 7 * DAY)),
    }
}

/// More endpoints than one backend of this design has: a switch builds a pool for each.
pub const MAX_ENDPOINTS: usize = 64;

/// Where to listen.
struct ListenAddress(SocketAddr);

impl std::str::FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse().map(Self);
        address.map_err(|_| {
            format!("{text:?} is not an address: write IP:port, as in \"0.0.0.0:80\" or \"[::]:80\"")
        })
    }
}

/// A host as a service names it, in lower case: `app.example.com` or `*.example.com`.
struct HostPattern(String);

impl std::str::FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let host = text.strip_prefix("*.").unwrap_or(text);
        let labels_fit = host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        });
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if (labels_fit || bracketed) && text.len() <= 253 {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(format!("{text:?} is not a host: write app.example.com or *.example.com, without a port"))
        }
    }
}

fn check_services(root: &Section, has_services: bool, services: &[Service]) {
    if !has_services {
        root.mistake("services", "missing: at least one, as in [services.app]");
    }
    for (index, service) in services.iter().enumerate() {
        let hosts = if service.hosts.is_empty() { vec![String::new()] } else { service.hosts.clone() };
        for other in &services[..index] {
            let shared = hosts.iter().find(|host| {
                if other.hosts.is_empty() { host.is_empty() } else { other.hosts.contains(host) }
            });
            let prefix = |service: &Service| service.path_prefix.trim_end_matches('/').to_owned();
            if let Some(host) = shared.filter(|_| prefix(other) == prefix(service)) {
                let host = if host.is_empty() { "every host" } else { host };
                let reason = format!("takes {host} with path {} already", service.path_prefix);
                root.mistake(
                    &format!("services.{}", service.name),
                    format!("service {} {reason}", other.name),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
