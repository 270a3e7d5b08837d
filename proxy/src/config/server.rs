//! `[server]`: where uh-proxy listens, what it writes, and the limits of a client before its request is known.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::acme::{self, Acme};
use super::headers;
use super::request_buffers::{self, RequestBuffers};
use super::tls::{self, Tls};
use uh_http1::field::MAX_FIELDS;
use uh_http1::network::Network;
use uh_http1::policy::HeaderPolicy;
use uh_settings::Section;
use uh_settings::units::{DAY, MS, SECOND};

/// The settings of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where clients connect with plain HTTP; at least one, here or in `listen_tls`.
    pub listen: Vec<SocketAddr>,
    /// Where clients connect with HTTPS.
    pub listen_tls: Vec<SocketAddr>,
    /// Where clients connect with HTTP/2 without TLS, by prior knowledge.
    pub listen_h2c: Vec<SocketAddr>,
    /// The settings for HTTPS; set if `listen_tls` is.
    pub tls: Option<Tls>,
    /// How to get certificates, if not only from files.
    pub acme: Option<Acme>,
    /// The Unix socket of the uh-keeper that holds the listening sockets; `None`: they are bound here.
    pub keeper: Option<PathBuf>,
    /// Where Prometheus scrapes.
    pub metrics: Option<SocketAddr>,
    /// The path of the admin socket.
    pub admin_socket: PathBuf,
    /// User IDs that may use it, in addition to uh-proxy's own and root.
    pub admin_users: Vec<u32>,
    /// The path of the state file.
    pub state_file: PathBuf,
    /// Worker threads; 0 in the file is already replaced by the number of cores.
    pub threads: usize,
    /// How long SIGTERM waits for in-flight requests.
    pub shutdown_timeout: Duration,
    /// How long after SIGTERM an idle client connection may still send a request.
    pub shutdown_idle_grace: Duration,
    /// One line per request.
    pub access_log: AccessLog,
    /// The format of log messages on standard error.
    pub log: LogFormat,
    /// The directory with custom error pages; `None`: the built-in page.
    pub error_pages: Option<PathBuf>,
    /// Limits that apply to a client before its request is known.
    pub limits: ServerLimits,
    /// The limits of all buffered requests.
    pub request_buffers: RequestBuffers,
    /// What uh-proxy tells the app about its clients, and which client headers it passes on.
    pub headers: HeaderPolicy,
    /// Load balancers that send a PROXY header at the start of each connection.
    pub proxy_protocol_from: Vec<Network>,
}

/// Where the access log goes, and its format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// `None`: standard output.
    pub path: Option<PathBuf>,
    /// The format of a line.
    pub format: AccessLogFormat,
}

/// The format of an access log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object per line.
    Json,
    /// nginx's `combined`.
    Combined,
    /// The guide's `timed_combined`: the request time, in seconds, is the last field.
    TimedCombined,
    /// No access log.
    Off,
}

/// The format of log messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For humans.
    Text,
    /// For log collectors.
    Json,
}

/// Limits that apply to a client before its request is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerLimits {
    /// The largest request head, request line included.
    pub header_bytes: usize,
    /// The most fields of a request head.
    pub header_fields: usize,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// How long a client connection is kept between requests.
    pub idle_timeout: Duration,
    /// Requests that one client connection may carry.
    pub requests_per_connection: u32,
    /// Client connections in all; `None`: as many as the file descriptor limit allows. Never more than that.
    pub connections: Option<u32>,
    /// Client connections from one address; `None`: any number.
    pub connections_per_address: Option<u32>,
    /// The time limit for a TLS handshake, from the accepted connection on.
    pub tls_handshake_timeout: Duration,
    /// TLS handshakes in progress.
    pub tls_handshakes: usize,
    /// Requests in flight from one address over HTTP/2; `None`: any number.
    pub requests_in_flight_per_address: Option<u32>,
    /// Requests in flight on one HTTP/2 connection.
    pub h2_streams: u32,
    /// How much of one request's body an HTTP/2 client may send ahead.
    pub h2_stream_window: u32,
    /// The same for all requests of one connection.
    pub h2_connection_window: u32,
    /// Requests that a client may cancel on one connection before they are answered, within 10 s.
    pub h2_cancelled_requests: u32,
    /// Frames that move no request and no response, on one connection within 10 s.
    pub h2_control_frames: u32,
}

/// A request head is read into one buffer, so it can't be larger than that.
const MAX_HEADER_BYTES: u64 = 60 << 10;

/// The smallest window that HTTP/2 starts with (RFC 9113 §6.9.2).
const MIN_HTTP2_WINDOW: u64 = 65_535;

/// More than any connection needs: 1 GiB/s over 16 ms.
const MAX_HTTP2_WINDOW: u64 = 16 << 20;

/// More worker threads than the cores of any machine that uh-proxy is meant for.
const MAX_THREADS: u32 = 1024;

/// A stalled handshake takes up to 20 KiB of memory: together less than 16 MiB.
const MOST_HANDSHAKES: u32 = 768;

pub(super) fn server(section: &mut Section) -> Server {
    let none = |section: &Section, key: &str| !section.has(key) || section.is_empty_list(key);
    let nowhere = ["listen", "listen_tls", "listen_h2c"].iter().all(|key| none(section, key));
    // First: it looks at what else is there.
    let tls = tls::tls(section);
    let acme = acme::acme(section);
    let listen_tls = section.list::<ListenAddress>("listen_tls").unwrap_or_default();
    let listen = section.list::<ListenAddress>("listen").unwrap_or_default();
    let listen_h2c = section.list::<ListenAddress>("listen_h2c").unwrap_or_default();
    if nowhere {
        section.mistake(
            "listen",
            "missing: set the addresses that clients connect to, such as [\"0.0.0.0:80\"]",
        );
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if let Some(both) =
        listen_tls.iter().find(|tls| tls.0.port() != 0 && listen.iter().any(|one| one.0 == tls.0))
    {
        section.mistake(
            "listen_tls",
            format!("{} is in listen too; an address can serve either HTTP or HTTPS", both.0),
        );
    }
    let taken = |h2c: &&ListenAddress| listen.iter().chain(&listen_tls).any(|one| one.0 == h2c.0);
    if let Some(both) = listen_h2c.iter().filter(|h2c| h2c.0.port() != 0).find(taken) {
        let reason =
            "is in listen or listen_tls too; an address can serve HTTP/2 without TLS, or anything else";
        section.mistake("listen_h2c", format!("{} {reason}", both.0));
    }
    let threads = section.integer("threads", 0, (0, MAX_THREADS));
    Server {
        listen: listen.into_iter().map(|address| address.0).collect(),
        listen_tls: listen_tls.into_iter().map(|address| address.0).collect(),
        listen_h2c: listen_h2c.into_iter().map(|address| address.0).collect(),
        tls,
        acme,
        keeper: section.has("keeper").then(|| section.path("keeper", "")),
        metrics: section.parsed::<ListenAddress>("metrics").map(|address| address.0),
        admin_socket: section.path("admin_socket", uh_protocol::DEFAULT_ADMIN_SOCKET),
        admin_users: section.numbers("admin_users"),
        state_file: section.path("state_file", "/var/lib/uh-proxy/.deployment-state.json"),
        threads: if threads == 0 { cores } else { threads as usize },
        shutdown_timeout: section.duration("shutdown_timeout", 30 * SECOND, (Duration::ZERO, DAY)),
        shutdown_idle_grace: section.duration("shutdown_idle_grace", SECOND, (Duration::ZERO, 60 * SECOND)),
        access_log: access_log(&mut section.section("access_log")),
        log: section.choice("log", LogFormat::Text, &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        error_pages: section.has("error_pages").then(|| section.path("error_pages", "")),
        limits: server_limits(&mut section.section("limits")),
        request_buffers: request_buffers::of_server(&mut section.section("request_buffers")),
        headers: headers::headers(section),
        proxy_protocol_from: section.list("proxy_protocol_from").unwrap_or_default(),
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
        header_fields: section.integer("header_fields", 100, (1, MAX_FIELDS as u32)) as usize,
        requests_per_connection: section.integer("requests_per_connection", 100_000, (1, u32::MAX)),
        connections: Some(section.integer("connections", 0, (0, u32::MAX))).filter(|&most| most > 0),
        connections_per_address: Some(section.integer("connections_per_address", 1024, (0, u32::MAX)))
            .filter(|&most| most > 0),
        tls_handshake_timeout: section.duration("tls_handshake_timeout", 10 * SECOND, (MS, DAY)),
        tls_handshakes: section.integer("tls_handshakes", MOST_HANDSHAKES, (1, u32::MAX)) as usize,
        requests_in_flight_per_address: Some(section.integer(
            "requests_in_flight_per_address",
            1024,
            (0, u32::MAX),
        ))
        .filter(|&most| most > 0),
        h2_streams: section.integer("h2_streams", 128, (1, 1024)),
        h2_stream_window: http2_window(section, "h2_stream_window", 256 << 10),
        h2_connection_window: http2_window(section, "h2_connection_window", 1 << 20),
        h2_cancelled_requests: section.integer("h2_cancelled_requests", 100, (1, u32::MAX)),
        h2_control_frames: section.integer("h2_control_frames", 1000, (10, u32::MAX)),
    }
}

fn http2_window(section: &mut Section, key: &'static str, default: u64) -> u32 {
    let bytes = section.size(key, default, (MIN_HTTP2_WINDOW, MAX_HTTP2_WINDOW));
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Where to listen.
struct ListenAddress(SocketAddr);

impl std::str::FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse().map(Self);
        address.map_err(|_| {
            format!("{text:?} isn't an address: use IP:port, such as \"0.0.0.0:80\" or \"[::]:80\"")
        })
    }
}
